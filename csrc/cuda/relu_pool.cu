// Bias, ReLU and max pooling, and its gradient; see pool.cuh.

#include <tuple>

#include "cuda/pool_tensors.h"

namespace fasttransfer {
namespace {

std::tuple<Tensor, Tensor> relu_pool(const Tensor& x, const Tensor& bias, bool keep) {
  const PoolShape shape = forward_shape("relu_pool", x, bias);
  Tensor y = empty_pooled(x, shape), argmax = empty_codes(x, shape, keep);
  run_pool<false>("relu_pool", x, bias, y, nullptr, argmax, shape);
  return {y, argmax};
}

std::tuple<Tensor, Tensor> relu_pool_backward(const Tensor& gradient, const Tensor& argmax, int64_t height,
                                              int64_t width) {
  const PoolShape shape = backward_shape("relu_pool_backward", gradient, argmax, height, width);
  return run_unpool<false>("relu_pool_backward", gradient, nullptr, argmax, shape);
}

}  // namespace

FT_CUDA_LIBRARY(m) {
  m.impl("relu_pool", TORCH_BOX(&relu_pool));
  m.impl("relu_pool_backward", TORCH_BOX(&relu_pool_backward));
}

}  // namespace fasttransfer
