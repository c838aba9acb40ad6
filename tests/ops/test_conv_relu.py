"""A convolution with bias and ReLU on small maps, against float64 and PyTorch's own."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from convolutions import Case
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fasttransfer import ops
from fasttransfer.ops import _conv_relu as module

native = torch.ops.fasttransfer

MINI_3 = Case(16, 64, 4, 4, 96, 3, padding=1)
MINI_4 = Case(16, 96, 4, 4, 96, 3, padding=1, groups=2)
CASES = [
    MINI_3,
    MINI_4,
    Case(1, 16, 1, 1, 16, 1),
    Case(13, 48, 3, 5, 80, 2, groups=1),  # vectors and images that do not fill their tiles
    Case(7, 144, 2, 2, 240, 3, padding=1, groups=3),
    Case(2, 32, 1, 1, 16, 3, padding=1),  # eight taps see nothing
    Case(3, 16, 1, 2, 32, 2, padding=3),  # pixels of the output that see nothing
    Case(2, 16, 9, 9, 16, 5, padding=2),
]


def drawn(case: Case) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the output's gradient, x, weight and bias."""
    x, weight, bias = case.tensors(torch.float32)
    shape = F.conv2d(x[:1], weight, None, **case.options()).shape
    gradient = torch.randn(case.n, *shape[1:], generator=torch.Generator().manual_seed(1))
    return gradient.contiguous(memory_format=torch.channels_last), x, weight, bias


def assert_as_precise_as_pytorch(case: Case) -> None:
    gradient, *given = drawn(case)
    sizes = case.padding, case.groups
    y = native.conv_relu(*given, *sizes)
    exact, eager = (
        module.conv_relu_reference(*(t.to(dtype) for t in given), *sizes) for dtype in (torch.float64, torch.float32)
    )
    x, weight, _ = given
    found = y, *native.conv_relu_backward(gradient, y, x, weight, *sizes, True)

    def backward(dtype: torch.dtype) -> tuple[Tensor, ...]:
        return module.conv_relu_backward_reference(*(t.to(dtype) for t in (gradient, y, x, weight)), *sizes, True)

    exacts, eagers = (exact, *backward(torch.float64)), (eager, *backward(torch.float32))
    for ours, theirs, wanted in zip(found, eagers, exacts, strict=True):
        assert ours.shape == wanted.shape
        assert ours.dim() == 1 or ours.is_contiguous(memory_format=torch.channels_last)
        error, allowed = ((t.double() - wanted).abs().max().item() for t in (ours, theirs))
        assert error <= 2 * allowed + 1e-6 * wanted.abs().max().item()
    none, *alone = native.conv_relu_backward(gradient, y, x, weight, *sizes, False)
    assert none.numel() == 0
    assert all(map(torch.equal, alone, found[2:]))


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case)))
def test_is_as_precise_as_pytorch(case: Case) -> None:
    assert_as_precise_as_pytorch(case)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    groups = draw(st.integers(1, 3))
    kernel, padding = draw(st.integers(1, 5)), draw(st.integers(0, 3))
    h, w = (max(draw(st.integers(1, 7)), kernel - 2 * padding) for _ in range(2))
    inputs, outputs = (16 * groups * draw(st.integers(1, 6)) for _ in range(2))
    return Case(draw(st.integers(1, 20)), inputs, h, w, outputs, kernel, 1, padding, groups)


@given(cases())
@settings(max_examples=60, deadline=None)
def test_any_shape(case: Case) -> None:
    assert_as_precise_as_pytorch(case)


@pytest.mark.parametrize("case", [MINI_3, MINI_4, CASES[4]], ids=lambda case: "-".join(map(str, case)))
def test_bits_depend_on_neither_threads_nor_the_other_images(case: Case) -> None:
    gradient, x, weight, bias = drawn(case)
    sizes = case.padding, case.groups
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = torch.cat([native.conv_relu(x[i : i + 1], weight, bias, *sizes) for i in range(case.n)])
        gradients = native.conv_relu_backward(gradient, alone, x, weight, *sizes, True)
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            assert torch.equal(native.conv_relu(x, weight, bias, *sizes), alone)
            again = native.conv_relu_backward(gradient, alone, x, weight, *sizes, True)
            assert all(map(torch.equal, again, gradients))
    finally:
        torch.set_num_threads(before)


def test_a_nan_reaches_what_sees_it_and_nothing_else() -> None:
    gradient, x, weight, bias = drawn(MINI_3)
    clean = native.conv_relu(x, weight, bias, 1, 1)
    x[3, 5, 0, 0] = float("nan")
    y = native.conv_relu(x, weight, bias, 1, 1)
    seen = torch.zeros(y.shape, dtype=torch.bool)
    seen[3, :, :2, :2] = True
    assert y[seen].isnan().all() and torch.equal(y[~seen], clean[~seen])
    dx, dweight, dbias = native.conv_relu_backward(gradient, y, x, weight, 1, 1, True)
    assert dx.isfinite().all() and dbias.isfinite().all()  # a NaN passes the ReLU with a gradient of 1, as in PyTorch
    assert dweight[:, 5].isnan().any() and dweight[:, :5].isfinite().all()


