// The lossless packed format of features: a bitmask of an image's nonzero elements, and their values, back to back.
//
// Element i is bit i % 8 of byte i / 8 of the image's mask, so that on a little-endian machine any 4 or 8 bytes of it
// are a word whose lowest bit comes first. A mask is rounded up to words of 64 elements; bits beyond the last element
// are 0. Only the bit pattern 0 is zero: a negative zero and every NaN are kept.
//
// The place of a block's values is not stored: it is the number of bits before the block, and counting those reads a
// sixteenth of what unpacking writes.
#pragma once

#include <cstdint>

#ifdef _MSC_VER
#include <intrin.h>
#endif

#include "math/host_device.h"

namespace fasttransfer {

constexpr int64_t kMaskWord = 64;                    // elements
constexpr int64_t kMaskWordBytes = kMaskWord / 8;    // bytes
constexpr int64_t kMostElements = int64_t{1} << 30;  // per image: counters have 32 bits

// Bytes of the mask of one image.
FT_HOST_DEVICE inline int64_t mask_bytes(int64_t elements) {
  return (elements + kMaskWord - 1) / kMaskWord * kMaskWordBytes;
}

FT_HOST_DEVICE inline int count_bits(uint64_t word) {
#ifdef __CUDA_ARCH__
  return __popcll(word);
#elif defined(_MSC_VER)
  return static_cast<int>(__popcnt64(word));
#else
  return __builtin_popcountll(word);
#endif
}

// A word with the lowest `count` bits set, 0 to 64.
FT_HOST_DEVICE inline uint64_t lowest_bits(int64_t count) {
  return count >= kMaskWord ? ~uint64_t{0} : (uint64_t{1} << count) - 1;
}

}  // namespace fasttransfer
