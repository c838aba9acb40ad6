"""Bias, ReLU, pooling and normalisation against the plain formulas, and PyTorch's own checks of an operator.

What pooling alone does is tested in test_relu_pool.py: both operators share it.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from devices import DEVICES, TYPES_ON
from hypothesis import given, settings
from hypothesis import strategies as st
from pooling import check_compiles, drawn, drawn_bias
from torch import Tensor

from fasttransfer.ops._relu_pool_lrn import (
    relu_pool_lrn,
    relu_pool_lrn_backward_reference,
    relu_pool_lrn_reference,
)

TYPES = [torch.float32, torch.bfloat16, torch.float64]
SHAPES = [(2, 96, 11, 11), (1, 7, 8, 5), (3, 1, 3, 3), (2, 3, 10, 4), (1, 65, 4, 9), (1, 1100, 6, 6), (0, 5, 7, 7)]

Operator = torch.ops.fasttransfer


def lrn_by_the_formula(p: Tensor) -> Tensor:
    """p / (1 + 1e-4 / 5 * sum over 5 neighbouring channels of p^2)^0.75, channel by channel."""
    channels = []
    for c in range(p.shape[1]):
        near = p[:, max(c - 2, 0) : c + 3]
        channels.append(p[:, c] / (1 + 1e-4 / 5 * (near * near).sum(1)) ** 0.75)
    return torch.stack(channels, 1)


def composite(x: Tensor, bias: Tensor) -> Tensor:
    """Compute the operator as a user of PyTorch writes it, under autocast, which networks train with."""
    p = F.max_pool2d(F.relu(x + bias.to(x.dtype).view(-1, 1, 1)), 3, 2, ceil_mode=True)
    with torch.autocast(x.device.type, torch.bfloat16, enabled=x.dtype == torch.bfloat16):
        return F.local_response_norm(p, 5, alpha=1e-4, beta=0.75, k=1.0).to(x.dtype)


def numbers(shape: tuple[int, ...], dtype: torch.dtype, device: str, scale: float = 100.0) -> Tensor:
    return drawn(shape, dtype, device, scale)


def bias_for(x: Tensor) -> Tensor:
    return drawn_bias(x, 30.0)


def channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("scale", [0.01, 100.0, 1e7])
def test_is_the_formula_and_its_gradient(shape: tuple[int, ...], scale: float) -> None:
    x = numbers(shape, torch.float64, "cpu", scale).requires_grad_()
    bias = bias_for(x).requires_grad_()
    p = F.max_pool2d(F.relu(x + bias.view(-1, 1, 1)), 3, 2, ceil_mode=True)
    ours, plain = relu_pool_lrn(x, bias), lrn_by_the_formula(p)
    torch.testing.assert_close(ours, plain, rtol=1e-12, atol=1e-12)
    upstream = numbers(tuple(plain.shape), torch.float64, "cpu", 1.0)
    gradients = torch.autograd.grad(ours, (x, bias), upstream)
    for got, expected in zip(gradients, torch.autograd.grad(plain, (x, bias), upstream), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)


def test_lrn_is_pytorchs() -> None:
    x = numbers((2, 20, 9, 9), torch.float64, "cpu", 50.0)
    bias = bias_for(x)
    torch.testing.assert_close(relu_pool_lrn(x, bias), composite(x, bias), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scale", [0.1, 10.0, 1000.0, 1e6, 1e15])
def test_is_as_exact_as_pytorch(dtype: torch.dtype, scale: float, device: str) -> None:
    """The error against float64 is at most twice that of the composite in the same type, forward and backward."""
    x = numbers((4, 96, 15, 15), dtype, device, scale)
    bias = bias_for(x) * scale / 100.0
    exact_x, exact_bias = x.double().requires_grad_(), bias.double().requires_grad_()
    exact_y = composite(exact_x, exact_bias)
    upstream = numbers(tuple(exact_y.shape), dtype, device, 1.0)
    exact = [exact_y, *torch.autograd.grad(exact_y, (exact_x, exact_bias), upstream.double())]
    errors = []
    for run in (relu_pool_lrn, composite):
        run_x, run_bias = x.clone().requires_grad_(), bias.clone().requires_grad_()
        y = run(run_x, run_bias)
        got = [y, *torch.autograd.grad(y, (run_x, run_bias), upstream)]
        errors.append([(a.double() - b).abs().max().item() for a, b in zip(got, exact, strict=True)])
    for ours, theirs in zip(*errors, strict=True):
        assert ours <= 2 * theirs


def test_bfloat16_is_normalised_in_float32() -> None:
    x = numbers((2, 32, 9, 9), torch.bfloat16, "cpu")
    bias = bias_for(x)
    with torch.autocast("cpu", torch.bfloat16):
        ours = relu_pool_lrn(x, bias)
    exact = relu_pool_lrn(x.double(), bias.double())
    assert ours.dtype == torch.bfloat16
    # The exact result is rounded to bfloat16, and nothing before it.
    rounded = (exact.bfloat16().double() - exact).abs()
    assert ((ours.double() - exact).abs() <= rounded + exact.abs() * 1e-6).all()


@pytest.mark.parametrize(("device", "dtype"), TYPES_ON)
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_the_reference(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> None:
    x = numbers(shape, dtype, device)
    bias = bias_for(x)
    got = Operator.relu_pool_lrn(channels_last(x), bias, True)
    for ours, theirs in zip(got, relu_pool_lrn_reference(x, bias, True), strict=True):
        assert ours.dtype == theirs.dtype
        assert ours.dim() == 1 or ours.dtype == torch.uint8 or ours.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(ours, theirs)
    y, *nothing = Operator.relu_pool_lrn(channels_last(x), bias, False)
    assert torch.equal(y, got[0])
    assert [kept.numel() for kept in nothing] == [0, 0]

    gradient = channels_last(numbers(tuple(y.shape), dtype, device, 1.0))
    ours = Operator.relu_pool_lrn_backward(gradient, *got[1:], *shape[2:])
    theirs = relu_pool_lrn_backward_reference(gradient, *got[1:], *shape[2:])
    torch.testing.assert_close(ours, theirs)
    assert ours[0].is_contiguous(memory_format=torch.channels_last)


@settings(deadline=None, max_examples=40)
@given(
    n=st.integers(1, 3),
    c=st.integers(1, 70),
    h=st.integers(3, 13),
    w=st.integers(3, 13),
    dtype=st.sampled_from(TYPES),
)
def test_equals_the_reference_for_any_shape(n: int, c: int, h: int, w: int, dtype: torch.dtype) -> None:
    test_equals_the_reference((n, c, h, w), dtype, "cpu")


@pytest.mark.parametrize(("device", "dtype"), TYPES_ON)
def test_a_nan_stays_and_is_passed_on_to_its_neighbours(dtype: torch.dtype, device: str) -> None:
    x = torch.ones(1, 12, 7, 7, dtype=dtype, device=device)
    x[0, 5, 0, 0] = float("nan")
    x.requires_grad_()
    bias = torch.zeros(12, dtype=bias_for(x).dtype, device=device)
    y = relu_pool_lrn(x, bias)
    assert y[0, :, 0, 0].isnan().nonzero().flatten().tolist() == [3, 4, 5, 6, 7]
    assert y.isnan().sum() == 5
    y.sum().backward()
    assert x.grad is not None
    assert x.grad[0, 5, 0, 0].isnan()
    assert not x.grad[0, :, 2:, 2:].isnan().any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_values_whose_squares_overflow_stay_finite(dtype: torch.dtype) -> None:
    x = torch.full((1, 6, 3, 3), 1e25, dtype=dtype)
    assert relu_pool_lrn(x, torch.zeros(6)).isfinite().all()


def test_gradients_by_finite_differences() -> None:
    x = numbers((2, 7, 6, 7), torch.float64, "cpu").requires_grad_()
    assert torch.autograd.gradcheck(relu_pool_lrn, (x, bias_for(x).requires_grad_()))


@pytest.mark.parametrize("dtype", TYPES)
def test_threads_and_company_change_nothing(dtype: torch.dtype) -> None:
    x = channels_last(numbers((9, 40, 21, 21), dtype, "cpu"))
    bias = bias_for(x)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            kept = Operator.relu_pool_lrn(x, bias, True)
            results.append([*kept, *Operator.relu_pool_lrn_backward(*kept, 21, 21)])
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))
    kept = Operator.relu_pool_lrn(x[3:5], bias, True)
    alone = [*kept, Operator.relu_pool_lrn_backward(*kept, 21, 21)[0]]
    assert all(torch.equal(a, b[3:5]) for a, b in zip(alone, results[0][:4], strict=True))


@pytest.mark.parametrize("run", [Operator.relu_pool_lrn, relu_pool_lrn_reference], ids=["native", "reference"])
def test_bad_input(run: Callable[..., object]) -> None:
    x, bias = channels_last(torch.ones(1, 4, 5, 5)), torch.zeros(4)
    with pytest.raises(RuntimeError, match="relu_pool_lrn: x must be float32, bfloat16 or float64"):
        run(x.half(), bias, True)
    with pytest.raises(RuntimeError, match="relu_pool_lrn: bias must be one number a channel"):
        run(x, torch.zeros(3), True)


def test_bad_input_of_the_gradient() -> None:
    y, pooled, argmax = Operator.relu_pool_lrn(channels_last(torch.ones(2, 4, 5, 5)), torch.zeros(4), True)
    for wrong in (pooled[:1], pooled.double(), channels_last(pooled[:, :2])):
        with pytest.raises(RuntimeError, match="pooled must have the shape and type of gradient"):
            Operator.relu_pool_lrn_backward(y, wrong, argmax, 5, 5)
    with pytest.raises(RuntimeError, match="pooled must be contiguous in channels-last memory"):
        Operator.relu_pool_lrn_backward(y, pooled.contiguous(), argmax, 5, 5)


@pytest.mark.parametrize(("device", "dtype"), TYPES_ON)
def test_opcheck(dtype: torch.dtype, device: str) -> None:
    x = channels_last(numbers((2, 5, 7, 8), dtype, device))
    bias = bias_for(x)
    torch.library.opcheck(Operator.relu_pool_lrn.default, (x, bias, False))
    kept = Operator.relu_pool_lrn(x, bias, True)
    torch.library.opcheck(Operator.relu_pool_lrn_backward.default, (*kept, 7, 8))
    torch.library.opcheck(Operator.relu_pool_lrn.default, (x.requires_grad_(), bias.requires_grad_(), True))


@pytest.mark.compiled
@pytest.mark.parametrize("device", DEVICES)
def test_compiles_without_a_break(device: str) -> None:
    x = numbers((2, 8, 9, 9), torch.float32, device)
    check_compiles(relu_pool_lrn, x, bias_for(x))
