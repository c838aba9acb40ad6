// 3x3 max pooling with stride 2 whose output size is rounded up, and the place of each maximum in four bits.
#pragma once

#include <cstdint>

#include "math/host_device.h"

namespace fasttransfer {

constexpr int kWindow = 3;
constexpr int kPoolStride = 2;

// A maximum's place is 3 * row + column within its window, 0 to 8. One that the ReLU stops (not above 0, and no NaN)
// has this instead: no gradient passes.
constexpr uint8_t kStopped = 15;

// Returns the side after pooling, for a side of at least 3. The last window may reach beyond the edge.
FT_HOST_DEVICE inline int64_t pooled_side(int64_t side) { return (side - kWindow + 1) / kPoolStride + 1; }

// Returns whether `value`, which comes after `best` in the window, replaces it: the first of equals stays, a NaN always
// wins (PyTorch's rule).
template <typename T>
FT_HOST_DEVICE inline bool takes_over(T value, T best) {
  return value > best || value != value;
}

// A ReLU that passes a NaN.
template <typename T>
FT_HOST_DEVICE inline T relu(T value) {
  return value < T(0) ? T(0) : value;
}

}  // namespace fasttransfer
