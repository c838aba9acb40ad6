// A tile of a convolution's row in registers: a few neighbouring pixels times a few vectors of output channels, every
// sum complete before it is stored. One function per size of tile and kind of processor; the kind is chosen at run
// time, not by dispatch(), because the largest tile depends on the number of registers.
#pragma once

#include <array>
#include <cstdint>
#include <cstring>
#include <utility>

#include "cpu/dispatch.h"

#if defined(FT_X86)
#include <immintrin.h>
#endif

namespace fasttransfer {

constexpr int kLanes = 16;  // output channels in a vector, whatever the processor

// Packed: float, or uint16_t for bfloat16, of which two neighbours are multiplied at once.
// Sums of products of pixels' elements, `length` in each of some rows, with vectors of weights: [pixel][output
// channel].
template <typename Packed>
struct Tile {
  const Packed* const* rows;  // the first pixel's elements
  int64_t row_count;
  int64_t length;
  int64_t step;                  // from one pixel to the next
  int64_t next;                  // from an element to the next, 1 for pairs
  const Packed* const* weights;  // for each row: [element, or pair of them][output channel][within the pair]
  int64_t weights_next;          // from one element's weights, or a pair's, to the next
  float* sums;
  int64_t sums_step;
};

template <typename Packed>
using TileFunction = void (*)(const Tile<Packed>&);

constexpr int kMostVectors = 4;
constexpr int kMostPixels = 12;

// The functions of one kind of processor.
template <typename Packed>
struct TileFunctions {
  int unit;                              // elements multiplied at once: a row of the kernel is padded to a multiple
  int vectors;                           // of a tile, at most
  std::array<int, kMostVectors> pixels;  // of a tile of 1, 2, ... vectors, at most
  TileFunction<Packed> of[kMostVectors][kMostPixels];  // [vectors - 1][pixels - 1]
};

// The contents of a register.
#if defined(__GNUC__)
template <int width>
struct Registers;
#define FT_REGISTER(width)                                                                           \
  template <>                                                                                        \
  struct Registers<width> {                                                                          \
    typedef float Type __attribute__((vector_size((width) * sizeof(float)), aligned(4), may_alias)); \
  };
FT_REGISTER(4)
FT_REGISTER(8)
FT_REGISTER(16)
#undef FT_REGISTER
template <int width>
using Register = typename Registers<width>::Type;
#else
template <int width>
struct Register {
  float lane[width];
  void operator+=(const Register& other) {
    for (int i = 0; i < width; ++i) lane[i] += other.lane[i];
  }
  Register operator*(float factor) const {
    Register product;
    for (int i = 0; i < width; ++i) product.lane[i] = lane[i] * factor;
    return product;
  }
};
#endif

template <int width, int kPixels, int kVectors>
FT_INLINE void multiply_tile(const Tile<float>& tile) {
  constexpr int kRegisters = kVectors * kLanes / width;
  Register<width> sums[kPixels][kRegisters];
  for (int p = 0; p < kPixels; ++p) {
    for (int r = 0; r < kRegisters; ++r) sums[p][r] = Register<width>{};
  }
  for (int64_t row = 0; row < tile.row_count; ++row) {
    const float* x = tile.rows[row];
    const float* weights = tile.weights[row];
    for (int64_t i = 0; i < tile.length; ++i, x += tile.next, weights += tile.weights_next) {
      Register<width> w[kRegisters];
      for (int r = 0; r < kRegisters; ++r) w[r] = reinterpret_cast<const Register<width>*>(weights)[r];
      for (int p = 0; p < kPixels; ++p) {
        for (int r = 0; r < kRegisters; ++r) sums[p][r] += w[r] * x[p * tile.step];
      }
    }
  }
  for (int p = 0; p < kPixels; ++p) {
    Register<width>* to = reinterpret_cast<Register<width>*>(tile.sums + p * tile.sums_step);
    for (int r = 0; r < kRegisters; ++r) to[r] = sums[p][r];
  }
}

// Kinds of processors. `kPixels`: of a tile of 1, 2, ... vectors, as many as leave registers for the other factors.
struct Portable {
  using Packed = float;
  static constexpr int kUnit = 1;
#if defined(__aarch64__)
  static constexpr std::array<int, kMostVectors> kPixels = {6};  // 4 registers of 32 a vector
#else
  static constexpr std::array<int, kMostVectors> kPixels = {2};  // 4 of 16
#endif
  template <int kPixels, int kVectors>
  static void multiply(const Tile<float>& tile) {
    multiply_tile<4, kPixels, kVectors>(tile);
  }
};

#if defined(FT_X86)
struct Avx2 {
  using Packed = float;
  static constexpr int kUnit = 1;
  static constexpr std::array<int, kMostVectors> kPixels = {6};  // 2 of 16
  static bool here() { return isa() >= Isa::kAvx2; }
  template <int kPixels, int kVectors>
  __attribute__((target("avx2,fma"))) static void multiply(const Tile<float>& tile) {
    multiply_tile<8, kPixels, kVectors>(tile);
  }
};

struct Avx512 {
  using Packed = float;
  static constexpr int kUnit = 1;
  static constexpr std::array<int, kMostVectors> kPixels = {12, 12, 8, 6};  // 1 of 32
  static bool here() { return isa() >= Isa::kAvx512; }
  template <int kPixels, int kVectors>
  __attribute__((target("avx512f,avx2,fma"))) static void multiply(const Tile<float>& tile) {
    multiply_tile<16, kPixels, kVectors>(tile);
  }
};

struct Avx512Bf16 {
  using Packed = uint16_t;
  static constexpr int kUnit = 2;
  static constexpr std::array<int, kMostVectors> kPixels = {12, 12, 8, 6};
  static bool here() { return isa() >= Isa::kAvx512 && __builtin_cpu_supports("avx512bf16"); }
  template <int kPixels, int kVectors>
  __attribute__((target("avx512f,avx512bf16"))) static void multiply(const Tile<uint16_t>& tile);
};

// Sums of pairs of products: an odd window's last element is paired with zero, not with the next element in memory,
// which may be a NaN of another window.
template <int kPixels, int kVectors>
__attribute__((target("avx512f,avx512bf16"))) void Avx512Bf16::multiply(const Tile<uint16_t>& tile) {
  __m512 sums[kPixels][kVectors];
  for (int p = 0; p < kPixels; ++p) {
    for (int v = 0; v < kVectors; ++v) sums[p][v] = _mm512_setzero_ps();
  }
  const int64_t step = tile.step;
  for (int64_t row = 0; row < tile.row_count; ++row) {
    const uint16_t* x = tile.rows[row];
    const uint16_t* weights = tile.weights[row];
    int64_t i = 0;
    for (; i + 1 < tile.length; i += 2, x += 2, weights += tile.weights_next) {
      __m512bh w[kVectors];
      for (int v = 0; v < kVectors; ++v) w[v] = (__m512bh)_mm512_loadu_si512(weights + v * kLanes * 2);
      for (int p = 0; p < kPixels; ++p) {
        int pair;
        std::memcpy(&pair, x + p * step, sizeof pair);
        const __m512bh both = (__m512bh)_mm512_set1_epi32(pair);
        for (int v = 0; v < kVectors; ++v) sums[p][v] = _mm512_dpbf16_ps(sums[p][v], both, w[v]);
      }
    }
    if (i < tile.length) {
      for (int p = 0; p < kPixels; ++p) {
        const __m512bh one = (__m512bh)_mm512_set1_epi32(x[p * step]);
        for (int v = 0; v < kVectors; ++v) {
          const __m512bh w = (__m512bh)_mm512_loadu_si512(weights + v * kLanes * 2);
          sums[p][v] = _mm512_dpbf16_ps(sums[p][v], one, w);
        }
      }
    }
  }
  for (int p = 0; p < kPixels; ++p) {
    for (int v = 0; v < kVectors; ++v) _mm512_storeu_ps(tile.sums + p * tile.sums_step + v * kLanes, sums[p][v]);
  }
}
#endif

template <typename Kind, int kVectors, size_t... kIndex>
void list_tiles([[maybe_unused]] TileFunction<typename Kind::Packed>* tiles, std::index_sequence<kIndex...>) {
  ((tiles[kIndex] = &Kind::template multiply<static_cast<int>(kIndex) + 1, kVectors>), ...);
}

template <typename Kind, size_t... kIndex>
TileFunctions<typename Kind::Packed> list_vectors(std::index_sequence<kIndex...>) {
  TileFunctions<typename Kind::Packed> found{Kind::kUnit, 0, Kind::kPixels, {}};
  ((found.vectors += Kind::kPixels[kIndex] > 0), ...);
  (list_tiles<Kind, kIndex + 1>(found.of[kIndex], std::make_index_sequence<Kind::kPixels[kIndex]>()), ...);
  return found;
}

template <typename Kind>
const TileFunctions<typename Kind::Packed>& tile_functions() {
  static const auto found = list_vectors<Kind>(std::make_index_sequence<kMostVectors>());
  return found;
}

// Returns the functions for this processor.
inline const TileFunctions<float>& float_tiles() {
#if defined(FT_X86)
  if (Avx512::here()) return tile_functions<Avx512>();
  if (Avx2::here()) return tile_functions<Avx2>();
#endif
  return tile_functions<Portable>();
}

// Vectors are distributed among blocks as evenly as tiles allow; block b has those from `first_vector(b)` on.
struct Blocks {
  int64_t vectors, count;
  // A tile holds at least one vector. NOLINTNEXTLINE(clang-analyzer-core.DivideZero)
  Blocks(int64_t vectors, int64_t most) : vectors(vectors), count((vectors + most - 1) / most) {}
  int64_t first_vector(int64_t block) const { return block * vectors / count; }
};

}  // namespace fasttransfer
