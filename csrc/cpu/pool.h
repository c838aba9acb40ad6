// 3x3 max pooling with stride 2 over channels-last rows, forward and backward: shared by relu_pool and relu_pool_lrn.
//
// The unit of work is a pooled row. It depends on three rows of the input and, backward, decides with the row above it
// about two. A thread takes any range of the batch's pooled rows, so that one image keeps several of them busy.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#include "cpu/dispatch.h"
#include "cpu/element.h"
#include "layout.h"
#include "math/pool.h"

namespace fasttransfer {

// N images, C channels, H x W pixels, PH x PW pooled ones.
struct PoolShape {
  int64_t n, c, h, w, ph, pw;

  int64_t rows() const { return n * ph; }
  int64_t packed() const { return (c + 1) / 2; }  // bytes of argmax per pooled pixel
};

// Pooled elements per thread, at least: fewer are done before a second thread starts.
constexpr int64_t kPooledPerThread = 1 << 14;

using torch::headeronly::MemoryFormat;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline void check_activations(const char* op, const char* name, const Tensor& x) {
  const ScalarType type = x.scalar_type();
  STD_TORCH_CHECK(type == ScalarType::Float || type == ScalarType::BFloat16 || type == ScalarType::Double, op, ": ",
                  name, " must be float32, bfloat16 or float64, not ", torch::headeronly::toString(type));
  STD_TORCH_CHECK(x.dim() == 4, op, ": ", name, " must be (images, channels, rows, columns), not ", x.dim(), "-d");
  STD_TORCH_CHECK(is_channels_last(x), op, ": ", name, " must be contiguous in channels-last memory");
}

inline bool same_sizes(const Tensor& a, const Tensor& b) {
  return std::equal(a.sizes().begin(), a.sizes().end(), b.sizes().begin(), b.sizes().end());
}

inline PoolShape pool_shape(const char* op, const Tensor& x, const Tensor& bias) {
  check_activations(op, "x", x);
  const int64_t h = x.size(2), w = x.size(3);
  STD_TORCH_CHECK(h >= kWindow && w >= kWindow, op, ": x must have at least 3 x 3 pixels, not ", h, " x ", w);
  const ScalarType type = bias.scalar_type();
  STD_TORCH_CHECK(bias.is_cpu() && bias.dim() == 1 && bias.size(0) == x.size(1) && bias.is_contiguous(), op,
                  ": bias must be one number a channel (", x.size(1), ") on cpu");
  STD_TORCH_CHECK(type == ScalarType::Float || (type == ScalarType::Double && x.scalar_type() == ScalarType::Double),
                  op, ": bias must be float32, not ", torch::headeronly::toString(type));
  return {x.size(0), x.size(1), h, w, pooled_side(h), pooled_side(w)};
}

inline PoolShape unpool_shape(const char* op, const Tensor& gradient, const Tensor& argmax, int64_t h, int64_t w) {
  check_activations(op, "gradient", gradient);
  const PoolShape shape{gradient.size(0), gradient.size(1), h, w, gradient.size(2), gradient.size(3)};
  STD_TORCH_CHECK(h >= kWindow && w >= kWindow && pooled_side(h) == shape.ph && pooled_side(w) == shape.pw, op, ": ", h,
                  " x ", w, " pixels are not pooled to gradient's ", shape.ph, " x ", shape.pw);
  STD_TORCH_CHECK(argmax.is_cpu() && argmax.scalar_type() == ScalarType::Byte && argmax.is_contiguous() &&
                      argmax.dim() == 4 && argmax.size(0) == shape.n && argmax.size(1) == shape.ph &&
                      argmax.size(2) == shape.pw && argmax.size(3) == shape.packed(),
                  op, ": argmax must be what the forward pass kept for a gradient of this shape");
  return shape;
}

inline Tensor empty_channels_last(int64_t n, int64_t c, int64_t h, int64_t w, ScalarType type) {
  return torch::stable::empty({n, c, h, w}, type, std::nullopt, std::nullopt, std::nullopt, MemoryFormat::ChannelsLast);
}

inline Tensor empty_pooled(const PoolShape& shape, ScalarType type) {
  return empty_channels_last(shape.n, shape.c, shape.ph, shape.pw, type);
}

inline Tensor empty_unpooled(const PoolShape& shape, ScalarType type) {
  return empty_channels_last(shape.n, shape.c, shape.h, shape.w, type);
}

inline Tensor empty_codes(const PoolShape& shape, bool keep) {
  if (!keep) return torch::stable::empty({0}, ScalarType::Byte);
  return torch::stable::empty({shape.n, shape.ph, shape.pw, shape.packed()}, ScalarType::Byte);
}

inline Tensor empty_dbias(const PoolShape& shape, ScalarType type) {
  return torch::stable::empty({shape.c}, type == ScalarType::Double ? type : ScalarType::Float);
}

inline int64_t rows_per_thread(const PoolShape& shape) {
  return 1 + kPooledPerThread / std::max<int64_t>(shape.pw * shape.c, 1);
}

// A floating-point number's bits as a whole number that sorts as it does: both zeros are one, and a NaN of either sign
// is above infinity. 16-bit integers are compared 32 at a time, floats 16.
template <typename T>
struct Order;

template <typename Bits_, typename Key_, Bits_ infinity>
struct OrderOf {
  using Bits = Bits_;
  using Key = Key_;
  static constexpr Bits kInfinity = infinity;
  static constexpr Bits kSign = static_cast<Bits>(Bits(1) << (8 * sizeof(Bits) - 1));
  static constexpr Bits kOffset = kSign - kInfinity;
  static constexpr Key kLargest = static_cast<Key>(kInfinity - kOffset);  // of infinity

