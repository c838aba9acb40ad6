// The kernel of conv_relu_pool_lrn: a block walks down a strip of one image's pooled rows, with the three rows of the
// convolution under the current one in shared memory, in float32. A row that two pooled rows share is computed once.
//
// The convolution is a product of matrices: pixels x elements of their windows by elements x output channels. A tile of
// kTilePixels x (kWarpsAcross * kEights * 8) is computed at a time, kDepth elements after another, which are copied to
// shared memory while those before them are multiplied.
#pragma once

#include <cuda_bf16.h>

#include <algorithm>
#include <cstdint>

#include "cuda/conv_mma.cuh"
#include "cuda/launch.cuh"
#include "math/bf16.h"
#include "math/conv.h"
#include "math/lrn.h"
#include "math/pool.h"

namespace fasttransfer {

constexpr int kConvThreads = 256;
constexpr int kConvWarps = kConvThreads / kWarp;
constexpr int kWarpsDown = 2, kWarpsAcross = kConvWarps / kWarpsDown;
constexpr int kSixteens = 2;  // a warp's share of a tile, in 16 pixels
constexpr int kTilePixels = kWarpsDown * kSixteens * 16;
constexpr int kSlice = 16;          // elements that one instruction multiplies
constexpr int kDepth = 2 * kSlice;  // a row of the kernel is padded to whole slices
constexpr int kPiece = 8;           // elements that are copied at once, 16 bytes
constexpr int kPieces = kDepth / kPiece;
constexpr int kStagedRow = kDepth + kPiece;  // so that a warp's reads meet no bank of memory twice
constexpr int kSumsPadding = 8;              // likewise for its writes of sums

static_assert(kTilePixels * kPieces == kConvThreads, "a thread copies one piece of the pixels' side");

struct ConvSizes {
  int c, h, w, k, kernel_h, kernel_w, stride, padding, groups, out_h, out_w, pooled_h, pooled_w;
  int group_c, group_k, window;
  int strips;  // of an image

  // Floats of a pixel's sums: whole 16 bytes, so that what lies behind the sums can be copied to.
  __host__ __device__ int sums_pixel() const { return (k + 3) / 4 * 4 + kSumsPadding; }
};

template <int kEights>
constexpr int kTileChannels = kWarpsAcross * kEights * 8;

// Bytes of shared memory: sums, then either what is staged, twice, or a pixel's values for each warp.
template <int kEights>
size_t conv_shared(const ConvSizes& sizes) {
  const size_t sums = size_t{kWindow} * sizes.out_w * sizes.sums_pixel() * sizeof(float);
  const size_t staged = size_t{2} * (kTilePixels + kTileChannels<kEights>)*kStagedRow * sizeof(uint16_t);
  const size_t values = size_t{kConvWarps} * (sizes.k + 2 * kLrnReach) * sizeof(float);
  return sums + std::max(staged, values);
}

// The place of a piece of a window: in which row of the kernel, and how many elements into it.
struct WindowPlace {
  int row, element;

