"""The fused frozen stage against the plain formulas, and PyTorch's own checks of an operator."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from convolutions import Case, by_the_formula
from devices import DEVICES
from hypothesis import given, settings
from hypothesis import strategies as st
from programs import run_program
from torch import Tensor

from fasttransfer.ops._conv_relu_pool_lrn import conv_relu_pool_lrn, conv_relu_pool_lrn_reference

TYPES = [torch.float32, torch.bfloat16]


STAGE_1 = Case(2, 3, 227, 227, 96, 11, stride=4)
STAGE_1_BLOCKS = Case(1, 48, 57, 57, 96, 3)
STAGE_2 = Case(2, 96, 27, 27, 256, 5, padding=2, groups=2)
MINI_1 = Case(3, 3, 58, 58, 32, 7, stride=3)
MINI_2 = Case(3, 32, 9, 9, 64, 5, padding=2, groups=2)
ODD = [
    Case(1, 1, 3, 3, 1, 1),
    Case(1, 5, 6, 5, 7, 3),  # an odd window, fewer channels than lanes
    Case(2, 6, 9, 14, 21, 2, groups=3),  # pooling over two edges, groups of 7
    Case(3, 4, 4, 8, 68, 2, stride=1, padding=3, groups=2),  # rows of the kernel above and below the image
    Case(1, 2, 33, 6, 33, 3, stride=2, padding=1),
    Case(1, 3, 11, 10, 10, 1, stride=3, padding=2),  # a stride longer than the kernel
    Case(2, 7, 5, 31, 130, 3, padding=1),  # 9 vectors of channels
]
CASES = [STAGE_1, STAGE_1_BLOCKS, STAGE_2, MINI_1, MINI_2, *ODD]


def run(case: Case, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return conv_relu_pool_lrn(x, weight, bias, **case.options())


def assert_as_precise_as_pytorch(case: Case, dtype: torch.dtype, device: str) -> None:
    x, weight, bias = case.tensors(dtype, device)
    ours = run(case, x, weight, bias)
    exact = by_the_formula(x, weight, bias, case)
    eager = conv_relu_pool_lrn_reference(x, weight, bias, case.stride, case.padding, case.groups)
    assert ours.dtype == dtype
    assert ours.shape == exact.shape
    assert ours.is_contiguous(memory_format=torch.channels_last)
    error, allowed = ((y.cpu().double() - exact).abs().max().item() for y in (ours, eager))
    assert error <= 2 * allowed + 1e-6 * exact.abs().max().item()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case)))
def test_is_as_precise_as_pytorch(case: Case, dtype: torch.dtype, device: str) -> None:
    assert_as_precise_as_pytorch(case, dtype, device)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    groups = draw(st.integers(1, 3))
    kernel, stride, padding = draw(st.integers(1, 5)), draw(st.integers(1, 4)), draw(st.integers(0, 3))
    h, w = (draw(st.integers(3, 26)) for _ in range(2))
    smallest = kernel + 2 * stride - 2 * padding  # gives an output of 3
    return Case(
        draw(st.integers(1, 3)),
        groups * draw(st.integers(1, 9)),
        max(h, smallest),
        max(w, smallest),
        groups * draw(st.integers(1, 70)),
        kernel,
        stride,
        padding,
        groups,
    )


@given(cases(), st.sampled_from(TYPES))
@settings(max_examples=60, deadline=None)
def test_any_shape(case: Case, dtype: torch.dtype) -> None:
    assert_as_precise_as_pytorch(case, dtype, "cpu")


@pytest.mark.parametrize("case", [STAGE_2, MINI_1, *ODD], ids=lambda case: "-".join(map(str, case)))
def test_bfloat16_is_rounded_once(case: Case) -> None:
    x, weight, bias = case.tensors(torch.bfloat16)
    exact = by_the_formula(x, weight, bias, case)
    error = (run(case, x, weight, bias).double() - exact).abs()
    # Half of the last of 8 bits, and what float32 sums of terms of about 100 are off where they cancel.
    assert (error <= exact.abs() * 2**-8 + 1e-4).all()


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("case", [MINI_1, MINI_2, ODD[2]], ids=lambda case: "-".join(map(str, case)))
def test_neither_threads_nor_other_images_change_a_bit(case: Case, dtype: torch.dtype) -> None:
    x, weight, bias = case._replace(n=5).tensors(dtype)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = torch.cat([run(case, x[i : i + 1], weight, bias) for i in range(5)])
        for threads in (1, 2, 3, 5):
            torch.set_num_threads(threads)
            assert torch.equal(run(case, x, weight, bias), alone)
            assert torch.equal(run(case, x[3:4], weight, bias), alone[3:4])
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("dtype", TYPES)
def test_a_nan_reaches_what_sees_it_and_nothing_else(dtype: torch.dtype, bad: float, device: str) -> None:
    case = Case(2, 3, 20, 23, 40, 3, padding=1)  # windows of 9 elements a row: an odd number
    x, weight, bias = case.tensors(dtype, device)
    clean = run(case, x, weight, bias)
    x[1, :, 9, 8] = bad
    seen = torch.zeros(2, 1, 20, 23)
    seen[1, 0, 9, 8] = 1
    seen = F.max_pool2d(F.conv2d(seen, torch.ones(1, 1, 3, 3), padding=1), 3, 2, ceil_mode=True) > 0
    y, seen = run(case, x, weight, bias), seen.expand_as(clean).to(device)
    assert torch.equal(y[~seen], clean[~seen])
    if bad != bad:
        assert y[seen].isnan().all()
    weight[5, 0, 0, 0] = float("nan")
    assert run(case, x, weight, bias)[:, 3:8].isnan().all()  # normalisation spreads it by two channels


def test_no_images() -> None:
    x, weight, bias = MINI_2.tensors(torch.float32)
    assert run(MINI_2, x[:0], weight, bias).shape == (0, 64, 4, 4)


def test_any_memory_format_and_autocast() -> None:
    x, weight, bias = MINI_2.tensors(torch.float32)
    expected = run(MINI_2, x, weight, bias)
    assert torch.equal(run(MINI_2, x.contiguous(), weight.contiguous(), bias), expected)
    with torch.autocast("cpu", torch.bfloat16):
        narrow = run(MINI_2, x, weight, bias)
    assert narrow.dtype == torch.bfloat16
    assert torch.equal(narrow, run(MINI_2, x.bfloat16(), weight.bfloat16(), bias))


def test_refuses_what_would_need_a_gradient() -> None:
    x, weight, bias = MINI_2.tensors(torch.float32)
    for tensor in (x, weight, bias):
        tensor.requires_grad_()
        with pytest.raises(RuntimeError, match="has no gradient"):
            run(MINI_2, x, weight, bias)
        with torch.no_grad():
            run(MINI_2, x, weight, bias)
        tensor.requires_grad_(False)


def test_bad_input() -> None:
    x, weight, bias = MINI_2.tensors(torch.float32)
    thin = x[..., :1].contiguous(memory_format=torch.channels_last)
    native = torch.ops.fasttransfer.conv_relu_pool_lrn
    for arguments, said in [
        ((x[0], weight, bias, 1, 2, 2), "4 dimensions, not 3 and 4"),
        ((x, weight, bias, 0, 2, 2), "stride and groups must be at least 1 and padding at least 0"),
        ((x, weight, bias, 1, -1, 2), "stride and groups must be at least 1 and padding at least 0"),
        ((x, weight, bias, 1, 2, 4), "weight of 64 x 16 channels does not fit x of 32 in 4 groups"),
        ((x, weight, bias[1:], 1, 2, 2), "bias must be 64 contiguous float32"),
        ((x, weight, bias.double(), 1, 2, 2), "bias must be 64 contiguous float32"),
        ((x, weight.bfloat16(), bias, 1, 2, 2), "weight must be of x's type Float, not BFloat16"),
        ((x.double(), weight.double(), bias, 1, 2, 2), "x must be float32 or bfloat16, not Double"),
        ((x.contiguous(), weight, bias, 1, 2, 2), "channels-last"),
        ((x, weight, bias, 5, 2, 2), "at least 3 x 3 to be pooled, not 2 x 2"),
        ((thin, weight, bias, 1, 1, 2), "at least 3 x 3 to be pooled, not 7 x 0"),
    ]:
        with pytest.raises(RuntimeError, match=said):
            native(*arguments)


@pytest.mark.parametrize("dtype", TYPES)
def test_opcheck(dtype: torch.dtype) -> None:
    x, weight, bias = MINI_2.tensors(dtype)
    torch.library.opcheck(torch.ops.fasttransfer.conv_relu_pool_lrn.default, (x, weight, bias, 1, 2, 2))


@pytest.mark.compiled
def test_compiles_without_a_break() -> None:
    x, weight, bias = MINI_2.tensors(torch.bfloat16)
    compiled = torch.compile(lambda *tensors: run(MINI_2, *tensors) * 2, fullgraph=True)
    assert torch.equal(compiled(x, weight, bias), run(MINI_2, x, weight, bias) * 2)


# The operator takes the best that the processor has; here every kind of tile that can run is held against plain sums.
# Small whole numbers: exact in bfloat16 and in any order.
CHECK_TILES = """
#include <cstdio>
#include <vector>
#include "cpu/conv_tile.h"
using namespace fasttransfer;

