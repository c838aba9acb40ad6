// The part of CUDA's bfloat16 that csrc/cuda/ uses; see cuda_runtime.h beside this.
#pragma once

#include <cuda_runtime.h>

#include "math/bf16.h"

struct __nv_bfloat16 {
  uint16_t bits;
};
struct alignas(4) __nv_bfloat162 {
  __nv_bfloat16 x, y;
};

inline float __bfloat162float(__nv_bfloat16 x) { return fasttransfer::bf16_to_float(x.bits); }
inline __nv_bfloat16 __float2bfloat16(float x) { return {fasttransfer::float_to_bf16(x)}; }
inline __nv_bfloat162 __floats2bfloat162_rn(float x, float y) { return {__float2bfloat16(x), __float2bfloat16(y)}; }

inline __nv_bfloat162 __hmax2_nan(__nv_bfloat162 a, __nv_bfloat162 b) {
  const auto larger = [](__nv_bfloat16 a, __nv_bfloat16 b) -> __nv_bfloat16 {
    const float x = __bfloat162float(a), y = __bfloat162float(b);
    if (x != x || y != y) return {0x7FFF};
    return x > y ? a : b;
  };
  return {larger(a.x, b.x), larger(a.y, b.y)};
}

// All bits of each half where the two are equal, else none.
inline unsigned __heq2_mask(__nv_bfloat162 a, __nv_bfloat162 b) {
  const unsigned low = __bfloat162float(a.x) == __bfloat162float(b.x) ? 0x0000FFFFu : 0u;
  const unsigned high = __bfloat162float(a.y) == __bfloat162float(b.y) ? 0xFFFF0000u : 0u;
  return low | high;
}
