"""The gradients of a convolution from the nonzero gradients of its output, against float64 and PyTorch's own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from convolutions import Case
from hypothesis import given, settings
from hypothesis import strategies as st
from programs import run_program
from torch import Tensor

from fasttransfer import ops
from fasttransfer.ops import _sparse_conv_backward as module

TYPES = [torch.float32, torch.bfloat16]

STAGE_1 = Case(2, 3, 227, 227, 96, 11, stride=4)  # an image is cut into strips
STAGE_2 = Case(2, 96, 27, 27, 256, 5, padding=2, groups=2)
STAGE_5 = Case(3, 384, 13, 13, 256, 3, padding=1, groups=2)
MINI_1 = Case(5, 3, 58, 58, 32, 7, stride=3)  # images are taken together, the last ones fewer
MINI_2 = Case(40, 32, 9, 9, 64, 5, padding=2, groups=2)
ODD = [
    Case(1, 1, 1, 1, 1, 1),
    Case(1, 5, 6, 5, 7, 3),
    Case(2, 6, 9, 14, 21, 2, groups=3),
    Case(3, 4, 4, 8, 68, 2, padding=3, groups=2),
    Case(1, 2, 33, 6, 33, 3, stride=2, padding=1),
    Case(1, 3, 11, 10, 10, 1, stride=3, padding=2),  # pixels that nothing sees
]
CASES = [STAGE_1, STAGE_2, STAGE_5, MINI_1, MINI_2, *ODD]


def drawn(case: Case, dtype: torch.dtype, density: float = 0.1) -> tuple[Tensor, Tensor, Tensor]:
    """Return the output's gradient, of which a share `density` is not zero, x and weight."""
    x, weight, _ = case.tensors(dtype)
    shape = F.conv2d(x[:1].float(), weight.float(), None, **case.options()).shape
    generator = torch.Generator().manual_seed(1)
    gradient = torch.randn(case.n, *shape[1:], generator=generator)
    gradient *= torch.rand(gradient.shape, generator=generator) < density
    return gradient.to(dtype).contiguous(memory_format=torch.channels_last), x, weight


def sparse(case: Case, gradient: Tensor, x: Tensor, weight: Tensor, *, input: bool = True) -> tuple[Tensor, Tensor]:
    return ops.sparse_conv_backward(gradient, x, weight, case.stride, case.padding, case.groups, input)


def dense(case: Case, gradient: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    return module.sparse_conv_backward_reference(gradient, x, weight, case.stride, case.padding, case.groups, True)


def assert_as_precise_as_pytorch(case: Case, dtype: torch.dtype, density: float) -> None:
    given = drawn(case, dtype, density)
    exact = dense(case, *(t.double() for t in given))
    # Not in bfloat16: on narrow images with strides oneDNN's kernels for AMX read memory that nobody has written.
    eager = (y.to(dtype) for y in dense(case, *(t.float() for t in given)))
    for ours, theirs, wanted in zip(sparse(case, *given), eager, exact, strict=True):
        assert ours.dtype == dtype and ours.shape == wanted.shape
        assert ours.is_contiguous(memory_format=torch.channels_last)
        error, allowed = ((y.double() - wanted).abs().max().item() for y in (ours, theirs))
        assert error <= 2 * allowed + 1e-6 * wanted.abs().max().item()
    (none, alone) = sparse(case, *given, input=False)
    assert none.numel() == 0 and torch.equal(alone, sparse(case, *given)[1])


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case)))
def test_is_as_precise_as_pytorch(case: Case, dtype: torch.dtype) -> None:
    assert_as_precise_as_pytorch(case, dtype, 0.1)


