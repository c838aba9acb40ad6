// A frozen stage 1 or 2 in one kernel, for bfloat16; see conv.cuh.

#include "conv_tensors.h"
#include "cuda/conv.cuh"
#include "cuda/tensors.h"

namespace fasttransfer {
namespace {

constexpr int64_t kBlocks = 512;  // a few for each multiprocessor

Tensor conv_relu_pool_lrn(const Tensor& x, const Tensor& weight, const Tensor& bias, int64_t stride, int64_t padding,
                          int64_t groups) {
  const ConvShape shape = conv_shape(x, weight, bias, stride, padding, groups);
  STD_TORCH_CHECK(x.scalar_type() == ScalarType::BFloat16, "conv_relu_pool_lrn: x must be bfloat16 on a GPU, not ",
                  torch::headeronly::toString(x.scalar_type()));
  constexpr int64_t kLargest = (int64_t{1} << 31) - 1;  // within an image and a row of the kernel 32 bits count
  const int64_t padded = std::max(shape.h, shape.w) + 2 * padding;
  STD_TORCH_CHECK(padded <= kLargest / 2 / stride && shape.out_w <= kLargest / kWindow / (shape.k + 2 * kSumsPadding) &&
                      shape.window() <= kLargest / 2 / shape.kernel_h && shape.n <= kLargest / shape.pooled_h,
                  "conv_relu_pool_lrn: x and weight are too large for a GPU");
  Tensor y = conv_result(x, shape);
  if (shape.n == 0) return y;
  const OnDeviceOf device(x);
  check_launch(launch_conv(static_cast<const uint16_t*>(x.const_data_ptr()),
                           static_cast<const uint16_t*>(weight.const_data_ptr()),
                           static_cast<const float*>(bias.const_data_ptr()),
                           static_cast<uint16_t*>(y.mutable_data_ptr()), shape, kBlocks, device.stream),
               "conv_relu_pool_lrn");
  return y;
}

}  // namespace

FT_CUDA_LIBRARY(m) { m.impl("conv_relu_pool_lrn", TORCH_BOX(&conv_relu_pool_lrn)); }

}  // namespace fasttransfer
