// The gradients of a convolution from a gradient that is mostly zero, as it is behind max pooling and a ReLU: each
// nonzero number adds its patch of the image to the gradient of its channel's weights, and those weights to
// the same patch of the image's gradient. Sums are float32.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <tuple>
#include <vector>

#include "cpu/buffer.h"
#include "cpu/conv_tile.h"
#include "cpu/dispatch.h"
#include "cpu/element.h"
#include "cpu/entries.h"
#include "layout.h"

namespace fasttransfer {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// A patch is the part of one group's channels that one pixel of the output depends on: a row of it is contiguous. Rows
// are taken in vectors, the last one padded.
struct Sizes {
  int64_t n, c, h, w;
  int64_t k, kernel_h, kernel_w;
  int64_t stride, padding, groups;
  int64_t out_h, out_w;

  int64_t group_c() const { return c / groups; }
  int64_t group_k() const { return k / groups; }
  int64_t row() const { return kernel_w * group_c(); }
  int64_t row_vectors() const { return (row() + kLanes - 1) / kLanes; }
  int64_t vectors() const { return kernel_h * row_vectors(); }
  int64_t patch() const { return vectors() * kLanes; }
  int64_t padded_h() const { return h + 2 * padding; }
  int64_t padded_w() const { return w + 2 * padding; }
  int64_t image() const { return padded_h() * padded_w() * group_c(); }  // of one group, in floats
};

// A patch's vectors are processed in tiles of as many as there are registers for, which are 16 floats wide with
// AVX-512, 8 with AVX2 and else 4: a vector is one register, two or four.
template <int kVectors, int kWidth>
FT_INLINE void add_patches(const Entry* entries, int64_t count, const float* x, const int32_t* at, float* sums) {
  constexpr int kParts = kLanes / kWidth;
  using Part = Register<kWidth>;
  Part sum[kVectors * kParts];
  Part* to = reinterpret_cast<Part*>(sums);
  FT_UNROLL
  for (int i = 0; i < kVectors * kParts; ++i) sum[i] = to[i];
  for (int64_t e = 0; e < count; ++e) {
    const float value = entries[e].value;
    const float* from = x + entries[e].offset;
    FT_UNROLL
    for (int i = 0; i < kVectors * kParts; ++i) {
      sum[i] += *reinterpret_cast<const Part*>(from + at[i / kParts] + i % kParts * kWidth) * value;
    }
  }
  FT_UNROLL
  for (int i = 0; i < kVectors * kParts; ++i) to[i] = sum[i];
}

template <int kVectors, int kWidth>
FT_INLINE void add_weights(const Entry* entries, int64_t count, const float* weights, const int32_t* at, float* dx) {
  constexpr int kParts = kLanes / kWidth;
  using Part = Register<kWidth>;
  Part weight[kVectors * kParts];
  FT_UNROLL
  for (int i = 0; i < kVectors * kParts; ++i) weight[i] = reinterpret_cast<const Part*>(weights)[i];
  for (int64_t e = 0; e < count; ++e) {
    const float value = entries[e].value;
    float* to = dx + entries[e].offset;
    FT_UNROLL
    for (int i = 0; i < kVectors * kParts; ++i) {
      *reinterpret_cast<Part*>(to + at[i / kParts] + i % kParts * kWidth) += weight[i] * value;
    }
  }
}

// The same for a patch whose rows are not whole vectors: beyond their ends lie other patches' numbers.
FT_INLINE void add_weights_rows(const Sizes& s, const Entry* entries, int64_t count, const float* weights, float* dx) {
  for (int64_t e = 0; e < count; ++e) {
    for (int64_t row = 0; row < s.kernel_h; ++row) {
      const float* from = weights + row * s.row_vectors() * kLanes;
      float* to = dx + entries[e].offset + row * s.padded_w() * s.group_c();
      FT_NO_ALIAS
      for (int64_t i = 0; i < s.row(); ++i) to[i] += from[i] * entries[e].value;
    }
  }
}

// The function for so many vectors, a number that must be known at compile time.
template <int kVectors, int kWidth>
FT_INLINE void choose_patches(int64_t vectors, const Entry* entries, int64_t count, const float* x, const int32_t* at,
                              float* sums) {
  if (vectors == kVectors) {
    add_patches<kVectors, kWidth>(entries, count, x, at, sums);
  } else if constexpr (kVectors > 1) {
    choose_patches<kVectors - 1, kWidth>(vectors, entries, count, x, at, sums);
  }
}

template <int kVectors, int kWidth>
FT_INLINE void choose_weights(int64_t vectors, const Entry* entries, int64_t count, const float* weights,
                              const int32_t* at, float* dx) {
  if (vectors == kVectors) {
    add_weights<kVectors, kWidth>(entries, count, weights, at, dx);
  } else if constexpr (kVectors > 1) {
    choose_weights<kVectors - 1, kWidth>(vectors, entries, count, weights, at, dx);
  }
}

using AddTile = void (*)(int64_t, const Entry*, int64_t, const float*, const int32_t*, float*);

// The functions of one kind of processor. kTile: vectors of a tile, at most.
struct Tiles {
  int64_t most;
  AddTile add_patches, add_weights;
};

template <int kTile, int kWidth>
constexpr Tiles tiles_of() {
  return {kTile,
          [](int64_t vectors, const Entry* entries, int64_t count, const float* x, const int32_t* at, float* sums) {
            dispatch(FT_FORM(choose_patches<kTile, kWidth>), vectors, entries, count, x, at, sums);
          },
          [](int64_t vectors, const Entry* entries, int64_t count, const float* w, const int32_t* at, float* dx) {
            dispatch(FT_FORM(choose_weights<kTile, kWidth>), vectors, entries, count, w, at, dx);
          }};
}

Tiles tiles_here() {
  switch (isa()) {
    case Isa::kAvx512:
      return tiles_of<26, 16>();  // of 32 registers
    case Isa::kAvx2:
      return tiles_of<6, 8>();  // 12 of 16
    default:
      return tiles_of<3, 4>();
  }
}

// An image as float32 with its border, each group's channels by themselves.
template <typename T>
FT_INLINE void pad_image(const Sizes& s, const T* x, float* to, int64_t group_step) {
  const int64_t gc = s.group_c(), width = s.padded_w() * gc;
  for (int64_t group = 0; group < s.groups; ++group) {
    float* __restrict into = to + group * group_step;
    std::fill(into, into + s.padding * width, 0.0f);
    for (int64_t y = 0; y < s.h; ++y) {
      float* __restrict row = into + (y + s.padding) * width;
      std::fill(row, row + s.padding * gc, 0.0f);
      const T* from = x + y * s.w * s.c + group * gc;
      float* __restrict pixel = row + s.padding * gc;
      if (s.groups == 1) {
        for (int64_t i = 0; i < s.w * gc; ++i) pixel[i] = widen(from[i]);
      } else {
        for (int64_t column = 0; column < s.w; ++column, from += s.c, pixel += gc) {
          for (int64_t i = 0; i < gc; ++i) pixel[i] = widen(from[i]);
        }
      }
      std::fill(row + (s.padding + s.w) * gc, row + width, 0.0f);
    }
    std::fill(into + (s.padding + s.h) * width, into + s.image(), 0.0f);
  }
}

// The other way round.
template <typename T>
FT_INLINE void take_image(const Sizes& s, const float* padded, int64_t group_step, T* dx) {
  const int64_t gc = s.group_c();
  for (int64_t group = 0; group < s.groups; ++group) {
    for (int64_t y = 0; y < s.h; ++y) {
      const float* __restrict from = padded + group * group_step + ((y + s.padding) * s.padded_w() + s.padding) * gc;
      T* to = dx + y * s.w * s.c + group * gc;
      for (int64_t column = 0; column < s.w; ++column, from += gc, to += s.c) {
        T* __restrict pixel = to;
        for (int64_t i = 0; i < gc; ++i) narrow(from[i], pixel + i);
      }
    }
  }
}

// Bytes of images that are processed together: a part of the L2 cache, beside weights and their sums.
constexpr int64_t kBlockBytes = 96 << 10;

// The buffers and work of a thread.
template <typename T>
class Worker {
 public:
  Worker(const Sizes& s, const float* weights, float* dweight, bool input)
      : s_(s), weights_(weights), dweight_(dweight), input_(input), whole_(s.row() % kLanes == 0) {
    images_ = std::clamp<int64_t>(kBlockBytes / (s.groups * s.image() * 4), 1, s.n);
    // A large image is cut into strips of the output's rows: overlapping patches are processed soon after each other.
    const int64_t rows = kBlockBytes / (s.stride * s.padded_w() * s.c * 4);
    strip_ = images_ > 1 ? s.out_h : std::clamp<int64_t>(rows, 1, s.out_h);
    group_step_ = images_ * s.image();
    room_ = images_ * strip_ * s.out_w;
    x_ = buffer<float>(s.groups * group_step_ + kLanes);
    if (input) dx_ = buffer<float>(s.groups * group_step_ + kLanes);
    lists_ = buffer<Entry>(s.k * room_);
    counts_.resize(s.k);
    for (int64_t row = 0; row < s.kernel_h; ++row) {
      for (int64_t v = 0; v < s.row_vectors(); ++v) {
        at_.push_back(static_cast<int32_t>(row * s.padded_w() * s.group_c() + v * kLanes));
      }
    }
    std::fill(dweight, dweight + s.k * s.patch(), 0.0f);
  }

