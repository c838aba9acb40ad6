// 3x3 max pooling with stride 2 of channels-last images and, behind it, the normalisation across channels: the
// kernels of relu_pool and relu_pool_lrn, forward and backward.
//
// N images, C channels, H x W pixels, PH x PW pooled ones. A thread takes V channels of a pixel at a time (a group):
// as many as are 16 bytes, or one where channels or addresses do not allow that.
#pragma once

#include <cuda_bf16.h>

#include <cstdint>

#include "cuda/elements.cuh"
#include "cuda/launch.cuh"
#include "cuda/lrn.cuh"
#include "math/pool.h"

namespace fasttransfer {

struct PoolShape {
  int64_t n;
  int c, h, w, ph, pw;

  __host__ __device__ int64_t image() const { return int64_t{h} * w * c; }
  __host__ __device__ int packed() const { return (c + 1) / 2; }  // bytes of argmax per pooled pixel
};

constexpr int kPoolThreads = 128;  // a thread keeps nine pixels: small blocks fill a multiprocessor's registers better
constexpr int kPoolWarps = kPoolThreads / kWarp;
constexpr int64_t kMostBlocks = (int64_t{1} << 31) - 1;
constexpr int kPlaces = kWindow * kWindow;

// V channels of the nine pixels of a window; those beyond the edge are its first pixel again, which never wins twice.
template <typename T, int V>
struct Window {
  float value[kPlaces][V];

  __device__ __forceinline__ explicit Window(const T* const (&pixel)[kPlaces]) {
#pragma unroll
    for (int k = 0; k < kPlaces; ++k) load(pixel[k], value[k]);
  }

  // The largest, and its place: the first of equals, and the first NaN before everything else.
  __device__ __forceinline__ void maximum(float (&best)[V], int (&place)[V]) const {
#pragma unroll
    for (int i = 0; i < V; ++i) {
      best[i] = value[0][i];
      place[i] = 0;
#pragma unroll
      for (int k = 1; k < kPlaces; ++k) {
        const bool first_nan = value[k][i] != value[k][i] && best[i] == best[i];
        const bool wins = value[k][i] > best[i] || first_nan;
        best[i] = wins ? value[k][i] : best[i];
        place[i] = wins ? k : place[i];
      }
    }
  }
};

// Of eight channels in bfloat16, two at a time: the maximum, and then which are equal to it. A third of the
// instructions.
template <>
struct Window<uint16_t, 8> {
  __nv_bfloat162 value[kPlaces][4];

  __device__ __forceinline__ explicit Window(const uint16_t* const (&pixel)[kPlaces]) {
#pragma unroll
    for (int k = 0; k < kPlaces; ++k) {
      const uint4 bytes = *reinterpret_cast<const uint4*>(pixel[k]);
      memcpy(value[k], &bytes, sizeof bytes);
    }
  }

  __device__ __forceinline__ void maximum(float (&best)[8], int (&place)[8]) const {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      __nv_bfloat162 largest = value[0][i];
#pragma unroll
      for (int k = 1; k < kPlaces; ++k) largest = __hmax2_nan(largest, value[k][i]);
      uint32_t places = 0;
#pragma unroll
      for (int k = kPlaces - 1; k >= 0; --k) {
        const uint32_t equal = __heq2_mask(value[k][i], largest);
        places = (places & ~equal) | (0x00010001u * k & equal);
      }
      uint32_t bits;
      memcpy(&bits, &largest, sizeof bits);
      unpack(bits, best[2 * i], best[2 * i + 1]);
      place[2 * i] = places & 0xFFFFu;
      place[2 * i + 1] = places >> 16;
      if (best[2 * i] != best[2 * i] || best[2 * i + 1] != best[2 * i + 1]) {  // a NaN equals nothing
        if (best[2 * i] != best[2 * i]) place[2 * i] = first_nan(i, 0);
        if (best[2 * i + 1] != best[2 * i + 1]) place[2 * i + 1] = first_nan(i, 1);
      }
    }
  }

 private:
  __device__ __forceinline__ int first_nan(int pair, int which) const {
    int place = 0;
#pragma unroll
    for (int k = kPlaces - 1; k >= 0; --k) {
      uint32_t bits;
      memcpy(&bits, &value[k][pair], sizeof bits);
      const float element = __uint_as_float(which == 0 ? bits << 16 : bits & 0xFFFF0000u);
      if (element != element) place = k;
    }
    return place;
  }
};

