"""Dropout with a mask that is a function of (key, step): forward stores nothing for backward."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fasttransfer.core.randomness import words
from fasttransfer.ops import native

_WORDS = 2**32  # number of values of a word of the stream


def dropout(x: Tensor, key: int, at: Tensor, p: float) -> Tensor:
    """Return x * mask / (1 - p); mask[i] is 1 where word i of `randomness.words(key, n, at=at)` >= p * 2**32, else 0.

    The gradient draws the same mask again. The bits are the same on every device and for any number of threads.

    Args:
        x: any shape, contiguous; float32, bfloat16 or float64. Elements are numbered in memory order.
        key: 64 bits, from `randomness.key`.
        at: the step, () int64 on x's device: a CUDA graph reads it anew at every replay.
        p: the probability of setting an element to zero, 0 <= p < 1 once rounded to a multiple of 2**-32.

    Raises:
        RuntimeError: x has another type or is not contiguous; p is out of its range; `at` is on another device or not
            one int64.
    """
    # Operators take signed 64-bit integers.
    return torch.ops.fasttransfer.dropout(x, key - 2**64 if key >= 2**63 else key, at, p)


def dropout_reference(x: Tensor, key: int, at: Tensor, p: float) -> Tensor:
    """Compute the operator in plain PyTorch: runs where there is no native kernel."""
    if not 0.0 <= p < 1.0 - 0.5 / _WORDS:
        raise RuntimeError(f"dropout: p must be at least 0 and below 1, not {p}")
    if not x.is_contiguous():
        raise RuntimeError("dropout: x must be contiguous, its elements are numbered in memory order")
    if x.dtype not in (torch.float32, torch.bfloat16, torch.float64):
        raise RuntimeError(f"dropout: x must be float32, bfloat16 or float64, not {x.dtype}")
    if at.dtype != torch.int64 or at.numel() != 1 or at.device != x.device:
        raise RuntimeError(f"dropout: at must be one int64 on {x.device}")
    keep = words(key, x.numel(), at=int(at), device=x.device).view(x.shape) >= round(p * _WORDS)
    wide = x.float() if x.dtype == torch.bfloat16 else x
    return torch.where(keep, wide * (1.0 / (1.0 - p)), 0.0).to(x.dtype)


def _setup_context(ctx: Any, inputs: tuple[Tensor, int, Tensor, float], output: Tensor) -> None:
    _, ctx.key, at, ctx.p = inputs
    ctx.save_for_backward(at)


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
    (at,) = ctx.saved_tensors
    return torch.ops.fasttransfer.dropout(gradient.contiguous(), ctx.key, at, ctx.p), None, None, None


# Autocast needs no rule: x keeps its type.
native.register("dropout", dropout_reference, lambda x, *_: torch.empty_like(x))
torch.library.register_autograd("fasttransfer::dropout", _backward, setup_context=_setup_context)
