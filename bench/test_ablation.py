"""The training step of the paper's network without each of its optimisations: what each gains on a machine.

Variants are made here from the network's own parts; the product has no switches for them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fasttransfer.bench import feed, step
from fasttransfer.bench.harness import Call, emulates
from fasttransfer.core import machine
from fasttransfer.networks.architecture import StepDraws
from fasttransfer.networks.caffenet import (
    CAFFENET,
    CAFFENET_MINI,
    CaffeNet,
    CaffeNetArchitecture,
)
from fasttransfer.networks.caffenet_stage import Stage, conv_in_halves, weights_for_blocks
from fasttransfer.networks.precision import dtype_of
from fasttransfer.ops import augment
from fasttransfer.pipelines.decode import decode
from fasttransfer.training.cuda_graph import RecordedGraph
from fasttransfer.training.step import StageTrainer

WHOLE = "all optimisations"
CUTS = range(1, 8)


@pytest.mark.parametrize("network", [CAFFENET, CAFFENET_MINI], ids=lambda network: network.name)
def test_ablated_step(
    compare: Callable[..., Any], network: CaffeNetArchitecture, device: torch.device, quick: bool
) -> None:
    batch, precision = _size(device, quick)
    if network is CAFFENET_MINI and device.type == "cpu":  # as its recipe trains it
        batch, precision = 16, "fp32"
    calls = steps(network, batch, precision, device)
    if quick:
        del calls["with torch.compile"]
    compare(calls, sample=0.1, work=batch, precision=precision)


def test_ablated_cohort(compare: Callable[..., Any], device: torch.device, quick: bool) -> None:
    """Seven frozen cells behind one prefix, and each behind its own."""
    batch, precision = _size(device, quick)
    compare(cohorts(CAFFENET, batch, precision, device), sample=0.1, work=7 * batch, precision=precision)


def test_ablated_feed(
    compare: Callable[..., Any], request: pytest.FixtureRequest, device: torch.device, quick: bool, tmp_path: Path
) -> None:
    """A step with its images from a raw store in memory, and with JPEGs decoded and resized anew."""
    batch, precision = _size(device, quick)
    blobs = feed.gather(request.config.getoption("data"), tmp_path / "images", batch).blobs
    compare(feeds(CAFFENET, batch, precision, device, blobs), sample=0.1, work=batch, precision=precision)


def _size(device: torch.device, quick: bool) -> tuple[int, str]:
    batch = 128 if device.type == "cuda" else 16 if quick else 32
    return batch, "fp32" if emulates(device, torch.bfloat16) else "bf16"


def steps(network: CaffeNetArchitecture, batch: int, precision: str, device: torch.device) -> dict[str, Call]:
    """Return the step with all optimisations and without each that the device uses.

    Without space-to-depth the first convolution reads pixels, 11 x 11 with stride 4; without CUDA graphs the CPU
    launches every kernel. A study does not use torch.compile (docs/decisions/compile.md). On a CPU all but the first
    compute gradients with autograd.
    """
    on_gpu = device.type == "cuda"
    images = step.random_images(network, batch, precision, device)

    def made(
        x: Tensor = images,
        *,
        stage: type[Stage] | None = None,
        kind: type[StageTrainer] = step.AutogradTrainer,
        change: Callable[[CaffeNet], None] = lambda net: None,
        recorded: bool = on_gpu,
    ) -> Call:
        def changed(net: CaffeNet) -> None:
            if stage is not None:
                _exchange(net, stage)
            change(net)

        trainer = step.trainer_of(network, precision, device, change=changed, kind=kind)
        return step.stepping(trainer, x, recorded=recorded)

    found = {
        WHOLE: made(kind=StageTrainer),
        "fused pooling and normalisation": made(stage=_Composite),
        "sparse gradients": made(stage=_Dense),
        "sgd_step": made(kind=_PlainUpdate),
        "channels-last": made(images.contiguous(), stage=_Planes, change=_in_planes),
        "with torch.compile": step.fast(network, batch, precision, device, compiled=True),
    }
    if not on_gpu:
        found["gradients without autograd"] = made()
        found["convolutions on small maps"] = made(stage=_Padded)
    if precision == "bf16":
        found["bf16"] = step.fast(network, batch, "fp32", device)
    if on_gpu:
        pixels = torch.randn(batch, *network.cut_shape(0), device=device).to(dtype_of(precision))
        found |= {
            "space-to-depth": made(pixels.contiguous(memory_format=torch.channels_last)),
            "split groups": made(stage=_Grouped),
            "CUDA graphs": made(recorded=False),
        }
    return found


def cohorts(network: CaffeNetArchitecture, batch: int, precision: str, device: torch.device) -> dict[str, Call]:
    """Return seven frozen cells behind one prefix, and each behind its own."""
    images = step.random_images(network, batch, precision, device)
    frozen = step.trainer_of(network, precision, device).net
    trainers = {n: step.trainer_of(network, precision, device, start=n) for n in CUTS}
    features = {n: torch.empty(0) for n in CUTS}
    labels = torch.randint(step.OUTPUTS, (batch,), device=device)
    at, lr = torch.zeros((), dtype=torch.int64, device=device), torch.tensor(1e-4, device=device)
    draws = StepDraws({7: 7, 8: 8}, at, step.DROPOUT)

    def together(given: Mapping[str, Tensor]) -> None:
        x = given["images"]
        for n in CUTS:
            with torch.no_grad():
                x = frozen(x, start=n - 1, stop=n, draws=draws)
            features[n] = x
        for n, trainer in trainers.items():
            trainer.step(features[n], labels, draws, lr)

    def alone(given: Mapping[str, Tensor]) -> None:
        for n, trainer in trainers.items():
            with torch.no_grad():
                x = frozen(given["images"], stop=n, draws=draws)
            trainer.step(x, labels, draws, lr)

    def call(run: Callable[[Mapping[str, Tensor]], None]) -> Call:
        recorded = RecordedGraph(run) if device.type == "cuda" else run
        return lambda i: recorded({"images": images})

    return {WHOLE: call(together), "shared prefix": call(alone)}


def feeds(
    network: CaffeNetArchitecture, batch: int, precision: str, device: torch.device, blobs: Sequence[bytes]
) -> dict[str, Call]:
    """Return a training step with its images from a raw store in memory, and decoded from JPEGs."""
    side, crop = network.store, network.crop
    stored = torch.randint(0, 256, (4 * batch, side, side, 3), dtype=torch.uint8, device=device)
    mean = torch.rand(side, side, 3, device=device) * 255
    form = network.input_form(device.type, dtype_of(precision))
    trainer = step.trainer_of(network, precision, device)
    x = step.random_images(network, batch, precision, device)
    train = step.stepping(trainer, x, recorded=device.type == "cuda")
    pool, files = ThreadPoolExecutor(machine.cores()), [blobs[i % len(blobs)] for i in range(batch)]

    def fed(images: Tensor, rows: Tensor) -> None:
        top, left = torch.randint(0, side - crop + 1, (2, batch), device=device)
        mirror = torch.rand(batch, device=device) < 0.5
        x.copy_(augment([images], rows, mean, top, left, mirror, crop=crop, scale=1.0, **form))

    def whole(i: int) -> None:
        fed(stored, torch.randint(0, len(stored), (batch,), device=device))
        train(i)

    def decoded(i: int) -> None:
        images = np.stack(list(pool.map(lambda file: decode(file, side), files)))
        fed(torch.from_numpy(images).to(device), torch.arange(batch, device=device))
        train(i)

    return {WHOLE: whole, "store": decoded}


# -- the replacements -----------------------------------------------------------------------------------------------


def _exchange(net: CaffeNet, kind: type[Stage]) -> None:
    """Replace stages 1 to 5 by stages of another kind, before weights are loaded."""
    for i, stage in enumerate(net.stages[:5]):
        assert isinstance(stage, Stage)
        weight = stage.weight
        net.stages[i] = kind(net.geometry, i + 1, net.outputs, weight.dtype).to(weight.device)


class _Composite(Stage):
    """Bias, ReLU, pooling and normalisation as separate operators."""

    def forward(self, x: Tensor, draws: StepDraws | None = None) -> Tensor:
        if not self.pools:
            return super().forward(x, draws)
        x = F.max_pool2d(F.relu(self._convolve(x) + self.bias.to(x.dtype)[:, None, None]), 3, 2, ceil_mode=True)
        if self.after == "pool":
            return x
        return F.local_response_norm(x.float(), 5, alpha=1e-4, beta=0.75, k=1.0).to(x.dtype)


class _Planes(Stage):
    """Images, weights and features in planes (contiguous memory), also the weights of blocks."""

    def _convolve(self, x: Tensor) -> Tensor:
        if self.stage == 1 and x.shape[1] != 3:
            return F.conv2d(x, weights_for_blocks(self.weight, self.stride).contiguous(), None)
        bias = None if self.pools else self.bias
        if self.groups == 2 and x.is_cuda:
            y = conv_in_halves(x, self.weight, bias, self.padding)
        else:
            y = F.conv2d(x, self.weight, bias, self.stride, self.padding, groups=self.groups)
        return y if self.pools else F.relu(y)


class _Dense(Stage):
    """Convolutions with PyTorch's gradients, which multiply with all the zeros that pooling leaves."""

    def _convolve(self, x: Tensor) -> Tensor:
        if not self.pools or x.is_cuda:
            return super()._convolve(x)
        return F.conv2d(x, self.weight, None, self.stride, self.padding, groups=self.groups)