  static FT_INLINE Key key(Bits bits) {
    const Bits flipped = static_cast<Bits>(kInfinity - bits), shifted = static_cast<Bits>(bits - kOffset);
    return static_cast<Key>(static_cast<Key>(bits) < 0 ? flipped : shifted);
  }

  static FT_INLINE Bits bits(Key key) {
    const Bits flipped = static_cast<Bits>(kInfinity - static_cast<Bits>(key));
    const Bits shifted = static_cast<Bits>(static_cast<Bits>(key) + kOffset);
    const Bits number = key < static_cast<Key>(-static_cast<Key>(kOffset)) ? flipped : shifted;
    return key > kLargest ? static_cast<Bits>(kInfinity | (kInfinity >> 1)) : number;
  }
};

template <>
struct Order<uint16_t> : OrderOf<uint16_t, int16_t, 0x7F80> {};
template <>
struct Order<float> : OrderOf<uint32_t, int32_t, 0x7F800000> {};
template <>
struct Order<double> : OrderOf<uint64_t, int64_t, 0x7FF0000000000000> {};

template <typename T>
using Key = typename Order<T>::Key;

template <typename T>
FT_INLINE Key<T> order(T x) {
  typename Order<T>::Bits bits;
  std::memcpy(&bits, &x, sizeof bits);
  return Order<T>::key(bits);
}

template <typename T>
FT_INLINE Wide<T> unorder(Key<T> key) {
  const typename Order<T>::Bits bits = Order<T>::bits(key);
  T x;
  std::memcpy(&x, &bits, sizeof x);
  return widen(x);
}

// The nine pixels of a window, as pointers to their channels. A pixel beyond the edge is replaced by an earlier one:
// the first of equals wins, so the replacement never does.
template <typename T>
struct Window {
  const T* pixel[kWindow * kWindow];
};

template <typename T>
FT_INLINE Window<T> window_at(const T* image, const PoolShape& shape, int64_t ph, int64_t pw) {
  Window<T> window;
  for (int i = 0; i < kWindow; ++i) {
    for (int j = 0; j < kWindow; ++j) {
      const int64_t row = kPoolStride * ph + i, column = kPoolStride * pw + j;
      const int64_t y = row < shape.h ? row : kPoolStride * ph, x = column < shape.w ? column : kPoolStride * pw;
      window.pixel[kWindow * i + j] = image + (y * shape.w + x) * shape.c;
    }
  }
  return window;
}

// The bias added to the maxima, and the least maximum of each channel that then passes the ReLU, which is known before,
// so that it decides about a maximum that is still a key.
template <typename T>
struct Bias {
  std::vector<Wide<T>> value;
  std::vector<Key<T>> least;

