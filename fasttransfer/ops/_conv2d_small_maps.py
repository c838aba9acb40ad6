"""A convolution for the small maps late in a network, where PyTorch's own multiplies mostly zeros of the padding.

On a 1 x 1 map eight of the nine taps of a 3 x 3 kernel see nothing else. The weight gradient is computed as one matrix
product per tap: oneDNN, to which PyTorch leaves it, is slow where channels are many and pixels few.
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
    """Compute a convolution; faster on CPUs where the output has few pixels and many channels.

    Elsewhere it is `torch.nn.functional.conv2d`, gradients included. Under autocast it casts as that does.

    Args:
        x: (N, C, H, W). weight: (K, C, kernel, kernel'). bias: (K,).
        stride, padding: [of the rows, of the columns].

    Returns:
        (N, K, H', W'), in float32 exactly that of `conv2d`.
    """
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else weight.dtype
    if x.device.type != "cpu" or not _is_faster(x, weight, stride, padding, dtype):
        return F.conv2d(x, weight, bias, stride, padding)
    y: Tensor = _Convolution.apply(x.to(dtype), weight, None if bias is None else bias.to(dtype), stride, padding)
    return y


def _is_faster(x: Tensor, weight: Tensor, stride: Sequence[int], padding: Sequence[int], dtype: torch.dtype) -> bool:
    if weight.dtype != torch.float32 or dtype not in (x.dtype, torch.bfloat16):
        return False
    height, width = (
        (size + 2 * pad - kernel) // step + 1
        for size, pad, kernel, step in zip(x.shape[2:], padding, weight.shape[2:], stride, strict=True)
    )
    return 0 < height * width <= _MOST_PIXELS and weight.shape[0] * weight.shape[1] >= _FEWEST_WEIGHTS_PER_TAP


class _Convolution(torch.autograd.Function):
    """x and bias: of the type to compute in. weight: float32."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, stride: Sequence[int], padding: Sequence[int]
    ) -> Tensor:
        # In float32 the output is to be conv2d's to the bit, and little would be gained.
        taps, around = weight, padding
        if x.dtype != torch.float32:
            rows, columns = (
                _seen_taps(size, kernel, step, pad)
                for size, kernel, step, pad in zip(x.shape[2:], weight.shape[2:], stride, padding, strict=True)
            )
            taps = weight[:, :, rows, columns].to(x.dtype)
            around = [padding[0] - rows.start, padding[1] - columns.start]
        ctx.save_for_backward(x, weight, taps)
        ctx.stride, ctx.padding, ctx.around = stride, padding, around
        return F.conv2d(x, taps, bias, stride, around)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, taps = ctx.saved_tensors
        dx = dweight = dbias = None
        if ctx.needs_input_grad[0]:
            dx = torch.ops.aten.convolution_backward(
                gradient, x, taps, None, ctx.stride, ctx.around, [1, 1], False, [0, 0], 1, [True, False, False]
            )[0]
        if ctx.needs_input_grad[1]:
            dweight = weight_gradient(gradient, x, weight, ctx.stride, ctx.padding)
        if ctx.needs_input_grad[2]:
            dbias = gradient.sum((0, 2, 3))
        return dx, dweight, dbias, None, None


def weight_gradient(
    gradient: Tensor, x: Tensor, weight: Tensor, stride: Sequence[int], padding: Sequence[int]
) -> Tensor:
    """Return the gradient of a convolution's weights, (K, C, kernel, kernel'), in the memory format of `weight`.

    The same number of threads gives the same bits.

    Args:
        gradient: (N, K, H', W') of the output; it and x are best in channels-last memory. x: (N, C, H, W), of its type.
        weight: for its shape, type and format only.
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
            if out.dtype == result.dtype:
                torch.mm(out.t(), seen, out=result[:, :, i, j])
            else:
                result[:, :, i, j] = out.t() @ seen
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


def _seen_taps(size: int, kernel: int, stride: int, padding: int) -> slice:
    """Return the taps along one axis that see pixels, from the first to the last.

    All of them where a convolution without the others, and with less padding, would have another number of outputs.
    """
    outputs = (size + 2 * padding - kernel) // stride + 1
    taps = [tap for tap, *_ in _taps(size, kernel, stride, padding, outputs)]
    first, end = (taps[0], taps[-1] + 1) if taps else (0, kernel)
    left = padding - first
    is_same = left >= 0 and (size + 2 * left - (end - first)) // stride + 1 == outputs
    return slice(first, end) if is_same else slice(0, kernel)
