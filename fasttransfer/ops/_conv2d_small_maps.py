"""A convolution whose weight gradient is computed as one matrix product per tap, for the small maps late in a network.

PyTorch leaves the weight gradient to oneDNN, which is slow where channels are many and pixels few, and multiplies the
zeros of the padding. On a 1 x 1 map eight of the nine taps of a 3 x 3 kernel see nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

# Measured (docs/decisions/small-maps.md), with AVX2 and with AVX-512.
_MOST_PIXELS = 49
_FEWEST_WEIGHTS_PER_TAP = 128 * 256


def conv2d_small_maps(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: Sequence[int], padding: Sequence[int]
) -> Tensor:
    """Compute a convolution; its weight gradient is faster on CPUs where the output has few pixels and many channels.

    Elsewhere it is `torch.nn.functional.conv2d`, gradients included.

    Args:
        x: (N, C, H, W). weight: (K, C, kernel, kernel'). bias: (K,).
        stride, padding: [of the rows, of the columns].

    Returns:
        (N, K, H', W'), exactly that of `conv2d`.
    """
    if torch.is_grad_enabled() and weight.requires_grad and _is_faster(x, weight, stride, padding):
        y: Tensor = _Convolution.apply(x, weight, bias, stride, padding)
        return y
    return F.conv2d(x, weight, bias, stride, padding)


def _is_faster(x: Tensor, weight: Tensor, stride: Sequence[int], padding: Sequence[int]) -> bool:
    if x.device.type != "cpu" or torch.is_autocast_enabled("cpu") or not x.dtype == weight.dtype == torch.float32:
        return False
    height, width = (
        (size + 2 * pad - kernel) // step + 1
        for size, pad, kernel, step in zip(x.shape[2:], padding, weight.shape[2:], stride, strict=True)
    )
    return 0 < height * width <= _MOST_PIXELS and weight.shape[0] * weight.shape[1] >= _FEWEST_WEIGHTS_PER_TAP


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(
        x: Tensor, weight: Tensor, bias: Tensor | None, stride: Sequence[int], padding: Sequence[int]
    ) -> Tensor:
        return F.conv2d(x, weight, bias, stride, padding)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, _, ctx.stride, ctx.padding = inputs
        ctx.save_for_backward(x, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        stride, padding = ctx.stride, ctx.padding
        dx = dbias = None
        if ctx.needs_input_grad[0]:
            dx = torch.ops.aten.convolution_backward(
                gradient, x, weight, None, stride, padding, [1, 1], False, [0, 0], 1, [True, False, False]
            )[0]
        if ctx.needs_input_grad[2]:
            dbias = gradient.sum((0, 2, 3))
        return dx, weight_gradient(gradient, x, weight, stride, padding), dbias, None, None


def weight_gradient(
    gradient: Tensor, x: Tensor, weight: Tensor, stride: Sequence[int], padding: Sequence[int]
) -> Tensor:
    """Return the gradient of a convolution's weights, (K, C, kernel, kernel'), in the memory format of `weight`.

    The same number of threads gives the same bits.

    Args:
        gradient: (N, K, H', W') of the output; it and x are best in channels-last memory. x: (N, C, H, W).
        weight: for its shape and format only.
    """
    channels_out, channels_in, *kernel = weight.shape
    gradient, x = gradient.permute(0, 2, 3, 1), x.permute(0, 2, 3, 1)
    rows, columns = (
        list(_taps(x.shape[axis], kernel[axis - 1], stride[axis - 1], padding[axis - 1], gradient.shape[axis]))
        for axis in (1, 2)
    )
    result = torch.zeros_like(weight)
    for i, rows_out, rows_in in rows:
        for j, columns_out, columns_in in columns:
            out = gradient[:, rows_out, columns_out].reshape(-1, channels_out)
            seen = x[:, rows_in, columns_in].reshape(-1, channels_in)
            torch.mm(out.t(), seen, out=result[:, :, i, j])
    return result


def _taps(size: int, kernel: int, stride: int, padding: int, outputs: int) -> Iterator[tuple[int, slice, slice]]:
    """Yield each tap along one axis with the outputs at which it sees pixels, and these pixels; not if there are none.

    Args:
        size: pixels of the input. outputs: pixels of the output.
    """
    for tap in range(kernel):
        first = max(0, -((tap - padding) // stride))  # the first output whose pixel is not left of the image
        end = min(outputs, (size - 1 + padding - tap) // stride + 1)
        if first < end:
            start = first * stride + tap - padding
            yield tap, slice(first, end), slice(start, start + (end - first - 1) * stride + 1, stride)
