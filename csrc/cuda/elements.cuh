// How elements are read, written and computed with: stored as float or as the 16 bits of a bfloat16, computed with as
// float, up to 16 bytes at once.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "cuda/launch.cuh"

namespace fasttransfer {

// How many elements of a type are 16 bytes.
template <typename T>
constexpr int kAtOnce = kBytesAtOnce / sizeof(T);

__device__ __forceinline__ void unpack(uint32_t pair, float& low, float& high) {
  low = __uint_as_float(pair << 16);
  high = __uint_as_float(pair & 0xFFFF0000u);
}

// To the nearest, ties to even, by the processor's own instruction; a NaN stays one.
__device__ __forceinline__ uint32_t pack(float low, float high) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  uint32_t bits;
  memcpy(&bits, &pair, sizeof bits);
  return bits;
}

__device__ __forceinline__ void load(const float* from, float (&to)[1]) { to[0] = *from; }
__device__ __forceinline__ void load(const uint16_t* from, float (&to)[1]) {
  to[0] = __uint_as_float(static_cast<uint32_t>(*from) << 16);
}
__device__ __forceinline__ void load(const float* from, float (&to)[4]) {
  const float4 four = *reinterpret_cast<const float4*>(from);
  to[0] = four.x, to[1] = four.y, to[2] = four.z, to[3] = four.w;
}
__device__ __forceinline__ void load(const uint16_t* from, float (&to)[4]) {
  const uint2 two = *reinterpret_cast<const uint2*>(from);
  unpack(two.x, to[0], to[1]);
  unpack(two.y, to[2], to[3]);
}
__device__ __forceinline__ void load(const float* from, float (&to)[8]) {
  float half[4];
  load(from, half);
  for (int i = 0; i < 4; ++i) to[i] = half[i];
  load(from + 4, half);
  for (int i = 0; i < 4; ++i) to[4 + i] = half[i];
}
__device__ __forceinline__ void load(const uint16_t* from, float (&to)[8]) {
  const uint4 four = *reinterpret_cast<const uint4*>(from);
  unpack(four.x, to[0], to[1]);
  unpack(four.y, to[2], to[3]);
  unpack(four.z, to[4], to[5]);
  unpack(four.w, to[6], to[7]);
}

__device__ __forceinline__ void store(float* to, const float (&from)[1]) { *to = from[0]; }
__device__ __forceinline__ void store(uint16_t* to, const float (&from)[1]) {
  *to = static_cast<uint16_t>(pack(from[0], 0.0f));
}
__device__ __forceinline__ void store(float* to, const float (&from)[4]) {
  *reinterpret_cast<float4*>(to) = make_float4(from[0], from[1], from[2], from[3]);
}
__device__ __forceinline__ void store(uint16_t* to, const float (&from)[4]) {
  *reinterpret_cast<uint2*>(to) = make_uint2(pack(from[0], from[1]), pack(from[2], from[3]));
}
__device__ __forceinline__ void store(uint16_t* to, const float (&from)[8]) {
  *reinterpret_cast<uint4*>(to) =
      make_uint4(pack(from[0], from[1]), pack(from[2], from[3]), pack(from[4], from[5]), pack(from[6], from[7]));
}

}  // namespace fasttransfer