class _Padded(Stage):
    """PyTorch's convolutions also on small maps."""

    def _convolve(self, x: Tensor) -> Tensor:
        if self.pools:
            return super()._convolve(x)
        return F.relu(F.conv2d(x, self.weight, self.bias, padding=self.padding, groups=self.groups))


class _Grouped(Stage):
    """Grouped convolutions, where a GPU gets two halves."""

    def _convolve(self, x: Tensor) -> Tensor:
        if self.groups == 1:
            return super()._convolve(x)
        y = F.conv2d(x, self.weight, None if self.pools else self.bias, padding=self.padding, groups=self.groups)
        return y if self.pools else F.relu(y)


def _in_planes(net: CaffeNet) -> None:
    for stage in net.stages[:5]:
        assert isinstance(stage, Stage)
        stage.weight.data = stage.weight.data.contiguous()


class _PlainUpdate(StageTrainer):
    """torch.optim.SGD on float32 weights, from which every step rounds the network's."""

    def step(self, x: Tensor, labels: Tensor, draws: StepDraws, lr: Tensor) -> Tensor:
        own = list(self.weights.values())
        if not hasattr(self, "_optimiser"):
            self._wide = [torch.empty_like(weight) for weight in own]
            for weight, gradient in zip(own, self._wide, strict=True):
                weight.grad = gradient
            self._optimiser = torch.optim.SGD(own, 1e-4, momentum=0.9, weight_decay=5e-4, foreach=True)
        loss = F.cross_entropy(self.net(x, start=self.start, draws=draws).float(), labels)
        with torch.no_grad():
            torch._foreach_copy_(self._wide, torch.autograd.grad(loss, self._working))
            self._optimiser.step()
            torch._foreach_copy_([weight.detach() for weight in self._working], own)
        return loss.detach()