// Writes a group's codes, four bits each. Every lane of the warp must call it.
template <int V>
__device__ __forceinline__ void store_codes(uint8_t* argmax, int first, int channels, uint32_t codes, bool writes) {
  if constexpr (V == 8) {
    if (writes) *reinterpret_cast<uint32_t*>(argmax + first / 2) = codes;
  } else if constexpr (V == 4) {
    if (writes) *reinterpret_cast<uint16_t*>(argmax + first / 2) = static_cast<uint16_t>(codes);
  } else {  // a byte is made by the lane of its lower half; above a last odd channel there is nothing
    const uint32_t next = __shfl_down_sync(kAllLanes, codes, 1);
    if (writes && first % 2 == 0) {
      argmax[first / 2] = static_cast<uint8_t>(codes | (first + 1 < channels ? next << 4 : 0u));
    }
  }
}

template <int V>
__device__ __forceinline__ uint32_t load_codes(const uint8_t* argmax, int first) {
  if constexpr (V == 8) {
    return *reinterpret_cast<const uint32_t*>(argmax + first / 2);
  } else if constexpr (V == 4) {
    return *reinterpret_cast<const uint16_t*>(argmax + first / 2);
  } else {
    return argmax[first / 2] >> (first % 2 * 4) & 15u;
  }
}

// y = relu(maximum + bias), normalised if kLrn; without argmax only y. With kLrn `pooled` is y before normalisation.
// Lanes run over the groups of one image's pooled pixels; an image has `blocks` blocks.
template <typename T, int V, bool kLrn>
__global__ void __launch_bounds__(kPoolThreads)
    pool_kernel(const T* __restrict__ x, const float* __restrict__ bias, T* __restrict__ y, T* __restrict__ pooled,
                uint8_t* __restrict__ argmax, PoolShape shape, int blocks, int outer) {
  const int lane = threadIdx.x % kWarp;
  const int groups = shape.c / V;
  const int units = shape.ph * shape.pw * groups;
  const int64_t image = blockIdx.x / blocks;
  const int unit = (blockIdx.x % blocks * kPoolWarps + threadIdx.x / kWarp) * (kWarp - 2 * outer) + lane - outer;
  const bool inside = unit >= 0 && unit < units;
  const bool writes = inside && lane >= outer && lane < kWarp - outer;
  const int pixel = inside ? unit / groups : 0;
  const int first = inside ? unit % groups * V : 0;
  const int row = pixel / shape.pw * kPoolStride, column = pixel % shape.pw * kPoolStride;

  float p[V];
  uint32_t codes = 0;
#pragma unroll
  for (int i = 0; i < V; ++i) p[i] = 0.0f;
  if (inside) {
    const T* corner = x + image * shape.image() + (int64_t{row} * shape.w + column) * shape.c + first;
    const T* from[kPlaces];
#pragma unroll
    for (int k = 0; k < kPlaces; ++k) {
      const int down = row + k / kWindow < shape.h ? k / kWindow : 0;
      const int right = column + k % kWindow < shape.w ? k % kWindow : 0;
      from[k] = corner + (down * shape.w + right) * shape.c;
    }
    const Window<T, V> window(from);
    int place[V];
    window.maximum(p, place);
    float b[V];
    load(bias + first, b);
#pragma unroll
    for (int i = 0; i < V; ++i) {
      p[i] = relu(p[i] + b[i]);
      codes |= static_cast<uint32_t>(p[i] == 0.0f ? kStopped : place[i]) << 4 * i;
    }
  }
  const int64_t pooled_pixel = image * shape.ph * shape.pw + pixel;
  const int64_t at = pooled_pixel * shape.c + first;
  if (argmax != nullptr) store_codes<V>(argmax + pooled_pixel * shape.packed(), first, shape.c, codes, writes);
  if constexpr (kLrn) {
    if (argmax != nullptr && writes) store(pooled + at, p);
    float squares[V], sums[V];
#pragma unroll
    for (int i = 0; i < V; ++i) squares[i] = p[i] * p[i];
    sum_of_five(squares, first, shape.c, sums);
#pragma unroll
    for (int i = 0; i < V; ++i) p[i] *= power_of_root(root_of(lrn_scale(sums[i])));
  }
  if (writes) store(y + at, p);
}

// Backward, a block takes a tile of input pixels, two by two in a cell, and a slice of the groups. Cell i is covered by
// the windows i - 1 and i in either direction, so a tile needs a row and a column of windows before its own.
constexpr int kUnpoolThreads = 256;
constexpr int kTileCells = 7;  // stages 1, 2 and 5 of the paper's network have 28, 14 and 7 cells per side
constexpr int kTileWindows = kTileCells + 1;
constexpr int kTilePixels = kTileWindows * kTileWindows;

