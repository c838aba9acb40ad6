"""Equal forms of the same convolutions, forward and backward: pixels or blocks of them, two groups or two halves.

They decide `fasttransfer.networks.caffenet.CaffeNetArchitecture.input_form` and how a stage convolves, see
`fasttransfer.networks.caffenet_stage`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fasttransfer.bench.harness import Call, emulates
from fasttransfer.networks.caffenet import (
    CAFFENET,
    CAFFENET_MINI,
    CaffeNetArchitecture,
)
from fasttransfer.networks.caffenet_stage import conv_in_halves, weights_for_blocks
from fasttransfer.networks.geometry import layer_of

BATCH = 64
TYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def gradients(form: Callable[[Tensor, Tensor], Tensor], x: Tensor, weight: Tensor) -> Call:
    """Return a forward and a backward pass, with the gradient of `x` if it requires one."""
    wanted = [each.requires_grad_() for each in (x, weight) if each is weight or x.requires_grad]
    gradient = torch.randn_like(form(x, weight)).detach()
    return lambda i: torch.autograd.grad(form(x, weight), wanted, gradient)


def channels_last(*shape: int, like: Tensor) -> Tensor:
    """Return random values of the dtype and on the device of `like`."""
    return torch.randn(shape, device=like.device).to(like.dtype, memory_format=torch.channels_last)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("g", [CAFFENET, CAFFENET_MINI], ids=lambda network: network.name)
def test_first_convolution(
    compare: Callable[..., Any], device: torch.device, g: CaffeNetArchitecture, dtype: str
) -> None:
    like = torch.empty(0, dtype=TYPES[dtype], device=device)
    if emulates(device, TYPES[dtype]):
        pytest.skip(f"this processor emulates {dtype}")
    weight = channels_last(*g.weight_shapes(1)[0], like=like)
    pixels, blocks = (BATCH, *g.cut_shape(0)), (BATCH, 3 * g.stride**2, g.blocks, g.blocks)
    calls = {
        "pixels": gradients(lambda x, w: F.conv2d(x, w, None, g.stride), channels_last(*pixels, like=like), weight),
        "blocks": gradients(
            lambda x, w: F.conv2d(x, weights_for_blocks(w, g.stride)), channels_last(*blocks, like=like), weight
        ),
    }
    compare(calls, work=BATCH)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("stage", [2, 4, 5])
@pytest.mark.parametrize("g", [CAFFENET, CAFFENET_MINI], ids=lambda network: network.name)
def test_grouped_convolution(
    compare: Callable[..., Any], device: torch.device, g: CaffeNetArchitecture, stage: int, dtype: str
) -> None:
    like = torch.empty(0, dtype=TYPES[dtype], device=device)
    if emulates(device, TYPES[dtype]):
        pytest.skip(f"this processor emulates {dtype}")
    padding, groups = layer_of(stage).padding, layer_of(stage).groups
    x = channels_last(BATCH, *g.cut_shape(stage - 1), like=like).requires_grad_()
    weight = channels_last(*g.weight_shapes(1)[stage - 1], like=like)
    calls = {
        "groups": gradients(lambda x, w: F.conv2d(x, w, None, 1, padding, groups=groups), x, weight),
        "halves": gradients(lambda x, w: conv_in_halves(x, w, None, padding), x, weight),
    }
    compare(calls, work=BATCH)