  explicit Bias(const Tensor& bias) : value(bias.numel()), least(bias.numel()) {
    for (size_t c = 0; c < value.size(); ++c) {
      value[c] = bias.scalar_type() == ScalarType::Double ? static_cast<Wide<T>>(bias.const_data_ptr<double>()[c])
                                                          : bias.const_data_ptr<float>()[c];
      // x + bias > 0 where x > -bias: the key after the one of -bias, which is cut to T's length, downwards.
      const auto after = (order(-value[c]) >> (8 * (sizeof(Wide<T>) - sizeof(T)))) + 1;
      // Where the sum may be a NaN, it passes: with a bias that is one or infinite.
      least[c] = value[c] < std::numeric_limits<Wide<T>>::infinity()
                     ? static_cast<Key<T>>(std::min<decltype(after)>(after, Order<T>::kLargest))
                     : std::numeric_limits<Key<T>>::min();
    }
  }
};

// The buffers of a pooled row in the forward pass: one pixel's maxima, and each maximum's place in its window.
template <typename T>
struct MaximumRow {
  std::vector<Key<T>> best, place;

  explicit MaximumRow(const PoolShape& shape) : best(shape.c), place(shape.pw * shape.c) {}
};

// Prefetches the pixels that the pooled row below reads for the first time at this place, two in each of two rows;
// `middle` and `bottom` are this window's. The processor prefetches steady reading, but not reading that alternates
// with computing: this takes about a quarter off a forward pass.
template <typename T>
FT_INLINE void prefetch_below(const T* middle, const T* bottom, const PoolShape& shape) {
  constexpr int64_t kLine = 64 / sizeof(T);
  const int64_t below = kPoolStride * shape.w * shape.c;
  for (int64_t c = 0; c < kPoolStride * shape.c; c += kLine) {
    FT_PREFETCH(middle + below + c);
    FT_PREFETCH(bottom + below + c);
  }
}

// p = relu(maximum + bias) of pooled pixel (row, column) of an image and, with `keep`, its codes.
template <bool keep, typename T>
FT_INLINE void pool_pixel(const PoolShape& shape, const T* image, int64_t ph, int64_t pw, const Bias<T>& bias,
                          MaximumRow<T>& row, Wide<T>* __restrict p) {
  using K = Key<T>;
  const Window<T> window = window_at(image, shape, ph, pw);
  const T *x0 = window.pixel[0], *x1 = window.pixel[1], *x2 = window.pixel[2];
  const T *x3 = window.pixel[3], *x4 = window.pixel[4], *x5 = window.pixel[5];
  const T *x6 = window.pixel[6], *x7 = window.pixel[7], *x8 = window.pixel[8];
  const Wide<T>* value = bias.value.data();
  const K* least = bias.least.data();
  K* __restrict best = row.best.data();
  K* __restrict place = row.place.data() + pw * shape.c;
  if (kPoolStride * (ph + 2) < shape.h) prefetch_below(x3, x6, shape);
  for (int64_t c = 0; c < shape.c; ++c) {
    const K k0 = order(x0[c]), k1 = order(x1[c]), k2 = order(x2[c]);
    const K k3 = order(x3[c]), k4 = order(x4[c]), k5 = order(x5[c]);
    const K k6 = order(x6[c]), k7 = order(x7[c]), k8 = order(x8[c]);
    const K top = std::max(std::max(k0, k1), k2), middle = std::max(std::max(k3, k4), k5);
    const K largest = std::max(std::max(top, middle), std::max(std::max(k6, k7), k8));
    best[c] = largest;
    if (!keep) continue;
    K where = 8;  // the first of equals is compared last
    where = k7 == largest ? K(7) : where;
    where = k6 == largest ? K(6) : where;
    where = k5 == largest ? K(5) : where;
    where = k4 == largest ? K(4) : where;
    where = k3 == largest ? K(3) : where;
    where = k2 == largest ? K(2) : where;
    where = k1 == largest ? K(1) : where;
    where = k0 == largest ? K(0) : where;
    place[c] = largest < least[c] ? K(kStopped) : where;
  }
  for (int64_t c = 0; c < shape.c; ++c) p[c] = relu(unorder<T>(best[c]) + value[c]);
}

// Packs the codes of a pooled row, two per byte.
template <typename K>
FT_INLINE void pack_codes(const K* __restrict code, const PoolShape& shape, uint8_t* __restrict argmax) {
  const int64_t half = shape.c / 2;
  if (shape.c % 2 == 0) {
    for (int64_t i = 0; i < shape.pw * half; ++i) {
      argmax[i] = static_cast<uint8_t>(code[2 * i] | code[2 * i + 1] << 4);
    }
    return;
  }
  for (int64_t pixel = 0; pixel < shape.pw; ++pixel, argmax += half + 1, code += shape.c) {
    for (int64_t i = 0; i < half; ++i) argmax[i] = static_cast<uint8_t>(code[2 * i] | code[2 * i + 1] << 4);
    argmax[half] = static_cast<uint8_t>(code[shape.c - 1]);
  }
}

// The gradient that a pooled pixel passes to the input pixel at `place` of its window.
template <typename W>
struct Giver {
  const W* gradient;
  const uint8_t* code;

