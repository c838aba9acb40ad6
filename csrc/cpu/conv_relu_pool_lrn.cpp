// A frozen stage 1 or 2: convolution, bias, ReLU, max pooling and local response normalisation, a row of pooled pixels
// at a time. The convolution's rows that a pooled row needs stay in the cache, in float32, and never reach memory.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>

#include "conv_tensors.h"
#include "cpu/buffer.h"
#include "cpu/conv_tile.h"
#include "cpu/dispatch.h"
#include "math/bf16.h"
#include "math/conv.h"
#include "math/lrn.h"
#include "math/pool.h"

namespace fasttransfer {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// ConvShape with the layout of a thread's buffers. The output's channels of each group are padded to whole vectors.
struct Sizes : ConvShape {
  int64_t vectors() const { return (group_k() + kLanes - 1) / kLanes; }  // of a group
  int64_t packed_row() const { return (w + 2 * padding) * group_c(); }   // of one group, in elements
  int64_t sums_pixel() const { return groups * vectors() * kLanes; }     // of all groups, in floats
};

FT_INLINE void convert(float from, float* to) { *to = from; }
FT_INLINE void convert(uint16_t from, uint16_t* to) { *to = from; }
FT_INLINE void convert(uint16_t from, float* to) { *to = bf16_to_float(from); }
FT_INLINE void convert(float from, uint16_t* to) { *to = float_to_bf16(from); }

// Weights as tiles read them: [group][block][kernel row][unit][channel of the block][within the unit], channels last
// before: (K, kernel, kernel, C / groups).
template <typename T, typename Packed>
void pack_weights(const T* weights, Packed* packed, const Sizes& sizes, const Blocks& blocks, int64_t unit) {
  const int64_t window = sizes.window(), units = (window + unit - 1) / unit;
  const int64_t vector_elements = sizes.kernel_h * units * unit * kLanes;
  torch::stable::parallel_for(0, sizes.groups * blocks.count, 1, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t group = task / blocks.count, block = task % blocks.count;
      const int64_t first = blocks.first_vector(block), last = blocks.first_vector(block + 1);
      const int64_t width = (last - first) * kLanes;
      Packed* to = packed + (group * blocks.vectors + first) * vector_elements;
      std::fill(to, to + (last - first) * vector_elements, Packed(0));
      const int64_t channels = std::min(width, sizes.group_k() - first * kLanes);
      for (int64_t k = 0; k < channels; ++k) {
        const T* from = weights + (group * sizes.group_k() + first * kLanes + k) * sizes.kernel_h * window;
        for (int64_t row = 0; row < sizes.kernel_h; ++row) {
          for (int64_t i = 0; i < window; ++i) {
            const int64_t at = (row * units + i / unit) * width * unit + k * unit + i % unit;
            convert(from[row * window + i], to + at);
          }
        }
      }
    }
  });
}

// An image's row with its padding, group by group.
template <typename T, typename Packed>
FT_INLINE void pack_row(const T* row, Packed* packed, const Sizes& sizes) {
  const int64_t group_c = sizes.group_c(), margin = sizes.padding * group_c;
  const int64_t together = sizes.groups == 1 ? sizes.w * sizes.c : group_c;  // elements that stay neighbours
  for (int64_t group = 0; group < sizes.groups; ++group, packed += sizes.packed_row()) {
    std::fill(packed, packed + margin, Packed(0));
    std::fill(packed + sizes.packed_row() - margin, packed + sizes.packed_row(), Packed(0));
    const T* from = row + group * group_c;
    for (Packed* to = packed + margin; to < packed + sizes.packed_row() - margin; to += together, from += sizes.c) {
      for (int64_t i = 0; i < together; ++i) convert(from[i], to + i);
    }
  }
}

// ReLU of (the largest of the nine pixels of a window + bias), channel by channel.
FT_INLINE void maximum(const float* const* window, int64_t channels, const float* bias, float* values) {
  const float *x0 = window[0], *x1 = window[1], *x2 = window[2], *x3 = window[3], *x4 = window[4], *x5 = window[5],
              *x6 = window[6], *x7 = window[7], *x8 = window[8];
  FT_NO_ALIAS
  for (int64_t c = 0; c < channels; ++c) {
    float best = x0[c];
    best = takes_over(x1[c], best) ? x1[c] : best;
    best = takes_over(x2[c], best) ? x2[c] : best;
    best = takes_over(x3[c], best) ? x3[c] : best;
    best = takes_over(x4[c], best) ? x4[c] : best;
    best = takes_over(x5[c], best) ? x5[c] : best;
    best = takes_over(x6[c], best) ? x6[c] : best;
    best = takes_over(x7[c], best) ? x7[c] : best;
    best = takes_over(x8[c], best) ? x8[c] : best;
    values[c] = relu(best + bias[c]);
  }
}