  void run(const T* gradient, const T* x, T* dx, int64_t begin, int64_t end) {
    for (int64_t first = begin; first < end; first += images_) {
      const int64_t count = std::min(images_, end - first);
      for (int64_t i = 0; i < count; ++i) {
        const T* const image = x + (first + i) * s_.h * s_.w * s_.c;
        dispatch(FT_FORM(pad_image), s_, image, x_.get() + i * s_.image(), group_step_);
      }
      if (input_) std::fill(dx_.get(), dx_.get() + s_.groups * group_step_ + kLanes, 0.0f);
      for (int64_t top = 0; top < s_.out_h; top += strip_) {
        list(gradient + first * s_.out_h * s_.out_w * s_.k, count, top, std::min(top + strip_, s_.out_h));
        add();
      }
      if (!input_) continue;
      for (int64_t i = 0; i < count; ++i) {
        T* const image = dx + (first + i) * s_.h * s_.w * s_.c;
        dispatch(FT_FORM(take_image), s_, dx_.get() + i * s_.image(), group_step_, image);
      }
    }
  }

 private:
  void list(const T* gradient, int64_t images, int64_t top, int64_t bottom) {
    std::fill(counts_.begin(), counts_.end(), 0);
    for (int64_t i = 0; i < images; ++i) {
      for (int64_t y = top; y < bottom; ++y) {
        const T* row = gradient + (i * s_.out_h + y) * s_.out_w * s_.k;
        for (int64_t column = 0; column < s_.out_w; ++column, row += s_.k) {
          const int64_t offset = i * s_.image() + (y * s_.stride * s_.padded_w() + column * s_.stride) * s_.group_c();
          list_pixel(row, s_.k, static_cast<int32_t>(offset), lists_.get(), room_, counts_.data());
        }
      }
    }
  }

