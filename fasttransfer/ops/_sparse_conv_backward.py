"""The gradients of a convolution of which little comes back, because what it made was pooled."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fasttransfer.core import machine
from fasttransfer.ops import native

# In bfloat16 PyTorch's own is as fast where a window has few channels (docs/decisions/sparse-gradients.md).
_FEW_CHANNELS = 4


def _faster() -> frozenset[torch.dtype]:
    """The types for which this processor gains."""
    instructions = machine.instructions() if native.load() else ()
    if "avx512f" not in instructions:
        return frozenset()
    return frozenset((torch.float32,) if "amx_bf16" in instructions else (torch.float32, torch.bfloat16))


_FASTER = _faster()


def conv2d_to_pool(x: Tensor, weight: Tensor, *, stride: int = 1, padding: int = 0, groups: int = 1) -> Tensor:
    """A convolution without bias, for what is max-pooled next.

    Behind 3x3 pooling with stride 2 at most a quarter of the output's pixels have a gradient that is not zero, and a
    ReLU leaves fewer: where it pays, the backward pass works on those alone. The gradients are those of any
    convolution, whatever comes back; the more of it is not zero, the slower.

    Args:
        x: (N, C, H, W).
        weight: (K, C / groups, kernel, kernel), of x's type.

    Returns:
        (N, K, H', W'), exactly `torch.nn.functional.conv2d`.
    """
    trained = torch.is_grad_enabled() and weight.requires_grad and not torch.is_autocast_enabled(x.device.type)
    if trained and _pays(x.dtype, x.device.type, weight.shape[1]):
        found: Tensor = _Convolution.apply(x, weight, stride, padding, groups)
        return found
    return F.conv2d(x, weight, None, stride, padding, groups=groups)


def _pays(dtype: torch.dtype, device_type: str, channels: int) -> bool:
    return device_type == "cpu" and dtype in _FASTER and (dtype == torch.float32 or channels > _FEW_CHANNELS)


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, weight: Tensor, stride: int, padding: int, groups: int) -> Tensor:
        return F.conv2d(x, weight, None, stride, padding, groups=groups)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, int, int, int], output: Tensor) -> None:
        x, weight, stride, padding, groups = inputs
        ctx.how = stride, padding, groups
        ctx.save_for_backward(x, weight)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor, None, None, None]:
        x, weight = ctx.saved_tensors
        stride, padding, groups = ctx.how
        wanted = ctx.needs_input_grad[0]
        dx, dweight = sparse_conv_backward(gradients[0], x, weight, stride, padding, groups, wanted)
        return dx if wanted else None, dweight, None, None, None


def sparse_conv_backward(
    gradient: Tensor, x: Tensor, weight: Tensor, stride: int, padding: int, groups: int, input: bool
) -> tuple[Tensor, Tensor]:
    """The gradients of x and weight from a gradient of the convolution's output that is mostly zero.

    Sums are float32. The same number of threads gives the same bits.

    Args:
        gradient: (N, K, H', W'); x: (N, C, H, W); weight: (K, C / groups, kernel, kernel); all float32 or bfloat16.
        input: whether that of x is wanted; without, it has no elements.

    Raises:
        RuntimeError: shapes or types that do not fit.
    """
    gradient, x, weight = (t.contiguous(memory_format=torch.channels_last) for t in (gradient, x, weight))
    return torch.ops.fasttransfer.sparse_conv_backward(gradient, x, weight, stride, padding, groups, input)


def sparse_conv_backward_reference(
    gradient: Tensor, x: Tensor, weight: Tensor, stride: int, padding: int, groups: int, input: bool
) -> tuple[Tensor, Tensor]:
    """What the operator computes, in plain PyTorch; it runs where there is no native kernel."""
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


torch.library.impl("fasttransfer::sparse_conv_backward", "CompositeExplicitAutograd", sparse_conv_backward_reference)
torch.library.register_fake("fasttransfer::sparse_conv_backward", _fake)