// Bias, ReLU, pooling and normalisation of one row of pooled pixels. `rows`: the three of the convolution under it.
// `values`: k floats with kLrnReach zeros at both ends.
template <typename T>
FT_INLINE void finish_row(const float* const* rows, const float* bias, const Sizes& sizes, float* values, T* y) {
  const int64_t group_k = sizes.group_k(), group_sums = sizes.vectors() * kLanes;
  for (int64_t pooled_x = 0; pooled_x < sizes.pooled_w; ++pooled_x, y += sizes.k) {
    int64_t column[kWindow];  // a window that reaches beyond the edge reads its last pixel twice
    for (int i = 0; i < kWindow; ++i) {
      column[i] = std::min(pooled_x * kPoolStride + i, sizes.out_w - 1) * sizes.sums_pixel();
    }
    for (int64_t group = 0; group < sizes.groups; ++group) {
      const float* seen[kWindow * kWindow];
      for (int i = 0; i < kWindow * kWindow; ++i) {
        seen[i] = rows[i / kWindow] + column[i % kWindow] + group * group_sums;
      }
      maximum(seen, group_k, bias + group * group_k, values + kLrnReach + group * group_k);
    }
    FT_NO_ALIAS
    for (int64_t k = 0; k < sizes.k; ++k) {
      float squares = 0;
      for (int i = 0; i <= 2 * kLrnReach; ++i) squares += values[k + i] * values[k + i];
      convert(values[k + kLrnReach] * lrn_power(lrn_scale(squares)), y + k);
    }
  }
}

// The buffers and work of a thread.
template <typename Packed>
class Strip {
 public:
  Strip(const Sizes& sizes, const TileFunctions<Packed>& tiles, const Blocks& blocks, const Packed* weights)
      : sizes_(sizes),
        tiles_(tiles),
        blocks_(blocks),
        weights_(weights),
        packed_(buffer<Packed>(sizes.kernel_h * sizes.groups * sizes.packed_row())),
        sums_(buffer<float>(kWindow * sizes.out_w * sizes.sums_pixel())),
        rows_(buffer<const Packed*>(sizes.kernel_h)),
        weight_rows_(buffer<const Packed*>(sizes.kernel_h)),
        values_(buffer<float>(sizes.k + 2 * kLrnReach)) {
    std::fill(values_.get(), values_.get() + sizes.k + 2 * kLrnReach, 0.0f);
  }

  // Rows `begin` to `end` of an image's pooled pixels.
  template <typename T>
  void run(const T* x, const float* bias, T* y, int64_t begin, int64_t end) {
    int64_t next_packed = 0;  // first row of the image that is not packed yet
    int64_t next_out = begin * kPoolStride;
    for (int64_t pooled = begin; pooled < end; ++pooled) {
      const int64_t first = pooled * kPoolStride, last = std::min(first + kWindow, sizes_.out_h) - 1;
      for (; next_out <= last; ++next_out) {
        const int64_t top = next_out * sizes_.stride - sizes_.padding;
        const int64_t kernel_begin = std::max<int64_t>(0, -top);
        const int64_t kernel_end = std::min(sizes_.kernel_h, sizes_.h - top);
        next_packed = std::max(next_packed, top);
        for (; next_packed < top + kernel_end; ++next_packed) {
          const T* const row = x + next_packed * sizes_.w * sizes_.c;
          Packed* const to = packed_row(next_packed);
          dispatch(FT_FORM(pack_row), row, to, sizes_);
        }
        convolve(top, kernel_begin, kernel_end, sums_row(next_out));
      }
      const float* rows[kWindow];
      for (int i = 0; i < kWindow; ++i) rows[i] = sums_row(std::min(first + i, last));
      T* const to = y + pooled * sizes_.pooled_w * sizes_.k;
      dispatch(FT_FORM(finish_row), rows, bias, sizes_, values_.get(), to);
    }
  }

 private:
  Packed* packed_row(int64_t row) {
    return packed_.get() + row % sizes_.kernel_h * sizes_.groups * sizes_.packed_row();
  }

  float* sums_row(int64_t row) { return sums_.get() + row % kWindow * sizes_.out_w * sizes_.sums_pixel(); }