  // `element` may be beyond the row's end: rows are padded to whole slices.
  __device__ __forceinline__ void advance(int elements, int padded_row) {
    element += elements;
    while (element >= padded_row) {
      element -= padded_row;
      ++row;
    }
  }
};

// Eight elements, or zeros where they lie beyond `end` or `there` is false; `at(i)` is where element i is, null for a
// zero. At once where they are neighbours and the address allows it.
template <bool kAligned, typename At>
__device__ __forceinline__ void copy_piece(uint16_t* to, int element, int end, bool there, const uint16_t* any, At at) {
  if constexpr (kAligned) {
    const uint16_t* from = there && element < end ? at(element) : nullptr;
    copy_16_bytes(to, from == nullptr ? any : from, from != nullptr);
  } else {
    for (int i = 0; i < kPiece; ++i) {
      const uint16_t* from = there && element + i < end ? at(element + i) : nullptr;
      to[i] = from == nullptr ? uint16_t{0} : *from;
    }
  }
}

__device__ __forceinline__ uint32_t load_pair(const uint16_t* from) { return *reinterpret_cast<const uint32_t*>(from); }

// The sums of pixels `first_pixel` and on, of `pixels` that begin with row `first_row` of the convolution, and of one
// group's channels `first_channel` and on. `sums` holds row i in place i % kWindow.
template <int kEights, bool kAligned>
__device__ void conv_tile(const uint16_t* __restrict__ image, const uint16_t* __restrict__ weight,
                          const ConvSizes& sizes, int first_row, int pixels, int first_pixel, int group,
                          int first_channel, uint16_t* staged, float* sums) {
  constexpr int kChannels = kTileChannels<kEights>;
  constexpr int kStage = (kTilePixels + kChannels) * kStagedRow;
  const int thread = threadIdx.x;
  const int padded_row = (sizes.window + kSlice - 1) / kSlice * kSlice;
  const int stages = (sizes.kernel_h * padded_row + kDepth - 1) / kDepth;

  const int mine = thread / kPieces, piece = thread % kPieces;
  const int my_pixel = first_pixel + mine;
  const int top = (first_row + my_pixel / sizes.out_w) * sizes.stride - sizes.padding;
  const int left = my_pixel % sizes.out_w * sizes.stride - sizes.padding;
  WindowPlace place{0, 0};
  place.advance(piece * kPiece, padded_row);

  const auto stage = [&](uint16_t* to) {
    const int y = top + place.row;
    const bool there = my_pixel < pixels && place.row < sizes.kernel_h && y >= 0 && y < sizes.h;
    const auto in_image = [&](int element) -> const uint16_t* {
      const int x = left + element / sizes.group_c;
      if (x < 0 || x >= sizes.w) return nullptr;
      return image + (int64_t{y} * sizes.w + x) * sizes.c + group * sizes.group_c + element % sizes.group_c;
    };
    copy_piece<kAligned>(to + mine * kStagedRow + piece * kPiece, place.element, sizes.window, there, image, in_image);
    for (int channel = mine; channel < kChannels; channel += kConvThreads / kPieces) {
      const bool wanted = first_channel + channel < sizes.group_k && place.row < sizes.kernel_h;
      const auto in_kernel = [&](int element) {
        const int64_t k = group * sizes.group_k + first_channel + channel;
        return weight + (k * sizes.kernel_h + place.row) * sizes.window + element;
      };
      copy_piece<kAligned>(to + (kTilePixels + channel) * kStagedRow + piece * kPiece, place.element, sizes.window,
                           wanted, weight, in_kernel);
    }
    place.advance(kDepth, padded_row);
  };

  const int lane = thread % kWarp, warp = thread / kWarp;
  const int g = lane / 4, t = lane % 4;
  const int warp_pixel = warp / kWarpsAcross * kSixteens * 16, warp_channel = warp % kWarpsAcross * kEights * 8;
  MmaSums products[kSixteens][kEights] = {};

  stage(staged);
  for (int s = 0; s < stages; ++s) {
    wait_for_copies();
    __syncthreads();  // all copies are there, and nobody reads any more what the next ones are copied over
    if (s + 1 < stages) stage(staged + (s + 1) % 2 * kStage);
    const uint16_t* left_side = staged + s % 2 * kStage + (warp_pixel + g) * kStagedRow + 2 * t;
    const uint16_t* right_side = staged + s % 2 * kStage + (kTilePixels + warp_channel + g) * kStagedRow + 2 * t;
#pragma unroll
    for (int depth = 0; depth < kDepth; depth += kSlice) {
      MmaLeft a[kSixteens];
#pragma unroll
      for (int i = 0; i < kSixteens; ++i) {
        const uint16_t* from = left_side + i * 16 * kStagedRow + depth;
        a[i] = {{load_pair(from), load_pair(from + 8 * kStagedRow), load_pair(from + 8),
                 load_pair(from + 8 * kStagedRow + 8)}};
      }
#pragma unroll
      for (int j = 0; j < kEights; ++j) {
        const uint16_t* from = right_side + j * 8 * kStagedRow + depth;
        const MmaRight b{{load_pair(from), load_pair(from + 8)}};
#pragma unroll
        for (int i = 0; i < kSixteens; ++i) multiply_add(a[i], b, products[i][j]);
      }
    }
  }
  __syncthreads();  // before the next tile is copied over this one

#pragma unroll
  for (int i = 0; i < kSixteens * 2; ++i) {
    const int pixel = first_pixel + warp_pixel + i * 8 + g;
    if (pixel >= pixels) continue;
    const int row = (first_row + pixel / sizes.out_w) % kWindow;
    float* to = sums + (row * sizes.out_w + pixel % sizes.out_w) * sizes.sums_pixel() + group * sizes.group_k;
#pragma unroll
    for (int j = 0; j < kEights * 2; ++j) {
      const int channel = first_channel + warp_channel + j / 2 * 8 + 2 * t + j % 2;
      if (channel < sizes.group_k) to[channel] = products[i / 2][j / 2].sum[i % 2 * 2 + j % 2];
    }
  }
}

// Bias, ReLU, pooling and normalisation of one row of pooled pixels, one pixel per warp. `values`: of this warp.
__device__ __forceinline__ void conv_finish_row(const float* sums, const float* __restrict__ bias,
                                                const ConvSizes& sizes, int pooled_row, float* values, uint16_t* y) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  for (int i = lane; i < 2 * kLrnReach; i += kWarp) values[i < kLrnReach ? i : sizes.k + i] = 0.0f;
  for (int pixel = warp; pixel < sizes.pooled_w; pixel += kConvWarps) {
    for (int k = lane; k < sizes.k; k += kWarp) {
      float best = 0.0f;
#pragma unroll
      for (int i = 0; i < kWindow * kWindow; ++i) {
        const int row = pooled_row * kPoolStride + i / kWindow, column = pixel * kPoolStride + i % kWindow;
        const int r = row < sizes.out_h ? row : sizes.out_h - 1, c = column < sizes.out_w ? column : sizes.out_w - 1;
        const float sum = sums[(r % kWindow * sizes.out_w + c) * sizes.sums_pixel() + k];
        best = i == 0 || takes_over(sum, best) ? sum : best;
      }
      values[kLrnReach + k] = relu(best + bias[k]);
    }
    __syncwarp();
    for (int k = lane; k < sizes.k; k += kWarp) {
      float squares = 0.0f;
#pragma unroll
      for (int i = 0; i <= 2 * kLrnReach; ++i) squares += values[k + i] * values[k + i];
      y[int64_t{pixel} * sizes.k + k] = float_to_bf16(values[k + kLrnReach] * lrn_power(lrn_scale(squares)));
    }
    __syncwarp();
  }
}

