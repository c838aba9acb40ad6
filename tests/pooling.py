"""Checks that the tests of both pooling operators share: their numbers, and that they compile."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def drawn(shape: tuple[int, ...], dtype: torch.dtype, device: str, scale: float) -> Tensor:
    """Normal numbers times `scale`, the same for a shape."""
    numbers = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(shape))) * scale
    return numbers.to(dtype).to(device)


def drawn_bias(x: Tensor, scale: float) -> Tensor:
    """(C,) of the type that a bias of x has."""
    return drawn(x.shape[1:2], torch.float64 if x.dtype == torch.float64 else torch.float32, x.device.type, scale)


def check_compiles(operator: Callable[[Tensor, Tensor], Tensor], x: Tensor, bias: Tensor) -> None:
    """In one graph, among other operations, with the values and gradients of eager mode."""

    def layer(x: Tensor, bias: Tensor) -> Tensor:
        return operator(x * 2.0, bias) + 1.0

    x.requires_grad_()
    bias.requires_grad_()
    eager, compiled = layer(x, bias), torch.compile(layer, fullgraph=True)(x, bias)
    torch.testing.assert_close(compiled, eager)
    for ours, theirs in zip(
        torch.autograd.grad(compiled.sum(), (x, bias)), torch.autograd.grad(eager.sum(), (x, bias)), strict=True
    ):
        torch.testing.assert_close(ours, theirs)
