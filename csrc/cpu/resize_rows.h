// The two passes of resizing bytes, for each kind of processor: rows are resized horizontally, then combined
// vertically. Sums of bytes times 16-bit weights are exact in 32 bits, so that every kind gives the same bits.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "cpu/dispatch.h"

#if defined(FT_X86)
#include <immintrin.h>
#endif

namespace fasttransfer {

constexpr int64_t kUnit = 4;    // rows and pixels of the result that the horizontal pass computes together
constexpr int64_t kBeyond = 4;  // bytes that may be read and written beyond the end: sixteen for twelve
constexpr int64_t kBlock = 32;  // bytes that the vertical pass computes together

// For one side: the pixels of the source that each pixel of the result is computed from.
struct Taps {
  int64_t most;                  // of one pixel, a multiple of kUnit
  int shift;                     // the base-2 logarithm of the sum of a pixel's weights
  std::vector<int64_t> first;    // (pixels, to a multiple of kUnit)
  std::vector<int64_t> count;    // (pixels)
  std::vector<int16_t> weights;  // (pixels, most), zero beyond `count`
};

inline int64_t round_up(int64_t count, int64_t unit) { return (count + unit - 1) / unit * unit; }

inline uint8_t to_byte(int32_t sum, int shift) {
  return static_cast<uint8_t>(std::clamp((sum + (1 << (shift - 1))) >> shift, 0, 255));
}

struct Portable {
  // Horizontal. from, to: kUnit rows of RGB.
  static void across(const uint8_t* const* from, const Taps& taps, int64_t pixels, uint8_t* const* to) {
    for (int64_t row = 0; row < kUnit; ++row) {
      for (int64_t x = 0; x < pixels; ++x) {
        const uint8_t* in = from[row] + 3 * taps.first[x];
        const int16_t* const weights = taps.weights.data() + x * taps.most;
        int32_t red = 0, green = 0, blue = 0;
        for (int64_t i = 0; i < taps.count[x]; ++i, in += 3) {
          red += weights[i] * in[0];
          green += weights[i] * in[1];
          blue += weights[i] * in[2];
        }
        to[row][3 * x] = to_byte(red, taps.shift);
        to[row][3 * x + 1] = to_byte(green, taps.shift);
        to[row][3 * x + 2] = to_byte(blue, taps.shift);
      }
    }
  }

  // Vertical. rows: `count` of them and once more the last, each read to a multiple of kBlock; weights: as many, even.
  static void down(const uint8_t* const* rows, const int16_t* weights, int64_t count, int shift, int64_t bytes,
                   uint8_t* to) {
    for (int64_t begin = 0; begin < bytes; begin += kBlock) {
      int32_t sums[kBlock] = {};
      for (int64_t row = 0; row < count; ++row) {
        for (int64_t i = 0; i < kBlock; ++i) sums[i] += weights[row] * rows[row][begin + i];
      }
      const int64_t wanted = std::min(kBlock, bytes - begin);
      for (int64_t i = 0; i < wanted; ++i) to[begin + i] = to_byte(sums[i], shift);
    }
  }
};

#if defined(FT_X86)
#define FT_AVX2 __attribute__((target("avx2")))

// Multiplies two neighbouring bytes at once: pixels side by side horizontally, rows one above the other vertically.
struct Avx2 {
  static bool here() { return isa() >= Isa::kAvx2; }

  FT_AVX2 static __m256i two_weights(const int16_t* weights) {
    int both;
    std::memcpy(&both, weights, sizeof both);
    return _mm256_set1_epi32(both);
  }

  FT_AVX2 static __m256i two_rows(const uint8_t* upper, const uint8_t* lower) {
    const __m128i a = _mm_loadu_si128(reinterpret_cast<const __m128i*>(upper));
    const __m128i b = _mm_loadu_si128(reinterpret_cast<const __m128i*>(lower));
    return _mm256_inserti128_si256(_mm256_castsi128_si256(a), b, 1);
  }

