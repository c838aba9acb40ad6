"""Bias, ReLU and pooling against PyTorch's own, and PyTorch's own checks of an operator."""

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

from fasttransfer.ops._relu_pool import STOPPED, relu_pool, relu_pool_backward_reference, relu_pool_reference

TYPES = [torch.float32, torch.bfloat16, torch.float64]
SHAPES = [(2, 96, 11, 11), (1, 7, 8, 5), (3, 1, 3, 3), (2, 3, 10, 4), (1, 65, 4, 9), (1, 128, 6, 6), (0, 5, 7, 7)]

Operator = torch.ops.fasttransfer


def composite(x: Tensor, bias: Tensor) -> Tensor:
    """Compute the operator as a user of PyTorch writes it; autograd gives its gradient."""
    return F.max_pool2d(F.relu(x + bias.view(-1, 1, 1)), 3, 2, ceil_mode=True)


def numbers(shape: tuple[int, ...], dtype: torch.dtype, device: str, scale: float = 3.0) -> Tensor:
    return drawn(shape, dtype, device, scale)


def bias_for(x: Tensor) -> Tensor:
    return drawn_bias(x, 1.0)


def unpacked(argmax: Tensor, channels: int) -> Tensor:
    """(N, C, PH, PW)"""
    return torch.stack([argmax & 15, argmax >> 4], -1).flatten(3)[..., :channels].permute(0, 3, 1, 2)