template <int V>
constexpr int kSliceGroups = V == 1 ? 64 : 16;

struct PoolTiles {
  int down, across;  // tiles of an image
  int slices;
  int groups;  // of a slice; the last may have fewer
  int outer;   // lanes

  __host__ __device__ int tiles() const { return down * across; }
};

// A slice of a tile's windows in shared memory: what each hands on, and to where. Four channels are next to each other
// and then the windows' groups, so that neighbouring threads use neighbouring 16 bytes.
template <int V>
struct TileSlice {
  static constexpr int kQuad = V < 4 ? V : 4;

  float* value;
  uint32_t* codes;
  int size;  // groups

  __device__ __forceinline__ TileSlice(unsigned char* memory, int groups)
      : value(reinterpret_cast<float*>(memory)),
        codes(reinterpret_cast<uint32_t*>(value + kTilePixels * groups * V)),
        size(kTilePixels * groups) {}

  static size_t bytes(int groups) { return kTilePixels * groups * (V * sizeof(float) + sizeof(uint32_t)); }

  __device__ __forceinline__ void put(int at, const float (&from)[V], uint32_t code) {
    codes[at] = code;
#pragma unroll
    for (int q = 0; q < V / kQuad; ++q) {
      float quad[kQuad];
#pragma unroll
      for (int i = 0; i < kQuad; ++i) quad[i] = from[q * kQuad + i];
      store(value + (q * size + at) * kQuad, quad);
    }
  }

  // Adds the gradient that group `at` passes to the input pixel at `place` of its window.
  __device__ __forceinline__ void add(int at, uint32_t place, float (&to)[V]) const {
    const uint32_t missed = codes[at] ^ (0x11111111u * place);
#pragma unroll
    for (int q = 0; q < V / kQuad; ++q) {
      float quad[kQuad];
      load(value + (q * size + at) * kQuad, quad);
#pragma unroll
      for (int i = 0; i < kQuad; ++i) {
        if ((missed & 15u << 4 * (q * kQuad + i)) == 0) to[q * kQuad + i] += quad[i];
      }
    }
  }

  __device__ __forceinline__ float channel(int window_group, int i) const {
    return value[(i / kQuad * size + window_group) * kQuad + i % kQuad];
  }
};

// The gradient that each window of the tile passes on: back through the normalisation where kLrn, zero where it stops.
template <typename T, int V, bool kLrn>
__device__ __forceinline__ void fill_tile(const T* __restrict__ gradient, const T* __restrict__ pooled,
                                          const uint8_t* __restrict__ argmax, const PoolShape& shape, int64_t image,
                                          int top, int left, int begin, int end, int outer, TileSlice<V> tile) {
  constexpr int kReach = kLrn ? (2 * kLrnReach + V - 1) / V : 0;  // groups that a group's gradient depends on
  const int groups = shape.c / V;
  const int from = begin - kReach > 0 ? begin - kReach : 0, to = end + kReach < groups ? end + kReach : groups;
  const int span = to - from, units = kTilePixels * span, useful = kWarp - 2 * outer;
  const int lane = threadIdx.x % kWarp;
  for (int start = threadIdx.x / kWarp * useful; start < units; start += kUnpoolThreads / kWarp * useful) {
    const int unit = start + lane - outer;
    const bool inside = unit >= 0 && unit < units;
    const int window = inside ? unit / span : 0, group = inside ? from + unit % span : 0;
    const int row = top + window / kTileWindows, column = left + window % kTileWindows;
    const int first = group * V;
    float g[V], p[V];
    uint32_t codes = 0xFFFFFFFFu;
#pragma unroll
    for (int i = 0; i < V; ++i) g[i] = p[i] = 0.0f;
    if (inside && row >= 0 && row < shape.ph && column >= 0 && column < shape.pw) {
      const int64_t pixel = (image * shape.ph + row) * shape.pw + column;
      load(gradient + pixel * shape.c + first, g);
      if constexpr (kLrn) load(pooled + pixel * shape.c + first, p);
      codes = load_codes<V>(argmax + pixel * shape.packed(), first);
    }
    if constexpr (kLrn) lrn_backward(p, first, shape.c, g);
    if (inside && lane >= outer && lane < kWarp - outer && group >= begin && group < end) {
#pragma unroll
      for (int i = 0; i < V; ++i) g[i] = (codes >> 4 * i & 15u) == kStopped ? 0.0f : g[i];
      tile.put(window * (end - begin) + group - begin, g, codes);
    }
  }
}

