"""The training step of the paper's network with each idea taken away in turn: what each is worth on a machine.

Variants are put together here from the same pieces; the network itself has no switches. What a machine does not use
has nothing to be taken away there: on a CPU blocks of pixels, halves of channels and recorded graphs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fasttransfer.bench import training
from fasttransfer.networks import inputs
from fasttransfer.networks.caffenet import CaffeNet, Stage, StepDropout, conv_in_halves, weights_for_blocks
from fasttransfer.networks.geometry import CAFFENET, Geometry
from fasttransfer.ops import augment
from fasttransfer.pipelines.decode import decode
from fasttransfer.training.cuda_graph import RecordedGraph
from fasttransfer.training.step import StageTrainer

CUTS = range(1, 8)
WHOLE = "all ideas"
COMPILED = "with torch.compile"  # which a study does not use: docs/decisions/compile.md

Call = Callable[[int], object]


@dataclass(frozen=True)
class Idea:
    """One thing that is taken away.

    Attributes:
        instead: what is done in its place.
        gpu_only: a CPU does without it anyway.
    """

    name: str
    instead: str
    gpu_only: bool = False


IDEAS = {
    "step": (
        Idea("fused pooling and normalisation", "bias, ReLU, max pooling and LRN as PyTorch has them"),
        Idea("sparse gradients", "PyTorch's gradients of convolutions, with all the zeros that pooling leaves"),
        Idea("sgd_step", "torch.optim.SGD (foreach), gradients and weights cast between bf16 and fp32"),
        Idea("channels-last", "images, weights and features in planes"),
        Idea("bf16", "fp32"),
        Idea("space-to-depth", "the first convolution on pixels, 11 x 11 with stride 4", gpu_only=True),
        Idea("split groups", "grouped convolutions", gpu_only=True),
        Idea("CUDA graphs", "every kernel launched by the CPU", gpu_only=True),
    ),
    "cohort": (Idea("shared prefix", "every cell runs its own frozen stages"),),
    "feed": (Idea("store", "JPEGs decoded and resized anew in every epoch"),),
}


def variants(
    group: str,
    batch: int,
    device: torch.device,
    blobs: Sequence[bytes],
    threads: int,
    geometry: Geometry = CAFFENET,
) -> dict[str, Call]:
    """`WHOLE` and, by the idea's name, what is left without each of `IDEAS[group]` that `device` uses.

    Args:
        blobs: JPEGs, for "feed".
        threads: that decode them.
    """
    if group == "step":
        found = _steps(geometry, batch, device)
    elif group == "cohort":
        found = _cohorts(geometry, batch, device)
    else:
        found = _feeds(geometry, batch, device, blobs, threads)
    skipped = {idea.name for idea in IDEAS[group] if idea.gpu_only and device.type != "cuda"}
    return {name: call for name, call in found.items() if name not in skipped}


def _steps(geometry: Geometry, batch: int, device: torch.device) -> dict[str, Call]:
    on_gpu = device.type == "cuda"
    images = training.random_images(geometry, batch, "bf16", device)
    pixels = torch.randn(batch, *geometry.cut_shape(0), device=device).to(torch.bfloat16)

    def made(
        x: Tensor = images,
        *,
        stage: type[Stage] | None = None,
        kind: type[StageTrainer] = StageTrainer,
        change: Callable[[CaffeNet], None] = lambda net: None,
        recorded: bool = on_gpu,
    ) -> Call:
        def changed(net: CaffeNet) -> None:
            if stage is not None:
                _exchange(net, stage)
            change(net)

        trainee = training.trainee_of(geometry, "bf16", device, change=changed, kind=kind)
        return training.stepping(trainee, x, recorded=recorded)

    found = {
        WHOLE: made(),
        "fused pooling and normalisation": made(stage=_Composite),
        "sparse gradients": made(stage=_Dense),
        "sgd_step": made(kind=_PlainUpdate),
        "channels-last": made(images.contiguous(), stage=_Planes, change=_in_planes),
        "bf16": training.fast(geometry, batch, "fp32", device),
        COMPILED: training.fast(geometry, batch, "bf16", device, compiled=True),
    }
    if on_gpu:
        found |= {
            "space-to-depth": made(pixels.contiguous(memory_format=torch.channels_last)),
            "split groups": made(stage=_Grouped),
            "CUDA graphs": made(recorded=False),
        }
    return found


def _cohorts(geometry: Geometry, batch: int, device: torch.device) -> dict[str, Call]:
    """Seven frozen cells: on one stream behind one prefix, and each behind its own."""
    images = training.random_images(geometry, batch, "bf16", device)
    frozen = training.trainee_of(geometry, "bf16", device).net
    trainees = {n: training.trainee_of(geometry, "bf16", device, start=n) for n in CUTS}
    features = {n: torch.empty(0) for n in CUTS}
    labels = torch.randint(training.OUTPUTS, (batch,), device=device)
    at, lr = torch.zeros((), dtype=torch.int64, device=device), torch.tensor(1e-4, device=device)
    drop = StepDropout({7: 7, 8: 8}, at, training.DROPOUT)

    def together(given: Mapping[str, Tensor]) -> None:
        x = given["images"]
        for n in CUTS:
            with torch.no_grad():
                x = frozen(x, start=n - 1, stop=n, drop=drop)
            features[n] = x
        for n, trainee in trainees.items():
            trainee.step(features[n], labels, drop, lr)

    def alone(given: Mapping[str, Tensor]) -> None:
        for n, trainee in trainees.items():
            with torch.no_grad():
                x = frozen(given["images"], stop=n, drop=drop)
            trainee.step(x, labels, drop, lr)

    def call(run: Callable[[Mapping[str, Tensor]], None]) -> Call:
        recorded = RecordedGraph(run) if device.type == "cuda" else run
        return lambda i: recorded({"images": images})

    return {WHOLE: call(together), "shared prefix": call(alone)}


def _feeds(
    geometry: Geometry, batch: int, device: torch.device, blobs: Sequence[bytes], threads: int
) -> dict[str, Call]:
    """A training step with its images: gathered from a raw store in memory, or decoded from their files."""
    side, crop = geometry.store, geometry.crop
    stored = torch.randint(0, 256, (4 * batch, side, side, 3), dtype=torch.uint8, device=device)
    mean = torch.rand(side, side, 3, device=device) * 255
    entrance = inputs.choose_input_form(geometry, device.type, "bf16")
    trainee = training.trainee_of(geometry, "bf16", device)
    x = training.random_images(geometry, batch, "bf16", device)
    step = training.stepping(trainee, x, recorded=device.type == "cuda")
    pool, files = ThreadPoolExecutor(threads), [blobs[i % len(blobs)] for i in range(batch)]

    def fed(images: Tensor, rows: Tensor) -> None:
        top, left = torch.randint(0, side - crop + 1, (2, batch), device=device)
        mirror = torch.rand(batch, device=device) < 0.5
        x.copy_(augment([images], rows, mean, top, left, mirror, crop=crop, scale=1.0, **entrance))

    def whole(i: int) -> None:
        fed(stored, torch.randint(0, len(stored), (batch,), device=device))
        step(i)

    def decoded(i: int) -> None:
        images = np.stack(list(pool.map(lambda file: decode(file, side), files)))
        fed(torch.from_numpy(images).to(device), torch.arange(batch, device=device))
        step(i)

    return {WHOLE: whole, "store": decoded}


# -- what is put in place of an idea ---------------------------------------------------------------------------------


def _exchange(net: CaffeNet, kind: type[Stage]) -> None:
    """Puts stages of another kind in the place of stages 1 to 5, before weights are loaded."""
    for i, stage in enumerate(net.stages[:5]):
        assert isinstance(stage, Stage)
        weight = stage.weight
        net.stages[i] = kind(net.geometry, i + 1, net.outputs, weight.dtype).to(weight.device)


class _Composite(Stage):
    """Bias, ReLU, pooling and normalisation one after another."""

    def forward(self, x: Tensor, drop: StepDropout | None = None) -> Tensor:
        if not self.pools:
            return super().forward(x, drop)
        x = F.max_pool2d(F.relu(self._convolve(x) + self.bias.to(x.dtype)[:, None, None]), 3, 2, ceil_mode=True)
        if self.after == "pool":
            return x
        return F.local_response_norm(x.float(), 5, alpha=1e-4, beta=0.75, k=1.0).to(x.dtype)


class _Planes(Stage):
    """Weights of blocks in planes too."""

    def _convolve(self, x: Tensor) -> Tensor:
        if self.stage == 1 and x.shape[1] != 3:
            return F.conv2d(x, weights_for_blocks(self.weight, self.stride).contiguous(), None)
        bias = None if self.pools else self.bias
        if self.groups == 2 and x.is_cuda:
            return conv_in_halves(x, self.weight, bias, self.padding)
        return F.conv2d(x, self.weight, bias, self.stride, self.padding, groups=self.groups)


class _Dense(Stage):
    """Convolutions whose gradients are PyTorch's."""

    def _convolve(self, x: Tensor) -> Tensor:
        if not self.pools or x.is_cuda:
            return super()._convolve(x)
        return F.conv2d(x, self.weight, None, self.stride, self.padding, groups=self.groups)


