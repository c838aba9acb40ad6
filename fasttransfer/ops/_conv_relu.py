"""A convolution with bias and ReLU, native where maps are small."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fasttransfer.core import machine
from fasttransfer.ops import native

# Measured with AVX2 and with AVX-512 (docs/decisions/small-maps.md).
_MOST_PIXELS = 16
_LANES = 16  # kLanes of csrc/cpu/conv_tile.h
_IS_NATIVE_FASTER = native.load() and "avx2" in machine.instructions()


def conv_relu(x: Tensor, weight: Tensor, bias: Tensor, *, padding: int = 0, groups: int = 1) -> Tensor:
    """Compute ReLU of a convolution with stride 1 and a bias.

    Args:
        x: (N, C, H, W).
        weight: (K, C / groups, kernel, kernel), bias: (K,), both of x's type.

    Returns:
        (N, K, H', W'), channels-last where the native operator runs: on CPUs, in float32, on maps of few pixels.
    """
    if _is_faster(x, weight, padding, groups):
        format = torch.channels_last
        y: Tensor = torch.ops.fasttransfer.conv_relu(
            x.contiguous(memory_format=format), weight.contiguous(memory_format=format), bias, padding, groups
        )
        return y
    return conv_relu_reference(x, weight, bias, padding, groups)


def conv_relu_backward(
    gradient: Tensor, y: Tensor, x: Tensor, weight: Tensor, *, padding: int, groups: int, needs_dx: bool
) -> tuple[Tensor | None, Tensor, Tensor]:
    """Return the gradients of x, where it is needed, weight and bias from that of y, the result of `conv_relu`."""
    operator = conv_relu_backward_reference
    if _is_faster(x, weight, padding, groups):
        operator = torch.ops.fasttransfer.conv_relu_backward
        gradient = gradient.contiguous(memory_format=torch.channels_last)
    dx, dweight, dbias = operator(gradient, y, x, weight, padding, groups, needs_dx)
    return dx if needs_dx else None, dweight, dbias


def _is_faster(x: Tensor, weight: Tensor, padding: int, groups: int) -> bool:
    if x.device.type != "cpu" or not _IS_NATIVE_FASTER or torch.is_autocast_enabled("cpu"):
        return False
    outputs, channels, height, width = weight.shape
    pixels = (x.shape[2] + 2 * padding - height + 1) * (x.shape[3] + 2 * padding - width + 1)
    has_whole_vectors = channels % _LANES == 0 and outputs % (groups * _LANES) == 0
    return has_whole_vectors and pixels <= _MOST_PIXELS and x.dtype == weight.dtype == torch.float32


def conv_relu_reference(x: Tensor, weight: Tensor, bias: Tensor, padding: int, groups: int) -> Tensor:
    """Compute the operator in plain PyTorch: runs where there is no native kernel, or where it is slower."""
    return F.relu(F.conv2d(x, weight, bias, padding=padding, groups=groups))


def conv_relu_backward_reference(
    gradient: Tensor, y: Tensor, x: Tensor, weight: Tensor, padding: int, groups: int, input: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients in plain PyTorch, as autograd computes them."""
    passed = torch.ops.aten.threshold_backward(gradient, y, 0)
    dx, dweight, dbias = torch.ops.aten.convolution_backward(
        passed, x, weight, [len(weight)], [1, 1], [padding] * 2, [1, 1], False, [0, 0], groups, [input, True, True]
    )
    return dx if input else x.new_empty(0), dweight, dbias


def _fake(x: Tensor, weight: Tensor, bias: Tensor, padding: int, groups: int) -> Tensor:
    height, width = (
        size + 2 * padding - kernel + 1 for size, kernel in zip(x.shape[2:], weight.shape[2:], strict=True)
    )
    return torch.empty_like(
        x.new_empty((x.shape[0], weight.shape[0], height, width)), memory_format=torch.channels_last
    )


def _fake_backward(
    gradient: Tensor, y: Tensor, x: Tensor, weight: Tensor, padding: int, groups: int, input: bool
) -> tuple[Tensor, Tensor, Tensor]:
    format = torch.channels_last
    dx = torch.empty_like(x, memory_format=format) if input else x.new_empty(0)
    return dx, torch.empty_like(weight, memory_format=format), weight.new_empty(len(weight))


def _setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, int, int], output: Tensor) -> None:
    x, weight, _, ctx.padding, ctx.groups = inputs
    ctx.save_for_backward(output, x, weight)


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor, Tensor, None, None]:
    y, x, weight = ctx.saved_tensors
    needs_dx = ctx.needs_input_grad[0]
    dx, dweight, dbias = torch.ops.fasttransfer.conv_relu_backward(
        gradient.contiguous(memory_format=torch.channels_last), y, x, weight, ctx.padding, ctx.groups, needs_dx
    )
    return dx if needs_dx else None, dweight, dbias, None, None


native.register("conv_relu", conv_relu_reference, _fake)
native.register("conv_relu_backward", conv_relu_backward_reference, _fake_backward)
torch.library.register_autograd("fasttransfer::conv_relu", _backward, setup_context=_setup_context)
