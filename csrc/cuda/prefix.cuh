// Sums over the threads before one, within a block.
#pragma once

#include <cuda_runtime.h>

#include "cuda/launch.cuh"

namespace fasttransfer {

// The sum of `mine` over the threads before this one; `total` becomes the sum over the block. All threads of the block
// must call it.
template <int kThreads, typename T>
__device__ __forceinline__ T sum_before(T mine, T& total) {
  constexpr int kWarps = kThreads / kWarp;
  __shared__ T sums[kWarps];
  const int lane = static_cast<int>(threadIdx.x) % kWarp, warp = static_cast<int>(threadIdx.x) / kWarp;
  T up_to = mine;
#pragma unroll
  for (int by = 1; by < kWarp; by *= 2) {
    const T before = __shfl_up_sync(kAllLanes, up_to, by);
    if (lane >= by) up_to += before;
  }
  if (lane == kWarp - 1) sums[warp] = up_to;
  __syncthreads();
  T before = 0;
  total = 0;
#pragma unroll
  for (int w = 0; w < kWarps; ++w) {
    if (w == warp) before = total;
    total += sums[w];
  }
  __syncthreads();  // the next call writes to the same place
  return before + up_to - mine;
}

}  // namespace fasttransfer
