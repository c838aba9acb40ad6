// Resizes an image to a square, bilinear with antialias, with the bits of PyTorch's `interpolate` for bytes:
// horizontally, then vertically, with a rounding to bytes between. Rows are resized horizontally when needed and stay
// in the cache until the vertical pass has used them.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "cpu/resize_rows.h"

namespace fasttransfer {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t kColours = 3;
constexpr int64_t kLongest = 1 << 22;  // pixels of a side: sums of more could leave 32 bits
constexpr int64_t kLargest = 1 << 15;  // pixels of a side of the result

// The triangle over a pixel of the result, as wide as two of its own pixels or two of the source, whichever are larger.
// The arithmetic is in double precision and in PyTorch's order: weights that are nearly half way
// between two integers depend on it.
Taps find_taps(int64_t source, int64_t result) {
  const double scale = static_cast<double>(source) / static_cast<double>(result);
  const double support = std::max(scale, 1.0);
  const double narrowing = scale >= 1.0 ? 1.0 / scale : 1.0;
  const int64_t most = 2 * static_cast<int64_t>(std::ceil(support)) + 1;
  std::vector<double> weights(result * most);
  Taps taps;
  taps.first.assign(round_up(result, kUnit), 0);
  taps.count.assign(result, 0);
  double heaviest = 0;
  int64_t longest = 1;
  for (int64_t x = 0; x < result; ++x) {
    const double centre = scale * (static_cast<double>(x) + 0.5);
    const int64_t first = std::max(static_cast<int64_t>(centre - support + 0.5), int64_t{0});
    const int64_t end = std::min(static_cast<int64_t>(centre + support + 0.5), source);
    const int64_t count = std::clamp(end - first, int64_t{0}, most);
    double* const of_pixel = weights.data() + x * most;
    double total = 0;
    for (int64_t i = 0; i < count; ++i) {
      const double away = std::abs((static_cast<double>(i + first) - centre + 0.5) * narrowing);
      of_pixel[i] = away < 1.0 ? 1.0 - away : 0.0;
      total += of_pixel[i];
    }
    for (int64_t i = 0; i < count; ++i) {
      if (total != 0) of_pixel[i] /= total;
      heaviest = std::max(heaviest, of_pixel[i]);
    }
    taps.first[x] = first;
    taps.count[x] = count;
    longest = std::max(longest, count);
  }
  // As many bits as leave the heaviest in 16.
  taps.shift = 0;
  while (taps.shift < 22 && static_cast<int>(0.5 + heaviest * (1 << (taps.shift + 1))) < (1 << 15)) ++taps.shift;
  taps.most = round_up(longest, kUnit);
  taps.weights.assign(round_up(result, kUnit) * taps.most, 0);
  for (int64_t x = 0; x < result; ++x) {
    for (int64_t i = 0; i < taps.count[x]; ++i) {
      taps.weights[x * taps.most + i] = static_cast<int16_t>(0.5 + weights[x * most + i] * (1 << taps.shift));
    }
  }
  return taps;
}

// The part of an image that is resized. Reading a row may go past its end, but not past the end of the image.
struct Part {
  const uint8_t* pixels;
  int64_t pitch;  // bytes from one row to the next
  int64_t height, width;
  const uint8_t* end;
};

template <typename Kind>
void resize_part(const Part& part, int64_t size, uint8_t* to) {
  const Taps columns = find_taps(part.width, size);
  const Taps rows = find_taps(part.height, size);
  const int64_t bytes = kColours * size;
  const int64_t reach = kColours * (part.width + columns.most) + kBeyond;  // of a row of the horizontal pass
  const int64_t pitch = round_up(kColours * round_up(size, kUnit) + kBeyond, kBlock);
  const int64_t kept = round_up(rows.most, kUnit) + kUnit;  // rows between the horizontal and the vertical pass
  std::vector<uint8_t> ring(kept * pitch);
  std::vector<uint8_t> padded(kUnit * reach);
  std::vector<const uint8_t*> window(rows.most + 1);
  int64_t next = 0;  // the first row that the horizontal pass has not done
  for (int64_t y = 0; y < size; ++y) {
    const int64_t first = rows.first[y], count = rows.count[y];
    for (next = std::max(next, first); next < first + count; next += kUnit) {
      const uint8_t* from[kUnit];
      uint8_t* across[kUnit];
      for (int64_t i = 0; i < kUnit; ++i) {
        const int64_t row = std::min(next + i, part.height - 1);
        from[i] = part.pixels + row * part.pitch;
        across[i] = ring.data() + row % kept * pitch;
        if (part.end - from[i] < reach) {
          std::memcpy(padded.data() + i * reach, from[i], kColours * part.width);
          from[i] = padded.data() + i * reach;
        }
      }
      Kind::across(from, columns, size, across);
    }
    for (int64_t i = 0; i <= count; ++i) {
      window[i] = ring.data() + (first + std::min(i, count - 1)) % kept * pitch;
    }
    Kind::down(window.data(), rows.weights.data() + y * rows.most, count, rows.shift, bytes, to + y * bytes);
  }
}

Tensor resize(const Tensor& image, int64_t size, int64_t top, int64_t left, int64_t height, int64_t width) {
  STD_TORCH_CHECK(image.is_cpu() && image.scalar_type() == ScalarType::Byte && image.dim() == 3 &&
                      image.size(2) == kColours && image.is_contiguous(),
                  "resize: image must be (height, width, 3) uint8 on cpu, contiguous");
  STD_TORCH_CHECK(size >= 1 && size <= kLargest, "resize: size must lie in 1 to ", kLargest, ", not ", size);
  const int64_t rows = image.size(0), columns = image.size(1);
  STD_TORCH_CHECK(top >= 0 && height >= 1 && height <= rows && top <= rows - height && left >= 0 && width >= 1 &&
                      width <= columns && left <= columns - width,
                  "resize: a box of ", height, " x ", width, " from row ", top, " and column ", left,
                  " on does not lie inside an image of ", rows, " x ", columns);
  STD_TORCH_CHECK(height <= kLongest && width <= kLongest, "resize: a side must be at most ", kLongest, " pixels, not ",
                  std::max(height, width));
  const int64_t sizes[] = {size, size, kColours};
  Tensor result = torch::stable::empty(sizes, ScalarType::Byte);
  const uint8_t* const pixels = static_cast<const uint8_t*>(image.const_data_ptr());
  const Part part{pixels + (top * columns + left) * kColours, columns * kColours, height, width,
                  pixels + rows * columns * kColours};
  uint8_t* const to = static_cast<uint8_t*>(result.mutable_data_ptr());
  if (height == size && width == size) {
    for (int64_t y = 0; y < size; ++y)
      std::memcpy(to + y * size * kColours, part.pixels + y * part.pitch, size * kColours);
    return result;
  }
#if defined(FT_X86)
  if (Avx2::here()) {
    resize_part<Avx2>(part, size, to);
    return result;
  }
#endif
  resize_part<Portable>(part, size, to);
  return result;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fasttransfer, CPU, m) { m.impl("resize", TORCH_BOX(&resize)); }

}  // namespace fasttransfer