  // kFours: the taps of a pixel in fours, or 0 if only `taps` is known.
  template <int kFours>
  FT_AVX2 static void across_fours(const uint8_t* const* from, const Taps& taps, int64_t pixels, uint8_t* const* to) {
    // Of four pixels the first two, or the last two: red beside red, green beside green, blue beside blue, as words.
    const __m256i first_two =
        _mm256_broadcastsi128_si256(_mm_setr_epi8(0, -1, 3, -1, 1, -1, 4, -1, 2, -1, 5, -1, -1, -1, -1, -1));
    const __m256i last_two =
        _mm256_broadcastsi128_si256(_mm_setr_epi8(6, -1, 9, -1, 7, -1, 10, -1, 8, -1, 11, -1, -1, -1, -1, -1));
    const __m256i without_fourth =
        _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14, -1, -1, -1, -1));
    const __m256i half = _mm256_set1_epi32(1 << (taps.shift - 1));
    const __m128i shift = _mm_cvtsi32_si128(taps.shift);
    const int64_t most = kFours > 0 ? 4 * kFours : taps.most;
    for (int64_t x = 0; x < pixels; x += 4) {
      __m256i sums[2][4];  // [rows, two in each][pixel]
      for (int p = 0; p < 4; ++p) {
        const int64_t at = 3 * taps.first[x + p];
        const int16_t* const weights = taps.weights.data() + (x + p) * most;
        sums[0][p] = sums[1][p] = half;
        for (int64_t i = 0; i < most; i += 4) {
          const __m256i w01 = two_weights(weights + i), w23 = two_weights(weights + i + 2);
          for (int r = 0; r < 2; ++r) {
            const __m256i in = two_rows(from[2 * r] + at + 3 * i, from[2 * r + 1] + at + 3 * i);
            const __m256i a = _mm256_madd_epi16(_mm256_shuffle_epi8(in, first_two), w01);
            const __m256i b = _mm256_madd_epi16(_mm256_shuffle_epi8(in, last_two), w23);
            sums[r][p] = _mm256_add_epi32(sums[r][p], _mm256_add_epi32(a, b));
          }
        }
        for (int r = 0; r < 2; ++r) sums[r][p] = _mm256_sra_epi32(sums[r][p], shift);
      }
      for (int r = 0; r < 2; ++r) {
        const __m256i words01 = _mm256_packs_epi32(sums[r][0], sums[r][1]);
        const __m256i words23 = _mm256_packs_epi32(sums[r][2], sums[r][3]);
        const __m256i bytes = _mm256_shuffle_epi8(_mm256_packus_epi16(words01, words23), without_fourth);
        _mm_storeu_si128(reinterpret_cast<__m128i*>(to[2 * r] + 3 * x), _mm256_castsi256_si128(bytes));
        _mm_storeu_si128(reinterpret_cast<__m128i*>(to[2 * r + 1] + 3 * x), _mm256_extracti128_si256(bytes, 1));
      }
    }
  }

  FT_AVX2 static void across(const uint8_t* const* from, const Taps& taps, int64_t pixels, uint8_t* const* to) {
    if (taps.most == 4) {
      across_fours<1>(from, taps, pixels, to);
    } else if (taps.most == 8) {
      across_fours<2>(from, taps, pixels, to);
    } else {
      across_fours<0>(from, taps, pixels, to);
    }
  }

  FT_AVX2 static __m256i block_down(const uint8_t* const* rows, const int16_t* weights, int64_t count, int shift,
                                    int64_t at) {
    const __m256i zero = _mm256_setzero_si256();
    __m256i sums[4];
    for (auto& sum : sums) sum = _mm256_set1_epi32(1 << (shift - 1));
    for (int64_t row = 0; row < count; row += 2) {
      const __m256i w = two_weights(weights + row);
      const __m256i a = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(rows[row] + at));
      const __m256i b = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(rows[row + 1] + at));
      const __m256i low = _mm256_unpacklo_epi8(a, b), high = _mm256_unpackhi_epi8(a, b);
      sums[0] = _mm256_add_epi32(sums[0], _mm256_madd_epi16(_mm256_unpacklo_epi8(low, zero), w));
      sums[1] = _mm256_add_epi32(sums[1], _mm256_madd_epi16(_mm256_unpackhi_epi8(low, zero), w));
      sums[2] = _mm256_add_epi32(sums[2], _mm256_madd_epi16(_mm256_unpacklo_epi8(high, zero), w));
      sums[3] = _mm256_add_epi32(sums[3], _mm256_madd_epi16(_mm256_unpackhi_epi8(high, zero), w));
    }
    const __m128i by = _mm_cvtsi32_si128(shift);
    for (auto& sum : sums) sum = _mm256_sra_epi32(sum, by);
    return _mm256_packus_epi16(_mm256_packs_epi32(sums[0], sums[1]), _mm256_packs_epi32(sums[2], sums[3]));
  }

  FT_AVX2 static void down(const uint8_t* const* rows, const int16_t* weights, int64_t count, int shift, int64_t bytes,
                           uint8_t* to) {
    int64_t at = 0;
    for (; at + kBlock <= bytes; at += kBlock) {
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + at), block_down(rows, weights, count, shift, at));
    }
    if (at < bytes) {
      uint8_t last[kBlock];
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(last), block_down(rows, weights, count, shift, at));
      std::memcpy(to + at, last, bytes - at);
    }
  }
};
#endif

}  // namespace fasttransfer
