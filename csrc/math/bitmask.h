// Features packed without loss: which of an image's elements are not zero, and the values of those, back to back.
//
// Element i is bit i % 8 of byte i / 8 of the image's mask, so that on a little-endian machine any 4 or 8 bytes of it
// are a word whose lowest bit comes first. A mask is rounded up to words of 64 elements; bits beyond the last element
// are 0. Zero is the bit pattern 0 and nothing else: a negative zero and every NaN come back as they were.
//
// Where a block of elements finds its values is not stored: it is the number of bits before it, and counting those
// reads a sixteenth of what is written.
#pragma once

#include <cstdint>

#ifdef _MSC_VER
#include <intrin.h>
#endif

#include "math/host_device.h"

namespace fasttransfer {

constexpr int64_t kMaskWord = 64;                    // elements
constexpr int64_t kMaskWordBytes = kMaskWord / 8;    // bytes
constexpr int64_t kMostElements = int64_t{1} << 30;  // of an image: they are counted in 32 bits

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

// The lowest `count` bits, 0 to 64.
FT_HOST_DEVICE inline uint64_t lowest_bits(int64_t count) {
  return count >= kMaskWord ? ~uint64_t{0} : (uint64_t{1} << count) - 1;
}

}  // namespace fasttransfer
