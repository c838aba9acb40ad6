"""Bias, ReLU, max pooling and local response normalisation behind the first two convolutions."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fasttransfer.ops import native
from fasttransfer.ops._relu_pool import (
    fake_argmax,
    fake_gradients,
    fake_pooled,
    make_backward,
    pool_reference,
    save_pooled,
    unpool_reference,
)

# Caffe's local response normalisation across channels, with k = 1.
LRN_SIZE = 5
LRN_ALPHA = 1e-4
LRN_BETA = 0.75


def relu_pool_lrn(x: Tensor, bias: Tensor) -> Tensor:
    """Compute `relu_pool`, then local response normalisation: p / (1 + alpha / 5 * sum of p^2 over 5 channels)^(3/4).

    Args:
        x: (N, C, H, W), H and W at least 3; float32, bfloat16 or, on the CPU, float64.
        bias: (C,) float32, or float64 if x is.

    Returns:
        Like `relu_pool`. Intermediate values are float32 or wider and not rounded.

    Raises:
        RuntimeError: an argument has another type or shape.
    """
    keep = torch.is_grad_enabled() and (x.requires_grad or bias.requires_grad)
    y, _, _ = torch.ops.fasttransfer.relu_pool_lrn(x.contiguous(memory_format=torch.channels_last), bias, keep)
    return y


def relu_pool_lrn_reference(x: Tensor, bias: Tensor, keep: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the operator in plain PyTorch: runs where there is no native kernel."""
    p, argmax = pool_reference("relu_pool_lrn", x, bias, keep)
    y = p * _scale(p) ** -LRN_BETA
    format = torch.channels_last
    pooled = p.to(x.dtype).contiguous(memory_format=format) if keep else x.new_empty(0)
    return y.to(x.dtype).contiguous(memory_format=format), pooled, argmax


def relu_pool_lrn_backward_reference(
    gradient: Tensor, pooled: Tensor, argmax: Tensor, height: int, width: int
) -> tuple[Tensor, Tensor]:
    """Return the gradients of x and of bias from that of y, in plain PyTorch."""
    wide = torch.float64 if gradient.dtype == torch.float64 else torch.float32
    g, p = gradient.to(wide), pooled.to(wide)
    scale = _scale(p)
    power = scale**-LRN_BETA
    dp = g * power - (2 * LRN_BETA * LRN_ALPHA / LRN_SIZE) * p * _near_sum(g * p * power / scale)
    dx, dbias = unpool_reference(dp, argmax, height, width)
    return dx.to(gradient.dtype), dbias


def _scale(p: Tensor) -> Tensor:
    return 1.0 + (LRN_ALPHA / LRN_SIZE) * _near_sum(p * p)


def _near_sum(x: Tensor) -> Tensor:
    """Return the sum over a channel and two on each side."""
    reach = LRN_SIZE // 2
    padded = F.pad(x, (0, 0, 0, 0, reach, reach))
    total = padded[:, : x.shape[1]].clone()
    for first in range(1, LRN_SIZE):
        total += padded[:, first : first + x.shape[1]]
    return total


def _fake(x: Tensor, bias: Tensor, keep: bool) -> tuple[Tensor, Tensor, Tensor]:
    return fake_pooled(x), fake_pooled(x) if keep else x.new_empty(0), fake_argmax(x, keep)


def _fake_backward(gradient: Tensor, pooled: Tensor, argmax: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    return fake_gradients(gradient, height, width)


native.register("relu_pool_lrn", relu_pool_lrn_reference, _fake)
native.register("relu_pool_lrn_backward", relu_pool_lrn_backward_reference, _fake_backward)
torch.library.register_autograd(
    "fasttransfer::relu_pool_lrn", make_backward("relu_pool_lrn_backward"), setup_context=save_pooled
)
