// The division of work in both operators: a block of threads takes a tile of one image, a thread a byte of its mask.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "cuda/launch.cuh"
#include "math/bitmask.h"

namespace fasttransfer {

constexpr int kTileThreads = 256;
constexpr int kPerByte = 8;  // elements, in 16 bytes
constexpr int kTile = kTileThreads * kPerByte;
static_assert(kTile % kMaskWord == 0, "the mask of a tile is whole words");

inline int64_t tiles_of(int64_t elements) { return blocks_for(elements, kTile); }

// Eight elements that lie next to each other in memory, `here` of which exist.
__device__ __forceinline__ void load_some(const uint16_t* from, int64_t here, bool at_once, uint16_t (&to)[kPerByte]) {
  if (at_once && here >= kPerByte) {
    const uint4 bytes = *reinterpret_cast<const uint4*>(from);
    memcpy(to, &bytes, sizeof bytes);
    return;
  }
#pragma unroll
  for (int i = 0; i < kPerByte; ++i) to[i] = i < here ? from[i] : uint16_t{0};
}

__device__ __forceinline__ void store_some(uint16_t* to, int64_t here, bool at_once, const uint16_t (&from)[kPerByte]) {
  if (at_once && here >= kPerByte) {
    uint4 bytes;
    memcpy(&bytes, from, sizeof bytes);
    *reinterpret_cast<uint4*>(to) = bytes;
    return;
  }
#pragma unroll
  for (int i = 0; i < kPerByte; ++i) {
    if (i < here) to[i] = from[i];
  }
}

}  // namespace fasttransfer