// dx of a cell's four pixels from the four windows that cover them.
template <typename T, int V>
__device__ __forceinline__ void gather_cell(const TileSlice<V>& tile, int above_left, int across, int down, T* dx,
                                            int64_t column_stride, int64_t row_stride, bool right, bool below) {
  const int above = above_left + across, beside = above_left + down, own = beside + across;
  float value[V] = {}, later[V] = {};
  tile.add(above_left, 8, value);
  tile.add(above, 6, value);
  tile.add(beside, 2, later);
  tile.add(own, 0, later);
#pragma unroll
  for (int i = 0; i < V; ++i) value[i] += later[i];
  store(dx, value);
  if (right) {
    float sum[V] = {};
    tile.add(above, 7, sum);
    tile.add(own, 1, sum);
    store(dx + column_stride, sum);
  }
  if (below) {
    float sum[V] = {};
    tile.add(beside, 5, sum);
    tile.add(own, 3, sum);
    store(dx + row_stride, sum);
  }
  if (right && below) {
    float sum[V] = {};
    tile.add(own, 4, sum);
    store(dx + row_stride + column_stride, sum);
  }
}

// dx, and in `sums` (N, tiles, C) the sum of the gradient that passes each tile's own windows, by channel.
template <typename T, int V, bool kLrn>
__global__ void __launch_bounds__(kUnpoolThreads)
    unpool_kernel(const T* __restrict__ gradient, const T* __restrict__ pooled, const uint8_t* __restrict__ argmax,
                  T* __restrict__ dx, float* __restrict__ sums, PoolShape shape, PoolTiles tiles) {
  const int slice = blockIdx.x % tiles.slices, tile_index = blockIdx.x / tiles.slices % tiles.tiles();
  const int64_t image = blockIdx.x / tiles.slices / tiles.tiles();
  const int first_row = tile_index / tiles.across * kTileCells, first_column = tile_index % tiles.across * kTileCells;
  const int groups = shape.c / V;
  const int begin = slice * tiles.groups, end = begin + tiles.groups < groups ? begin + tiles.groups : groups;
  const int mine = end - begin;
  TileSlice<V> tile(dynamic_shared(), mine);

  fill_tile<T, V, kLrn>(gradient, pooled, argmax, shape, image, first_row - 1, first_column - 1, begin, end,
                        tiles.outer, tile);
  __syncthreads();

  for (int unit = threadIdx.x; unit < kTileCells * kTileCells * mine; unit += kUnpoolThreads) {
    const int cell = unit / mine, group = unit % mine;
    const int down = cell / kTileCells, right = cell % kTileCells;
    const int row = (first_row + down) * kPoolStride, column = (first_column + right) * kPoolStride;
    if (row >= shape.h || column >= shape.w) continue;
    T* to = dx + image * shape.image() + (int64_t{row} * shape.w + column) * shape.c + (begin + group) * V;
    gather_cell<T, V>(tile, (down * kTileWindows + right) * mine + group, mine, kTileWindows * mine, to, shape.c,
                      int64_t{shape.w} * shape.c, column + 1 < shape.w, row + 1 < shape.h);
  }

  for (int channel = threadIdx.x; channel < mine * V; channel += kUnpoolThreads) {
    float sum = 0.0f;
    for (int down = 1; down < kTileWindows; ++down) {
#pragma unroll
      for (int right = 1; right < kTileWindows; ++right) {
        sum += tile.channel((down * kTileWindows + right) * mine + channel / V, channel % V);
      }
    }
    sums[(image * tiles.tiles() + tile_index) * shape.c + begin * V + channel] = sum;
  }
}

// The sum of each column of (rows, channels): every 32nd row by one thread of 32, these then by halves.
static __global__ void __launch_bounds__(kWarp* kWarp)
    add_rows_kernel(const float* __restrict__ from, float* __restrict__ to, int64_t rows, int channels) {
  __shared__ float partial[kWarp][kWarp];
  const int channel = blockIdx.x * kWarp + threadIdx.x;
  float sum = 0.0f;
  if (channel < channels) {
#pragma unroll 4
    for (int64_t row = threadIdx.y; row < rows; row += kWarp) sum += from[row * channels + channel];
  }
  partial[threadIdx.y][threadIdx.x] = sum;
  for (unsigned half = kWarp / 2; half > 0; half /= 2) {
    __syncthreads();
    if (threadIdx.y < half) partial[threadIdx.y][threadIdx.x] += partial[threadIdx.y + half][threadIdx.x];
  }
  if (threadIdx.y == 0 && channel < channels) to[channel] = partial[0][threadIdx.x];
}

