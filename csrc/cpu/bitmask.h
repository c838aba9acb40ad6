// Packs, counts and unpacks the mask and values of one image in the format of math/bitmask.h. Free of PyTorch, because
// the operators and the shards both use it.
//
// Works on 32 elements at a time on processors with AVX-512 VBMI2, by its compress and expand, and on a word of the
// mask at a time on others; chosen at run time. Compress and expand work in registers: with an operand in memory they
// take some processors a hundred cycles.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "cpu/dispatch.h"
#include "math/bitmask.h"

#if defined(FT_X86)
#include <immintrin.h>
#define FT_VBMI2 __attribute__((target("avx512f,avx512bw,avx512vl,avx512vbmi2,popcnt,bmi2")))
#endif

namespace fasttransfer {

#ifdef __BYTE_ORDER__
static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "words of a mask are read as they lie in memory");
#endif

FT_INLINE uint64_t mask_word(const uint8_t* mask, int64_t first_element) {
  uint64_t word;
  std::memcpy(&word, mask + first_element / 8, sizeof word);
  return word;
}

// Returns the position of the lowest set bit; there must be one.
FT_INLINE int lowest_set(uint64_t word) {
#ifdef _MSC_VER
  unsigned long index;
  _BitScanForward64(&index, word);
  return static_cast<int>(index);
#else
  return __builtin_ctzll(word);
#endif
}

namespace portable {

inline int64_t make_mask(const uint16_t* x, int64_t elements, uint8_t* mask) {
  int64_t count = 0;
  for (int64_t first = 0; first < elements; first += kMaskWord) {
    const int64_t here = std::min(kMaskWord, elements - first);
    uint64_t word = 0;
    for (int64_t i = 0; i < here; ++i) word |= uint64_t{x[first + i] != 0} << i;
    std::memcpy(mask + first / 8, &word, sizeof word);
    count += count_bits(word);
  }
  return count;
}

inline void compress(const uint16_t* x, int64_t elements, const uint8_t* mask, uint16_t* values) {
  for (int64_t first = 0; first < elements; first += kMaskWord) {
    for (uint64_t word = mask_word(mask, first); word != 0; word &= word - 1) {
      *values++ = x[first + lowest_set(word)];
    }
  }
}

inline void expand(const uint8_t* mask, const uint16_t* values, int64_t elements, uint16_t* y) {
  for (int64_t first = 0; first < elements; first += kMaskWord) {
    std::memset(y + first, 0, std::min(kMaskWord, elements - first) * sizeof *y);
    for (uint64_t word = mask_word(mask, first); word != 0; word &= word - 1) {
      y[first + lowest_set(word)] = *values++;
    }
  }
}

inline int64_t count(const uint8_t* mask, int64_t elements) {
  int64_t count = 0;
  for (int64_t first = 0; first < elements; first += kMaskWord) count += count_bits(mask_word(mask, first));
  return count;
}

}  // namespace portable