@pytest.mark.parametrize("density", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("case", [STAGE_2, MINI_1, *ODD], ids=lambda case: "-".join(map(str, case)))
def test_any_share_of_nonzero_gradients(case: Case, dtype: torch.dtype, density: float) -> None:
    assert_as_precise_as_pytorch(case._replace(n=1), dtype, density)


@pytest.mark.parametrize("vectors", range(1, 54))
def test_every_size_of_tile(vectors: int) -> None:
    """Compute a patch of `vectors` vectors: one tile of each size, two of them, three."""
    case = Case(2, 16, vectors + 12, 6, 3, 1)
    gradient, x, _ = drawn(case, torch.float32)
    weight = torch.randn(3, 16, vectors, 1).contiguous(memory_format=torch.channels_last)
    gradient = gradient[:, :, :13, :].contiguous(memory_format=torch.channels_last)
    given = gradient, x, weight
    exact = dense(case, *(t.double() for t in given))
    for ours, wanted in zip(sparse(case, *given), exact, strict=True):
        torch.testing.assert_close(ours.double(), wanted, rtol=1e-5, atol=1e-5 * wanted.abs().max().item())


@st.composite
def cases(draw: st.DrawFn) -> Case:
    groups = draw(st.integers(1, 3))
    kernel, stride, padding = draw(st.integers(1, 5)), draw(st.integers(1, 4)), draw(st.integers(0, 3))
    h, w = (max(draw(st.integers(1, 26)), kernel - 2 * padding) for _ in range(2))
    inputs, outputs = groups * draw(st.integers(1, 34)), groups * draw(st.integers(1, 40))
    return Case(draw(st.integers(1, 5)), inputs, h, w, outputs, kernel, stride, padding, groups)


@given(cases(), st.sampled_from(TYPES), st.sampled_from([0.02, 0.3]))
@settings(max_examples=60, deadline=None)
def test_any_shape(case: Case, dtype: torch.dtype, density: float) -> None:
    assert_as_precise_as_pytorch(case, dtype, density)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("case", [MINI_1, MINI_2, ODD[2]], ids=lambda case: "-".join(map(str, case)))
def test_bits(case: Case, dtype: torch.dtype) -> None:
    """A second call gives the same bits; those of an image depend on neither threads nor the other images."""
    gradient, x, weight = drawn(case._replace(n=5), dtype)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = torch.cat([sparse(case, gradient[i : i + 1], x[i : i + 1], weight)[0] for i in range(5)])
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            (dx, dweight), again = sparse(case, gradient, x, weight), sparse(case, gradient, x, weight)
            assert torch.equal(dx, alone) and torch.equal(dx, again[0]) and torch.equal(dweight, again[1])
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("channels", [5, 32])
def test_a_nan_reaches_what_sees_it_and_nothing_else(channels: int, dtype: torch.dtype, bad: float) -> None:
    case = Case(3, channels, 20, 23, 40, 3, padding=1)
    gradient, x, weight = drawn(case, dtype)
    clean_dx, clean_dweight = sparse(case, gradient, x, weight)
    gradient[1, 7, 10, 11] = bad
    dx, dweight = sparse(case, gradient, x, weight)
    seen = torch.zeros(dx.shape, dtype=torch.bool)
    seen[1, :, 9:12, 10:13] = True
    assert not dx[seen].isfinite().any() and torch.equal(dx[~seen], clean_dx[~seen])
    assert not dweight[7].isfinite().any()
    assert torch.equal(dweight[torch.arange(40) != 7], clean_dweight[torch.arange(40) != 7])


def test_no_images() -> None:
    gradient, x, weight = drawn(MINI_2, torch.float32)
    dx, dweight = sparse(MINI_2, gradient[:0], x[:0], weight)
    assert dx.shape == x[:0].shape and not dweight.any()


@pytest.mark.parametrize("wanted", [(True, True), (False, True), (True, False)], ids=str)
@pytest.mark.parametrize("dtype", TYPES)
def test_is_a_convolution_to_autograd(dtype: torch.dtype, wanted: tuple[bool, bool]) -> None:
    found = []
    for convolution in (ops.conv2d_to_pool, F.conv2d):
        x, weight, _ = MINI_2.tensors(dtype)
        leaves = [t.requires_grad_(w) for t, w in zip((x, weight), wanted, strict=True)]
        y = convolution(x, weight, **MINI_2.options())
        loss = F.max_pool2d(F.relu(y), 3, 2, ceil_mode=True).float().square().mean()
        found.append((y.detach(), torch.autograd.grad(loss, [t for t in leaves if t.requires_grad])))
    (ours, gradients), (theirs, expected) = found
    assert torch.equal(ours, theirs)
    for one, other in zip(gradients, expected, strict=True):
        assert one.dtype == dtype and one.stride() == other.stride()
        error = (one.double() - other.double()).norm() / other.double().norm()
        assert error < (1e-5 if dtype == torch.float32 else 1e-2)


def test_autocast_and_other_types_are_pytorchs() -> None:
    x, weight, _ = MINI_2.tensors(torch.float32)
    weight.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        y = ops.conv2d_to_pool(x, weight, **MINI_2.options())
    assert y.dtype == torch.bfloat16
    assert torch.autograd.grad(y.float().sum(), weight)[0].dtype == torch.float32
    wide = weight.detach().double().requires_grad_()
    assert ops.conv2d_to_pool(x.double(), wide, **MINI_2.options()).grad_fn.name() == "ConvolutionBackward0"


def test_bad_input() -> None:
    gradient, x, weight = drawn(MINI_2, torch.float32)
    native = torch.ops.fasttransfer.sparse_conv_backward
    for arguments, said in [
        ((gradient[0], x, weight, 1, 2, 2, True), "4 dimensions, not 3, 4 and 4"),
        ((gradient, x, weight, 0, 2, 2, True), "at least 1 and padding at least 0, not 0, 2 and 2"),
        ((gradient, x, weight, 1, 2, 3, True), "does not fit x of 32 in 3 groups"),
        ((gradient, x, weight, 1, 1, 2, True), "must be of the size of the convolution"),
        ((gradient[:3], x, weight, 1, 2, 2, True), "must be of the size of the convolution"),
        ((gradient.double(), x, weight, 1, 2, 2, True), "must be of one type"),
        ((gradient.double(), x.double(), weight.double(), 1, 2, 2, True), "must be float32 or bfloat16, not Double"),
        ((gradient, x.contiguous(), weight, 1, 2, 2, True), "channels-last"),
    ]:
        with pytest.raises(RuntimeError, match=said):
            native(*arguments)


@pytest.mark.parametrize("input", [True, False])
@pytest.mark.parametrize("dtype", TYPES)
def test_opcheck(dtype: torch.dtype, input: bool) -> None:
    given = drawn(MINI_2._replace(n=2), dtype)
    torch.library.opcheck(torch.ops.fasttransfer.sparse_conv_backward.default, (*given, 1, 2, 2, input))


@pytest.mark.compiled
def test_compiles_without_a_break() -> None:
    x, weight, _ = MINI_2.tensors(torch.float32)
    weight.requires_grad_()

    def layer(x: Tensor, weight: Tensor) -> Tensor:
        return F.relu(ops.conv2d_to_pool(x * 2, weight, **MINI_2.options()) + 1)

    compiled, eager = torch.compile(layer, fullgraph=True)(x, weight), layer(x, weight)
    torch.testing.assert_close(compiled, eager)
    ours, theirs = (torch.autograd.grad(y.sum(), weight)[0] for y in (compiled, eager))
    torch.testing.assert_close(ours, theirs)


# The operator takes the best that the processor has; here both ways to find what is not zero are held against each
# other, in both types, with both zeros, NaNs and numbers of channels that are no multiple of a vector.
CHECK_LISTS = """
#include <cstdio>
#include <cstring>
#include <limits>
#include <vector>
#include "cpu/entries.h"
using namespace fasttransfer;

template <typename T>
int check(const char* name) {
  const float numbers[] = {0.0f, -0.0f, 1.5f, 0.0f, -2.0f, std::numeric_limits<float>::quiet_NaN(), 1e-40f};
  for (int channels = 1; channels <= 70; ++channels) {
    std::vector<T> x(channels);
    std::vector<float> expected(channels);
    for (int i = 0; i < channels; ++i) {
      narrow(numbers[(i * 5 + channels) % 7], &x[i]);
      expected[i] = widen(x[i]);
    }
    std::vector<Entry> lists(2 * channels, Entry{0, 0});
    std::vector<int32_t> counts(channels, 0);
    for (int turn = 0; turn < 2; ++turn) {
      if (turn == 0) portable::list_pixel(x.data(), channels, 8, lists.data(), 2, counts.data());
      else list_pixel(x.data(), channels, 9, lists.data(), 2, counts.data());
      for (int i = 0; i < channels; ++i) {
        if (counts[i] != (expected[i] != 0 ? turn + 1 : 0)) return std::printf("%s %d: counts\\n", name, channels), 1;
        const Entry& last = lists[2 * i + turn];
        if (counts[i] && (std::memcmp(&last.value, &expected[i], 4) || last.offset != 8 + turn)) {
          return std::printf("%s %d: entries\\n", name, channels), 1;
        }
      }
    }
  }
  return 0;
}

int main() { return check<float>("float") + check<uint16_t>("bfloat16"); }
"""


def test_nonzero_entries_are_found_on_every_processor(tmp_path: Path) -> None:
    run_program(tmp_path, CHECK_LISTS)
