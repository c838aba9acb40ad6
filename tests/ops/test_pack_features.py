"""Packed features are the features: bit for bit, for every pattern, from any image, natively and in the reference."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from devices import DEVICES
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from fasttransfer.ops import PackedFeatures, pack_features, unpack_features
from fasttransfer.ops._pack_features import pack_reference, unpack_reference

ROOT = Path(__file__).resolve().parents[2]
SIZES = [0, 1, 7, 8, 31, 32, 33, 63, 64, 65, 95, 127, 129, 1000, 9216]
SHARES = [0.0, 0.05, 0.3, 0.9, 1.0]

Unpack = Callable[..., Tensor]


def bits(x: Tensor) -> Tensor:
    return x.view(torch.int16) if x.dtype == torch.bfloat16 else x


def same(a: Tensor, b: Tensor) -> bool:
    """Torch's equality calls zeros of both signs equal and no NaN equal to itself."""
    return a.dtype == b.dtype and torch.equal(bits(a), bits(b))


def sparse(*shape: int, share: float = 0.3, seed: int = 0) -> Tensor:
    """Random features, `share` of which are not zero."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator)
    return x.masked_fill(torch.rand(shape, generator=generator) >= share, 0.0).bfloat16()


def reference(x: Tensor) -> PackedFeatures:
    return PackedFeatures(*pack_reference(x))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("elements", SIZES)
@pytest.mark.parametrize("share", SHARES)
def test_native_and_reference_agree_and_give_the_same_bits_back(device: str, elements: int, share: float) -> None:
    x = sparse(5, elements, share=share, seed=elements).to(device)
    packed = pack_features(x)
    for ours, theirs in zip(packed, reference(x), strict=True):
        assert same(ours, theirs)
    rows = torch.tensor([4, 0, 0, 3], device=device)
    assert same(unpack_features(packed, (elements,)), x)
    assert same(unpack_features(packed, (elements,), rows), x[rows])
    assert same(unpack_reference(*packed, rows, elements), x[rows])


@pytest.mark.parametrize("device", DEVICES)
def test_every_pattern_of_16_bits_survives(device: str) -> None:
    """Negative zero, every NaN with its payload, subnormal numbers; only the pattern 0 costs nothing."""
    every = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(torch.bfloat16).to(device)
    x = torch.stack([every, every.flip(0)])
    packed = pack_features(x)
    assert packed.values.numel() == 2 * (2**16 - 1)
    assert same(unpack_features(packed, (2**16,)), x)
    assert all(same(a, b) for a, b in zip(packed, reference(x), strict=True))


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 6), st.integers(0, 300), st.floats(0, 1), st.integers(0, 2**30))
def test_any_size_and_share(images: int, elements: int, share: float, seed: int) -> None:
    x = sparse(images, elements, share=share, seed=seed)
    packed = pack_features(x)
    assert all(same(a, b) for a, b in zip(packed, reference(x), strict=True))
    assert same(unpack_features(packed, (elements,)), x)


def test_the_layout_is_what_it_says() -> None:
    x = torch.zeros(2, 70, dtype=torch.bfloat16)
    x[0, 0], x[0, 9], x[1, 69] = 1.0, -2.0, 3.0
    packed = pack_features(x)
    assert packed.mask.tolist() == [[1, 2, *[0] * 14], [*[0] * 8, 1 << 5, *[0] * 7]]
    assert packed.values.tolist() == [1.0, -2.0, 3.0]
    assert packed.offsets.tolist() == [0, 2, 3]


def test_channels_last_features_keep_shape_and_memory_order() -> None:
    x = sparse(3, 5, 4, 7).contiguous(memory_format=torch.channels_last)
    packed = pack_features(x)
    assert all(same(a, b) for a, b in zip(packed, reference(x.permute(0, 2, 3, 1).flatten(1)), strict=True))
    y = unpack_features(packed, (5, 4, 7), torch.tensor([2, 0]))
    assert y.shape == (2, 5, 4, 7)
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert same(y, x[[2, 0]])


def test_neither_alignment_nor_threads_matter() -> None:
    """Many images: each thread writes whole registers up to where the next one's values begin."""
    x = sparse(500, 1037)
    expected = reference(x)
    shifted = torch.empty(x.numel() + 1, dtype=x.dtype)[1:].view(x.shape).copy_(x)
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            for dense in (x, shifted):
                packed = pack_features(dense)
                assert all(same(a, b) for a, b in zip(packed, expected, strict=True))
                assert same(unpack_features(packed, (1037,)), x)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("share", [0.3, 1.0])
