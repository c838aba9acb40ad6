// The arguments of pack_features and unpack_features, checked for both devices.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>

#include "math/bitmask.h"

namespace fasttransfer {

// x: the argument of pack_features.
inline void check_dense(const torch::stable::Tensor& x) {
  using torch::headeronly::ScalarType;
  STD_TORCH_CHECK(x.scalar_type() == ScalarType::BFloat16, "pack_features: x must be bfloat16, not ",
                  torch::headeronly::toString(x.scalar_type()));
  STD_TORCH_CHECK(x.dim() == 2 && x.is_contiguous(), "pack_features: x must be (images, elements), contiguous");
  STD_TORCH_CHECK(x.size(1) <= kMostElements, "pack_features: ", x.size(1), " elements an image are too many");
}

// The number of values that a mask and offsets describe is only known when they are read.
inline void check_packed(const torch::stable::Tensor& mask, const torch::stable::Tensor& values,
                         const torch::stable::Tensor& offsets, const torch::stable::Tensor& rows, int64_t elements) {
  using torch::headeronly::ScalarType;
  STD_TORCH_CHECK(elements >= 0 && elements <= kMostElements, "unpack_features: elements must lie in 0 to ",
                  kMostElements, ", not ", elements);
  STD_TORCH_CHECK(mask.scalar_type() == ScalarType::Byte && mask.dim() == 2 && mask.is_contiguous() &&
                      mask.size(1) == mask_bytes(elements),
                  "unpack_features: mask must be (images, ", mask_bytes(elements), ") uint8, contiguous, for ",
                  elements, " elements");
  STD_TORCH_CHECK(values.scalar_type() == ScalarType::BFloat16 && values.dim() == 1 && values.is_contiguous() &&
                      values.device() == mask.device(),
                  "unpack_features: values must be bfloat16, one after another, on mask's device");
  STD_TORCH_CHECK(offsets.scalar_type() == ScalarType::Long && offsets.dim() == 1 && offsets.is_contiguous() &&
                      offsets.size(0) == mask.size(0) + 1 && offsets.device() == mask.device(),
                  "unpack_features: offsets must be ", mask.size(0) + 1, " int64 on mask's device");
  STD_TORCH_CHECK(rows.scalar_type() == ScalarType::Long && rows.dim() == 1 && rows.is_contiguous() &&
                      rows.device() == mask.device(),
                  "unpack_features: rows must be int64, one after another, on mask's device");
  STD_TORCH_CHECK(rows.size(0) == 0 || mask.size(0) > 0, "unpack_features: ", rows.size(0),
                  " images are asked for, none is there");
}

}  // namespace fasttransfer
