// y = relu(maximum + bias): adding the bias and the ReLU keep the order of values, so they come after the pooling, on a
// quarter of the pixels. Stage 5.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <tuple>
#include <vector>

#include "cpu/dispatch.h"
#include "cpu/element.h"
#include "cpu/pool.h"

namespace fasttransfer {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

template <bool keep, typename T>
FT_INLINE void forward_rows(const PoolShape& shape, int64_t begin, int64_t end, const T* x, const Bias<T>& bias, T* y,
                            uint8_t* argmax) {
  MaximumRow<T> row(shape);
  std::vector<Wide<T>> p(shape.c);
  for (int64_t r = begin; r < end; ++r) {
    const T* image = x + r / shape.ph * shape.h * shape.w * shape.c;
    for (int64_t pw = 0; pw < shape.pw; ++pw) {
      pool_pixel<keep>(shape, image, r % shape.ph, pw, bias, row, p.data());
      T* __restrict to = y + (r * shape.pw + pw) * shape.c;
      for (int64_t c = 0; c < shape.c; ++c) narrow(p[c], to + c);
    }
    if (keep) pack_codes(row.place.data(), shape, argmax + r * shape.pw * shape.packed());
  }
}

template <typename T>
FT_INLINE void backward_rows(const PoolShape& shape, int64_t begin, int64_t end, const T* gradient,
                             const uint8_t* argmax, T* dx, Wide<T>* sums) {
  unpool_rows<T>(shape, begin, end, dx, sums, [&](int64_t r, GradientRow<Wide<T>>& row, Wide<T>* sum) FT_INLINED {
    uint8_t* __restrict code = row.code.data() + shape.c;
    Wide<T>* __restrict into = row.gradient.data() + shape.c;
    const T* from = gradient + r * shape.pw * shape.c;
    unpack_codes(argmax + r * shape.pw * shape.packed(), shape, code);
    for (int64_t i = 0; i < shape.pw * shape.c; ++i) into[i] = widen(from[i]);
    if (sum) add_passing(row, shape, sum);
  });
}

template <typename T>
void run(const PoolShape& shape, const Tensor& x, const Tensor& bias, Tensor& y, Tensor& argmax, bool keep) {
  const Bias<T> added(bias);
  const T* from = static_cast<const T*>(x.const_data_ptr());
  T* to = static_cast<T*>(y.mutable_data_ptr());
  uint8_t* codes = static_cast<uint8_t*>(argmax.mutable_data_ptr());
  torch::stable::parallel_for(0, shape.rows(), rows_per_thread(shape), [&](int64_t begin, int64_t end) {
    if (keep) {
      dispatch(FT_FORM(forward_rows<true>), shape, begin, end, from, added, to, codes);
    } else {
      dispatch(FT_FORM(forward_rows<false>), shape, begin, end, from, added, to, codes);
    }
  });
}

std::tuple<Tensor, Tensor> relu_pool(const Tensor& x, const Tensor& bias, bool keep) {
  const PoolShape shape = pool_shape("relu_pool", x, bias);
  Tensor y = empty_pooled(shape, x.scalar_type());
  Tensor argmax = empty_codes(shape, keep);
  switch (x.scalar_type()) {
    case ScalarType::Float:
      run<float>(shape, x, bias, y, argmax, keep);
      break;
    case ScalarType::Double:
      run<double>(shape, x, bias, y, argmax, keep);
      break;
    default:
      run<uint16_t>(shape, x, bias, y, argmax, keep);
  }
  return {y, argmax};
}

template <typename T>
void run_backward(const PoolShape& shape, const Tensor& gradient, const Tensor& argmax, Tensor& dx, Tensor& dbias) {
  const T* from = static_cast<const T*>(gradient.const_data_ptr());
  const uint8_t* codes = static_cast<const uint8_t*>(argmax.const_data_ptr());
  T* to = static_cast<T*>(dx.mutable_data_ptr());
  std::vector<Wide<T>> sums(shape.rows() * shape.c);
  torch::stable::parallel_for(0, shape.rows(), rows_per_thread(shape), [&](int64_t begin, int64_t end) {
    dispatch(FT_FORM(backward_rows), shape, begin, end, from, codes, to, sums.data());
  });
  add_rows(shape, sums, static_cast<Wide<T>*>(dbias.mutable_data_ptr()));
}

std::tuple<Tensor, Tensor> relu_pool_backward(const Tensor& gradient, const Tensor& argmax, int64_t height,
                                              int64_t width) {
  const PoolShape shape = unpool_shape("relu_pool_backward", gradient, argmax, height, width);
  Tensor dx = empty_unpooled(shape, gradient.scalar_type());
  Tensor dbias = empty_dbias(shape, gradient.scalar_type());
  switch (gradient.scalar_type()) {
    case ScalarType::Float:
      run_backward<float>(shape, gradient, argmax, dx, dbias);
      break;
    case ScalarType::Double:
      run_backward<double>(shape, gradient, argmax, dx, dbias);
      break;
    default:
      run_backward<uint16_t>(shape, gradient, argmax, dx, dbias);
  }
  return {dx, dbias};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fasttransfer, CPU, m) {
  m.impl("relu_pool", TORCH_BOX(&relu_pool));
  m.impl("relu_pool_backward", TORCH_BOX(&relu_pool_backward));
}

}  // namespace fasttransfer
