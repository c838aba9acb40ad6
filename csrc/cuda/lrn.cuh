// Local response normalisation and its gradient where neighbouring lanes of a warp hold neighbouring channels of a
// pixel, V each.
#pragma once

#include <cmath>

#include "cuda/launch.cuh"
#include "math/lrn.h"

namespace fasttransfer {

// Where pixels and warps do not begin together, a warp's outer lanes only serve their neighbours: so many on each side
// for a reach in channels. `groups` is how many lanes a pixel takes.
template <int V>
int outer_lanes(int groups, int reach) {
  return kWarp % groups == 0 ? 0 : (reach + V - 1) / V;
}

// The sum over the five channels around each of a thread's V, the first of which is `first`. Every lane of the warp
// must call it.
template <int V>
__device__ __forceinline__ void sum_of_five(const float (&value)[V], int first, int channels, float (&sum)[V]) {
  float near[V + 2 * kLrnReach];
#pragma unroll
  for (int i = 0; i < V; ++i) near[kLrnReach + i] = value[i];
#pragma unroll
  for (int d = 1; d <= kLrnReach; ++d) {
    const int lanes = V >= d ? 1 : d;
    const float before = __shfl_up_sync(kAllLanes, value[V >= d ? V - d : 0], lanes);
    const float after = __shfl_down_sync(kAllLanes, value[V >= d ? d - 1 : 0], lanes);
    near[kLrnReach - d] = first - d >= 0 ? before : 0.0f;
    near[kLrnReach + V - 1 + d] = first + V - 1 + d < channels ? after : 0.0f;
  }
  float pair[V + kLrnReach];
#pragma unroll
  for (int i = 0; i < V + kLrnReach; ++i) pair[i] = near[i] + near[i + 1];
#pragma unroll
  for (int i = 0; i < V; ++i) sum[i] = (pair[i] + pair[i + 2]) + near[i + 4];
}

// By the GPU's own instruction, off by two units in the last place at most. Not rsqrtf, which takes three more
// for numbers below 2^-126: there are none here.
__device__ __forceinline__ float reciprocal_root(float x) {
#ifdef __CUDACC__
  float root;
  asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(root) : "f"(x));
  return root;
#else
  return 1.0f / std::sqrt(x);
#endif
}

// s^(-1/2), from which the other powers are computed. Infinity, whose root would be 0, counts as the largest number; a
// NaN stays.
__device__ __forceinline__ float root_of(float scale) {
  constexpr float kLargest = 3.402823466e38f;
  return reciprocal_root(scale > kLargest ? kLargest : scale);
}

// s^(-3/4).
__device__ __forceinline__ float power_of_root(float root) { return root * root * reciprocal_root(root); }

// The gradient of the normalised values from that of the result; p is the values before. Every lane must call it.
template <int V>
__device__ __forceinline__ void lrn_backward(const float (&p)[V], int first, int channels, float (&gradient)[V]) {
  float squares[V], sums[V], power[V], shares[V], share_sums[V];
#pragma unroll
  for (int i = 0; i < V; ++i) squares[i] = p[i] * p[i];
  sum_of_five(squares, first, channels, sums);
#pragma unroll
  for (int i = 0; i < V; ++i) {
    const float root = root_of(lrn_scale(sums[i]));
    power[i] = power_of_root(root);
    // As lrn_share, from the root itself: from the power it would be five times as far off.
    shares[i] = gradient[i] * p[i] * power[i] * (root * root);
  }
  sum_of_five(shares, first, channels, share_sums);
#pragma unroll
  for (int i = 0; i < V; ++i) gradient[i] = lrn_gradient(gradient[i], p[i], power[i], share_sums[i]);
}

}  // namespace fasttransfer