template <typename T, int V, bool kLrn>
cudaError_t launch_pool_of(const void* x, const float* bias, void* y, void* pooled, uint8_t* argmax,
                           const PoolShape& shape, cudaStream_t stream) {
  const int groups = shape.c / V;
  const int outer = kLrn ? outer_lanes<V>(groups, kLrnReach) : outer_lanes<V>(groups, V == 1 ? 1 : 0);
  const int blocks =
      static_cast<int>(blocks_for(int64_t{shape.ph} * shape.pw * groups, kPoolWarps * (kWarp - 2 * outer)));
  if (shape.n > kMostBlocks / blocks) return cudaErrorInvalidConfiguration;
  const unsigned grid = static_cast<unsigned>(shape.n * blocks);
  return launch(pool_kernel<T, V, kLrn>, grid, kPoolThreads, 0, stream, static_cast<const T*>(x), bias,
                static_cast<T*>(y), static_cast<T*>(pooled), argmax, shape, blocks, outer);
}

// y and, where argmax is not null, pooled (with kLrn) and argmax, from x.
template <typename T, bool kLrn>
cudaError_t launch_pool(const void* x, const float* bias, void* y, void* pooled, uint8_t* argmax,
                        const PoolShape& shape, cudaStream_t stream) {
  if (shape.n == 0 || shape.c == 0) return cudaSuccess;
  const bool at_once =
      shape.c % kAtOnce<T> == 0 && aligned(x) && aligned(bias) && aligned(y) && aligned(pooled) && aligned(argmax);
  const auto launch_one = at_once ? launch_pool_of<T, kAtOnce<T>, kLrn> : launch_pool_of<T, 1, kLrn>;
  return launch_one(x, bias, y, pooled, argmax, shape, stream);
}

inline int pool_tiles(int side) { return ((side + 1) / 2 + kTileCells - 1) / kTileCells; }

template <typename T, int V, bool kLrn>
cudaError_t launch_unpool_of(const void* gradient, const void* pooled, const uint8_t* argmax, void* dx, float* sums,
                             const PoolShape& shape, cudaStream_t stream) {
  const int groups = shape.c / V;
  PoolTiles tiles{pool_tiles(shape.h), pool_tiles(shape.w), 0, 0, 0};
  tiles.slices = (groups + kSliceGroups<V> - 1) / kSliceGroups<V>;
  tiles.groups = (groups + tiles.slices - 1) / tiles.slices;
  tiles.slices = (groups + tiles.groups - 1) / tiles.groups;
  // Slices reach into each other, so that warps begin with pixels only where there is one.
  if (kLrn) tiles.outer = tiles.slices == 1 ? outer_lanes<V>(groups, 2 * kLrnReach) : (2 * kLrnReach + V - 1) / V;
  const int64_t blocks = int64_t{tiles.tiles()} * tiles.slices;
  if (shape.n > kMostBlocks / blocks) return cudaErrorInvalidConfiguration;
  const unsigned grid = static_cast<unsigned>(shape.n * blocks);
  return launch(unpool_kernel<T, V, kLrn>, grid, kUnpoolThreads, TileSlice<V>::bytes(tiles.groups), stream,
                static_cast<const T*>(gradient), static_cast<const T*>(pooled), argmax, static_cast<T*>(dx), sums,
                shape, tiles);
}

// dx and dbias; `sums` is (N, tiles, C), for pool_tiles(H) x pool_tiles(W) tiles.
template <typename T, bool kLrn>
cudaError_t launch_unpool(const void* gradient, const void* pooled, const uint8_t* argmax, void* dx, float* sums,
                          float* dbias, const PoolShape& shape, cudaStream_t stream) {
  if (shape.c == 0) return cudaSuccess;
  const bool at_once =
      shape.c % kAtOnce<T> == 0 && aligned(gradient) && aligned(pooled) && aligned(dx) && aligned(argmax);
  const auto launch_one = at_once ? launch_unpool_of<T, kAtOnce<T>, kLrn> : launch_unpool_of<T, 1, kLrn>;
  const cudaError_t error = shape.n == 0 ? cudaSuccess : launch_one(gradient, pooled, argmax, dx, sums, shape, stream);
  if (error != cudaSuccess) return error;
  const unsigned blocks = static_cast<unsigned>(blocks_for(shape.c, kWarp));
  return launch(add_rows_kernel, blocks, dim3(kWarp, kWarp), 0, stream, sums, dbias,
                shape.n * pool_tiles(shape.h) * pool_tiles(shape.w), shape.c);
}

}  // namespace fasttransfer
