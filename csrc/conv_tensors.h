// The arguments and results of conv_relu_pool_lrn, checked for every device.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include "layout.h"
#include "math/conv.h"
#include "math/pool.h"

namespace fasttransfer {

inline ConvShape conv_shape(const torch::stable::Tensor& x, const torch::stable::Tensor& weight,
                            const torch::stable::Tensor& bias, int64_t stride, int64_t padding, int64_t groups) {
  using torch::headeronly::ScalarType;
  using torch::headeronly::toString;
  STD_TORCH_CHECK(x.dim() == 4 && weight.dim() == 4, "conv_relu_pool_lrn: x and weight must have 4 dimensions, not ",
                  x.dim(), " and ", weight.dim());
  STD_TORCH_CHECK(stride >= 1 && padding >= 0 && groups >= 1,
                  "conv_relu_pool_lrn: stride and groups must be at least 1 and padding at least 0, not ", stride, ", ",
                  groups, " and ", padding);
  ConvShape shape{x.size(0),
                  x.size(1),
                  x.size(2),
                  x.size(3),
                  weight.size(0),
                  weight.size(2),
                  weight.size(3),
                  stride,
                  padding,
                  groups,
                  0,
                  0,
                  0,
                  0};
  STD_TORCH_CHECK(shape.k >= 1 && shape.k % groups == 0 && shape.c >= 1 && shape.c % groups == 0 &&
                      weight.size(1) == shape.group_c(),
                  "conv_relu_pool_lrn: weight of ", shape.k, " x ", weight.size(1), " channels does not fit x of ",
                  shape.c, " in ", groups, " groups");
  STD_TORCH_CHECK(weight.scalar_type() == x.scalar_type(), "conv_relu_pool_lrn: weight must be of x's type ",
                  toString(x.scalar_type()), ", not ", toString(weight.scalar_type()));
  STD_TORCH_CHECK(
      bias.dim() == 1 && bias.size(0) == shape.k && bias.scalar_type() == ScalarType::Float && bias.is_contiguous(),
      "conv_relu_pool_lrn: bias must be ", shape.k, " contiguous float32, one for each channel of the output");
  STD_TORCH_CHECK(weight.device() == x.device() && bias.device() == x.device(),
                  "conv_relu_pool_lrn: x, weight and bias must be on one device");
  STD_TORCH_CHECK(is_channels_last(x) && is_channels_last(weight),
                  "conv_relu_pool_lrn: x and weight must be contiguous in channels-last memory");
  const int64_t free_h = shape.h + 2 * padding - shape.kernel_h, free_w = shape.w + 2 * padding - shape.kernel_w;
  shape.out_h = free_h < 0 ? 0 : free_h / stride + 1;
  shape.out_w = free_w < 0 ? 0 : free_w / stride + 1;
  STD_TORCH_CHECK(shape.kernel_h >= 1 && shape.kernel_w >= 1 && shape.out_h >= kWindow && shape.out_w >= kWindow,
                  "conv_relu_pool_lrn: the convolution's output must be at least 3 x 3 to be pooled, not ", shape.out_h,
                  " x ", shape.out_w);
  shape.pooled_h = pooled_side(shape.out_h);
  shape.pooled_w = pooled_side(shape.out_w);
  return shape;
}

inline torch::stable::Tensor conv_result(const torch::stable::Tensor& x, const ConvShape& shape) {
  return torch::stable::empty({shape.n, shape.k, shape.pooled_h, shape.pooled_w}, x.scalar_type(), std::nullopt,
                              x.device(), std::nullopt, torch::headeronly::MemoryFormat::ChannelsLast);
}

}  // namespace fasttransfer
