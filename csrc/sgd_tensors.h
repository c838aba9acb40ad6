// The arguments of sgd_step, checked for every device.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstddef>
#include <vector>

#include "layout.h"

namespace fasttransfer {

inline void check_sgd_tensor(const char* what, size_t i, const torch::stable::Tensor& x,
                             const torch::stable::Tensor& weight, const torch::stable::Tensor& lr, bool or_bf16) {
  using torch::headeronly::ScalarType;
  const ScalarType type = x.scalar_type();
  STD_TORCH_CHECK(x.device() == lr.device(), "sgd_step: ", what, " ", i, " must be on lr's device");
  STD_TORCH_CHECK(type == ScalarType::Float || (or_bf16 && type == ScalarType::BFloat16), "sgd_step: ", what, " ", i,
                  " must be float32", or_bf16 ? " or bfloat16" : "", ", not ", torch::headeronly::toString(type));
  STD_TORCH_CHECK(lie_alike(x, weight), "sgd_step: ", what, " ", i, " must have the shape and strides of weight ", i);
}

inline void check_sgd(const std::vector<torch::stable::Tensor>& weights,
                      const std::vector<torch::stable::Tensor>& velocities,
                      const std::vector<torch::stable::Tensor>& gradients,
                      const std::vector<torch::stable::Tensor>& copies, const torch::stable::Tensor& lr,
                      const std::vector<double>& lr_scale, const std::vector<double>& decay) {
  const size_t count = weights.size();
  STD_TORCH_CHECK(velocities.size() == count && gradients.size() == count && lr_scale.size() == count &&
                      decay.size() == count && (copies.empty() || copies.size() == count),
                  "sgd_step: every list must have one entry for each of the ", count, " weights");
  STD_TORCH_CHECK(lr.numel() == 1 && lr.scalar_type() == torch::headeronly::ScalarType::Float,
                  "sgd_step: lr must be one float32");
  for (size_t i = 0; i < count; ++i) {
    check_sgd_tensor("weight", i, weights[i], weights[i], lr, false);
    STD_TORCH_CHECK(is_dense(weights[i]), "sgd_step: weight ", i, " must fill its memory without gaps or overlaps");
    check_sgd_tensor("velocity", i, velocities[i], weights[i], lr, false);
    check_sgd_tensor("gradient", i, gradients[i], weights[i], lr, true);
    if (!copies.empty()) check_sgd_tensor("copy", i, copies[i], weights[i], lr, true);
  }
}

}  // namespace fasttransfer
