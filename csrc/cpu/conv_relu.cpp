// A convolution with bias and ReLU on small maps, forward and backward, in float32. The pixels of a tile are one place
// of several images: all of them have the same neighbours inside of the map, and what the kernel would see of the
// padding is left out. On a 4 x 4 map that is 31 % of a 3 x 3 kernel's products.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <tuple>
#include <vector>

#include "cpu/buffer.h"
#include "cpu/conv_tile.h"
#include "cpu/dispatch.h"
#include "layout.h"
#include "math/pool.h"

namespace fasttransfer {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Stride 1. The channels of a group are whole vectors, in and out.
struct Sizes {
  int64_t n, c, h, w;
  int64_t k, kernel_h, kernel_w;
  int64_t padding, groups;
  int64_t out_h, out_w;

  int64_t group_c() const { return c / groups; }
  int64_t group_k() const { return k / groups; }
  int64_t taps() const { return kernel_h * kernel_w; }
  int64_t pixels() const { return h * w; }
  int64_t out_pixels() const { return out_h * out_w; }

  // Returns the input pixel that an output pixel sees through a tap; -1 where that is in the padding.
  int64_t seen(int64_t out, int64_t tap) const {
    const int64_t y = out / out_w + tap / kernel_w - padding, x = out % out_w + tap % kernel_w - padding;
    return y >= 0 && y < h && x >= 0 && x < w ? y * w + x : -1;
  }
  // Returns the output pixel that sees an input pixel through a tap, or -1.
  int64_t seeing(int64_t in, int64_t tap) const {
    const int64_t y = in / w - tap / kernel_w + padding, x = in % w - tap % kernel_w + padding;
    return y >= 0 && y < out_h && x >= 0 && x < out_w ? y * out_w + x : -1;
  }
};

// Images side by side: (n, pixels, channels) -> (pixels, n, channels).
FT_INLINE void gather(const float* from, float* to, int64_t n, int64_t pixels, int64_t channels) {
  for (int64_t pixel = 0; pixel < pixels; ++pixel) {
    for (int64_t image = 0; image < n; ++image, to += channels) {
      const float* x = from + (image * pixels + pixel) * channels;
      FT_NO_ALIAS
      for (int64_t i = 0; i < channels; ++i) to[i] = x[i];
    }
  }
}

// The same of a gradient, where the ReLU stopped nothing; and its sum over images and pixels.
FT_INLINE void gather_passed(const float* gradient, const float* y, float* to, float* pixel_sum, float* sum, int64_t n,
                             int64_t pixels, int64_t channels) {
  std::fill(sum, sum + channels, 0.0f);
  for (int64_t pixel = 0; pixel < pixels; ++pixel) {
    std::fill(pixel_sum, pixel_sum + channels, 0.0f);
    for (int64_t image = 0; image < n; ++image, to += channels) {
      const int64_t at = (image * pixels + pixel) * channels;
      const float *g = gradient + at, *value = y + at;
      FT_NO_ALIAS
      for (int64_t i = 0; i < channels; ++i) {
        const float passed = value[i] <= 0.0f ? 0.0f : g[i];
        to[i] = passed;
        pixel_sum[i] += passed;
      }
    }
    FT_NO_ALIAS
    for (int64_t i = 0; i < channels; ++i) sum[i] += pixel_sum[i];
  }
}

#if defined(__GNUC__)
typedef float Four __attribute__((vector_size(16), aligned(4), may_alias));

FT_INLINE void transpose_4x4(const float* from, int64_t from_step, float* to, int64_t to_step) {
  const Four a = *reinterpret_cast<const Four*>(from), b = *reinterpret_cast<const Four*>(from + from_step);
  const Four c = *reinterpret_cast<const Four*>(from + 2 * from_step);
  const Four d = *reinterpret_cast<const Four*>(from + 3 * from_step);
  const Four ab_low = __builtin_shufflevector(a, b, 0, 4, 1, 5), ab_high = __builtin_shufflevector(a, b, 2, 6, 3, 7);
  const Four cd_low = __builtin_shufflevector(c, d, 0, 4, 1, 5), cd_high = __builtin_shufflevector(c, d, 2, 6, 3, 7);
  *reinterpret_cast<Four*>(to) = __builtin_shufflevector(ab_low, cd_low, 0, 1, 4, 5);
  *reinterpret_cast<Four*>(to + to_step) = __builtin_shufflevector(ab_low, cd_low, 2, 3, 6, 7);
  *reinterpret_cast<Four*>(to + 2 * to_step) = __builtin_shufflevector(ab_high, cd_high, 0, 1, 4, 5);
  *reinterpret_cast<Four*>(to + 3 * to_step) = __builtin_shufflevector(ab_high, cd_high, 2, 3, 6, 7);
}
#else
inline void transpose_4x4(const float* from, int64_t from_step, float* to, int64_t to_step) {
  for (int64_t i = 0; i < 16; ++i) to[i % 4 * to_step + i / 4] = from[i / 4 * from_step + i % 4];
}
#endif

// One group's weights: (K, taps, C) -> (taps, C, K).
FT_INLINE void transpose(const float* from, float* to, int64_t k, int64_t row) {
  for (int64_t first = 0; first < row; first += 4) {
    for (int64_t i = 0; i < k; i += 4) transpose_4x4(from + i * row + first, row, to + first * k + i, k);
  }
}

FT_INLINE void add_bias_relu(float* y, const float* bias, int64_t n, int64_t step, int64_t channels) {
  for (int64_t image = 0; image < n; ++image, y += step) {
    FT_NO_ALIAS
    for (int64_t i = 0; i < channels; ++i) y[i] = relu(y[i] + bias[i]);
  }
}

// Runs a tile for `count` pixels in as few parts as possible. The rows point to the first pixel's elements.
void run_tiles(Tile<float> tile, std::vector<const float*>& rows, int64_t vectors, int64_t count) {
  const TileFunctions<float>& tiles = float_tiles();
  const int64_t most = tiles.pixels[static_cast<size_t>(vectors - 1)], parts = (count + most - 1) / most;
  tile.rows = rows.data();
  for (int64_t part = 0, done = 0; part < parts; ++part) {
    const int64_t end = (part + 1) * count / parts;
    tiles.of[vectors - 1][end - done - 1](tile);
    tile.sums += (end - done) * tile.sums_step;
    for (const float*& row : rows) row += (end - done) * tile.step;
    done = end;
  }
}

// The rows of a tile.
struct Rows {
  std::vector<const float*> x, weights;
  void clear() {
    x.clear();
    weights.clear();
  }
  void add(const float* row, const float* row_weights) {
    x.push_back(row);
    weights.push_back(row_weights);
  }
};

// One place of all images' output, one block of a group's channels.
void forward_place(const Sizes& s, const float* x, const float* weights, const float* bias, float* y, int64_t group,
                   int64_t first, int64_t vectors, int64_t place, Rows& rows) {
  rows.clear();
  for (int64_t tap = 0; tap < s.taps(); ++tap) {
    const int64_t seen = s.seen(place, tap);
    if (seen < 0) continue;
    rows.add(x + seen * s.n * s.c + group * s.group_c(),
             weights + (group * s.taps() + tap) * s.group_c() * s.group_k() + first * kLanes);
  }
  const int64_t channel = group * s.group_k() + first * kLanes;
  float* const to = y + place * s.k + channel;
  const int64_t step = s.out_pixels() * s.k;
  const Tile<float> tile{
      nullptr, static_cast<int64_t>(rows.x.size()), s.group_c(), s.c, 1, rows.weights.data(), s.group_k(), to, step};
  run_tiles(tile, rows.x, vectors, s.n);
  dispatch(FT_FORM(add_bias_relu), to, bias + channel, s.n, step, vectors * kLanes);
}

// One place of all images' gradient, one block of a group's channels.
void backward_place(const Sizes& s, const float* gradient, const float* weight, float* dx, int64_t group, int64_t first,
                    int64_t vectors, int64_t place, Rows& rows) {
  rows.clear();
  for (int64_t tap = 0; tap < s.taps(); ++tap) {
    const int64_t seeing = s.seeing(place, tap);
    if (seeing < 0) continue;
    rows.add(gradient + seeing * s.n * s.k + group * s.group_k(),
             weight + (group * s.group_k() * s.taps() + tap) * s.group_c() + first * kLanes);
  }
  float* const to = dx + place * s.c + group * s.group_c() + first * kLanes;
  const Tile<float> tile{nullptr,
                         static_cast<int64_t>(rows.x.size()),
                         s.group_k(),
                         s.k,
                         1,
                         rows.weights.data(),
                         s.taps() * s.group_c(),
                         to,
                         s.pixels() * s.c};
  run_tiles(tile, rows.x, vectors, s.n);
}

// The gradient of one tap's weights, from one block of a group's channels to all of its outputs.
void backward_tap(const Sizes& s, const float* gradient, const float* x, float* dweight, int64_t group, int64_t first,
                  int64_t vectors, int64_t tap, Rows& rows) {
  rows.clear();
  for (int64_t place = 0; place < s.out_pixels(); ++place) {
    const int64_t seen = s.seen(place, tap);
    if (seen < 0) continue;
    rows.add(gradient + place * s.n * s.k + group * s.group_k(),
             x + seen * s.n * s.c + group * s.group_c() + first * kLanes);
  }
  float* const to = dweight + (group * s.group_k() * s.taps() + tap) * s.group_c() + first * kLanes;
  const Tile<float> tile{
      nullptr, static_cast<int64_t>(rows.x.size()), s.n, 1, s.k, rows.weights.data(), s.c, to, s.taps() * s.group_c()};
  run_tiles(tile, rows.x, vectors, s.group_k());
}

// Calls `work(group, first vector, vectors, place, rows)` for all blocks of the groups' channels and all places.
template <typename Work>
void for_blocks(int64_t groups, int64_t channels, int64_t places, const Work& work) {
  const Blocks blocks(channels / kLanes, float_tiles().vectors);
  torch::stable::parallel_for(0, groups * blocks.count * places, 1, [&](int64_t begin, int64_t end) {
    Rows rows;
    for (int64_t task = begin; task < end; ++task) {
      const int64_t block = task / places % blocks.count, first = blocks.first_vector(block);
      work(task / places / blocks.count, first, blocks.first_vector(block + 1) - first, task % places, rows);
    }
  });
}

Sizes sizes_of(const char* name, const Tensor& x, const Tensor& weight, int64_t padding, int64_t groups) {
  STD_TORCH_CHECK(x.dim() == 4 && weight.dim() == 4, name, ": x and weight must have 4 dimensions, not ", x.dim(),
                  " and ", weight.dim());
  STD_TORCH_CHECK(padding >= 0 && groups >= 1, name, ": padding must be at least 0 and groups at least 1, not ",
                  padding, " and ", groups);
  Sizes s{x.size(0), x.size(1), x.size(2), x.size(3), weight.size(0), weight.size(2), weight.size(3),
          padding,   groups,    0,         0};
  s.out_h = s.h + 2 * padding - s.kernel_h + 1;
  s.out_w = s.w + 2 * padding - s.kernel_w + 1;
  STD_TORCH_CHECK(s.k % groups == 0 && s.c % groups == 0 && weight.size(1) == s.group_c(), name, ": weight of ", s.k,
                  " x ", weight.size(1), " channels does not fit x of ", s.c, " in ", groups, " groups");
  STD_TORCH_CHECK(s.group_c() % kLanes == 0 && s.group_k() % kLanes == 0, name,
                  ": a group's channels must be multiples of 16, not ", s.group_c(), " and ", s.group_k());
  STD_TORCH_CHECK(s.kernel_h >= 1 && s.kernel_w >= 1 && s.out_h >= 1 && s.out_w >= 1, name,
                  ": the kernel must fit into the padded image");
  STD_TORCH_CHECK(x.scalar_type() == ScalarType::Float && weight.scalar_type() == ScalarType::Float, name,
                  ": x and weight must be float32, not ", torch::headeronly::toString(x.scalar_type()), " and ",
                  torch::headeronly::toString(weight.scalar_type()));
  STD_TORCH_CHECK(is_channels_last(x) && is_channels_last(weight), name,
                  ": x and weight must be contiguous in channels-last memory");
  return s;
}

Tensor empty(std::initializer_list<int64_t> sizes, const Tensor& like) {
  const auto format =
      sizes.size() == 4 ? torch::headeronly::MemoryFormat::ChannelsLast : torch::headeronly::MemoryFormat::Contiguous;
  return torch::stable::empty(sizes, ScalarType::Float, std::nullopt, like.device(), std::nullopt, format);
}

const float* values(const Tensor& x) { return static_cast<const float*>(x.const_data_ptr()); }

Tensor conv_relu(const Tensor& x, const Tensor& weight, const Tensor& bias, int64_t padding, int64_t groups) {
  const Sizes s = sizes_of("conv_relu", x, weight, padding, groups);
  STD_TORCH_CHECK(
      bias.dim() == 1 && bias.size(0) == s.k && bias.scalar_type() == ScalarType::Float && bias.is_contiguous(),
      "conv_relu: bias must be ", s.k, " contiguous float32, one for each channel of the output");
  Tensor y = empty({s.n, s.k, s.out_h, s.out_w}, x);
  const Buffer<float> gathered = buffer<float>(s.n * s.pixels() * s.c);
  dispatch(FT_FORM(gather), values(x), gathered.get(), s.n, s.pixels(), s.c);
  const int64_t group_weights = s.group_k() * s.taps() * s.group_c();
  const Buffer<float> weights = buffer<float>(s.groups * group_weights);
  for (int64_t group = 0; group < s.groups; ++group) {
    dispatch(FT_FORM(transpose), values(weight) + group * group_weights, weights.get() + group * group_weights,
             s.group_k(), s.taps() * s.group_c());
  }
  float* const to = static_cast<float*>(y.mutable_data_ptr());
  for_blocks(s.groups, s.group_k(), s.out_pixels(),
             [&](int64_t group, int64_t first, int64_t vectors, int64_t place, Rows& rows) {
               forward_place(s, gathered.get(), weights.get(), values(bias), to, group, first, vectors, place, rows);
             });
  return y;
}

std::tuple<Tensor, Tensor, Tensor> conv_relu_backward(const Tensor& gradient, const Tensor& y, const Tensor& x,
                                                      const Tensor& weight, int64_t padding, int64_t groups,
                                                      bool input) {
  const Sizes s = sizes_of("conv_relu_backward", x, weight, padding, groups);
  for (const Tensor& each : {gradient, y}) {
    STD_TORCH_CHECK(each.dim() == 4 && each.size(0) == s.n && each.size(1) == s.k && each.size(2) == s.out_h &&
                        each.size(3) == s.out_w && each.scalar_type() == ScalarType::Float && is_channels_last(each),
                    "conv_relu_backward: gradient and y must be like the output of conv_relu, channels-last float32");
  }
  Tensor dx = input ? empty({s.n, s.c, s.h, s.w}, x) : empty({0}, x);
  Tensor dweight = empty({s.k, s.group_c(), s.kernel_h, s.kernel_w}, x), dbias = empty({s.k}, x);
  const Buffer<float> passed = buffer<float>(s.n * s.out_pixels() * s.k), pixel_sum = buffer<float>(s.k);
  dispatch(FT_FORM(gather_passed), values(gradient), values(y), passed.get(), pixel_sum.get(),
           static_cast<float*>(dbias.mutable_data_ptr()), s.n, s.out_pixels(), s.k);
  if (input) {
    float* const to = static_cast<float*>(dx.mutable_data_ptr());
    for_blocks(s.groups, s.group_c(), s.pixels(),
               [&](int64_t group, int64_t first, int64_t vectors, int64_t place, Rows& rows) {
                 backward_place(s, passed.get(), values(weight), to, group, first, vectors, place, rows);
               });
  }
  const Buffer<float> gathered = buffer<float>(s.n * s.pixels() * s.c);
  dispatch(FT_FORM(gather), values(x), gathered.get(), s.n, s.pixels(), s.c);
  float* const to = static_cast<float*>(dweight.mutable_data_ptr());
  for_blocks(s.groups, s.group_c(), s.taps(),
             [&](int64_t group, int64_t first, int64_t vectors, int64_t tap, Rows& rows) {
               backward_tap(s, passed.get(), gathered.get(), to, group, first, vectors, tap, rows);
             });
  return {dx, dweight, dbias};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fasttransfer, CPU, m) {
  m.impl("conv_relu", TORCH_BOX(&conv_relu));
  m.impl("conv_relu_backward", TORCH_BOX(&conv_relu_backward));
}

}  // namespace fasttransfer
