// The sizes of a convolution whose output is pooled.
#pragma once

#include <cstdint>

#include "math/host_device.h"

namespace fasttransfer {

// N images, C channels in, K channels out, both in `groups` parts. Sizes fit 32 bits; their products take 64.
struct ConvShape {
  int64_t n, c, h, w;
  int64_t k, kernel_h, kernel_w;
  int64_t stride, padding, groups;
  int64_t out_h, out_w;        // of the convolution
  int64_t pooled_h, pooled_w;  // of the result

  FT_HOST_DEVICE int64_t group_c() const { return c / groups; }
  FT_HOST_DEVICE int64_t group_k() const { return k / groups; }
  // Elements of a row of the kernel. A pixel's window covers as many neighbours in a row of one group's channels.
  FT_HOST_DEVICE int64_t window() const { return kernel_w * group_c(); }
};

}  // namespace fasttransfer