@pytest.mark.parametrize("elements", [1, 33, 64, 100, 1000])
def test_without_avx512_the_same(elements: int, share: float, tmp_path: Path) -> None:
    """The path of other processors, from the header itself, under the sanitizers where the compiler has them."""
    program = _portable()
    x = sparse(1, elements, share=share)
    (tmp_path / "x").write_bytes(x.view(torch.uint8).numpy().tobytes())
    done = subprocess.run([program, tmp_path / "x", tmp_path / "out"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    packed = reference(x)
    expected = b"".join(t.contiguous().view(torch.uint8).numpy().tobytes() for t in (packed.mask, packed.values, x))
    assert (tmp_path / "out").read_bytes() == expected


PORTABLE = """
#include <cstdio>
#include <vector>
#undef __x86_64__
#include "cpu/bitmask.h"
using namespace fasttransfer;
int main(int, char** names) {
  std::FILE* file = std::fopen(names[1], "rb");
  std::vector<uint16_t> x;
  for (uint16_t value; std::fread(&value, 2, 1, file) == 1;) x.push_back(value);
  const int64_t elements = x.size();
  std::vector<uint8_t> mask(mask_bytes(elements));
  const int64_t count = make_mask(x.data(), elements, mask.data());
  std::vector<uint16_t> values(count), y(elements, 1);
  compress(x.data(), elements, mask.data(), values.data(), count);
  if (!is_mask_of(mask.data(), elements, count) || is_mask_of(mask.data(), elements, count + 1)) return 1;
  expand(mask.data(), values.data(), count, elements, y.data());
  file = std::fopen(names[2], "wb");
  std::fwrite(mask.data(), 1, mask.size(), file);
  std::fwrite(values.data(), 2, values.size(), file);
  std::fwrite(y.data(), 2, y.size(), file);
  return std::fclose(file);
}
"""

_built: list[Path] = []


@pytest.fixture(scope="module", autouse=True)
def _build_portable(tmp_path_factory: pytest.TempPathFactory) -> None:
    compiler = shutil.which(os.environ.get("CXX", "c++"))
    if compiler is None:
        return
    folder = tmp_path_factory.mktemp("portable")
    (folder / "portable.cpp").write_text(PORTABLE)
    command = [compiler, "-std=c++17", "-O1", f"-I{ROOT / 'csrc'}", str(folder / "portable.cpp"), "-o"]
    subprocess.run([*command, str(folder / "portable")], check=True)
    _built.append(folder / "portable")


def _portable() -> Path:
    if not _built:
        pytest.skip("no C++ compiler")
    return _built[0]


def _fits(elements: int = 100) -> tuple[Tensor, PackedFeatures, Tensor]:
    x = sparse(3, elements)
    return x, pack_features(x), torch.arange(3)


@pytest.mark.parametrize("pack", [torch.ops.fasttransfer.pack_features, pack_reference], ids=["native", "reference"])
def test_bad_features(pack: Callable[..., Any]) -> None:
    with pytest.raises(RuntimeError, match="must be bfloat16"):
        pack(torch.ones(2, 3))
    for x in (sparse(2, 3, 4), sparse(4, 6)[:, ::2], sparse(4, 6).t()):
        with pytest.raises(RuntimeError, match="contiguous"):
            pack(x)


def test_features_in_another_memory_order() -> None:
    with pytest.raises(RuntimeError, match="channels-last"):
        pack_features(sparse(2, 3, 4, 5))


@pytest.mark.parametrize(
    "unpack", [torch.ops.fasttransfer.unpack_features, unpack_reference], ids=["native", "reference"]
)
def test_what_does_not_belong_together(unpack: Unpack) -> None:
    """The operator reads no image, no value and no bit beyond the last element that is not there."""
    x, packed, rows = _fits()
    assert same(unpack(*packed, rows, 100), x)
    mask, values, offsets = packed
    other, beyond, less = mask.clone(), mask.clone(), offsets.clone()
    other[1, 0] ^= 1
    beyond[1, 12] |= 128
    less[2] -= 1
    for arguments, says in [
        ((mask.int(), values, offsets, rows, 100), "mask must be"),
        ((mask, values, offsets, rows, 129), "mask must be"),
        ((mask, values.float(), offsets, rows, 100), "values must be bfloat16"),
        ((mask, values, offsets[:3], rows, 100), "offsets must be 4 int64"),
        ((mask, values, offsets, rows.int(), 100), "rows must be int64"),
        ((mask, values, offsets, rows, -1), "elements must"),
        ((mask, values, offsets, torch.tensor([0, 3]), 100), "asked for"),
        ((mask, values, offsets, torch.tensor([-1]), 100), "asked for"),
        ((mask[:0], values, offsets[:1], rows, 100), "none is there"),
        ((mask, values[:-1], offsets, rows, 100), "there are"),
        ((mask, values, torch.tensor([0, 0, -5, 0]), rows, 100), "there are"),
        ((other, values, offsets, rows, 100), "does not fit its number of values"),
        ((beyond, values, offsets, rows, 100), "does not fit its number of values"),
        ((mask, values, less, rows, 100), "does not fit its number of values"),
    ]:
        with pytest.raises(RuntimeError, match=says):
            unpack(*arguments)


def test_opcheck() -> None:
    x, packed, rows = _fits()
    torch.library.opcheck(torch.ops.fasttransfer.pack_features.default, (x,))
    torch.library.opcheck(torch.ops.fasttransfer.unpack_features.default, (*packed, rows, 100))


def test_fake_shapes_are_those_of_the_operator() -> None:
    """The number of values alone depends on data."""
    x, packed, rows = _fits(130)
    with FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True) as mode:
        fake = torch.ops.fasttransfer.pack_features(mode.from_tensor(x))
        dense = torch.ops.fasttransfer.unpack_features(*fake, mode.from_tensor(rows), 130)
    assert [fake[0].shape, fake[2].shape, dense.shape] == [packed.mask.shape, packed.offsets.shape, x.shape]
    assert [t.dtype for t in fake] == [t.dtype for t in packed]
    assert fake[1].dim() == 1 and not isinstance(fake[1].shape[0], int)


def _layer(mask: Tensor, values: Tensor, offsets: Tensor, rows: Tensor) -> Tensor:
    return unpack_features(PackedFeatures(mask, values, offsets), (4, 5, 5), rows).float() * 2.0


@pytest.mark.compiled
def test_unpacking_compiles_without_a_break() -> None:
    _, packed, rows = _fits()
    assert torch.equal(torch.compile(_layer, fullgraph=True)(*packed, rows), _layer(*packed, rows))


def test_unpacking_is_not_compiled_again_for_another_number_of_values() -> None:
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(_layer, fullgraph=True, backend=counter, dynamic=True)
    for share in (0.2, 0.5, 0.9):
        packed = pack_features(sparse(3, 100, share=share))
        assert torch.equal(compiled(*packed, torch.arange(3)), _layer(*packed, torch.arange(3)))
    assert counter.frame_count == 1


def test_packing_is_traced_in_one_graph() -> None:
    def both(x: Tensor) -> Tensor:
        return unpack_features(pack_features(x), (100,)) + 1.0

    x = sparse(3, 100)
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        assert torch.equal(torch.compile(both, fullgraph=True, backend="aot_eager")(x), both(x))
