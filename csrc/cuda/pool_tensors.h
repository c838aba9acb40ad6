// Shared by the host sides of relu_pool and relu_pool_lrn: checks the arguments and returns the kernels' shape.
#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>

#include "cuda/pool.cuh"
#include "cuda/tensors.h"

namespace fasttransfer {

inline void check_activations(const char* op, const char* name, const Tensor& x) {
  STD_TORCH_CHECK(x.scalar_type() == ScalarType::Float || x.scalar_type() == ScalarType::BFloat16, op, ": ", name,
                  " must be float32 or bfloat16 on a GPU, not ", torch::headeronly::toString(x.scalar_type()));
  STD_TORCH_CHECK(x.dim() == 4, op, ": ", name, " must be (images, channels, rows, columns), not ", x.dim(), "-d");
  STD_TORCH_CHECK(is_channels_last(x), op, ": ", name, " must be contiguous in channels-last memory");
}

inline PoolShape checked_shape(const char* op, int64_t n, int64_t c, int64_t h, int64_t w) {
  STD_TORCH_CHECK(h >= kWindow && w >= kWindow, op, ": x must have at least 3 x 3 pixels, not ", h, " x ", w);
  constexpr int64_t kLargest = (int64_t{1} << 31) - 1;  // within an image, elements are counted in 32 bits
  STD_TORCH_CHECK(h <= kLargest / w && c <= kLargest / (h * w), op, ": images of ", c, " x ", h, " x ", w,
                  " are too large");
  return {n,
          static_cast<int>(c),
          static_cast<int>(h),
          static_cast<int>(w),
          static_cast<int>(pooled_side(h)),
          static_cast<int>(pooled_side(w))};
}

inline PoolShape forward_shape(const char* op, const Tensor& x, const Tensor& bias) {
  check_activations(op, "x", x);
  STD_TORCH_CHECK(same_device(bias, x) && bias.scalar_type() == ScalarType::Float && bias.dim() == 1 &&
                      bias.size(0) == x.size(1) && bias.is_contiguous(),
                  op, ": bias must be one float32 a channel (", x.size(1), ") on x's device");
  return checked_shape(op, x.size(0), x.size(1), x.size(2), x.size(3));
}

inline PoolShape backward_shape(const char* op, const Tensor& gradient, const Tensor& argmax, int64_t h, int64_t w) {
  check_activations(op, "gradient", gradient);
  const PoolShape shape = checked_shape(op, gradient.size(0), gradient.size(1), h, w);
  STD_TORCH_CHECK(gradient.size(2) == shape.ph && gradient.size(3) == shape.pw, op, ": ", h, " x ", w,
                  " pixels are not pooled to gradient's ", gradient.size(2), " x ", gradient.size(3));
  STD_TORCH_CHECK(same_device(argmax, gradient) && argmax.scalar_type() == ScalarType::Byte && argmax.is_contiguous() &&
                      argmax.dim() == 4 && argmax.size(0) == shape.n && argmax.size(1) == shape.ph &&
                      argmax.size(2) == shape.pw && argmax.size(3) == shape.packed(),
                  op, ": argmax must be what the forward pass kept for a gradient of this shape");
  return shape;
}

inline Tensor empty_pooled(const Tensor& x, const PoolShape& shape) {
  return empty_channels_last(x, shape.n, shape.c, shape.ph, shape.pw);
}

inline Tensor empty_codes(const Tensor& x, const PoolShape& shape, bool keep) {
  if (!keep) return torch::stable::new_empty(x, {0}, ScalarType::Byte);
  return torch::stable::new_empty(x, {shape.n, shape.ph, shape.pw, shape.packed()}, ScalarType::Byte);
}

// Returns null for a tensor without elements.
inline void* data_of(const Tensor& x) { return x.numel() == 0 ? nullptr : x.mutable_data_ptr(); }

// Without `keep`, `argmax` has no elements, and neither has `pooled`.
template <bool kLrn>
void run_pool(const char* op, const Tensor& x, const Tensor& bias, const Tensor& y, void* pooled, const Tensor& argmax,
              const PoolShape& shape) {
  const OnDeviceOf device(x);
  const auto launch_typed =
      x.scalar_type() == ScalarType::Float ? launch_pool<float, kLrn> : launch_pool<uint16_t, kLrn>;
  check_launch(launch_typed(x.const_data_ptr(), static_cast<const float*>(bias.const_data_ptr()), y.mutable_data_ptr(),
                            pooled, static_cast<uint8_t*>(data_of(argmax)), shape, device.stream),
               op);
}

// dx and dbias.
template <bool kLrn>
std::pair<Tensor, Tensor> run_unpool(const char* op, const Tensor& gradient, const void* pooled, const Tensor& argmax,
                                     const PoolShape& shape) {
  const OnDeviceOf device(gradient);
  const auto launch_typed =
      gradient.scalar_type() == ScalarType::Float ? launch_unpool<float, kLrn> : launch_unpool<uint16_t, kLrn>;
  Tensor dx = empty_channels_last(gradient, shape.n, shape.c, shape.h, shape.w);
  Tensor dbias = torch::stable::new_empty(gradient, {shape.c}, ScalarType::Float);
  Tensor sums = torch::stable::new_empty(gradient, {shape.n, pool_tiles(shape.h), pool_tiles(shape.w), shape.c},
                                         ScalarType::Float);
  check_launch(launch_typed(gradient.const_data_ptr(), pooled, static_cast<const uint8_t*>(argmax.const_data_ptr()),
                            dx.mutable_data_ptr(), static_cast<float*>(sums.mutable_data_ptr()),
                            static_cast<float*>(dbias.mutable_data_ptr()), shape, device.stream),
               op);
  return {dx, dbias};
}

}  // namespace fasttransfer
