// XXH3 of 64 bits, without a seed: what shards are checked with. Written from its specification (Collet, "xxHash fast
// digest algorithm"), whose constants these are; tests hold it against the xxhash package for every kind of length.
//
// Eight sums run beside each other over stripes of 64 bytes: one register of AVX-512, or what a compiler makes of the
// loops elsewhere.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>
#define FT_AVX512 __attribute__((target("avx512f")))
#endif

namespace fasttransfer::xxh3 {

constexpr uint64_t kPrime32[] = {0x9E3779B1u, 0x85EBCA77u, 0xC2B2AE3Du};
constexpr uint64_t kPrime64[] = {0x9E3779B185EBCA87u, 0xC2B2AE3D27D4EB4Fu, 0x165667B19E3779F9u, 0x85EBCA77C2B2AE63u,
                                 0x27D4EB2F165667C5u};
constexpr uint64_t kMix1 = 0x165667919E3779F9u, kMix2 = 0x9FB21C651E98DF25u;

constexpr int kLanes = 8;
constexpr size_t kStripe = 64;     // bytes
constexpr size_t kSecretStep = 8;  // bytes of the secret from one stripe to the next
constexpr size_t kStripes = 16;    // of a block
constexpr size_t kBlock = kStripes * kStripe;
constexpr size_t kShort = 240;  // bytes, up to which there are no stripes

alignas(64) constexpr uint8_t kSecret[192] = {
    0xb8, 0xfe, 0x6c, 0x39, 0x23, 0xa4, 0x4b, 0xbe, 0x7c, 0x01, 0x81, 0x2c, 0xf7, 0x21, 0xad, 0x1c, 0xde, 0xd4,
    0x6d, 0xe9, 0x83, 0x90, 0x97, 0xdb, 0x72, 0x40, 0xa4, 0xa4, 0xb7, 0xb3, 0x67, 0x1f, 0xcb, 0x79, 0xe6, 0x4e,
    0xcc, 0xc0, 0xe5, 0x78, 0x82, 0x5a, 0xd0, 0x7d, 0xcc, 0xff, 0x72, 0x21, 0xb8, 0x08, 0x46, 0x74, 0xf7, 0x43,
    0x24, 0x8e, 0xe0, 0x35, 0x90, 0xe6, 0x81, 0x3a, 0x26, 0x4c, 0x3c, 0x28, 0x52, 0xbb, 0x91, 0xc3, 0x00, 0xcb,
    0x88, 0xd0, 0x65, 0x8b, 0x1b, 0x53, 0x2e, 0xa3, 0x71, 0x64, 0x48, 0x97, 0xa2, 0x0d, 0xf9, 0x4e, 0x38, 0x19,
    0xef, 0x46, 0xa9, 0xde, 0xac, 0xd8, 0xa8, 0xfa, 0x76, 0x3f, 0xe3, 0x9c, 0x34, 0x3f, 0xf9, 0xdc, 0xbb, 0xc7,
    0xc7, 0x0b, 0x4f, 0x1d, 0x8a, 0x51, 0xe0, 0x4b, 0xcd, 0xb4, 0x59, 0x31, 0xc8, 0x9f, 0x7e, 0xc9, 0xd9, 0x78,
    0x73, 0x64, 0xea, 0xc5, 0xac, 0x83, 0x34, 0xd3, 0xeb, 0xc3, 0xc5, 0x81, 0xa0, 0xff, 0xfa, 0x13, 0x63, 0xeb,
    0x17, 0x0d, 0xdd, 0x51, 0xb7, 0xf0, 0xda, 0x49, 0xd3, 0x16, 0x55, 0x26, 0x29, 0xd4, 0x68, 0x9e, 0x2b, 0x16,
    0xbe, 0x58, 0x7d, 0x47, 0xa1, 0xfc, 0x8f, 0xf8, 0xb8, 0xd1, 0x7a, 0xd0, 0x31, 0xce, 0x45, 0xcb, 0x3a, 0x8f,
    0x95, 0x16, 0x04, 0x28, 0xaf, 0xd7, 0xfb, 0xca, 0xbb, 0x4b, 0x40, 0x7e};

inline uint64_t read64(const uint8_t* from) {
  uint64_t word;
  std::memcpy(&word, from, sizeof word);
  return word;
}

inline uint64_t read32(const uint8_t* from) {
  uint32_t word;
  std::memcpy(&word, from, sizeof word);
  return word;
}

inline uint64_t secret(size_t at) { return read64(kSecret + at); }
inline uint64_t rotated(uint64_t x, int by) { return x << by | x >> (64 - by); }

// The halves of the product of 128 bits, one upon the other.
inline uint64_t folded(uint64_t a, uint64_t b) {
  const unsigned __int128 product = static_cast<unsigned __int128>(a) * b;
  return static_cast<uint64_t>(product) ^ static_cast<uint64_t>(product >> 64);
}

inline uint64_t avalanche(uint64_t x) {
  x = (x ^ x >> 37) * kMix1;
  return x ^ x >> 32;
}

inline uint64_t older_avalanche(uint64_t x) {
  x = (x ^ x >> 33) * kPrime64[1];
  x = (x ^ x >> 29) * kPrime64[2];
  return x ^ x >> 32;
}

inline uint64_t mix16(const uint8_t* from, size_t at) {
  return folded(read64(from) ^ secret(at), read64(from + 8) ^ secret(at + 8));
}

inline uint64_t up_to_16(const uint8_t* from, size_t size) {
  if (size > 8) {
    const uint64_t low = read64(from) ^ secret(24) ^ secret(32),
                   high = read64(from + size - 8) ^ secret(40) ^ secret(48);
    return avalanche(size + __builtin_bswap64(low) + high + folded(low, high));
  }
  if (size >= 4) {
    uint64_t x = (read32(from + size - 4) + (read32(from) << 32)) ^ secret(8) ^ secret(16);
    x = (x ^ rotated(x, 49) ^ rotated(x, 24)) * kMix2;
    x = (x ^ ((x >> 35) + size)) * kMix2;
    return x ^ x >> 28;
  }
  if (size == 0) return older_avalanche(secret(56) ^ secret(64));
  const uint64_t bytes = uint64_t{from[0]} << 16 | uint64_t{from[size >> 1]} << 24 | from[size - 1] | size << 8;
  return older_avalanche(bytes ^ read32(kSecret) ^ read32(kSecret + 4));
}

inline uint64_t up_to_240(const uint8_t* from, size_t size) {
  uint64_t sum = size * kPrime64[0];
  if (size <= 128) {
    for (size_t i = (size - 1) / 32 + 1; i-- > 0;) {
      sum += mix16(from + 16 * i, 32 * i) + mix16(from + size - 16 * (i + 1), 32 * i + 16);
    }
    return avalanche(sum);
  }
  for (size_t i = 0; i < 8; ++i) sum += mix16(from + 16 * i, 16 * i);
  sum = avalanche(sum);
  for (size_t i = 8; i < size / 16; ++i) sum += mix16(from + 16 * i, 16 * (i - 8) + 3);
  return avalanche(sum + mix16(from + size - 16, 136 - 17));
}

inline void add_stripes(uint64_t* sums, const uint8_t* from, size_t stripes, const uint8_t* secret_at) {
  for (size_t s = 0; s < stripes; ++s, from += kStripe, secret_at += kSecretStep) {
    uint64_t data[kLanes], key[kLanes];
    std::memcpy(data, from, kStripe);
    std::memcpy(key, secret_at, kStripe);
    for (int i = 0; i < kLanes; ++i) {
      const uint64_t keyed = data[i] ^ key[i];
      sums[i] += data[i ^ 1] + (keyed & 0xFFFFFFFFu) * (keyed >> 32);
    }
  }
}

inline void scramble(uint64_t* sums) {
  for (int i = 0; i < kLanes; ++i) {
    sums[i] = (sums[i] ^ sums[i] >> 47 ^ secret(sizeof kSecret - kStripe + 8 * i)) * kPrime32[0];
  }
}

// Where the secret of the last stripe begins, which ends where the data does and may overlap the one before.
constexpr size_t kLastSecret = sizeof kSecret - kStripe - 7;

inline void add_all(uint64_t* sums, const uint8_t* from, size_t size) {
  const size_t blocks = (size - 1) / kBlock;
  for (size_t b = 0; b < blocks; ++b) {
    add_stripes(sums, from + b * kBlock, kStripes, kSecret);
    scramble(sums);
  }
  add_stripes(sums, from + blocks * kBlock, (size - 1 - blocks * kBlock) / kStripe, kSecret);
  add_stripes(sums, from + size - kStripe, 1, kSecret + kLastSecret);
}

#ifdef FT_AVX512
// The instructions with a mask, though of all lanes: GCC 12 warns of its own headers' others.
constexpr __mmask8 kAll = 0xFF;

FT_AVX512 inline __m512i add_stripe(__m512i sums, const uint8_t* from, const uint8_t* secret_at) {
  const __m512i data = _mm512_loadu_si512(from), keyed = _mm512_xor_si512(data, _mm512_loadu_si512(secret_at));
  const __m512i product = _mm512_maskz_mul_epu32(kAll, keyed, _mm512_maskz_srli_epi64(kAll, keyed, 32));
  const __m512i swapped = _mm512_maskz_shuffle_epi32(0xFFFF, data, static_cast<_MM_PERM_ENUM>(0x4E));
  return _mm512_add_epi64(sums, _mm512_add_epi64(product, swapped));
}

FT_AVX512 inline void add_all_avx512(uint64_t* into, const uint8_t* from, size_t size) {
  __m512i sums = _mm512_loadu_si512(into);
  const __m512i prime = _mm512_set1_epi64(static_cast<int64_t>(kPrime32[0]));
  const __m512i last_secret = _mm512_loadu_si512(kSecret + sizeof kSecret - kStripe);
  const size_t blocks = (size - 1) / kBlock;
  for (size_t b = 0; b < blocks; ++b, from += kBlock) {
    for (size_t s = 0; s < kStripes; ++s) sums = add_stripe(sums, from + s * kStripe, kSecret + s * kSecretStep);
    const __m512i x = _mm512_xor_si512(_mm512_xor_si512(sums, _mm512_maskz_srli_epi64(kAll, sums, 47)), last_secret);
    const __m512i low = _mm512_maskz_mul_epu32(kAll, x, prime),
                  high = _mm512_maskz_mul_epu32(kAll, _mm512_maskz_srli_epi64(kAll, x, 32), prime);
    sums = _mm512_add_epi64(low, _mm512_maskz_slli_epi64(kAll, high, 32));
  }
  const size_t left = size - blocks * kBlock;
  for (size_t s = 0; s < (left - 1) / kStripe; ++s)
    sums = add_stripe(sums, from + s * kStripe, kSecret + s * kSecretStep);
  _mm512_storeu_si512(into, add_stripe(sums, from + left - kStripe, kSecret + kLastSecret));
}
#endif

inline uint64_t longer(const uint8_t* from, size_t size) {
  uint64_t sums[kLanes] = {kPrime32[2], kPrime64[0], kPrime64[1], kPrime64[2],
                           kPrime64[3], kPrime32[1], kPrime64[4], kPrime32[0]};
#ifdef FT_AVX512
  static const bool has_avx512 = __builtin_cpu_supports("avx512f");
  if (has_avx512) {
    add_all_avx512(sums, from, size);
  } else {
    add_all(sums, from, size);
  }
#else
  add_all(sums, from, size);
#endif
  uint64_t result = size * kPrime64[0];
  for (int i = 0; i < kLanes; i += 2) result += folded(sums[i] ^ secret(11 + 8 * i), sums[i + 1] ^ secret(19 + 8 * i));
  return avalanche(result);
}

// The checksum of `size` bytes.
inline uint64_t checksum(const void* data, size_t size) {
  const uint8_t* const from = static_cast<const uint8_t*>(data);
  if (size <= 16) return up_to_16(from, size);
  return size <= kShort ? up_to_240(from, size) : longer(from, size);
}

}  // namespace fasttransfer::xxh3
