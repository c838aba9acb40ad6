"""The training step of the paper's network against the same in PyTorch, and against its products alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from fasttransfer import machine, randomness
from fasttransfer.bench.baselines import caffenet as plain
from fasttransfer.geometry import Geometry
from fasttransfer.graphs import Recorded
from fasttransfer.net import DROPOUT_STAGES, CaffeNet, Drop, initial_weights
from fasttransfer.step import Trainee
from fasttransfer.study import load_recipe

OUTPUTS = 500
RECIPES = {"caffenet": "caffe", "caffenet-mini": "mini"}


def fast(
    geometry: Geometry, batch: int, precision: str, device: torch.device, *, compiled: bool = False
) -> Callable[[int], object]:
    """A step of this project on random pictures: recorded as a CUDA graph on a GPU.

    Args:
        compiled: the network through torch.compile, in one piece.
    """
    recipe, dtype = load_recipe(RECIPES[geometry.name]), machine.dtype_of(precision)
    begin = initial_weights(geometry, OUTPUTS, "he", lambda stage: randomness.key(0, "bench-weights", stage))
    trainee = Trainee(CaffeNet(geometry, OUTPUTS, dtype).to(device), 0, begin, recipe)
    if compiled:
        trainee.net.compile(fullgraph=True, dynamic=False)
    entrance = machine.entrance(geometry, device.type, precision)
    shape = (batch, 3 * entrance["block"] ** 2, entrance["side"], entrance["side"])
    pictures = torch.randn(shape, device=device).to(dtype, memory_format=torch.channels_last)
    given = {"pictures": pictures, "labels": torch.randint(OUTPUTS, (batch,), device=device)}
    at, lr = torch.zeros((), dtype=torch.int64, device=device), torch.tensor(1e-4, device=device)
    drop = Drop({stage: stage for stage in DROPOUT_STAGES}, at, recipe.dropout)

    def step(batch: Mapping[str, Tensor]) -> None:
        at.add_(1)
        trainee.step(batch["pictures"], batch["labels"], drop, lr)

    run = Recorded(step) if device.type == "cuda" else step
    return lambda i: run(given)


def variants(geometry: Geometry, batch: int, device: torch.device) -> dict[str, Callable[[int], object]]:
    """This project's step in bfloat16 and float32, PyTorch's in its usual forms, and the products alone."""

    def baseline(*, channels_last: bool, bf16: bool, compiled: bool) -> Callable[[int], object]:
        format = torch.channels_last if channels_last else torch.contiguous_format
        net = plain.caffenet(geometry, OUTPUTS).to(device).to(memory_format=format)
        pictures = torch.randn(batch, *geometry.cut_shape(0), device=device).contiguous(memory_format=format)
        labels = torch.randint(OUTPUTS, (batch,), device=device)
        step = plain.training_step(net, pictures, labels, bf16=bf16, compiled=compiled)
        return lambda i: step()

    products = plain.products_alone(geometry, OUTPUTS, batch, device)
    return {
        "fasttransfer bf16": fast(geometry, batch, "bf16", device),
        "fasttransfer bf16 compiled": fast(geometry, batch, "bf16", device, compiled=True),
        "fasttransfer fp32": fast(geometry, batch, "fp32", device),
        "eager fp32": baseline(channels_last=False, bf16=False, compiled=False),
        "eager bf16 channels-last": baseline(channels_last=True, bf16=True, compiled=False),
        "compiled bf16 channels-last": baseline(channels_last=True, bf16=True, compiled=True),
        "compiled bf16": baseline(channels_last=False, bf16=True, compiled=True),
        "convolutions and products alone": lambda i: products(),
    }


def profile(call: Callable[[int], object], device: torch.device, steps: int = 3) -> list[tuple[str, float, int]]:
    """Where a step's time goes: (operator, milliseconds a step of its own, calls a step), dearest first."""
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
