"""The CUDA kernel of the fused frozen stage on the CPU, compiled for it under the sanitizers; see emulation/."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from array import array
from pathlib import Path

import pytest
import torch
from convolutions import Case, by_the_formula
from torch import Tensor

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
COMPILER = shutil.which(os.environ.get("CXX", "c++"))

pytestmark = pytest.mark.skipif(sys.platform != "linux" or COMPILER is None, reason="needs Linux and a C++ compiler")

# Reads the sizes, x, weight and bias; writes y, of all threads and blocks in the order that is asked for.
PROGRAM = """
#include <cstdio>
#include <cstdlib>
#include <memory>
#include "cuda/conv.cuh"
using namespace fasttransfer;
extern "C" void emulation_order(unsigned);

// Not one byte more than there are, so that the sanitizer sees what reaches beyond.
template <typename T> T* array_of(int64_t count) { return static_cast<T*>(std::malloc(count * sizeof(T))); }
template <typename T> T* read(int64_t count) {
  T* values = array_of<T>(count);
  if (std::fread(values, sizeof(T), count, stdin) != size_t(count)) std::abort();
  return values;
}

int main(int, char** arguments) {
  emulation_order(std::atoi(arguments[1]));
  const int64_t* s = read<int64_t>(14);
  const ConvShape shape{s[0], s[1], s[2], s[3], s[4], s[5], s[6], s[7], s[8], s[9], s[10], s[11], s[12], s[13]};
  const uint16_t* x = read<uint16_t>(shape.n * shape.c * shape.h * shape.w);
  const uint16_t* weight = read<uint16_t>(shape.k * shape.kernel_h * shape.window());
  const float* bias = read<float>(shape.k);
  const int64_t count = shape.n * shape.k * shape.pooled_h * shape.pooled_w;
  uint16_t* y = array_of<uint16_t>(count);
  if (launch_conv(x, weight, bias, y, shape, std::atoi(arguments[2]), nullptr) != cudaSuccess) return 2;
  std::fwrite(y, sizeof *y, count, stdout);
}
"""

CASES = [
    Case(1, 1, 3, 3, 1, 1),
    Case(2, 5, 6, 5, 7, 3),  # element by element
    Case(2, 6, 9, 14, 21, 2, groups=3),
    Case(1, 4, 4, 8, 68, 2, padding=3, groups=2),
    Case(1, 3, 11, 10, 10, 1, stride=3, padding=2),
    Case(1, 3, 13, 76, 32, 4, stride=3),  # more pixels than a tile has
    Case(1, 16, 7, 7, 64, 5, padding=2, groups=2),  # 16 bytes at once, as all that follow
    Case(1, 16, 9, 8, 40, 3, padding=1, groups=2),  # rows of the kernel of one and a half slices
    Case(1, 8, 10, 40, 96, 2),  # three eights of channels a warp
    Case(1, 16, 7, 7, 130, 2),  # four, and a second tile of channels
    Case(1, 8, 15, 9, 128, 1, stride=2),
]


def in_memory(x: Tensor) -> bytes:
    """Elements as they lie in channels-last memory."""
    flat = x.permute(0, 2, 3, 1).reshape(-1) if x.dim() == 4 else x
    return flat.contiguous().view(torch.uint8).numpy().tobytes()


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("conv")
    source = folder / "conv.cpp"
    source.write_text(PROGRAM)
    sources = [str(source), str(HERE / "emulation" / "emulation.cpp")]
    flags = ["-std=c++20", "-O1", "-fno-strict-aliasing", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    includes = [f"-I{HERE / 'emulation'}", f"-I{ROOT / 'csrc'}"]
    command = [str(COMPILER), *flags, "-Wno-unknown-pragmas", *includes, *sources, "-o", str(folder / "conv")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder / "conv"


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case)))
def test_the_kernel_is_the_formula(program: Path, case: Case) -> None:
    x, weight, bias = case.tensors(torch.bfloat16)
    exact = by_the_formula(x, weight, bias, case)
    convolved = [(side + 2 * case.padding - case.kernel) // case.stride + 1 for side in (case.h, case.w)]
    sizes = [*case[:5], case.kernel, case.kernel, *case[6:], *convolved, *exact.shape[2:]]
    given = array("q", sizes).tobytes() + in_memory(x) + in_memory(weight) + in_memory(bias)
    results = set()
    # Ascending, descending and random; a strip a pooled row, an image, and two or three rows.
    for order, blocks in ((0, 1000), (1, 1), (2, 2 * case.n)):
        environment = os.environ | {"ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=0"}
        done = subprocess.run([program, str(order), str(blocks)], input=given, capture_output=True, env=environment)
        assert done.returncode == 0, done.stderr.decode()
        results.add(done.stdout)
    assert len(results) == 1
    n, k, pooled_h, pooled_w = exact.shape
    y = torch.frombuffer(bytearray(results.pop()), dtype=torch.bfloat16).view(n, pooled_h, pooled_w, k)
    error = (y.permute(0, 3, 1, 2).double() - exact).abs()
    # Half of the last of 8 bits, and what float32 sums of terms of about 100 are off where they cancel.
    assert (error <= exact.abs() * 2**-8 + 1e-4).all()
