"""Equal forms of the same convolutions, forward and backward: pixels or blocks of them, two groups or two halves.

What decides `fasttransfer.networks.inputs.choose_input_form` and how `fasttransfer.networks.caffenet.Stage` convolves.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fasttransfer.networks.caffenet import conv_in_halves, weights_for_blocks
from fasttransfer.networks.geometry import CAFFENET, CAFFENET_MINI, Geometry, layer_of

BATCH = 64
GEOMETRIES = {"caffenet": CAFFENET, "caffenet-mini": CAFFENET_MINI}
TYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def channels_last(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(shape).to(dtype, memory_format=torch.channels_last)


@pytest.mark.parametrize("form", ["pixels", "blocks"])
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_first_convolution(benchmark: Any, measure: Callable[..., None], geometry: str, dtype: str, form: str) -> None:
    g: Geometry = GEOMETRIES[geometry]
    benchmark.group = f"{geometry} conv1, batch {BATCH}, {dtype}"
    weight = channels_last(*g.weight_shapes(1)[0], dtype=TYPES[dtype]).requires_grad_()
    if form == "pixels":
        x, run = channels_last(BATCH, *g.cut_shape(0), dtype=TYPES[dtype]), lambda: F.conv2d(x, weight, None, g.stride)
    else:
        x = channels_last(BATCH, 3 * g.stride**2, g.blocks, g.blocks, dtype=TYPES[dtype])
        run = lambda: F.conv2d(x, weights_for_blocks(weight, g.stride))  # noqa: E731
    gradient = torch.randn_like(run()).detach()
    measure(lambda: torch.autograd.grad(run(), weight, gradient))


@pytest.mark.parametrize("form", ["groups", "halves"])
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("stage", [2, 4, 5])
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_grouped_convolution(
    benchmark: Any, measure: Callable[..., None], geometry: str, stage: int, dtype: str, form: str
) -> None:
    g = GEOMETRIES[geometry]
    benchmark.group = f"{geometry} conv{stage}, batch {BATCH}, {dtype}"
    padding, groups = layer_of(stage).padding, layer_of(stage).groups
    x = channels_last(BATCH, *g.cut_shape(stage - 1), dtype=TYPES[dtype]).requires_grad_()
    weight = channels_last(*g.weight_shapes(1)[stage - 1], dtype=TYPES[dtype]).requires_grad_()

    def run() -> Tensor:
        if form == "halves":
            return conv_in_halves(x, weight, None, padding)
        return F.conv2d(x, weight, None, 1, padding, groups=groups)

    gradient = torch.randn_like(run()).detach()
    measure(lambda: torch.autograd.grad(run(), (x, weight), gradient))