class _Grouped(Stage):
    """Convolutions in groups as they are written."""

    def _convolve(self, x: Tensor) -> Tensor:
        if self.groups == 1:
            return super()._convolve(x)
        bias = None if self.pools else self.bias
        return F.conv2d(x, self.weight, bias, self.stride, self.padding, groups=self.groups)


def _in_planes(net: CaffeNet) -> None:
    for stage in net.stages[:5]:
        assert isinstance(stage, Stage)
        stage.weight.data = stage.weight.data.contiguous()


class _PlainUpdate(StageTrainer):
    """PyTorch's optimiser on float32 weights, from which the network's are rounded anew in every step."""

    def step(self, x: Tensor, labels: Tensor, drop: StepDropout, lr: Tensor) -> Tensor:
        own = list(self.weights.values())
        if not hasattr(self, "_optimiser"):
            self._wide = [torch.empty_like(weight) for weight in own]
            for weight, gradient in zip(own, self._wide, strict=True):
                weight.grad = gradient
            self._optimiser = torch.optim.SGD(own, 1e-4, momentum=0.9, weight_decay=5e-4, foreach=True)
        loss = F.cross_entropy(self.net(x, start=self.start, drop=drop).float(), labels)
        with torch.no_grad():
            torch._foreach_copy_(self._wide, torch.autograd.grad(loss, self._working))
            self._optimiser.step()
            torch._foreach_copy_([weight.detach() for weight in self._working], own)
        return loss.detach()
