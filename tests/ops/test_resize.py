"""The operator against PyTorch's own, bit by bit, and its passes on every kind of processor."""

from __future__ import annotations

import io
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from programs import run_program
from torch import Tensor

from fasttransfer.ops._resize import Box, resize, resize_reference


def noise(height: int, width: int) -> Tensor:
    """Return an image in which half of the values are 0 or 255, so that sums come close to every bound."""
    random = torch.Generator().manual_seed(height * 70000 + width)
    values = torch.randint(-128, 384, (height, width, 3), generator=random)
    return values.clamp(0, 255).to(torch.uint8)


def assert_same(image: Tensor, size: int, box: Box | None = None) -> None:
    given = image.clone()
    ours = resize(image, size, box)
    assert ours.shape == (size, size, 3) and ours.dtype == torch.uint8 and ours.is_contiguous()
    assert torch.equal(ours, resize_reference(image, size, *(box or (0, 0, *image.shape[:2]))))
    assert torch.equal(image, given)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 64, 227, 256])
@pytest.mark.parametrize(
    ("height", "width"),
    [
        (1, 1),
        (1, 2),
        (2, 1),
        (3, 3),
        (7, 5),
        (64, 64),
        (256, 256),
        (256, 100),  # only one side changes
        (100, 256),
        (375, 500),
        (500, 375),
        (1, 3000),  # very thin
        (3000, 1),
        (2, 1999),
        (1999, 2),
    ],
)
def test_bits_of_pytorch(height: int, width: int, size: int) -> None:
    assert_same(noise(height, width), size)


@pytest.mark.parametrize(
    ("height", "width", "size"),
    [(1, 1, 4096), (3, 2, 4096), (4095, 4097, 4096), (2500, 6400, 64), (1, 400_000, 2), (300_000, 1, 3)],
)
def test_bits_of_pytorch_where_it_is_large(height: int, width: int, size: int) -> None:
    assert_same(noise(height, width), size)


@given(st.data())
@settings(max_examples=300, deadline=None, derandomize=True)
def test_bits_of_pytorch_for_every_part_of_every_shape(data: Any) -> None:
    sides = st.one_of(st.integers(1, 20), st.integers(1, 300), st.integers(1, 1500))
    height, width, size = data.draw(sides), data.draw(sides), data.draw(st.one_of(st.integers(1, 20), sides))
    top, left = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    box = (top, left, data.draw(st.integers(1, height - top)), data.draw(st.integers(1, width - left)))
    assert_same(noise(height, width), size, box)


def test_what_lies_outside_of_the_box_has_no_influence() -> None:
    image = noise(60, 80)
    other = 255 - image
    other[10:50, 20:70] = image[10:50, 20:70]
    box = (10, 20, 40, 50)
    assert torch.equal(resize(image, 16, box), resize(other, 16, box))
    assert torch.equal(resize(image, 16, box), resize(image[10:50, 20:70].contiguous(), 16))


@pytest.mark.parametrize("value", [0, 1, 127, 254, 255])
def test_one_colour_stays_that_colour(value: int) -> None:
    for height, width, size in ((13, 400, 32), (1, 1, 9), (2000, 30, 7)):
        assert (resize(torch.full((height, width, 3), value, dtype=torch.uint8), size) == value).all()


def test_nearly_pillow_s_on_real_images(shared: Path) -> None:
    with tarfile.open(shared / "data" / "ilsvrc12-samples.tar") as archive:
        files = [member for member in archive if member.name.endswith(".JPEG")][:40]
        images = [Image.open(io.BytesIO(archive.extractfile(file).read())).convert("RGB") for file in files]  # type: ignore[union-attr]
    assert len(images) == 40
    for image in images:
        side = min(image.size)
        top, left = (image.height - side) // 2, (image.width - side) // 2
        square = image.crop((left, top, left + side, top + side))
        for wanted, box in ((image, None), (square, (top, left, side, side))):
            ours = resize(torch.from_numpy(np.array(image)), 256, box).numpy().astype(int)
            away = np.abs(ours - np.asarray(wanted.resize((256, 256), Image.Resampling.BILINEAR)))
            assert away.max() <= 2 and (away == 2).mean() < 1e-4  # each rounds twice


def test_threads_do_not_disturb_each_other() -> None:
    images = [noise(50 + i, 90 - i) for i in range(40)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda image: resize(image, 31), images))
    assert all(torch.equal(a, resize(b, 31)) for a, b in zip(together, images, strict=True))


@pytest.mark.parametrize(
    "image",
    [
        torch.zeros(8, 8, 3),
        torch.zeros(8, 8, 4, dtype=torch.uint8),
        torch.zeros(8, 8, dtype=torch.uint8),
        torch.zeros(3, 8, 8, dtype=torch.uint8).permute(1, 2, 0),
        torch.zeros(8, 16, 3, dtype=torch.uint8)[:, ::2],
    ],
)
def test_bad_images(image: Tensor) -> None:
    with pytest.raises(RuntimeError, match=r"resize: image must be \(height, width, 3\) uint8 on cpu, contiguous"):
        resize(image, 4, (0, 0, 8, 8))