@pytest.mark.parametrize(("device", "dtype"), TYPES_ON)
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_the_reference_bit_for_bit(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> None:
    x = numbers(shape, dtype, device).round(decimals=0)  # many equal values
    bias = bias_for(x)
    y, argmax = Operator.relu_pool(x.contiguous(memory_format=torch.channels_last), bias, True)
    expected, places = relu_pool_reference(x, bias, True)
    assert y.dtype == dtype
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(y, expected)
    assert argmax.shape == places.shape
    assert torch.equal(unpacked(argmax, shape[1]), unpacked(places, shape[1]))
    forgetful, nothing = Operator.relu_pool(x.contiguous(memory_format=torch.channels_last), bias, False)
    assert torch.equal(forgetful, y)
    assert nothing.numel() == 0

    gradient = numbers(tuple(y.shape), dtype, device).contiguous(memory_format=torch.channels_last)
    dx, dbias = Operator.relu_pool_backward(gradient, argmax, *shape[2:])
    expected_dx, expected_dbias = relu_pool_backward_reference(gradient, argmax, *shape[2:])
    assert dx.is_contiguous(memory_format=torch.channels_last)
    assert dbias.dtype == bias.dtype
    torch.testing.assert_close(dx, expected_dx)
    torch.testing.assert_close(dbias, expected_dbias)


@settings(deadline=None, max_examples=60)
@given(
    n=st.integers(1, 3),
    c=st.integers(1, 70),
    h=st.integers(3, 13),
    w=st.integers(3, 13),
    seed=st.integers(0, 2**31),
    dtype=st.sampled_from(TYPES),
)
def test_is_the_composite_and_its_gradient_for_any_shape(
    n: int, c: int, h: int, w: int, seed: int, dtype: torch.dtype
) -> None:
    """Small whole numbers: every result is exact, and most windows hold their maximum more than once."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(-3, 4, (n, c, h, w), generator=generator).to(dtype)
    bias = torch.randint(-2, 3, (c,), generator=generator).to(
        torch.float64 if dtype == torch.float64 else torch.float32
    )
    wide_x, wide_bias = x.double().requires_grad_(), bias.double().requires_grad_()
    expected = composite(wide_x, wide_bias)
    upstream = torch.randint(-4, 5, expected.shape, generator=generator)
    gradients = torch.autograd.grad(expected, (wide_x, wide_bias), upstream.double())

    x, bias = x.requires_grad_(), bias.requires_grad_()
    y = relu_pool(x, bias)
    assert torch.equal(y.double(), expected)
    ours = torch.autograd.grad(y, (x, bias), upstream.to(dtype))
    assert torch.equal(ours[0].double(), gradients[0])
    assert torch.equal(ours[1].double(), gradients[1])


@pytest.mark.parametrize(("side", "pooled"), [(55, 27), (27, 13), (13, 6), (18, 9), (9, 4), (4, 2), (3, 1), (6, 3)])
def test_the_size_is_rounded_up(side: int, pooled: int) -> None:
    x = torch.zeros(1, 1, side, side)
    x[..., -1, -1] = 5.0  # the last pixel is seen by the last window
    y = relu_pool(x, torch.zeros(1))
    assert y.shape == (1, 1, pooled, pooled)
    assert y[..., -1, -1] == 5.0


@pytest.mark.parametrize(("device", "dtype"), TYPES_ON)
def test_special_values(dtype: torch.dtype, device: str) -> None:
    """Pool every pair of special values with every special bias: values and places are the reference's."""
    inf, nan = float("inf"), float("nan")
    top = torch.finfo(dtype).max
    odd = [0.0, -0.0, 1.0, -1.0, inf, -inf, nan, -nan, top, -top, torch.finfo(dtype).smallest_normal / 2, -1e-42]
    values = torch.tensor(odd, dtype=torch.float64).to(dtype)
    values[7] = -values[6]
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    biases = torch.cat([values.to(wide), torch.tensor([1e-44, -1e-44, 1.0000001, -0.9999999], dtype=wide)])
    x = torch.full((len(odd) ** 2, len(biases), 3, 3), -inf, dtype=dtype)
    x[:, :, 0, 0] = values.repeat_interleave(len(odd))[:, None]
    x[:, :, 0, 1] = values.repeat(len(odd))[:, None]
    x, biases = x.to(device).contiguous(memory_format=torch.channels_last), biases.to(device)
    y, argmax = Operator.relu_pool(x, biases, True)
    expected, places = relu_pool_reference(x, biases, True)
    torch.testing.assert_close(y, expected, rtol=0, atol=0, equal_nan=True)
    both = (x[:, :, 0, :2].isnan()).all(-1)[..., None, None]  # of two NaNs it may be either
    ours, theirs = unpacked(argmax, len(biases)), unpacked(places, len(biases))
    assert torch.equal(ours[~both], theirs[~both])
    assert (ours[both] <= 1).all()


def test_first_of_equals_takes_the_gradient() -> None:
    x = torch.ones(1, 2, 5, 5, requires_grad=True)
    relu_pool(x, torch.tensor([1.0, -1.0])).sum().backward()
    assert x.grad is not None
    assert x.grad[0, 0].nonzero().tolist() == [[0, 0], [0, 2], [2, 0], [2, 2]]
    assert not x.grad[0, 1].any()  # 0 after the bias: the ReLU stops it


def test_stopped_is_what_the_kernel_writes() -> None:
    _, argmax = Operator.relu_pool(torch.zeros(1, 3, 3, 2).permute(0, 3, 1, 2), torch.zeros(2), True)
    assert argmax.tolist() == [[[[STOPPED | STOPPED << 4]]]]


def test_bias_is_added_in_float32() -> None:
    x = torch.full((1, 1, 3, 3), 1.0, dtype=torch.bfloat16)
    assert relu_pool(x, torch.tensor([0.01])).item() == torch.tensor(1.01).bfloat16().item()
    bias = torch.tensor([-0.999999], requires_grad=True)  # what is left is far below a bfloat16 step of 1
    y = relu_pool(x, bias)
    assert y.item() == pytest.approx(1e-6, rel=0.1)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradient_of_the_bias_is_as_exact_as_pytorchs(dtype: torch.dtype, device: str) -> None:
    x = numbers((16, 8, 31, 31), dtype, device)
    bias = bias_for(x)
    exact_x, exact_bias = x.double().requires_grad_(), bias.double().requires_grad_()
    exact_y = composite(exact_x, exact_bias)
    upstream = numbers(tuple(exact_y.shape), dtype, device)
    _, exact = torch.autograd.grad(exact_y, (exact_x, exact_bias), upstream.double())
    errors = []
    for run in (relu_pool, lambda x, bias: composite(x, bias.to(x.dtype))):
        other = bias.clone().requires_grad_()
        (got,) = torch.autograd.grad(run(x, other), other, upstream)
        errors.append((got.double() - exact).abs().max().item())
    assert errors[0] <= 2 * errors[1]


def test_gradients_by_finite_differences() -> None:
    x = numbers((2, 5, 6, 7), torch.float64, "cpu").requires_grad_()
    assert torch.autograd.gradcheck(relu_pool, (x, bias_for(x).requires_grad_()))


@pytest.mark.parametrize("dtype", TYPES)
def test_threads_and_company_change_nothing(dtype: torch.dtype) -> None:
    x = numbers((9, 40, 21, 21), dtype, "cpu").contiguous(memory_format=torch.channels_last)
    bias = bias_for(x)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            y, argmax = Operator.relu_pool(x, bias, True)
            results.append([y, argmax, *Operator.relu_pool_backward(y, argmax, 21, 21)])
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))
    y, argmax = Operator.relu_pool(x[3:5], bias, True)
    alone = [y, argmax, Operator.relu_pool_backward(y, argmax, 21, 21)[0]]
    assert all(torch.equal(a, b[3:5]) for a, b in zip(alone, results[0][:3], strict=True))


