// relu_pool, then local response normalisation over neighbouring channels, on pixels that are still in the cache.
// Stages 1 and 2. The backward pass computes the scales again from the pooled values.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <tuple>
#include <vector>

#include "cpu/dispatch.h"
#include "cpu/element.h"
#include "cpu/pool.h"
#include "math/lrn.h"

namespace fasttransfer {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Some pixels side by side, zeros between them as wide as a neighbourhood reaches: their channels are one long line,
// and sums over neighbours need not know where a pixel ends. The line stays in the L1 cache.
struct Line {
  static constexpr int64_t kElements = 1024;
  static constexpr int64_t kRounded = 32;  // elements, to whole vectors

  int64_t channels, pitch, pixels;

  explicit Line(int64_t channels_)
      : channels(channels_), pitch(channels + kLrnReach), pixels(std::max<int64_t>(kElements / pitch, 1)) {}

  int64_t elements(int64_t some) const { return (some * pitch + kRounded - 1) / kRounded * kRounded; }

  template <typename W>
  std::vector<W> zeros() const {
    return std::vector<W>(elements(pixels) + 2 * kLrnReach);
  }
};

// The sum over a neighbourhood.
template <typename W>
FT_INLINE W near_sum(const W* x) {
  return (x[-2] + x[-1]) + (x[0] + x[1]) + x[2];
}

template <bool keep, typename T>
FT_INLINE void forward_rows(const PoolShape& shape, int64_t begin, int64_t end, const T* x, const Bias<T>& bias, T* y,
                            T* pooled, uint8_t* argmax) {
  using W = Wide<T>;
  const Line line(shape.c);
  MaximumRow<T> row(shape);
  std::vector<W> values = line.zeros<W>(), squares = line.zeros<W>(), normalised = line.zeros<W>();
  W* __restrict p = values.data() + kLrnReach;
  W* __restrict square = squares.data() + kLrnReach;
  W* __restrict to = normalised.data() + kLrnReach;
  for (int64_t r = begin; r < end; ++r) {
    const T* image = x + r / shape.ph * shape.h * shape.w * shape.c;
    for (int64_t first = 0; first < shape.pw; first += line.pixels) {
      const int64_t some = std::min(line.pixels, shape.pw - first), pixel = r * shape.pw + first;
      for (int64_t i = 0; i < some; ++i) {
        pool_pixel<keep>(shape, image, r % shape.ph, first + i, bias, row, p + i * line.pitch);
      }
      const int64_t elements = line.elements(some);
      for (int64_t i = 0; i < elements; ++i) square[i] = p[i] * p[i];
      for (int64_t i = 0; i < elements; ++i) to[i] = p[i] * lrn_power(lrn_scale(near_sum(square + i)));
      for (int64_t i = 0; i < some; ++i) {
        for (int64_t c = 0; c < shape.c; ++c) narrow(to[i * line.pitch + c], y + (pixel + i) * shape.c + c);
        if (!keep) continue;
        for (int64_t c = 0; c < shape.c; ++c) narrow(p[i * line.pitch + c], pooled + (pixel + i) * shape.c + c);
      }
    }
    if (keep) pack_codes(row.place.data(), shape, argmax + r * shape.pw * shape.packed());
  }
}

template <typename T>
FT_INLINE void backward_rows(const PoolShape& shape, int64_t begin, int64_t end, const T* gradient, const T* pooled,
                             const uint8_t* argmax, T* dx, Wide<T>* sums) {
  using W = Wide<T>;
  const Line line(shape.c);
  std::vector<W> values = line.zeros<W>(), squares = line.zeros<W>(), incoming = line.zeros<W>();
  std::vector<W> powers = line.zeros<W>(), shares = line.zeros<W>();
  W* __restrict p = values.data() + kLrnReach;
  W* __restrict square = squares.data() + kLrnReach;
  W* __restrict g = incoming.data() + kLrnReach;
  W* __restrict power = powers.data() + kLrnReach;
  W* __restrict share = shares.data() + kLrnReach;
  unpool_rows<T>(shape, begin, end, dx, sums, [&](int64_t r, GradientRow<W>& row, W* sum) FT_INLINED {
    unpack_codes(argmax + r * shape.pw * shape.packed(), shape, row.code.data() + shape.c);
    for (int64_t first = 0; first < shape.pw; first += line.pixels) {
      const int64_t some = std::min(line.pixels, shape.pw - first), pixel = r * shape.pw + first;
      for (int64_t i = 0; i < some; ++i) {
        const T *value = pooled + (pixel + i) * shape.c, *from = gradient + (pixel + i) * shape.c;
        W* __restrict wide_value = p + i * line.pitch;
        W* __restrict wide_from = g + i * line.pitch;
        for (int64_t c = 0; c < shape.c; ++c) {
          wide_value[c] = widen(value[c]);
          wide_from[c] = widen(from[c]);
        }
      }
      const int64_t elements = line.elements(some);
      for (int64_t i = 0; i < elements; ++i) square[i] = p[i] * p[i];
      FT_NO_ALIAS
      for (int64_t i = 0; i < elements; ++i) {
        const W scale = lrn_scale(near_sum(square + i));
        power[i] = lrn_power(scale);
        share[i] = lrn_share(g[i], p[i], scale, power[i]);
      }
      W* __restrict into = row.gradient.data() + (first + 1) * shape.c;
      for (int64_t i = 0; i < some; ++i) {
        const int64_t at = i * line.pitch;
        FT_NO_ALIAS
        for (int64_t c = 0; c < shape.c; ++c) {
          into[i * shape.c + c] = lrn_gradient(g[at + c], p[at + c], power[at + c], near_sum(share + at + c));
        }
      }
    }
    if (sum) add_passing(row, shape, sum);
  });
}

template <typename T>
void run(const PoolShape& shape, const Tensor& x, const Tensor& bias, Tensor& y, Tensor& pooled, Tensor& argmax,
         bool keep) {
  const Bias<T> added(bias);
  const T* from = static_cast<const T*>(x.const_data_ptr());
  T* to = static_cast<T*>(y.mutable_data_ptr());
  T* kept = static_cast<T*>(pooled.mutable_data_ptr());
  uint8_t* codes = static_cast<uint8_t*>(argmax.mutable_data_ptr());
  torch::stable::parallel_for(0, shape.rows(), rows_per_thread(shape), [&](int64_t begin, int64_t end) {
    if (keep) {
      dispatch(FT_FORM(forward_rows<true>), shape, begin, end, from, added, to, kept, codes);
    } else {
      dispatch(FT_FORM(forward_rows<false>), shape, begin, end, from, added, to, kept, codes);
    }
  });
}

std::tuple<Tensor, Tensor, Tensor> relu_pool_lrn(const Tensor& x, const Tensor& bias, bool keep) {
  const PoolShape shape = pool_shape("relu_pool_lrn", x, bias);
  Tensor y = empty_pooled(shape, x.scalar_type());
  Tensor pooled = keep ? empty_pooled(shape, x.scalar_type()) : torch::stable::empty({0}, x.scalar_type());
  Tensor argmax = empty_codes(shape, keep);
  switch (x.scalar_type()) {
    case ScalarType::Float:
      run<float>(shape, x, bias, y, pooled, argmax, keep);
      break;
    case ScalarType::Double:
      run<double>(shape, x, bias, y, pooled, argmax, keep);
      break;
    default:
      run<uint16_t>(shape, x, bias, y, pooled, argmax, keep);
  }
  return {y, pooled, argmax};
}

template <typename T>
void run_backward(const PoolShape& shape, const Tensor& gradient, const Tensor& pooled, const Tensor& argmax,
                  Tensor& dx, Tensor& dbias) {
  const T* from = static_cast<const T*>(gradient.const_data_ptr());
  const T* values = static_cast<const T*>(pooled.const_data_ptr());
  const uint8_t* codes = static_cast<const uint8_t*>(argmax.const_data_ptr());
  T* to = static_cast<T*>(dx.mutable_data_ptr());
  std::vector<Wide<T>> sums(shape.rows() * shape.c);
  torch::stable::parallel_for(0, shape.rows(), rows_per_thread(shape), [&](int64_t begin, int64_t end) {
    dispatch(FT_FORM(backward_rows), shape, begin, end, from, values, codes, to, sums.data());
  });
  add_rows(shape, sums, static_cast<Wide<T>*>(dbias.mutable_data_ptr()));
}

std::tuple<Tensor, Tensor> relu_pool_lrn_backward(const Tensor& gradient, const Tensor& pooled, const Tensor& argmax,
                                                  int64_t height, int64_t width) {
  const PoolShape shape = unpool_shape("relu_pool_lrn_backward", gradient, argmax, height, width);
  check_activations("relu_pool_lrn_backward", "pooled", pooled);
  STD_TORCH_CHECK(pooled.scalar_type() == gradient.scalar_type() && same_sizes(pooled, gradient),
                  "relu_pool_lrn_backward: pooled must have the shape and type of gradient");
  Tensor dx = empty_unpooled(shape, gradient.scalar_type());
  Tensor dbias = empty_dbias(shape, gradient.scalar_type());
  switch (gradient.scalar_type()) {
    case ScalarType::Float:
      run_backward<float>(shape, gradient, pooled, argmax, dx, dbias);
      break;
    case ScalarType::Double:
      run_backward<double>(shape, gradient, pooled, argmax, dx, dbias);
      break;
    default:
      run_backward<uint16_t>(shape, gradient, pooled, argmax, dx, dbias);
  }
  return {dx, dbias};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fasttransfer, CPU, m) {
  m.impl("relu_pool_lrn", TORCH_BOX(&relu_pool_lrn));
  m.impl("relu_pool_lrn_backward", TORCH_BOX(&relu_pool_lrn_backward));
}

}  // namespace fasttransfer