def test_no_images() -> None:
    gradient, x, weight, bias = drawn(MINI_3)
    y = native.conv_relu(x[:0], weight, bias, 1, 1)
    assert y.shape == (0, 96, 4, 4)
    dx, dweight, dbias = native.conv_relu_backward(gradient[:0], y, x[:0], weight, 1, 1, True)
    assert dx.shape == x[:0].shape and not dweight.any() and not dbias.any()


def gradients_through(case: Case, dtype: torch.dtype, *, with_dx: bool = True) -> list[tuple[Tensor, ...]]:
    """Return y and its gradients from `ops.conv_relu`, and from PyTorch."""
    found = []
    for convolution in (ops.conv_relu, lambda *given, **how: F.relu(F.conv2d(*given, **how))):
        gradient, *given = (t.to(dtype) for t in drawn(case))
        leaves = [t.requires_grad_() for t in given[0 if with_dx else 1 :]]
        y = convolution(*given, padding=case.padding, groups=case.groups)
        found.append((y.detach(), *torch.autograd.grad(y, leaves, gradient)))
    return found


@pytest.mark.parametrize("with_dx", [True, False])
def test_is_a_convolution_and_a_relu_to_autograd(with_dx: bool) -> None:
    for one, other in zip(*gradients_through(MINI_4, torch.float32, with_dx=with_dx), strict=True):
        assert one.stride() == other.stride()
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4 * other.abs().max().item())


@pytest.mark.parametrize(
    ("case", "dtype"),
    [
        (MINI_3, torch.float64),
        (MINI_3, torch.bfloat16),
        (Case(2, 3, 4, 4, 7, 3, padding=1), torch.float32),  # channels that do not fill vectors
        (Case(2, 16, 9, 9, 16, 3, padding=1), torch.float32),  # a larger map
    ],
    ids=str,
)
def test_elsewhere_it_is_pytorchs(case: Case, dtype: torch.dtype) -> None:
    ours, theirs = gradients_through(case, dtype)
    assert all(map(torch.equal, ours, theirs))
    gradient, x, weight, _ = (t.to(dtype) for t in drawn(case))
    sizes = {"padding": case.padding, "groups": case.groups}
    explicit = ops.conv_relu_backward(gradient, ours[0], x, weight, **sizes, needs_dx=True)
    for one, other in zip(explicit, theirs[1:], strict=True):
        assert one is not None and torch.equal(one, other)
    assert ops.conv_relu_backward(gradient, ours[0], x, weight, **sizes, needs_dx=False)[0] is None


def test_autocast_is_pytorchs() -> None:
    _, *given = drawn(MINI_3)
    with torch.autocast("cpu", torch.bfloat16):
        assert ops.conv_relu(*given, padding=1).dtype == torch.bfloat16


def test_bad_input() -> None:
    gradient, x, weight, bias = drawn(MINI_3)
    y = native.conv_relu(x, weight, bias, 1, 1)
    for arguments, said in [
        ((x[0], weight, bias, 1, 1), "4 dimensions, not 3 and 4"),
        ((x, weight, bias, -1, 1), "padding must be at least 0 and groups at least 1, not -1 and 1"),
        ((x, weight, bias, 1, 5), "does not fit x of 64 in 5 groups"),
        ((x[:, :63], weight, bias, 1, 1), "does not fit x of 63"),
        ((x, weight[:90], bias[:90], 1, 1), "multiples of 16, not 64 and 90"),
        ((x[:, :, :2, :2], weight, bias, 0, 1), "must fit into the padded image"),
        ((x.double(), weight.double(), bias, 1, 1), "must be float32, not Double and Double"),
        ((x.contiguous(), weight, bias, 1, 1), "channels-last"),
        ((x, weight, bias[:90], 1, 1), "bias must be 96 contiguous float32"),
    ]:
        with pytest.raises(RuntimeError, match=said):
            native.conv_relu(*arguments)
    for wrong in (gradient[:3], gradient.double(), gradient.contiguous()):
        with pytest.raises(RuntimeError, match="must be like the output of conv_relu"):
            native.conv_relu_backward(wrong, y, x, weight, 1, 1, True)
        with pytest.raises(RuntimeError, match="must be like the output of conv_relu"):
            native.conv_relu_backward(gradient, wrong, x, weight, 1, 1, True)


def test_opcheck() -> None:
    gradient, *given = drawn(MINI_4._replace(n=2))
    given = [t.requires_grad_() for t in given]
    torch.library.opcheck(native.conv_relu.default, (*given, 1, 2))
    x, weight, _ = (t.detach() for t in given)
    y = native.conv_relu(x, weight, given[2].detach(), 1, 2)
    for input in (True, False):
        torch.library.opcheck(native.conv_relu_backward.default, (gradient, y, x, weight, 1, 2, input))


@pytest.mark.compiled
def test_compiles_without_a_break() -> None:
    _, *given = drawn(MINI_3)
    given = [t.requires_grad_() for t in given]

    def layer(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return ops.conv_relu(x * 2, weight, bias, padding=1) + 1

    compiled, eager = torch.compile(layer, fullgraph=True)(*given), layer(*given)
    torch.testing.assert_close(compiled, eager)
    for one, other in zip(*(torch.autograd.grad(y.sum(), given) for y in (compiled, eager)), strict=True):
        torch.testing.assert_close(one, other)