template <int kEights, bool kAligned>
__global__ void __launch_bounds__(kConvThreads)
    conv_kernel(const uint16_t* __restrict__ x, const uint16_t* __restrict__ weight, const float* __restrict__ bias,
                uint16_t* __restrict__ y, ConvSizes sizes) {
  float* sums = reinterpret_cast<float*>(dynamic_shared());
  float* behind = sums + kWindow * sizes.out_w * sizes.sums_pixel();  // staged, or values
  uint16_t* staged = reinterpret_cast<uint16_t*>(behind);
  float* values = behind + threadIdx.x / kWarp * (sizes.k + 2 * kLrnReach);

  const int64_t image = blockIdx.x / sizes.strips;
  const int strip = blockIdx.x % sizes.strips;
  const int begin = static_cast<int>(int64_t{strip} * sizes.pooled_h / sizes.strips);
  const int end = static_cast<int>(int64_t{strip + 1} * sizes.pooled_h / sizes.strips);
  const uint16_t* from = x + image * sizes.h * sizes.w * sizes.c;
  uint16_t* to = y + image * sizes.pooled_h * sizes.pooled_w * sizes.k;

  int next = begin * kPoolStride;  // row of the convolution
  for (int pooled_row = begin; pooled_row < end; ++pooled_row) {
    const int below = pooled_row * kPoolStride + kWindow, after = below < sizes.out_h ? below : sizes.out_h;
    const int pixels = (after - next) * sizes.out_w;
    for (int group = 0; group < sizes.groups; ++group) {
      for (int channel = 0; channel < sizes.group_k; channel += kTileChannels<kEights>) {
        for (int pixel = 0; pixel < pixels; pixel += kTilePixels) {
          conv_tile<kEights, kAligned>(from, weight, sizes, next, pixels, pixel, group, channel, staged, sums);
        }
      }
    }
    next = after;
    __syncthreads();
    conv_finish_row(sums, bias, sizes, pooled_row, values, to + int64_t{pooled_row} * sizes.pooled_w * sizes.k);
    __syncthreads();  // before sums and what is staged are written again
  }
}

// `blocks`: the number that keeps all multiprocessors busy. Few images are cut into strips; a cut costs one row
// of the convolution.
inline ConvSizes conv_sizes(const ConvShape& shape, int64_t blocks) {
  const int64_t strips = std::min(shape.pooled_h, blocks_for(blocks, std::max<int64_t>(shape.n, 1)));
  const auto i = [](int64_t size) { return static_cast<int>(size); };
  return {i(shape.c),        i(shape.h),        i(shape.w),        i(shape.k),         i(shape.kernel_h),
          i(shape.kernel_w), i(shape.stride),   i(shape.padding),  i(shape.groups),    i(shape.out_h),
          i(shape.out_w),    i(shape.pooled_h), i(shape.pooled_w), i(shape.group_c()), i(shape.group_k()),
          i(shape.window()), i(strips)};
}

// How many eights of channels a warp takes, so that a group's are covered with little excess.
inline int conv_eights(const ConvSizes& sizes) {
  int best = 4;
  const auto computed = [&](int eights) {
    const int tile = kWarpsAcross * eights * 8;
    return (sizes.group_k + tile - 1) / tile * tile;
  };
  for (const int eights : {3, 1}) {
    if (computed(eights) < computed(best)) best = eights;
  }
  return best;
}

template <int kEights>
cudaError_t launch_conv_of(const uint16_t* x, const uint16_t* weight, const float* bias, uint16_t* y, int64_t n,
                           const ConvSizes& sizes, cudaStream_t stream) {
  const bool at_once = sizes.group_c % kPiece == 0 && aligned(x) && aligned(weight);
  return launch(at_once ? conv_kernel<kEights, true> : conv_kernel<kEights, false>,
                dim3(static_cast<unsigned>(n * sizes.strips)), dim3(kConvThreads), conv_shared<kEights>(sizes), stream,
                x, weight, bias, y, sizes);
}

// x, weight and y in channels-last memory, bfloat16.
inline cudaError_t launch_conv(const uint16_t* x, const uint16_t* weight, const float* bias, uint16_t* y,
                               const ConvShape& shape, int64_t blocks, cudaStream_t stream) {
  const ConvSizes sizes = conv_sizes(shape, blocks);
  const int eights = conv_eights(sizes);
  const auto launch_eights = eights == 4 ? launch_conv_of<4> : eights == 3 ? launch_conv_of<3> : launch_conv_of<1>;
  return launch_eights(x, weight, bias, y, shape.n, sizes, stream);
}

}  // namespace fasttransfer
