"""The training step of the paper's network against the same in PyTorch, and against its products alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache

import torch
from torch import Tensor

from fasttransfer.bench.baselines import caffenet as plain
from fasttransfer.core import randomness
from fasttransfer.networks import inputs
from fasttransfer.networks.caffenet import CaffeNet, StepDropout, draw_weights
from fasttransfer.networks.geometry import DROPOUT_STAGES, Geometry
from fasttransfer.study.recipe import load_recipe
from fasttransfer.training.cuda_graph import RecordedGraph
from fasttransfer.training.step import StageTrainer

OUTPUTS = 500
RECIPES = {"caffenet": "caffe", "caffenet-mini": "mini"}
DROPOUT = 0.5


def fast(
    geometry: Geometry, batch: int, precision: str, device: torch.device, *, compiled: bool = False
) -> Callable[[int], object]:
    """A step of this project on random images: recorded as a CUDA graph on a GPU.

    Args:
        compiled: the network through torch.compile, in one piece.
    """
    trainee = trainee_of(geometry, precision, device)
    if compiled:
        trainee.net.compile(fullgraph=True, dynamic=False)
    return stepping(trainee, random_images(geometry, batch, precision, device), recorded=device.type == "cuda")


def trainee_of(
    geometry: Geometry,
    precision: str,
    device: torch.device,
    *,
    start: int = 0,
    change: Callable[[CaffeNet], None] = lambda net: None,
    kind: type[StageTrainer] = StageTrainer,
) -> StageTrainer:
    """A network that is trained from cut `start` on, from He's values.

    Args:
        change: what is done to the network before.
        kind: how it is trained.
    """
    net = CaffeNet(geometry, OUTPUTS, inputs.dtype_of(precision)).to(device)
    change(net)
    return kind(net, start, _begin(geometry), load_recipe(RECIPES[geometry.name]))


@cache
def _begin(geometry: Geometry) -> dict[str, Tensor]:
    return draw_weights(geometry, OUTPUTS, "he", lambda stage: randomness.key(0, "bench-weights", stage))


def random_images(geometry: Geometry, batch: int, precision: str, device: torch.device) -> Tensor:
    """A batch in the form that the first stage reads on `device`, see `machine.entrance`."""
    entrance = inputs.choose_input_form(geometry, device.type, precision)
    shape = (batch, 3 * entrance["block"] ** 2, entrance["side"], entrance["side"])
    return torch.randn(shape, device=device).to(entrance["dtype"], memory_format=torch.channels_last)


def stepping(trainee: StageTrainer, x: Tensor, *, recorded: bool) -> Callable[[int], object]:
    """A call does one step on `x`, at the trainee's cut, with random labels; `recorded` as a CUDA graph."""
    device = x.device
    given = {"x": x, "labels": torch.randint(trainee.net.outputs, (len(x),), device=device)}
    at, lr = torch.zeros((), dtype=torch.int64, device=device), torch.tensor(1e-4, device=device)
    drop = StepDropout({stage: stage for stage in DROPOUT_STAGES}, at, DROPOUT)

    def step(batch: Mapping[str, Tensor]) -> None:
        at.add_(1)
        trainee.step(batch["x"], batch["labels"], drop, lr)

    run = RecordedGraph(step) if recorded else step
    return lambda i: run(given)


def plain_step(
    geometry: Geometry,
    batch: int,
    device: torch.device,
    *,
    channels_last: bool = False,
    bf16: bool = False,
    compiled: bool = False,
) -> Callable[[int], object]:
    """A step as one writes it in PyTorch, on random images; in float32 unless `bf16`, under autocast."""
    format = torch.channels_last if channels_last else torch.contiguous_format
    net = plain.caffenet(geometry, OUTPUTS).to(device).to(memory_format=format)
    images = torch.randn(batch, *geometry.cut_shape(0), device=device).contiguous(memory_format=format)
    labels = torch.randint(OUTPUTS, (batch,), device=device)
    step = plain.training_step(net, images, labels, bf16=bf16, compiled=compiled)
    return lambda i: step()


def variants(geometry: Geometry, batch: int, device: torch.device) -> dict[str, Callable[[int], object]]:
    """This project's step in bfloat16 and float32, PyTorch's in its usual forms, and the products alone."""

    products = plain.products_alone(geometry, OUTPUTS, batch, device)
    return {
        "fasttransfer bf16": fast(geometry, batch, "bf16", device),
        "fasttransfer bf16 compiled": fast(geometry, batch, "bf16", device, compiled=True),
        "fasttransfer fp32": fast(geometry, batch, "fp32", device),
        "eager fp32": plain_step(geometry, batch, device),
        "eager bf16 channels-last": plain_step(geometry, batch, device, channels_last=True, bf16=True),
        "compiled bf16 channels-last": plain_step(
            geometry, batch, device, channels_last=True, bf16=True, compiled=True
        ),
        "compiled bf16": plain_step(geometry, batch, device, bf16=True, compiled=True),
        "convolutions and products alone": lambda i: products(),
    }


def profile(call: Callable[[int], object], device: torch.device, steps: int = 3) -> list[tuple[str, float, int]]:
    """Where a step's time goes: (operator, milliseconds per step of its own, calls a step), dearest first."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    call(0)
    with torch.profiler.profile(activities=activities) as profiler:
        for i in range(steps):
            call(i)
    spent = "self_device_time_total" if device.type == "cuda" else "self_cpu_time_total"
    rows = [(e.key, getattr(e, spent) / 1e3 / steps, round(e.count / steps)) for e in profiler.key_averages()]
    return sorted((row for row in rows if row[1] > 0), key=lambda row: -row[1])
