"""The operator against its reference, its gradient, and PyTorch's own checks of an operator."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from fasttransfer.core import randomness
from fasttransfer.ops import native
from fasttransfer.ops._dropout import dropout, dropout_reference

ROOT = Path(__file__).resolve().parents[2]
KEY = randomness.key(0, "test-dropout")
TYPES = [torch.float32, torch.bfloat16, torch.float64]
SIZES = [0, 1, 3, 4, 5, 511, 512, 513, 100_003]

# Random123's published answers for Philox4x32-10: the words of counter, key and output, low word first.
KNOWN = [
    (
        "00000000 00000000 00000000 00000000",
        "00000000 00000000",
        "6627e8d5 e169c58d bc57ac4c 9b00dbd8",
    ),
    (
        "ffffffff ffffffff ffffffff ffffffff",
        "ffffffff ffffffff",
        "408f276d 41c83b0e a20bc7c6 6d5451fd",
    ),
    (
        "243f6a88 85a308d3 13198a2e 03707344",
        "a4093822 299f31d0",
        "d16cfe09 94fdcceb 5001e420 24126ea1",
    ),
]


def step(number: int) -> Tensor:
    return torch.tensor(number)


def _words(text: str) -> list[int]:
    return [int(word, 16) for word in text.split()]


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN)
def test_philox_gives_the_published_answers(counter: str, key: str, answer: str) -> None:
    c0, c1, c2, c3 = _words(counter)
    k0, k1 = _words(key)
    first = c0 | c1 << 32
    signed = first - 2**64 if first >= 2**63 else first  # blocks are numbered in int64
    got = randomness.philox(k0 | k1 << 32, 1, first=signed, at=c2 | c3 << 32)
    assert got.tolist() == [_words(answer)]


PRINT_BLOCK = """
#include <cstdio>
#include <cstdlib>
#include "math/philox.h"
int main(int, char** numbers) {
  const auto number = [&](int i) { return std::strtoull(numbers[i], nullptr, 10); };
  const auto block = fasttransfer::philox(number(1), number(2), number(3));
  for (const auto word : block.word) std::printf("%u\\n", word);
}
"""


def test_native_philox_gives_the_published_answers(tmp_path: Path) -> None:
    """The header by itself: the operator starts at block 0 and cannot be asked for every counter."""
    compiler = shutil.which(os.environ.get("CXX", "c++"))
    if compiler is None:
        pytest.skip("no C++ compiler")
    program = tmp_path / "print_block"
    (tmp_path / "print_block.cpp").write_text(PRINT_BLOCK)
    subprocess.run([compiler, f"-I{ROOT / 'csrc'}", str(program.with_suffix(".cpp")), "-o", str(program)], check=True)
    for counter, key, answer in KNOWN:
        c0, c1, c2, c3 = _words(counter)
        k0, k1 = _words(key)
        numbers = [str(k0 | k1 << 32), str(c0 | c1 << 32), str(c2 | c3 << 32)]
        printed = subprocess.run([program, *numbers], check=True, capture_output=True, text=True).stdout
        assert [int(word) for word in printed.split()] == _words(answer)


def _kept_above(threshold: int, key: int, at: int) -> list[bool]:
    """Return the ones of the first four elements that the native operator keeps."""
    return (dropout(torch.ones(4), key, step(at), threshold / 2**32) > 0).tolist()


@pytest.mark.parametrize("key", [0, 1, 2**63 - 1, 2**63, 2**64 - 1])
@pytest.mark.parametrize("at", [0, 1, 2**32 - 1, 2**32, 2**62])
def test_native_words_are_those_of_randomness(key: int, at: int) -> None:
    """The operator shows its words through what it keeps, for thresholds on both sides of each."""
    assert native.load(), native.why_not()
    for i, word in enumerate(randomness.words(key, 4, at=at).tolist()):
        assert _kept_above(word, key, at)[i]
        assert not _kept_above(word + 1, key, at)[i]


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("p", [0.0, 0.3, 0.5, 0.999])
def test_equals_the_reference_bit_for_bit(n: int, dtype: torch.dtype, p: float) -> None:
    x = torch.randn(n, dtype=torch.float64, generator=torch.Generator().manual_seed(n)).to(dtype)
    y = dropout(x, KEY, step(7), p)
    assert y.dtype == dtype
    assert torch.equal(y, dropout_reference(x, KEY, step(7), p))


@settings(deadline=None, max_examples=50)
@given(
    key=st.integers(0, 2**64 - 1),
    at=st.integers(0, 2**63 - 1),
    p=st.floats(0.0, 0.9999),
    shape=st.lists(st.integers(1, 12), min_size=0, max_size=4),
)
def test_equals_the_reference_for_any_draw(key: int, at: int, p: float, shape: list[int]) -> None:
    x = torch.linspace(-2.0, 3.0, torch.Size(shape).numel()).view(shape)
    assert torch.equal(dropout(x, key, step(at), p), dropout_reference(x, key, step(at), p))


def test_special_values() -> None:
    inf, nan = float("inf"), float("nan")
    for dtype in TYPES:
        x = torch.tensor([inf, -inf, nan, -0.0, 1e-40, 3.3895e38, 1.0, -1.0] * 8, dtype=dtype)
        y, reference = dropout(x, KEY, step(1), 0.5), dropout_reference(x, KEY, step(1), 0.5)
        assert torch.equal(y.isnan(), reference.isnan())
        assert torch.equal(y.nan_to_num(1.0), reference.nan_to_num(1.0))
        dropped = randomness.words(KEY, 64, at=1) < 2**31
        assert not y[dropped].any()  # zero, whatever stood there


def test_p_of_zero_changes_nothing() -> None:
    x = torch.randn(1000)
    assert torch.equal(dropout(x, KEY, step(0), 0.0), x)


def test_share_and_mean() -> None:
    y = dropout(torch.ones(1_000_000), KEY, step(0), 0.3)
    assert abs((y == 0).double().mean().item() - 0.3) < 0.002  # four standard deviations
    assert abs(y.double().mean().item() - 1.0) < 0.003


def test_another_step_or_key_is_another_mask() -> None:
    x = torch.ones(4096)
    masks = [dropout(x, key, step(at), 0.5) > 0 for key in (KEY, KEY + 1) for at in (0, 1)]
    for i, a in enumerate(masks):
        for b in masks[:i]:
            assert abs((a == b).double().mean().item() - 0.5) < 0.05


def test_threads_change_nothing() -> None:
    x = torch.randn(1_000_003)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(dropout(x, KEY, step(3), 0.5))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


@pytest.mark.parametrize("dtype", TYPES)
def test_gradient_uses_the_same_mask(dtype: torch.dtype) -> None:
    x = torch.randn(7, 333, dtype=torch.float64).to(dtype).requires_grad_()
    incoming = torch.randn(333, 7, dtype=torch.float64).to(dtype).t()  # not contiguous
    (got,) = torch.autograd.grad(dropout(x, KEY, step(2), 0.4), x, incoming)
    (expected,) = torch.autograd.grad(dropout_reference(x, KEY, step(2), 0.4), x, incoming)
    assert got.dtype == dtype
    assert torch.equal(got, expected)


def test_gradients_by_finite_differences() -> None:
    x = torch.randn(5, 9, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: dropout(x, KEY, step(2), 0.4), x)
    assert torch.autograd.gradgradcheck(lambda x: dropout(x, KEY, step(2), 0.4), x)


def test_autocast_keeps_the_type() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        assert dropout(torch.ones(8), KEY, step(0), 0.5).dtype == torch.float32
        assert dropout(torch.ones(8, dtype=torch.bfloat16), KEY, step(0), 0.5).dtype == torch.bfloat16


@pytest.mark.parametrize("run", [dropout, dropout_reference], ids=["native", "reference"])
def test_bad_input(run) -> None:
    x = torch.ones(4, 4)
    for p in (-0.1, 1.0, 1.0 - 2.0**-33, 1.5, float("nan")):
        with pytest.raises(RuntimeError, match="p must be at least 0 and below 1"):
            run(x, KEY, step(0), p)
    run(x, KEY, step(0), 1.0 - 2.0**-32)
    with pytest.raises(RuntimeError, match="contiguous"):
        run(torch.ones(3, 4).t(), KEY, step(0), 0.5)
    for at in (torch.tensor(0.0), torch.tensor([0, 1])):
        with pytest.raises(RuntimeError, match="at must be one int64"):
            run(x, KEY, at, 0.5)
    for dtype in (torch.float16, torch.int64):
        with pytest.raises(RuntimeError, match="float32, bfloat16 or float64"):
            run(x.to(dtype), KEY, step(0), 0.5)


@pytest.mark.parametrize("dtype", TYPES)
def test_opcheck(dtype: torch.dtype) -> None:
    x = torch.randn(3, 50, dtype=torch.float64).to(dtype).requires_grad_()
    torch.library.opcheck(torch.ops.fasttransfer.dropout.default, (x, -5, step(2), 0.5))


def _layer(x: Tensor, at: Tensor) -> Tensor:
    return dropout(torch.relu(x), KEY, at, 0.5) * 3.0


def _assert_same_with_gradients(compiled: Callable[[Tensor, Tensor], Tensor], at: Tensor) -> None:
    x = torch.randn(16, 65)
    eager_x, compiled_x = x.clone().requires_grad_(), x.clone().requires_grad_()
    eager, got = _layer(eager_x, at), compiled(compiled_x, at)
    assert torch.equal(got, eager)
    eager.sum().backward()
    got.sum().backward()
    assert compiled_x.grad is not None
    assert eager_x.grad is not None
    assert torch.equal(compiled_x.grad, eager_x.grad)


@pytest.mark.compiled
def test_compiles_without_a_break() -> None:
    _assert_same_with_gradients(torch.compile(_layer, fullgraph=True), step(5))


def test_is_not_compiled_again_for_every_step() -> None:
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(_layer, fullgraph=True, backend=counter)
    for at in range(2, 8):
        _assert_same_with_gradients(compiled, step(at))
    assert counter.frame_count == 1
