// Bias, ReLU, max pooling and local response normalisation, and its gradient; see pool.cuh.

#include <tuple>

#include "cuda/pool_tensors.h"

namespace fasttransfer {
namespace {

std::tuple<Tensor, Tensor, Tensor> relu_pool_lrn(const Tensor& x, const Tensor& bias, bool keep) {
  const PoolShape shape = forward_shape("relu_pool_lrn", x, bias);
  Tensor y = empty_pooled(x, shape), argmax = empty_codes(x, shape, keep);
  Tensor pooled = keep ? empty_pooled(x, shape) : torch::stable::new_empty(x, {0});
  run_pool<true>("relu_pool_lrn", x, bias, y, data_of(pooled), argmax, shape);
  return {y, pooled, argmax};
}

std::tuple<Tensor, Tensor> relu_pool_lrn_backward(const Tensor& gradient, const Tensor& pooled, const Tensor& argmax,
                                                  int64_t height, int64_t width) {
  const PoolShape shape = backward_shape("relu_pool_lrn_backward", gradient, argmax, height, width);
  check_activations("relu_pool_lrn_backward", "pooled", pooled);
  STD_TORCH_CHECK(same_device(pooled, gradient) && pooled.scalar_type() == gradient.scalar_type() &&
                      std::equal(pooled.sizes().begin(), pooled.sizes().end(), gradient.sizes().begin()),
                  "relu_pool_lrn_backward: pooled must have gradient's shape, type and device");
  return run_unpool<true>("relu_pool_lrn_backward", gradient, pooled.const_data_ptr(), argmax, shape);
}

}  // namespace

FT_CUDA_LIBRARY(m) {
  m.impl("relu_pool_lrn", TORCH_BOX(&relu_pool_lrn));
  m.impl("relu_pool_lrn_backward", TORCH_BOX(&relu_pool_lrn_backward));
}

}  // namespace fasttransfer