  void add() {
    const int64_t vectors = s_.vectors(), tiles = (vectors + tiles_.most - 1) / tiles_.most;
    for (int64_t channel = 0; channel < s_.k; ++channel) {
      const Entry* entries = lists_.get() + channel * room_;
      const int64_t count = counts_[channel], group = channel / s_.group_k() * group_step_;
      if (count == 0) continue;
      for (int64_t tile = 0; tile < tiles; ++tile) {
        const int64_t first = tile * vectors / tiles, here = (tile + 1) * vectors / tiles - first;
        const int64_t weight = channel * s_.patch() + first * kLanes;
        tiles_.add_patches(here, entries, count, x_.get() + group, at_.data() + first, dweight_ + weight);
        if (input_ && whole_) {
          tiles_.add_weights(here, entries, count, weights_ + weight, at_.data() + first, dx_.get() + group);
        }
      }
      if (input_ && !whole_) {
        const float* const weights = weights_ + channel * s_.patch();
        dispatch(FT_FORM(add_weights_rows), s_, entries, count, weights, dx_.get() + group);
      }
    }
  }

  const Sizes& s_;
  const float* weights_;
  float* dweight_;
  bool input_, whole_;
  const Tiles tiles_ = tiles_here();
  int64_t images_, strip_, group_step_, room_;
  Buffer<float> x_, dx_;
  Buffer<Entry> lists_;  // [channel][room_]
  std::vector<int32_t> counts_, at_;
};

template <typename T>
void run(const Sizes& s, const Tensor& gradient, const Tensor& x, const Tensor& weight, Tensor& dx, Tensor& dweight,
         bool input) {
  T* result = static_cast<T*>(dweight.mutable_data_ptr());
  if (s.n == 0) {
    std::fill(result, result + s.k * s.kernel_h * s.row(), T{});
    return;
  }
  const T* weights = static_cast<const T*>(weight.const_data_ptr());
  const int64_t size = s.k * s.patch();
  Buffer<float> padded = buffer<float>(input ? size : 0);
  if (input) {  // zeros between the end of a row and that of its last vector
    std::fill(padded.get(), padded.get() + size, 0.0f);
    for (int64_t row = 0; row < s.k * s.kernel_h; ++row) {
      float* to = padded.get() + row * s.row_vectors() * kLanes;
      for (int64_t i = 0; i < s.row(); ++i) to[i] = widen(weights[row * s.row() + i]);
    }
  }
  const T* gradients = static_cast<const T*>(gradient.const_data_ptr());
  const T* images = static_cast<const T*>(x.const_data_ptr());
  T* to = input ? static_cast<T*>(dx.mutable_data_ptr()) : nullptr;
  // Each thread has sums of its own, which are added in order: the same number of threads gives the same bits.
  const int64_t parts = std::min<int64_t>(s.n, torch::stable::get_num_threads());
  Buffer<float> sums = buffer<float>(parts * size);
  torch::stable::parallel_for(0, parts, 1, [&](int64_t begin, int64_t end) {
    for (int64_t part = begin; part < end; ++part) {
      Worker<T> worker(s, padded.get(), sums.get() + part * size, input);
      worker.run(gradients, images, to, part * s.n / parts, (part + 1) * s.n / parts);
    }
  });
  torch::stable::parallel_for(0, s.k, 16, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin * s.kernel_h; row < end * s.kernel_h; ++row) {
      float* sum = sums.get() + row * s.row_vectors() * kLanes;
      for (int64_t part = 1; part < parts; ++part) {
        for (int64_t i = 0; i < s.row(); ++i) sum[i] += sum[part * size + i];
      }
      for (int64_t i = 0; i < s.row(); ++i) narrow(sum[i], result + row * s.row() + i);
    }
  });
}