  // One row of the convolution. Rows of the kernel that lie outside of the image are left out.
  void convolve(int64_t top, int64_t kernel_begin, int64_t kernel_end, float* sums) {
    const int64_t units = (sizes_.window() + tiles_.unit - 1) / tiles_.unit;
    const int64_t row_elements = units * tiles_.unit * kLanes;  // of a vector's weights
    Tile<Packed> tile;
    tile.rows = rows_.get();
    tile.row_count = std::max<int64_t>(0, kernel_end - kernel_begin);
    tile.length = sizes_.window();
    tile.step = sizes_.stride * sizes_.group_c();
    tile.next = 1;
    tile.weights = weight_rows_.get();
    tile.sums_step = sizes_.sums_pixel();
    for (int64_t group = 0; group < sizes_.groups; ++group) {
      for (int64_t block = 0; block < blocks_.count; ++block) {
        const int64_t first = group * blocks_.vectors + blocks_.first_vector(block);
        const int64_t vectors = blocks_.first_vector(block + 1) - blocks_.first_vector(block);
        const int64_t most = tiles_.pixels[static_cast<size_t>(vectors - 1)];
        const int64_t count = (sizes_.out_w + most - 1) / most;
        tile.weights_next = vectors * kLanes * tiles_.unit;
        for (int64_t row = kernel_begin; row < kernel_end; ++row) {
          weight_rows_[row - kernel_begin] = weights_ + (first * sizes_.kernel_h + row * vectors) * row_elements;
        }
        for (int64_t i = 0; i < count; ++i) {
          const int64_t begin = i * sizes_.out_w / count, end = (i + 1) * sizes_.out_w / count;
          for (int64_t row = kernel_begin; row < kernel_end; ++row) {
            rows_[row - kernel_begin] = packed_row(top + row) + group * sizes_.packed_row() + begin * tile.step;
          }
          tile.sums = sums + begin * tile.sums_step + first * kLanes;
          tiles_.of[vectors - 1][end - begin - 1](tile);
        }
      }
    }
  }

  const Sizes& sizes_;
  const TileFunctions<Packed>& tiles_;
  const Blocks& blocks_;
  const Packed* weights_;
  Buffer<Packed> packed_;  // rows of the image, row i in place i % kernel_h: [place][group][pixel][channel]
  Buffer<float> sums_;     // rows of the convolution, likewise, of kWindow
  Buffer<const Packed*> rows_, weight_rows_;
  Buffer<float> values_;
};

template <typename T, typename Packed>
void run(const T* x, const T* weight, const float* bias, T* y, const Sizes& sizes, const TileFunctions<Packed>& tiles) {
  const Blocks blocks(sizes.vectors(), tiles.vectors);
  const int64_t units = (sizes.window() + tiles.unit - 1) / tiles.unit;
  const auto packed = buffer<Packed>(sizes.groups * sizes.vectors() * sizes.kernel_h * units * tiles.unit * kLanes);
  pack_weights(weight, packed.get(), sizes, blocks, tiles.unit);
  // Few images are cut into strips, so that every thread has work; a cut costs one more row of the convolution.
  const int64_t wanted = 4 * static_cast<int64_t>(torch::stable::get_num_threads());
  const int64_t strips = std::min(sizes.pooled_h, (wanted + sizes.n - 1) / sizes.n);
  torch::stable::parallel_for(0, sizes.n * strips, 1, [&](int64_t begin, int64_t end) {
    Strip<Packed> strip(sizes, tiles, blocks, packed.get());
    for (int64_t task = begin; task < end; ++task) {
      const int64_t image = task / strips, part = task % strips;
      strip.run(x + image * sizes.h * sizes.w * sizes.c, bias, y + image * sizes.pooled_h * sizes.pooled_w * sizes.k,
                part * sizes.pooled_h / strips, (part + 1) * sizes.pooled_h / strips);
    }
  });
}

void run_bf16(const uint16_t* x, const uint16_t* weight, const float* bias, uint16_t* y, const Sizes& sizes) {
#if defined(FT_X86)
  if (Avx512Bf16::here()) {
    run(x, weight, bias, y, sizes, tile_functions<Avx512Bf16>());
    return;
  }
#endif
  run(x, weight, bias, y, sizes, float_tiles());
}

Tensor conv_relu_pool_lrn(const Tensor& x, const Tensor& weight, const Tensor& bias, int64_t stride, int64_t padding,
                          int64_t groups) {
  const Sizes sizes{conv_shape(x, weight, bias, stride, padding, groups)};
  Tensor y = conv_result(x, sizes);
  if (sizes.n == 0) return y;
  const float* added = static_cast<const float*>(bias.const_data_ptr());
  switch (x.scalar_type()) {
    case ScalarType::Float:
      run(static_cast<const float*>(x.const_data_ptr()), static_cast<const float*>(weight.const_data_ptr()), added,
          static_cast<float*>(y.mutable_data_ptr()), sizes, float_tiles());
      break;
    case ScalarType::BFloat16:
      run_bf16(static_cast<const uint16_t*>(x.const_data_ptr()), static_cast<const uint16_t*>(weight.const_data_ptr()),
               added, static_cast<uint16_t*>(y.mutable_data_ptr()), sizes);
      break;
    default:
      STD_TORCH_CHECK(false, "conv_relu_pool_lrn: x must be float32 or bfloat16, not ",
                      torch::headeronly::toString(x.scalar_type()));
  }
  return y;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fasttransfer, CPU, m) { m.impl("conv_relu_pool_lrn", TORCH_BOX(&conv_relu_pool_lrn)); }

}  // namespace fasttransfer
