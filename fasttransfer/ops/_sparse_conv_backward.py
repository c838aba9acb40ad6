"""The gradients of a convolution whose output was pooled, so that most of its gradient is zero."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fasttransfer.ops import native

# In bfloat16 PyTorch's own is as fast if a window has few channels (docs/decisions/sparse-gradients.md).
_FEW_CHANNELS = 4


_FASTER_DTYPES = native.find_faster_dtypes(bf16="avx512f")


def conv2d_to_pool(x: Tensor, weight: Tensor, *, stride: int = 1, padding: int = 0, groups: int = 1) -> Tensor:
    """Compute a convolution without bias whose output is max-pooled next.

    Behind 3x3 pooling with stride 2 at most a quarter of the output's pixels have a nonzero gradient, and a ReLU leaves
    fewer: where that is faster, the backward pass skips the zeros. The gradients are correct for any gradient of the
    output; the fewer zeros it has, the slower.

    Args:
        x: (N, C, H, W).
        weight: (K, C / groups, kernel, kernel), of x's type.

    Returns:
        (N, K, H', W'), exactly that of `torch.nn.functional.conv2d`.
    """
    needs_backward = torch.is_grad_enabled() and weight.requires_grad and not torch.is_autocast_enabled(x.device.type)
    if needs_backward and _is_faster(x.dtype, x.device.type, weight.shape[1]):
        y: Tensor = _Convolution.apply(x, weight, stride, padding, groups)
        return y
    return F.conv2d(x, weight, None, stride, padding, groups=groups)


def conv2d_to_pool_backward(
    gradient: Tensor, x: Tensor, weight: Tensor, *, stride: int, padding: int, groups: int, needs_dx: bool
) -> tuple[Tensor | None, Tensor]:
    """Return the gradients of x, where it is needed, and of weight from that of `conv2d_to_pool`'s output."""
    is_faster = _is_faster(x.dtype, x.device.type, weight.shape[1])
    compute = sparse_conv_backward if is_faster else sparse_conv_backward_reference
    dx, dweight = compute(gradient, x, weight, stride, padding, groups, needs_dx)
    return dx if needs_dx else None, dweight


def _is_faster(dtype: torch.dtype, device_type: str, channels: int) -> bool:
    return device_type == "cpu" and dtype in _FASTER_DTYPES and (dtype == torch.float32 or channels > _FEW_CHANNELS)


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, weight: Tensor, stride: int, padding: int, groups: int) -> Tensor:
        return F.conv2d(x, weight, None, stride, padding, groups=groups)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, int, int, int], output: Tensor) -> None:
        x, weight, stride, padding, groups = inputs
        ctx.options = stride, padding, groups
        ctx.save_for_backward(x, weight)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor, None, None, None]:
        x, weight = ctx.saved_tensors
        stride, padding, groups = ctx.options
        needs_dx = ctx.needs_input_grad[0]
        dx, dweight = conv2d_to_pool_backward(
            gradients[0], x, weight, stride=stride, padding=padding, groups=groups, needs_dx=needs_dx
        )
        return dx, dweight, None, None, None


def sparse_conv_backward(
    gradient: Tensor, x: Tensor, weight: Tensor, stride: int, padding: int, groups: int, input: bool
) -> tuple[Tensor, Tensor]:
    """Return the gradients of x and weight from a gradient of the convolution's output that is mostly zero.

    Sums are float32. The same number of threads gives the same bits.

    Args:
        gradient: (N, K, H', W'); x: (N, C, H, W); weight: (K, C / groups, kernel, kernel); all float32 or bfloat16.
        input: False to skip the gradient of x, which then has no elements.

    Raises:
        RuntimeError: shapes or types do not fit.
    """
    gradient, x, weight = (t.contiguous(memory_format=torch.channels_last) for t in (gradient, x, weight))
    return torch.ops.fasttransfer.sparse_conv_backward(gradient, x, weight, stride, padding, groups, input)


def sparse_conv_backward_reference(
    gradient: Tensor, x: Tensor, weight: Tensor, stride: int, padding: int, groups: int, input: bool
) -> tuple[Tensor, Tensor]:
    """Compute the operator in plain PyTorch: runs where there is no native kernel."""
    dx, dweight, _ = torch.ops.aten.convolution_backward(
        gradient, x, weight, None, [stride] * 2, [padding] * 2, [1, 1], False, [0, 0], groups, [input, True, False]
    )
    dweight = dweight.contiguous(memory_format=torch.channels_last)
    return dx.contiguous(memory_format=torch.channels_last) if input else x.new_empty(0), dweight


def _fake(
    gradient: Tensor, x: Tensor, weight: Tensor, stride: int, padding: int, groups: int, input: bool
) -> tuple[Tensor, Tensor]:
    def like(t: Tensor) -> Tensor:
        return torch.empty_like(t, memory_format=torch.channels_last)

    return like(x) if input else x.new_empty(0), like(weight)


native.register("sparse_conv_backward", sparse_conv_backward_reference, _fake)
