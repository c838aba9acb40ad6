// The GPU's instructions for a matrix product of bfloat16 and for a copy past the registers, as functions; and their
// meaning in C++ (tests/cuda/).
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>

#include "cuda/launch.cuh"
#ifndef __CUDACC__
#include "math/bf16.h"
#endif

namespace fasttransfer {

// The part that a lane holds of a product of 16 x 16 by 16 x 8, with g = lane / 4 and t = lane % 4. A register is two
// neighbours of the inner dimension k, the first in its lower half.
struct MmaLeft {
  uint32_t pair[4];  // (row g, k 2t), (row g + 8, k 2t), (row g, k 2t + 8), (row g + 8, k 2t + 8)
};
struct MmaRight {
  uint32_t pair[2];  // (k 2t, column g), (k 2t + 8, column g)
};
struct MmaSums {
  float sum[4];  // (row g, column 2t), (row g, column 2t + 1), (row g + 8, column 2t), (row g + 8, column 2t + 1)
};

#ifdef __CUDACC__

// sums += left * right. Every lane of the warp must call it.
__device__ __forceinline__ void multiply_add(const MmaLeft& left, const MmaRight& right, MmaSums& sums) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(sums.sum[0]), "+f"(sums.sum[1]), "+f"(sums.sum[2]), "+f"(sums.sum[3])
      : "r"(left.pair[0]), "r"(left.pair[1]), "r"(left.pair[2]), "r"(left.pair[3]), "r"(right.pair[0]),
        "r"(right.pair[1]));
}

// Starts to copy 16 bytes to shared memory, or zeros if not `there`; both addresses are multiples of 16.
__device__ __forceinline__ void copy_16_bytes(void* shared, const void* global, bool there) {
  const uint32_t to = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(global), "r"(there ? 16 : 0) : "memory");
}

// Until what this thread has started to copy is there; other threads know after __syncthreads().
__device__ __forceinline__ void wait_for_copies() { asm volatile("cp.async.wait_all;" ::: "memory"); }

#else

inline void multiply_add(const MmaLeft& left, const MmaRight& right, MmaSums& sums) {
  const int lane = emulation::this_lane(), g = lane / 4, t = lane % 4;
  const auto half = [](uint32_t pair, int which) {
    return bf16_to_float(static_cast<uint16_t>(which == 0 ? pair : pair >> 16));
  };
  MmaLeft rows[4];         // of rows g and g + 8
  MmaRight columns[2][4];  // of columns 2t and 2t + 1
  for (int i = 0; i < 4; ++i) {
    emulation::exchange(kAllLanes, &left, &rows[i], sizeof left, 4 * g + i);
    for (int j = 0; j < 2; ++j) {
      emulation::exchange(kAllLanes, &right, &columns[j][i], sizeof right, 4 * (2 * t + j) + i);
    }
  }
  for (int k = 0; k < 16; ++k) {
    const int from = k % 8 / 2, upper = k / 8;
    for (int i = 0; i < 4; ++i) {
      sums.sum[i] += half(rows[from].pair[2 * upper + i / 2], k % 2) * half(columns[i % 2][from].pair[upper], k % 2);
    }
  }
}

inline void copy_16_bytes(void* shared, const void* global, bool there) {
  if (!aligned(shared) || !aligned(global)) std::abort();
  if (there) {
    std::memcpy(shared, global, 16);
  } else {
    std::memset(shared, 0, 16);
  }
}
inline void wait_for_copies() {}

#endif

}  // namespace fasttransfer