  FT_INLINE W at(int64_t c, int place) const {
    const W value = gradient[c];  // read in any case: a select, no branch
    return code[c] == place ? value : W(0);
  }
};

// The buffers of a pooled row in the backward pass: the gradient of every element and the code of its target, with a
// pixel on each side whose codes have no target.
template <typename W>
struct GradientRow {
  std::vector<W> gradient;
  std::vector<uint8_t> code;

  GradientRow(int64_t pooled_width, int64_t channels)
      : gradient((pooled_width + 2) * channels), code((pooled_width + 2) * channels, kStopped) {}

  FT_INLINE Giver<W> at(int64_t pixel, int64_t channels) const {
    return {gradient.data() + pixel * channels, code.data() + pixel * channels};
  }
};

// Unpacks the codes of a pooled row, one per byte.
FT_INLINE void unpack_codes(const uint8_t* __restrict argmax, const PoolShape& shape, uint8_t* __restrict code) {
  const int64_t half = shape.c / 2;
  if (shape.c % 2 == 0) {
    for (int64_t i = 0; i < shape.pw * half; ++i) {
      code[2 * i] = argmax[i] & 15;
      code[2 * i + 1] = argmax[i] >> 4;
    }
    return;
  }
  for (int64_t pixel = 0; pixel < shape.pw; ++pixel, argmax += half + 1, code += shape.c) {
    for (int64_t i = 0; i < half; ++i) {
      code[2 * i] = argmax[i] & 15;
      code[2 * i + 1] = argmax[i] >> 4;
    }
    code[shape.c - 1] = argmax[half] & 15;
  }
}

// Adds the part of a pooled row's gradient that passes to the sum of each channel.
template <typename W>
FT_INLINE void add_passing(const GradientRow<W>& row, const PoolShape& shape, W* __restrict sum) {
  for (int64_t pixel = 1; pixel <= shape.pw; ++pixel) {
    const auto from = row.at(pixel, shape.c);
    FT_NO_ALIAS
    for (int64_t c = 0; c < shape.c; ++c) {
      const W value = from.gradient[c];
      sum[c] += from.code[c] == kStopped ? W(0) : value;
    }
  }
}

// The gradient of the bias from the sums of all pooled rows: an image's rows in order, then the images in order, so
// that neither threads nor the other images change a bit of it.
template <typename W>
void add_rows(const PoolShape& shape, const std::vector<W>& sums, W* dbias) {
  std::vector<W> image(shape.c);
  std::fill(dbias, dbias + shape.c, W(0));
  for (int64_t n = 0; n < shape.n; ++n) {
    std::fill(image.begin(), image.end(), W(0));
    for (int64_t ph = 0; ph < shape.ph; ++ph) {
      const W* row = sums.data() + (n * shape.ph + ph) * shape.c;
      for (int64_t c = 0; c < shape.c; ++c) image[c] += row[c];
    }
    for (int64_t c = 0; c < shape.c; ++c) dbias[c] += image[c];
  }
}

// The gradient of an even row of the input, which the pooled rows above and below it both cover.
template <typename T>
FT_INLINE void even_row(const GradientRow<Wide<T>>& above, const GradientRow<Wide<T>>& below, const PoolShape& shape,
                        T* dx) {
  const int64_t channels = shape.c;
  for (int64_t x = 0; x < shape.w; x += 2) {
    const auto a0 = above.at(x / 2, channels), a1 = above.at(x / 2 + 1, channels);
    const auto b0 = below.at(x / 2, channels), b1 = below.at(x / 2 + 1, channels);
    T* __restrict to = dx + x * channels;
    FT_NO_ALIAS
    for (int64_t c = 0; c < channels; ++c) {
      narrow((a0.at(c, 8) + a1.at(c, 6)) + (b0.at(c, 2) + b1.at(c, 0)), to + c);
    }
    if (x + 1 == shape.w) break;
    to += channels;
    FT_NO_ALIAS
    for (int64_t c = 0; c < channels; ++c) narrow(a1.at(c, 7) + b1.at(c, 1), to + c);
  }
}

// The gradient of an odd row, which one pooled row covers.
template <typename T>
FT_INLINE void odd_row(const GradientRow<Wide<T>>& row, const PoolShape& shape, T* dx) {
  const int64_t channels = shape.c;
  for (int64_t x = 0; x < shape.w; x += 2) {
    const auto left = row.at(x / 2, channels), right = row.at(x / 2 + 1, channels);
    T* __restrict to = dx + x * channels;
    FT_NO_ALIAS
    for (int64_t c = 0; c < channels; ++c) narrow(left.at(c, 5) + right.at(c, 3), to + c);
    if (x + 1 == shape.w) break;
    to += channels;
    FT_NO_ALIAS
    for (int64_t c = 0; c < channels; ++c) narrow(right.at(c, 4), to + c);
  }
}

// Computes dx for pooled rows `begin` to `end` of the batch. `fill(row, into, sums)` computes the gradient of one
// pooled row before the pooling and, unless `sums` is null, sums the part that passes by channel.
template <typename T, typename Fill>
FT_INLINE void unpool_rows(const PoolShape& shape, int64_t begin, int64_t end, T* dx, Wide<T>* sums, Fill fill) {
  const GradientRow<Wide<T>> nothing(shape.pw, shape.c);
  GradientRow<Wide<T>> rows[2] = {nothing, nothing};
  for (int64_t r = begin; r < end; ++r) {
    const int64_t ph = r % shape.ph, y = kPoolStride * ph;
    GradientRow<Wide<T>>&before = rows[(r + 1) % 2], &row = rows[r % 2];
    if (r == begin && ph > 0) fill(r - 1, before, static_cast<Wide<T>*>(nullptr));
    fill(r, row, sums + r * shape.c);
    T* to = dx + (r / shape.ph * shape.h + y) * shape.w * shape.c;
    const int64_t pitch = shape.w * shape.c;
    even_row<T>(ph > 0 ? before : nothing, row, shape, to);
    if (y + 1 < shape.h) odd_row<T>(row, shape, to + pitch);
    if (ph + 1 == shape.ph && y + 2 < shape.h) even_row<T>(row, nothing, shape, to + 2 * pitch);
  }
}

}  // namespace fasttransfer