@pytest.mark.parametrize(
    "box",
    [(-1, 0, 4, 4), (0, -1, 4, 4), (0, 0, 0, 4), (0, 0, 4, 0), (7, 0, 4, 4), (0, 5, 4, 4), (2**62, 0, 2**62, 4)],
)
def test_boxes_outside_of_the_image(box: Box) -> None:
    with pytest.raises(RuntimeError, match=r"resize: a box of .* does not lie inside an image of 10 x 8"):
        resize(noise(10, 8), 4, box)


def test_bad_sizes() -> None:
    for size in (0, -1, 2**40):
        with pytest.raises(RuntimeError, match=f"resize: size must lie in 1 to 32768, not {size}"):
            resize(noise(10, 8), size)
    with pytest.raises(RuntimeError, match="does not lie inside an image of 0 x 8"):
        resize(torch.zeros(0, 8, 3, dtype=torch.uint8), 4)
    with pytest.raises(RuntimeError, match="resize: a side must be at most 4194304 pixels, not 4194305"):
        resize(torch.zeros(1, 2**22 + 1, 3, dtype=torch.uint8), 4)


def test_opcheck() -> None:
    operator = torch.ops.fasttransfer.resize.default
    torch.library.opcheck(operator, (noise(20, 30), 7, 2, 3, 15, 20))
    torch.library.opcheck(operator, (noise(7, 9), 7, 0, 1, 7, 7))


# The operator takes the best that the processor has; here every kind that can run is held against plain sums. Nothing
# but the bytes that each pass may touch is there, so that the sanitizers see any other.
CHECK_ROWS = """
#include <cstdio>
#include <memory>
#include "cpu/resize_rows.h"
using namespace fasttransfer;

uint8_t at(int64_t i) { return i % 7 == 0 ? 255 : i * 37 % 256; }

template <typename Kind>
int check(const char* name) {
  for (int64_t pixels = 1; pixels <= 23; ++pixels) for (int64_t count = 1; count <= 13; ++count) {
    Taps taps{round_up(count, kUnit), 15, {}, {}, {}};
    taps.first.assign(round_up(pixels, kUnit), 0);
    taps.weights.assign(round_up(pixels, kUnit) * taps.most, 0);
    for (int64_t x = 0; x < pixels; ++x) {
      taps.first[x] = 2 * x;
      taps.count.push_back(count - x % 2 * (count > 1));
      for (int64_t i = 0; i < taps.count[x]; ++i) {
        taps.weights[x * taps.most + i] = 32767 / taps.count[x] + (taps.count[x] > 1 && x % 3 == 1 ? 200 : 0);
      }
    }
    const int64_t width = 3 * (2 * (pixels - 1) + taps.most) + kBeyond;
    const int64_t wide = 3 * round_up(pixels, kUnit) + kBeyond, high = round_up(3 * pixels, kBlock);
    std::unique_ptr<uint8_t[]> in[kUnit], out[kUnit];
    const uint8_t* from[kUnit];
    uint8_t* to[kUnit];
    for (int64_t row = 0; row < kUnit; ++row) {
      from[row] = (in[row] = std::make_unique<uint8_t[]>(width)).get();
      to[row] = (out[row] = std::make_unique<uint8_t[]>(wide)).get();
      for (int64_t i = 0; i < width; ++i) in[row][i] = at(row * width + i);
    }
    Kind::across(from, taps, pixels, to);
    for (int64_t row = 0; row < kUnit; ++row) for (int64_t x = 0; x < pixels; ++x) for (int64_t c = 0; c < 3; ++c) {
      int sum = 1 << 14;
      for (int64_t i = 0; i < taps.count[x]; ++i) sum += taps.weights[x * taps.most + i] * from[row][6 * x + 3 * i + c];
      if (to[row][3 * x + c] != std::min(sum >> 15, 255)) return std::printf("%s across is wrong\\n", name), 1;
    }

    std::vector<std::unique_ptr<uint8_t[]>> rows;
    std::vector<const uint8_t*> window;
    for (int64_t row = 0; row < count; ++row) {
      rows.push_back(std::make_unique<uint8_t[]>(high));
      for (int64_t i = 0; i < high; ++i) rows.back()[i] = at(row * high + i);
      window.push_back(rows.back().get());
    }
    window.push_back(window.back());
    const auto result = std::make_unique<uint8_t[]>(3 * pixels);
    Kind::down(window.data(), taps.weights.data(), count, 15, 3 * pixels, result.get());
    for (int64_t i = 0; i < 3 * pixels; ++i) {
      int sum = 1 << 14;
      for (int64_t row = 0; row < count; ++row) sum += taps.weights[row] * window[row][i];
      if (result[i] != std::min(sum >> 15, 255)) return std::printf("%s down is wrong\\n", name), 1;
    }
  }
  std::printf("%s\\n", name);
  return 0;
}

int main() {
  int wrong = check<Portable>("portable");
#if defined(FT_X86)
  if (Avx2::here()) wrong += check<Avx2>("avx2");
#endif
  return wrong;
}
"""


def test_the_passes_of_every_kind_of_processor(tmp_path: Path) -> None:
    assert run_program(tmp_path, CHECK_ROWS, sanitized=True).startswith("portable\n")
