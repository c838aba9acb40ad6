"""The convolution for small maps, its weight gradient computed tap by tap, against float64 and PyTorch's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from unittest.mock import Mock

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from fasttransfer import ops
from fasttransfer.ops import _conv2d_small_maps as module

Pair = tuple[int, int]
LARGE = 256, 128  # channels for which the operator computes the gradient itself


def tensors(n: int, channels: Pair, size: Pair, kernel: Pair) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    k, c = channels
    x, weight = torch.randn(n, c, *size, generator=generator), torch.randn(k, c, *kernel, generator=generator)
    x, weight = (t.contiguous(memory_format=torch.channels_last) for t in (x, weight))
    return x, weight, torch.randn(k, generator=generator)


def gradients(
    forward: Callable[..., Tensor],
    given: tuple[Tensor, ...],
    stride: Pair,
    padding: Pair,
    sign: Callable[[Tensor], Tensor] = torch.clone,
) -> list[Tensor]:
    """Return the output, and the gradients of x, weight and bias for a random gradient of the output."""
    leaves = [sign(t.detach()).requires_grad_() for t in given]
    y = forward(*leaves, stride, padding)
    gradient = sign(torch.randn(y.shape, generator=torch.Generator().manual_seed(1))).to(y.dtype)
    return [y.detach(), *torch.autograd.grad(y, leaves, gradient)]


def assert_as_precise_as_pytorch(given: tuple[Tensor, ...], stride: Pair, padding: Pair) -> None:
    ours = gradients(ops.conv2d_small_maps, given, stride, padding)
    eager = gradients(F.conv2d, given, stride, padding)
    exact = gradients(F.conv2d, tuple(t.double() for t in given), stride, padding)
    assert torch.equal(ours[0], eager[0]) and torch.equal(ours[1], eager[1])
    assert ours[2].stride() == given[1].stride()
    for mine, theirs, wanted in zip(ours, eager, exact, strict=True):
        error, allowed = ((y.double() - wanted).abs().max().item() for y in (mine, theirs))
        assert error <= 2 * allowed + 1e-5 * wanted.abs().max().item()


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "padding"),
    [
        ((1, 1), (3, 3), (1, 1), (1, 1)),
        ((2, 2), (3, 3), (1, 1), (1, 1)),
        ((2, 2), (3, 3), (2, 2), (1, 1)),
        ((2, 2), (1, 1), (2, 2), (0, 0)),
        ((2, 1), (1, 3), (1, 2), (0, 2)),
    ],
)
def test_shapes_of_residual_networks(
    monkeypatch: pytest.MonkeyPatch, size: Pair, kernel: Pair, stride: Pair, padding: Pair
) -> None:
    spy = Mock(wraps=module.weight_gradient)
    monkeypatch.setattr(module, "weight_gradient", spy)
    assert_as_precise_as_pytorch(tensors(6, LARGE, size, kernel), stride, padding)
    spy.assert_called_once()


@st.composite
def cases(draw: st.DrawFn) -> tuple[tuple[Tensor, ...], Pair, Pair]:
    def pair(low: int, high: int) -> Pair:
        return draw(st.integers(low, high)), draw(st.integers(low, high))

    kernel, stride, padding = pair(1, 5), pair(1, 4), pair(0, 3)
    height, width = (max(side, k - 2 * p) for side, k, p in zip(pair(1, 12), kernel, padding, strict=True))
    return tensors(draw(st.integers(1, 5)), pair(1, 9), (height, width), kernel), stride, padding


@contextmanager
def used_for_any_shape() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_MOST_PIXELS", 10**6)
        patch.setattr(module, "_FEWEST_WEIGHTS_PER_TAP", 1)
        yield


@given(cases())
@settings(max_examples=60, deadline=None)
def test_any_shape(case: tuple[tuple[Tensor, ...], Pair, Pair]) -> None:
    with used_for_any_shape():
        assert_as_precise_as_pytorch(*case)


@given(cases())
@settings(max_examples=60, deadline=None)
def test_any_shape_in_bfloat16(case: tuple[tuple[Tensor, ...], Pair, Pair]) -> None:
    """Under autocast, as the library: a bfloat16 output, gradients of the type of what they are for."""
    given, stride, padding = case
    double = tuple(t.double() for t in given)
    exact, sizes = (gradients(F.conv2d, double, stride, padding, sign) for sign in (torch.clone, torch.abs))
    with torch.autocast("cpu", torch.bfloat16):
        eager = gradients(F.conv2d, given, stride, padding)
        with used_for_any_shape():
            ours = gradients(ops.conv2d_small_maps, given, stride, padding)
    # On narrow images with strides oneDNN's kernels for AMX read memory that nobody has written.
    assume(all(torch.all((y - x).abs() <= 8 * 2**-8 * size) for y, x, size in zip(eager, exact, sizes, strict=True)))
    assert [t.dtype for t in ours] == [torch.bfloat16, *[torch.float32] * 3]
    assert ours[2].stride() == given[1].stride()
    for mine, wanted, size in zip(ours, exact, sizes, strict=True):
        assert mine.shape == wanted.shape
        assert torch.all((mine - wanted).abs() <= 4 * 2**-8 * size)  # both factors and the sum are rounded to 8 bits


@pytest.mark.parametrize(
    ("size", "stride", "seen"), [(1, 1, slice(1, 2)), (2, 2, slice(1, 3)), (2, 1, slice(0, 3)), (1, 2, slice(1, 2))]
)
def test_taps_that_see_only_padding_are_left_out(size: int, stride: int, seen: slice) -> None:
    assert module._seen_taps(size, kernel=3, stride=stride, padding=1) == seen


def test_pytorch_computes_the_gradient_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "weight_gradient", None)  # to call it is an error
    for size, channels in (((64, 64), LARGE), ((1, 1), (8, 8))):
        x, weight, _ = tensors(2, channels, size, (3, 3))
        ops.conv2d_small_maps(x, weight.requires_grad_(), None, (1, 1), (1, 1)).sum().backward()
    x, weight, _ = tensors(2, LARGE, (1, 1), (3, 3))
    ops.conv2d_small_maps(x.requires_grad_(), weight.detach(), None, (1, 1), (1, 1)).sum().backward()


def test_an_image_smaller_than_the_kernel_is_pytorchs_error() -> None:
    x, weight, _ = tensors(2, LARGE, (2, 2), (3, 3))
    with pytest.raises(RuntimeError, match="Kernel size can't be greater"):
        ops.conv2d_small_maps(x, weight.requires_grad_(), None, (1, 1), (0, 0))


def test_every_run_gives_the_same_bits() -> None:
    x, weight, bias = tensors(64, LARGE, (2, 2), (3, 3))
    first, *others = (gradients(ops.conv2d_small_maps, (x, weight, bias), (1, 1), (1, 1))[2] for _ in range(3))
    assert all(torch.equal(first, other) for other in others)


def test_types_that_do_not_fit_are_pytorchs_error() -> None:
    x, weight, _ = tensors(2, LARGE, (1, 1), (3, 3))
    with pytest.raises(RuntimeError, match="type"):
        ops.conv2d_small_maps(x.bfloat16(), weight, None, (1, 1), (1, 1))
