// The nonzero numbers of a gradient, as lists by channel. Free of PyTorch.
#pragma once

#include <algorithm>
#include <cstdint>

#include "cpu/bitmask.h"
#include "cpu/dispatch.h"
#include "cpu/element.h"

namespace fasttransfer {

// A nonzero number, and the offset of the patch that it multiplies.
struct Entry {
  float value;
  int32_t offset;
};

constexpr int64_t kListed = 16;  // channels that are examined together

namespace portable {

// Appends the nonzero numbers of one pixel to the lists of their channels, each of which has `room`.
template <typename T>
void list_pixel(const T* gradient, int64_t channels, int32_t offset, Entry* lists, int64_t room, int32_t* counts) {
  for (int64_t first = 0; first < channels; first += kListed) {
    const int64_t here = std::min(kListed, channels - first);
    uint64_t bits = 0;
    for (int64_t i = 0; i < here; ++i) bits |= uint64_t{widen(gradient[first + i]) != 0} << i;
    for (; bits != 0; bits &= bits - 1) {
      const int64_t channel = first + lowest_set(bits);
      lists[channel * room + counts[channel]++] = {widen(gradient[channel]), offset};
    }
  }
}

}  // namespace portable

#if defined(FT_X86)
#define FT_LISTS __attribute__((target("avx512f,avx512bw,avx512vl,bmi")))

namespace avx512 {

FT_LISTS inline __mmask16 valid(int64_t left) {
  return static_cast<__mmask16>(left >= kListed ? 0xffff : (1 << left) - 1);
}

FT_LISTS inline uint32_t not_zero(const float* x, __mmask16 there) {
  return _mm512_mask_cmp_ps_mask(there, _mm512_maskz_loadu_ps(there, x), _mm512_setzero_ps(), _CMP_NEQ_UQ);
}

FT_LISTS inline uint32_t not_zero(const uint16_t* x, __mmask16 there) {  // nor -0
  return _mm256_test_epi16_mask(_mm256_maskz_loadu_epi16(there, x), _mm256_set1_epi16(0x7fff));
}

template <typename T>
FT_LISTS void list_pixel(const T* gradient, int64_t channels, int32_t offset, Entry* lists, int64_t room,
                         int32_t* counts) {
  for (int64_t first = 0; first < channels; first += kListed) {
    for (uint32_t bits = not_zero(gradient + first, valid(channels - first)); bits != 0; bits &= bits - 1) {
      const int64_t channel = first + __builtin_ctz(bits);
      lists[channel * room + counts[channel]++] = {widen(gradient[channel]), offset};
    }
  }
}

}  // namespace avx512
#endif

template <typename T>
void list_pixel(const T* gradient, int64_t channels, int32_t offset, Entry* lists, int64_t room, int32_t* counts) {
#if defined(FT_X86)
  if (isa() == Isa::kAvx512) return avx512::list_pixel(gradient, channels, offset, lists, room, counts);
#endif
  portable::list_pixel(gradient, channels, offset, lists, room, counts);
}

}  // namespace fasttransfer