def test_any_layout_of_memory() -> None:
    x = numbers((2, 6, 9, 9), torch.float32, "cpu")
    expected = composite(x, torch.zeros(6))
    spread = torch.empty(2, 12, 9, 18)[:, ::2, :, ::2].copy_(x)
    for same in (x, x.contiguous(memory_format=torch.channels_last), spread):
        assert torch.equal(relu_pool(same, torch.zeros(6)), expected)
    x.requires_grad_()
    y = relu_pool(x, torch.zeros(6))
    upstream = torch.randn(6, 2, 4, 4).transpose(0, 1)
    (got,) = torch.autograd.grad(y, x, upstream)
    (wanted,) = torch.autograd.grad(composite(x, torch.zeros(6)), x, upstream)
    torch.testing.assert_close(got, wanted)  # up to four windows add up in another order


@pytest.mark.parametrize("run", [Operator.relu_pool, relu_pool_reference], ids=["native", "reference"])
def test_bad_input(run: Callable[..., object]) -> None:
    x, bias = torch.ones(1, 4, 5, 5).contiguous(memory_format=torch.channels_last), torch.zeros(4)
    with pytest.raises(RuntimeError, match="x must be float32, bfloat16 or float64"):
        run(x.half(), bias, True)
    with pytest.raises(RuntimeError, match="at least 3 x 3 pixels"):
        run(x[:, :, :2].contiguous(memory_format=torch.channels_last), bias, True)
    with pytest.raises(RuntimeError, match="bias must be one number a channel"):
        run(x, torch.zeros(3), True)
    with pytest.raises(RuntimeError, match="bias must be float32"):
        run(x, bias.double(), True)


def test_bad_input_of_the_kernels() -> None:
    x = torch.ones(2, 4, 5, 5)
    with pytest.raises(RuntimeError, match="x must be contiguous in channels-last memory"):
        Operator.relu_pool(x, torch.zeros(4), True)
    x = x.contiguous(memory_format=torch.channels_last)
    y, argmax = Operator.relu_pool(x, torch.zeros(4), True)
    with pytest.raises(RuntimeError, match="gradient must be contiguous in channels-last memory"):
        Operator.relu_pool_backward(y.contiguous(), argmax, 5, 5)
    with pytest.raises(RuntimeError, match="7 x 5 pixels are not pooled to gradient's 2 x 2"):
        Operator.relu_pool_backward(y, argmax, 7, 5)
    for wrong in (argmax[:1], argmax.int(), argmax[..., :1]):
        with pytest.raises(RuntimeError, match="argmax must be what the forward pass kept"):
            Operator.relu_pool_backward(y, wrong, 5, 5)


@pytest.mark.parametrize(("device", "dtype"), TYPES_ON)
def test_opcheck(dtype: torch.dtype, device: str) -> None:
    for keep in (True, False):
        x = numbers((2, 5, 7, 8), dtype, device).contiguous(memory_format=torch.channels_last)
        bias = bias_for(x).requires_grad_(keep)
        torch.library.opcheck(Operator.relu_pool.default, (x.requires_grad_(keep), bias, keep))
    y, argmax = Operator.relu_pool(x.detach(), bias.detach(), True)
    torch.library.opcheck(Operator.relu_pool_backward.default, (y, argmax, 7, 8))


@pytest.mark.compiled
@pytest.mark.parametrize("device", DEVICES)
def test_compiles_without_a_break(device: str) -> None:
    x = numbers((2, 8, 9, 9), torch.float32, device)
    check_compiles(relu_pool, x, bias_for(x))