Sizes sizes_of(const Tensor& gradient, const Tensor& x, const Tensor& weight, int64_t stride, int64_t padding,
               int64_t groups) {
  using torch::headeronly::toString;
  STD_TORCH_CHECK(gradient.dim() == 4 && x.dim() == 4 && weight.dim() == 4,
                  "sparse_conv_backward: gradient, x and weight must have 4 dimensions, not ", gradient.dim(), ", ",
                  x.dim(), " and ", weight.dim());
  STD_TORCH_CHECK(stride >= 1 && padding >= 0 && groups >= 1,
                  "sparse_conv_backward: stride and groups must be at least 1 and padding at least 0, not ", stride,
                  ", ", groups, " and ", padding);
  const Sizes s{x.size(0),      x.size(1), x.size(2), x.size(3), weight.size(0),   weight.size(2),
                weight.size(3), stride,    padding,   groups,    gradient.size(2), gradient.size(3)};
  STD_TORCH_CHECK(s.k % groups == 0 && s.c % groups == 0 && weight.size(1) == s.group_c(),
                  "sparse_conv_backward: weight of ", s.k, " x ", weight.size(1), " channels does not fit x of ", s.c,
                  " in ", groups, " groups");
  STD_TORCH_CHECK(gradient.size(0) == s.n && gradient.size(1) == s.k &&
                      s.out_h == (s.padded_h() - s.kernel_h) / stride + 1 && s.padded_h() >= s.kernel_h &&
                      s.out_w == (s.padded_w() - s.kernel_w) / stride + 1 && s.padded_w() >= s.kernel_w,
                  "sparse_conv_backward: gradient must be of the size of the convolution of x by weight");
  STD_TORCH_CHECK(gradient.scalar_type() == x.scalar_type() && weight.scalar_type() == x.scalar_type(),
                  "sparse_conv_backward: gradient, x and weight must be of one type, not ",
                  toString(gradient.scalar_type()), ", ", toString(x.scalar_type()), " and ",
                  toString(weight.scalar_type()));
  STD_TORCH_CHECK(is_channels_last(gradient) && is_channels_last(x) && is_channels_last(weight),
                  "sparse_conv_backward: gradient, x and weight must be contiguous in channels-last memory");
  STD_TORCH_CHECK(s.image() < INT32_MAX, "sparse_conv_backward: an image of ", s.padded_h(), " x ", s.padded_w(),
                  " pixels is too large");
  return s;
}

Tensor empty_as(const Tensor& x) {
  return torch::stable::empty(x.sizes(), x.scalar_type(), std::nullopt, x.device(), std::nullopt,
                              torch::headeronly::MemoryFormat::ChannelsLast);
}

std::tuple<Tensor, Tensor> sparse_conv_backward(const Tensor& gradient, const Tensor& x, const Tensor& weight,
                                                int64_t stride, int64_t padding, int64_t groups, bool input) {
  const Sizes s = sizes_of(gradient, x, weight, stride, padding, groups);
  Tensor dx = input ? empty_as(x) : torch::stable::empty({0}, x.scalar_type(), std::nullopt, x.device());
  Tensor dweight = empty_as(weight);
  switch (x.scalar_type()) {
    case ScalarType::Float:
      run<float>(s, gradient, x, weight, dx, dweight, input);
      break;
    case ScalarType::BFloat16:
      run<uint16_t>(s, gradient, x, weight, dx, dweight, input);
      break;
    default:
      STD_TORCH_CHECK(false, "sparse_conv_backward: x must be float32 or bfloat16, not ",
                      torch::headeronly::toString(x.scalar_type()));
  }
  return {dx, dweight};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fasttransfer, CPU, m) { m.impl("sparse_conv_backward", TORCH_BOX(&sparse_conv_backward)); }

}  // namespace fasttransfer
