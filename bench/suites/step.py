"""The cases of `fasttransfer bench step`: a training step, the same in PyTorch, and its products alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache

import torch
from torch import Tensor

from fasttransfer.bench.baselines import caffenet as plain
from fasttransfer.bench.harness import Call, emulates
from fasttransfer.core import randomness
from fasttransfer.networks.architecture import StagedNetwork, StepDraws
from fasttransfer.networks.caffenet import CaffeNet, CaffeNetArchitecture
from fasttransfer.networks.geometry import DROPOUT_STAGES
from fasttransfer.networks.precision import dtype_of
from fasttransfer.study.recipe import load_recipe
from fasttransfer.training.cuda_graph import RecordedGraph
from fasttransfer.training.step import StageTrainer

OUTPUTS = 500
RECIPES = {"caffenet": "caffe", "caffenet-mini": "mini"}
DROPOUT = 0.5
PRODUCTS = "convolutions and products alone"


class AutogradTrainer(StageTrainer):
    """A trainer whose gradients come from autograd on every device, as those of a compiled network must."""

    def _gradients(self, x: Tensor, labels: Tensor, draws: StepDraws) -> tuple[Tensor, Sequence[Tensor]]:
        return StagedNetwork.gradients(
            self.net, x, labels, draws, start=self.start, label_smoothing=self._label_smoothing
        )


def fast(
    network: CaffeNetArchitecture, batch: int, precision: str, device: torch.device, *, compiled: bool = False
) -> Call:
    """Return a step of this project on random images, on a GPU as a CUDA graph.

    Args:
        compiled: put the network through torch.compile, as one graph.
    """
    trainer = trainer_of(network, precision, device, kind=AutogradTrainer if compiled else StageTrainer)
    if compiled:
        trainer.net.compile(fullgraph=True, dynamic=False)
    return stepping(trainer, random_images(network, batch, precision, device), recorded=device.type == "cuda")


def trainer_of(
    network: CaffeNetArchitecture,
    precision: str,
    device: torch.device,
    *,
    start: int = 0,
    change: Callable[[CaffeNet], None] = lambda net: None,
    kind: type[StageTrainer] = StageTrainer,
) -> StageTrainer:
    """Return a trainer of the stages behind cut `start`, from He's initial values.

    Args:
        change: applied to the network first.
    """
    net = network.build(OUTPUTS, precision, device, start=start)
    change(net)
    return kind(net, start, _initial_values(network), load_recipe(RECIPES[network.name]))


@cache
def _initial_values(network: CaffeNetArchitecture) -> dict[str, Tensor]:
    return network.draw(OUTPUTS, "he", lambda stage: randomness.key(0, "bench-weights", stage))


def random_images(network: CaffeNetArchitecture, batch: int, precision: str, device: torch.device) -> Tensor:
    """Return a batch in the form that the first stage reads on a device."""
    form = network.input_form(device.type, dtype_of(precision))
    shape = (batch, 3 * form["block"] ** 2, form["side"], form["side"])
    return torch.randn(shape, device=device).to(form["dtype"], memory_format=torch.channels_last)


def stepping(trainer: StageTrainer, x: Tensor, *, recorded: bool) -> Call:
    """Return one step per call on `x`, at the trainer's cut, with random labels.

    Args:
        recorded: as a CUDA graph.
    """
    device = x.device
    given = {"x": x, "labels": torch.randint(OUTPUTS, (len(x),), device=device)}
    at, lr = torch.zeros((), dtype=torch.int64, device=device), torch.tensor(1e-4, device=device)
    draws = StepDraws({stage: stage for stage in DROPOUT_STAGES}, at, DROPOUT)

    def step(batch: Mapping[str, Tensor]) -> None:
        at.add_(1)
        trainer.step(batch["x"], batch["labels"], draws, lr)

    run = RecordedGraph(step) if recorded else step
    return lambda i: run(given)


def plain_step(
    network: CaffeNetArchitecture,
    batch: int,
    device: torch.device,
    *,
    channels_last: bool = False,
    precision: str = "fp32",
    compiled: bool = False,
) -> Call:
    """Return a step as one writes it in PyTorch, on random images; bf16 under autocast."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    net = plain.caffenet(network, OUTPUTS).to(device).to(memory_format=layout)
    images = torch.randn(batch, *network.cut_shape(0), device=device).contiguous(memory_format=layout)
    labels = torch.randint(OUTPUTS, (batch,), device=device)
    step = plain.training_step(net, images, labels, bf16=precision == "bf16", compiled=compiled)
    return lambda i: step()


def variants(
    network: CaffeNetArchitecture, batch: int, device: torch.device, *, compiled: bool = True
) -> dict[str, Call]:
    """Return this project's step, PyTorch's in its usual forms, and the convolutions and products alone.

    bf16 comes first, and is left out where the processor emulates it.

    Args:
        compiled: with the forms that go through torch.compile.
    """
    precisions = ["fp32"] if emulates(device, torch.bfloat16) else ["bf16", "fp32"]
    best = precisions[0]
    found = {f"fasttransfer {each}": fast(network, batch, each, device) for each in precisions}
    found["eager fp32"] = plain_step(network, batch, device)
    found[f"eager {best} channels-last"] = plain_step(network, batch, device, channels_last=True, precision=best)
    if compiled:
        found[f"fasttransfer {best} compiled"] = fast(network, batch, best, device, compiled=True)
        for name, layout in ((f"compiled {best}", False), (f"compiled {best} channels-last", True)):
            found[name] = plain_step(network, batch, device, channels_last=layout, precision=best, compiled=True)
    products = plain.products_alone(network, OUTPUTS, batch, device, dtype_of(best))
    return found | {PRODUCTS: lambda i: products()}


def profile(call: Call, device: torch.device, steps: int = 3) -> list[dict[str, str | float]]:
    """Return where a step's time goes, dearest first: each operator's own milliseconds and calls per step."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    call(0)
    with torch.profiler.profile(activities=activities) as profiler:
        for i in range(steps):
            call(i)
    spent = "self_device_time_total" if device.type == "cuda" else "self_cpu_time_total"
    rows = [(getattr(e, spent) / 1e3 / steps, round(e.count / steps), e.key) for e in profiler.key_averages()]
    return [{"operator": key, "ms": round(ms, 3), "calls": calls} for ms, calls, key in sorted(rows)[::-1] if ms > 0]
