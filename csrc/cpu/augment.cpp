// Turns images of the store into the input of stage 1 in one pass: each pixel of a crop is read once, as a byte, from
// the mapped store, and its float is written once to its place in the result. Rounding, mirroring and blocks are done
// in a buffer of one row that stays in the L1 cache.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <vector>

#include "cpu/dispatch.h"
#include "cpu/element.h"

namespace fasttransfer {
namespace {

using torch::headeronly::MemoryFormat;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t kColours = 3;
constexpr int64_t kValuesPerThread = 32768;  // at least: less work ends before a second thread starts

// The crop of one image: its first pixel in the store and in the mean image.
struct View {
  const uint8_t* pixels;
  const float* mean;
  bool mirror;
};

struct Shape {
  int64_t store;  // side of a stored image
  int64_t crop, block, side;
  float scale;
};

// Swaps `count` pixels end for end. Copies four values for each three, which the next pixel overwrites: `from` must
// be readable one value past its end.
template <typename T>
FT_INLINE void mirror(const T* from, int64_t count, T* to) {
  for (int64_t x = 0; x + 1 < count; ++x) {
    std::memcpy(to + kColours * x, from + kColours * (count - 1 - x), (kColours + 1) * sizeof(T));
  }
  std::memcpy(to + kColours * (count - 1), from, kColours * sizeof(T));
}

// Writes one row of the crop. `buffer` has room for the row and one value.
template <typename T>
FT_INLINE void show_row(const View& view, int64_t row, const Shape& shape, T* __restrict buffer, T* __restrict to) {
  const uint8_t* __restrict pixels = view.pixels + row * shape.store * kColours;
  const float* __restrict mean = view.mean + row * shape.store * kColours;
  T* __restrict straight = view.mirror ? buffer : to;
  for (int64_t i = 0; i < shape.crop * kColours; ++i) {
    narrow((static_cast<float>(pixels[i]) - mean[i]) * shape.scale, straight + i);
  }
  if (view.mirror) mirror(buffer, shape.crop, to);
}

// Block: the side of a block, or 0 if only `block` is known; `rows` holds `block` rows of `pitch` values. A length
// that the compiler knows is copied in a few registers.
template <int64_t Block, typename T>
FT_INLINE void place(const T* __restrict rows, int64_t pitch, int64_t side, int64_t block, T* __restrict to) {
  if (Block > 0) block = Block;
  const int64_t stretch = kColours * block;
  for (int64_t x = 0; x < side; ++x) {
    for (int64_t dy = 0; dy < block; ++dy) {
      std::memcpy(to + (x * block + dy) * stretch, rows + dy * pitch + x * stretch, stretch * sizeof(T));
    }
  }
}

// Rows `begin` to `end` of the result, counted through all images.
template <typename T>
FT_INLINE void augment_rows(const View* views, const Shape& shape, int64_t begin, int64_t end, T* result) {
  const int64_t block = shape.block, side = shape.side;
  const int64_t shown = shape.crop * kColours;    // values of a row of the crop
  const int64_t width = side * block * kColours;  // and of a row of the result
  const int64_t pitch = std::max(shown, width);
  const std::unique_ptr<T[]> buffers(new T[block * pitch + shown + 1]());
  T* const rows = buffers.get();
  T* const buffer = rows + block * pitch;
  for (int64_t at = begin; at < end; ++at) {
    const View& view = views[at / side];
    T* const to = result + at * block * width;
    if (block == 1 && width == shown) {
      show_row(view, at % side, shape, buffer, to);
      continue;
    }
    for (int64_t dy = 0; dy < block; ++dy) {
      const int64_t y = at % side * block + dy;
      if (y < shape.crop) {
        show_row(view, y, shape, buffer, rows + dy * pitch);  // beyond the crop the row stays zero
      } else {
        std::fill_n(rows + dy * pitch, width, T(0));
      }
    }
    if (block == 4) {
      place<4>(rows, pitch, side, block, to);
    } else {
      place<0>(rows, pitch, side, block, to);
    }
  }
}

template <typename T>
void run(const std::vector<View>& views, const Shape& shape, Tensor& result) {
  T* const to = static_cast<T*>(result.mutable_data_ptr());
  const int64_t values = kColours * shape.block * shape.block * shape.side;  // in a row of the result
  torch::stable::parallel_for(
      0, static_cast<int64_t>(views.size()) * shape.side, (kValuesPerThread + values - 1) / values,
      [&](int64_t begin, int64_t end) { dispatch(FT_FORM(augment_rows), views.data(), shape, begin, end, to); });
}

void check_indices(const char* name, const Tensor& x, int64_t count) {
  STD_TORCH_CHECK(
      x.is_cpu() && x.dim() == 1 && x.size(0) == count && x.is_contiguous() && x.scalar_type() == ScalarType::Long,
      "augment: ", name, " must be ", count, " int64 on cpu, one after another");
}

// Where the views begin. Nothing is read from the store before all of them are known to lie inside it.
std::vector<View> find_views(const std::vector<Tensor>& shards, const Tensor& rows, const Tensor& mean,
                             const Tensor& top, const Tensor& left, const Tensor& mirror, const Shape& shape) {
  const int64_t store = shape.store, margin = store - shape.crop;
  std::vector<int64_t> starts{0};  // the first row of each shard, then how many there are
  std::vector<const uint8_t*> pixels;
  for (size_t i = 0; i < shards.size(); ++i) {
    const Tensor& shard = shards[i];
    STD_TORCH_CHECK(shard.is_cpu() && shard.scalar_type() == ScalarType::Byte && shard.dim() == 4 &&
                        shard.size(1) == store && shard.size(2) == store && shard.size(3) == kColours &&
                        shard.is_contiguous(),
                    "augment: shard ", i, " must be (rows, ", store, ", ", store, ", 3) uint8 on cpu, contiguous");
    starts.push_back(starts.back() + shard.size(0));
    pixels.push_back(static_cast<const uint8_t*>(shard.const_data_ptr()));
  }
  const int64_t count = rows.numel();
  check_indices("rows", rows, count);
  check_indices("top", top, count);
  check_indices("left", left, count);
  STD_TORCH_CHECK(mirror.is_cpu() && mirror.dim() == 1 && mirror.size(0) == count && mirror.is_contiguous() &&
                      mirror.scalar_type() == ScalarType::Bool,
                  "augment: mirror must be ", count, " bool on cpu, one after another");
  const int64_t* const row = static_cast<const int64_t*>(rows.const_data_ptr());
  const int64_t* const y = static_cast<const int64_t*>(top.const_data_ptr());
  const int64_t* const x = static_cast<const int64_t*>(left.const_data_ptr());
  const bool* const mirrored = static_cast<const bool*>(mirror.const_data_ptr());
  const float* const mean_pixels = static_cast<const float*>(mean.const_data_ptr());
  std::vector<View> views;
  views.reserve(count);
  for (int64_t i = 0; i < count; ++i) {
    STD_TORCH_CHECK(row[i] >= 0 && row[i] < starts.back(), "augment: row ", row[i], " is asked for, the shards hold ",
                    starts.back(), " images");
    STD_TORCH_CHECK(y[i] >= 0 && y[i] <= margin, "augment: top must lie in 0 to ", margin, ", not ", y[i]);
    STD_TORCH_CHECK(x[i] >= 0 && x[i] <= margin, "augment: left must lie in 0 to ", margin, ", not ", x[i]);
    const size_t shard = std::upper_bound(starts.begin(), starts.end(), row[i]) - starts.begin() - 1;
    const int64_t corner = (y[i] * store + x[i]) * kColours;
    views.push_back({pixels[shard] + (row[i] - starts[shard]) * store * store * kColours + corner, mean_pixels + corner,
                     mirrored[i]});
  }
  return views;
}

Tensor augment(const std::vector<Tensor>& shards, const Tensor& rows, const Tensor& mean, const Tensor& top,
               const Tensor& left, const Tensor& mirror, int64_t crop, int64_t block, int64_t side, double scale,
               ScalarType dtype) {
  STD_TORCH_CHECK(mean.is_cpu() && mean.scalar_type() == ScalarType::Float && mean.dim() == 3 &&
                      mean.size(0) == mean.size(1) && mean.size(2) == kColours && mean.is_contiguous(),
                  "augment: mean must be (side, side, 3) float32 on cpu, contiguous");
  const int64_t store = mean.size(0);
  STD_TORCH_CHECK(crop >= 1 && crop <= store, "augment: crop must lie in 1 to ", store, ", not ", crop);
  STD_TORCH_CHECK(block >= 1 && side >= 1, "augment: block and side must be at least 1, not ", block, " and ", side);
  const Shape shape{store, crop, block, side, static_cast<float>(scale)};
  const std::vector<View> views = find_views(shards, rows, mean, top, left, mirror, shape);
  const int64_t sizes[] = {static_cast<int64_t>(views.size()), kColours * block * block, side, side};
  Tensor result =
      torch::stable::empty(sizes, dtype, std::nullopt, std::nullopt, std::nullopt, MemoryFormat::ChannelsLast);
  switch (dtype) {
    case ScalarType::Float:
      run<float>(views, shape, result);
      break;
    case ScalarType::BFloat16:
      run<uint16_t>(views, shape, result);
      break;
    default:
      STD_TORCH_CHECK(false, "augment: dtype must be float32 or bfloat16, not ", torch::headeronly::toString(dtype));
  }
  return result;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fasttransfer, CPU, m) { m.impl("augment", TORCH_BOX(&augment)); }

}  // namespace fasttransfer