void put(int value, float* to) { *to = static_cast<float>(value); }
void put(int value, uint16_t* to) { *to = static_cast<uint16_t>(reinterpret_cast<const uint32_t&>(
    static_cast<const float&>(static_cast<float>(value))) >> 16); }

template <typename Kind>
int check(const char* name) {
  using Packed = typename Kind::Packed;
  const auto& functions = tile_functions<Kind>();
  int tiles = 0;
  for (int vectors = 1; vectors <= functions.vectors; ++vectors) {
    for (int pixels = 1; pixels <= functions.pixels[vectors - 1]; ++pixels, ++tiles) {
      const int rows = 3, length = 7, step = 5, width = vectors * kLanes, unit = functions.unit;
      const int next = unit == 1 ? 2 : 1;  // pairs are neighbours
      const int units = (length + unit - 1) / unit, pitch = step * pixels + length * next, pitch_w = width * unit + 4;
      std::vector<Packed> x(rows * pitch), weights(rows * units * pitch_w);
      std::vector<int> plain_x(x.size()), plain_weights(weights.size());
      for (size_t i = 0; i < x.size(); ++i) put(plain_x[i] = int(i * 7 % 11) - 5, &x[i]);
      for (int row = 0; row < rows; ++row) for (int i = 0; i < length; ++i) for (int k = 0; k < width; ++k) {
        const int at = (row * units + i / unit) * pitch_w + k * unit + i % unit;
        put(plain_weights[at] = (row * 5 + i * 3 + k * 13) % 9 - 4, &weights[at]);
      }
      std::vector<const Packed*> starts, starts_w;
      for (int row = 0; row < rows; ++row) starts.push_back(x.data() + row * pitch);
      for (int row = 0; row < rows; ++row) starts_w.push_back(weights.data() + row * units * pitch_w);
      const int pitch_y = width + 3;
      std::vector<float> sums((pixels + 1) * pitch_y, 1e9f);
      functions.of[vectors - 1][pixels - 1](
          {starts.data(), rows, length, step, next, starts_w.data(), pitch_w, sums.data(), pitch_y});
      for (int p = 0; p <= pixels; ++p) for (int k = 0; k < pitch_y; ++k) {
        int expected = 0;
        for (int row = 0; row < rows; ++row) for (int i = 0; i < length && p < pixels && k < width; ++i) {
          expected += plain_x[row * pitch + p * step + i * next] *
                      plain_weights[(row * units + i / unit) * pitch_w + k * unit + i % unit];
        }
        const float wanted = p < pixels && k < width ? float(expected) : 1e9f;  // beyond the tile nothing is written
        if (sums[p * pitch_y + k] != wanted) return std::printf("%s %d x %d is wrong\\n", name, vectors, pixels), 1;
      }
    }
  }
  std::printf("%s %d\\n", name, tiles);
  return 0;
}

int main() {
  int wrong = check<Portable>("portable");
#if defined(FT_X86)
  if (Avx2::here()) wrong += check<Avx2>("avx2");
  if (Avx512::here()) wrong += check<Avx512>("avx512");
  if (Avx512Bf16::here()) wrong += check<Avx512Bf16>("avx512bf16");
#endif
  return wrong;
}
"""


def test_every_tile_of_every_kind_of_processor(tmp_path: Path) -> None:
    output = run_program(tmp_path, CHECK_TILES)
    assert "portable 2\n" in output or "portable 6\n" in output
