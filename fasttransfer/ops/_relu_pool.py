"""Bias, ReLU and max pooling behind the fifth convolution."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fasttransfer.ops import native

# The code of a maximum's place in its window is 3 * row + column, or this where the ReLU stops it (csrc/math/pool.h).
STOPPED = 15


def relu_pool(x: Tensor, bias: Tensor) -> Tensor:
    """Compute ReLU of x + bias, then 3x3 max pooling with stride 2, the output size rounded up (Caffe's rule).

    If several elements of a window are the largest, the gradient goes to the first, as in PyTorch. A NaN is larger than
    any number.

    Args:
        x: (N, C, H, W), H and W at least 3; float32, bfloat16 or, on the CPU, float64.
        bias: (C,) float32, or float64 if x is.

    Returns:
        (N, C, ceil((H - 3) / 2) + 1, ceil((W - 3) / 2) + 1) of x's type, channels-last. The bias is added, and its
        gradient summed, in float32 or wider.

    Raises:
        RuntimeError: an argument has another type or shape.
    """
    keep = torch.is_grad_enabled() and (x.requires_grad or bias.requires_grad)
    y, _ = torch.ops.fasttransfer.relu_pool(x.contiguous(memory_format=torch.channels_last), bias, keep)
    return y


def relu_pool_reference(x: Tensor, bias: Tensor, keep: bool) -> tuple[Tensor, Tensor]:
    """Compute the operator in plain PyTorch: runs where there is no native kernel."""
    p, argmax = pool_reference("relu_pool", x, bias, keep)
    return p.to(x.dtype).contiguous(memory_format=torch.channels_last), argmax


def relu_pool_backward_reference(gradient: Tensor, argmax: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Return the gradients of x and of bias from that of y, in plain PyTorch."""
    wide = gradient.double() if gradient.dtype == torch.float64 else gradient.float()
    dx, dbias = unpool_reference(wide, argmax, height, width)
    return dx.to(gradient.dtype), dbias


def pool_reference(operator: str, x: Tensor, bias: Tensor, keep: bool) -> tuple[Tensor, Tensor]:
    """Return the pooled values, in float32 or wider, and the packed argmax, empty without `keep`."""
    if x.dtype not in (torch.float32, torch.bfloat16, torch.float64):
        raise RuntimeError(f"{operator}: x must be float32, bfloat16 or float64, not {x.dtype}")
    if bias.dtype != torch.float32 and not bias.dtype == x.dtype == torch.float64:
        raise RuntimeError(f"{operator}: bias must be float32, not {bias.dtype}")
    if x.dim() != 4 or min(x.shape[2:]) < 3:
        raise RuntimeError(f"{operator}: x must have at least 3 x 3 pixels, not {tuple(x.shape)}")
    if bias.shape != x.shape[1:2]:
        raise RuntimeError(f"{operator}: bias must be one number a channel ({x.shape[1]}), not {tuple(bias.shape)}")
    wide = x.float() if x.dtype == torch.bfloat16 else x
    # Pooling first gives the same values, since a sum with the bias and the ReLU keep their order.
    largest, index = F.max_pool2d(wide, 3, 2, ceil_mode=True, return_indices=True)
    p = F.relu(largest + bias.to(wide.dtype).view(-1, 1, 1))
    if not keep:
        return p, torch.empty(0, dtype=torch.uint8, device=x.device)
    top, left = _corners(*p.shape[2:], device=x.device)
    place = 3 * (index // x.shape[3] - top) + index % x.shape[3] - left
    code = torch.where(p == 0, STOPPED, place).to(torch.uint8).permute(0, 2, 3, 1)
    if code.shape[3] % 2:
        code = F.pad(code, (0, 1))
    return p, code[..., 0::2] | code[..., 1::2] << 4


def unpool_reference(gradient: Tensor, argmax: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Return the gradients of x and bias from that of the pooled values, all of its type."""
    n, c, ph, pw = gradient.shape
    code = torch.stack([argmax & 15, argmax >> 4], -1).flatten(3)[..., :c].permute(0, 3, 1, 2).long()
    passes = code != STOPPED
    gradient = torch.where(passes, gradient, 0.0)
    top, left = _corners(ph, pw, device=gradient.device)
    index = torch.where(passes, (top + code // 3) * width + left + code % 3, 0)
    dx = gradient.new_zeros((n, c, height * width))
    dx.scatter_add_(2, index.flatten(2), gradient.flatten(2))
    return dx.view(n, c, height, width).contiguous(memory_format=torch.channels_last), gradient.sum((0, 2, 3))


def _corners(ph: int, pw: int, *, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the first row, (ph, 1), and the first column, (pw,), of every window."""
    return 2 * torch.arange(ph, device=device)[:, None], 2 * torch.arange(pw, device=device)


def fake_pooled(x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    return _empty(x, (n, c, h // 2, w // 2))


def fake_argmax(x: Tensor, keep: bool) -> Tensor:
    n, c, h, w = x.shape
    return x.new_empty((n, h // 2, w // 2, (c + 1) // 2) if keep else (0,), dtype=torch.uint8)


def fake_gradients(gradient: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    n, c = gradient.shape[:2]
    wide = torch.float64 if gradient.dtype == torch.float64 else torch.float32
    return _empty(gradient, (n, c, height, width)), gradient.new_empty((c,), dtype=wide)


def _empty(like: Tensor, shape: tuple[int, ...]) -> Tensor:
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last)


def _fake(x: Tensor, bias: Tensor, keep: bool) -> tuple[Tensor, Tensor]:
    return fake_pooled(x), fake_argmax(x, keep)


def _fake_backward(gradient: Tensor, argmax: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    return fake_gradients(gradient, height, width)


def save_pooled(ctx: Any, inputs: tuple[Tensor, Tensor, bool], output: tuple[Tensor, ...]) -> None:
    """Save the results of the forward pass behind y for the backward pass."""
    ctx.sides = inputs[0].shape[2:]
    ctx.save_for_backward(*output[1:])
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)


def make_backward(operator: str) -> Callable[..., tuple[Tensor | None, Tensor | None, None]]:
    """Return the backward pass that calls an operator with the gradient of y, the saved tensors and the sides of x."""

    def backward(ctx: Any, gradient: Tensor | None, *_: None) -> tuple[Tensor | None, Tensor | None, None]:
        if gradient is None:
            return None, None, None
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        dx, dbias = getattr(torch.ops.fasttransfer, operator)(gradient, *ctx.saved_tensors, *ctx.sides)
        return dx, dbias, None

    return backward


native.register("relu_pool", relu_pool_reference, _fake)
native.register("relu_pool_backward", relu_pool_backward_reference, _fake_backward)
torch.library.register_autograd(
    "fasttransfer::relu_pool", make_backward("relu_pool_backward"), setup_context=save_pooled
)