#ifdef FT_VBMI2
namespace vbmi2 {

constexpr int64_t kAtOnce = 32;  // elements of a register

FT_VBMI2 inline uint32_t mask_half(const uint8_t* mask, int64_t first) {
  uint32_t half;
  std::memcpy(&half, mask + first / 8, sizeof half);
  return half;
}

FT_VBMI2 inline int64_t make_mask(const uint16_t* x, int64_t elements, uint8_t* mask) {
  int64_t count = 0, first = 0;
  for (; first + kMaskWord <= elements; first += kMaskWord) {
    const __m512i low = _mm512_loadu_si512(x + first), high = _mm512_loadu_si512(x + first + kAtOnce);
    const uint64_t word = uint64_t{_mm512_test_epi16_mask(low, low)} | uint64_t{_mm512_test_epi16_mask(high, high)}
                                                                           << kAtOnce;
    std::memcpy(mask + first / 8, &word, sizeof word);
    count += _mm_popcnt_u64(word);
  }
  return first < elements ? count + portable::make_mask(x + first, elements - first, mask + first / 8) : count;
}

// Writes whole registers while there is room for one: the next one overwrites the excess.
FT_VBMI2 inline void compress(const uint16_t* x, int64_t elements, const uint8_t* mask, uint16_t* values,
                              int64_t count) {
  const uint16_t* const end = values + count;
  for (int64_t first = 0; first < elements; first += kAtOnce) {
    const __mmask32 here = static_cast<__mmask32>(lowest_bits(std::min(kAtOnce, elements - first)));
    const uint32_t half = mask_half(mask, first);
    const int64_t kept = _mm_popcnt_u32(half);
    const __m512i packed = _mm512_maskz_compress_epi16(half, _mm512_maskz_loadu_epi16(here, x + first));
    if (end - values >= kAtOnce) {
      _mm512_storeu_si512(values, packed);
    } else {
      _mm512_mask_storeu_epi16(values, static_cast<__mmask32>(lowest_bits(kept)), packed);
    }
    values += kept;
  }
}

FT_VBMI2 inline void expand(const uint8_t* mask, const uint16_t* values, int64_t count, int64_t elements, uint16_t* y) {
  const uint16_t* const end = values + count;
  int64_t first = 0;
  for (; first + kMaskWord <= elements && end - values >= kMaskWord; first += kMaskWord) {
    const uint64_t word = mask_word(mask, first);
    const uint32_t low = static_cast<uint32_t>(word), high = static_cast<uint32_t>(word >> kAtOnce);
    const __m512i more = _mm512_loadu_si512(values + _mm_popcnt_u32(low));
    _mm512_storeu_si512(y + first, _mm512_maskz_expand_epi16(low, _mm512_loadu_si512(values)));
    _mm512_storeu_si512(y + first + kAtOnce, _mm512_maskz_expand_epi16(high, more));
    values += _mm_popcnt_u64(word);
  }
  // Near the end a whole register might reach beyond the values.
  for (; first < elements; first += kAtOnce) {
    const __mmask32 here = static_cast<__mmask32>(lowest_bits(std::min(kAtOnce, elements - first)));
    const uint32_t half = mask_half(mask, first);
    const int64_t kept = _mm_popcnt_u32(half);
    const __m512i packed = _mm512_maskz_loadu_epi16(static_cast<__mmask32>(lowest_bits(kept)), values);
    _mm512_mask_storeu_epi16(y + first, here, _mm512_maskz_expand_epi16(half, packed));
    values += kept;
  }
}

FT_VBMI2 inline int64_t count(const uint8_t* mask, int64_t elements) {
  int64_t count = 0;
  for (int64_t first = 0; first < elements; first += kMaskWord) count += _mm_popcnt_u64(mask_word(mask, first));
  return count;
}

inline bool is_here() {
  static const bool here = isa() == Isa::kAvx512 && __builtin_cpu_supports("avx512vbmi2");
  return here;
}

}  // namespace vbmi2
#endif

// Writes the mask of `elements` elements, mask_bytes(elements) bytes, and returns the number of nonzero elements.
inline int64_t make_mask(const uint16_t* x, int64_t elements, uint8_t* mask) {
#ifdef FT_VBMI2
  if (vbmi2::is_here()) return vbmi2::make_mask(x, elements, mask);
#endif
  return portable::make_mask(x, elements, mask);
}

// Writes the `count` values at the set bits of `mask`.
inline void compress(const uint16_t* x, int64_t elements, const uint8_t* mask, uint16_t* values,
                     [[maybe_unused]] int64_t count) {
#ifdef FT_VBMI2
  if (vbmi2::is_here()) return vbmi2::compress(x, elements, mask, values, count);
#endif
  portable::compress(x, elements, mask, values);
}

// Unpacks the elements. `mask` must have `count` bits set and none beyond `elements`: see is_mask_of().
inline void expand(const uint8_t* mask, const uint16_t* values, [[maybe_unused]] int64_t count, int64_t elements,
                   uint16_t* y) {
#ifdef FT_VBMI2
  if (vbmi2::is_here()) return vbmi2::expand(mask, values, count, elements, y);
#endif
  portable::expand(mask, values, elements, y);
}

// Returns whether `mask` has `count` bits set and none beyond the last element, so that unpacking is safe.
inline bool is_mask_of(const uint8_t* mask, int64_t elements, int64_t count) {
  const int64_t last = elements / kMaskWord * kMaskWord;
  if (last < elements && (mask_word(mask, last) & ~lowest_bits(elements - last)) != 0) return false;
#ifdef FT_VBMI2
  if (vbmi2::is_here()) return vbmi2::count(mask, elements) == count;
#endif
  return portable::count(mask, elements) == count;
}

}  // namespace fasttransfer
