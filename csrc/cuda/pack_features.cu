// Packs features into masks and values; see cpu/pack_features.cpp. The first kernel makes the masks and counts each
// tile, the second turns the counts into places, the third moves the values, through shared memory so that they are
// written in whole lines. Between the last two the host waits for the number of values, to allocate them.

#include <algorithm>
#include <tuple>

#include "cuda/bitmask.cuh"
#include "cuda/prefix.cuh"
#include "cuda/tensors.h"
#include "packed_tensors.h"

namespace fasttransfer {
namespace {

constexpr int kScanThreads = 256;

// The tile and image of a block, and the part of a thread.
struct Place {
  int64_t image, byte, element;

  __device__ Place(int64_t tiles)
      : image(blockIdx.x / tiles),
        byte((blockIdx.x - image * tiles) * kTileThreads + threadIdx.x),
        element(byte * kPerByte) {}
};

__global__ void __launch_bounds__(kTileThreads)
    mask_kernel(const uint16_t* __restrict__ x, int64_t elements, int64_t tiles, bool at_once,
                uint8_t* __restrict__ mask, int64_t* __restrict__ counts) {
  const Place at(tiles);
  const int64_t bytes = mask_bytes(elements);
  unsigned byte = 0;
  if (at.byte < bytes) {
    uint16_t element[kPerByte];
    load_some(x + at.image * elements + at.element, elements - at.element, at_once, element);
#pragma unroll
    for (int i = 0; i < kPerByte; ++i) byte |= (element[i] != 0 ? 1u : 0u) << i;
    mask[at.image * bytes + at.byte] = static_cast<uint8_t>(byte);
  }
  int total;
  (void)sum_before<kTileThreads>(count_bits(byte), total);
  if (threadIdx.x == 0) counts[blockIdx.x] = total;
}

// In one block: counts of `n` tiles to where each begins; offsets: where each image of `tiles` tiles does.
__global__ void __launch_bounds__(kScanThreads)
    scan_kernel(int64_t* __restrict__ counts, int64_t n, int64_t tiles, int64_t* __restrict__ offsets) {
  int64_t done = 0;
  for (int64_t first = 0; first < n; first += kScanThreads) {
    const int64_t i = first + threadIdx.x;
    int64_t total;
    const int64_t start = done + sum_before<kScanThreads>(i < n ? counts[i] : int64_t{0}, total);
    if (i < n) {
      counts[i] = start;
      if (i % tiles == 0) offsets[i / tiles] = start;
    }
    done += total;
  }
  if (threadIdx.x == 0) offsets[n / tiles] = done;
}

__global__ void __launch_bounds__(kTileThreads)
    move_kernel(const uint16_t* __restrict__ x, int64_t elements, int64_t tiles, bool at_once,
                const int64_t* __restrict__ starts, uint16_t* __restrict__ values) {
  __shared__ uint16_t kept[kTile];
  const Place at(tiles);
  uint16_t element[kPerByte] = {};
  if (at.element < elements) {
    load_some(x + at.image * elements + at.element, elements - at.element, at_once, element);
  }
  int mine = 0, total;
#pragma unroll
  for (int i = 0; i < kPerByte; ++i) mine += element[i] != 0;
  int next = sum_before<kTileThreads>(mine, total);
#pragma unroll
  for (int i = 0; i < kPerByte; ++i) {
    if (element[i] != 0) kept[next++] = element[i];
  }
  __syncthreads();
  uint16_t* const to = values + starts[blockIdx.x];
  for (int i = static_cast<int>(threadIdx.x); i < total; i += kTileThreads) to[i] = kept[i];
}

std::tuple<Tensor, Tensor, Tensor> pack_features(const Tensor& x) {
  check_dense(x);
  const OnDeviceOf device(x);
  const int64_t n = x.size(0), elements = x.size(1), tiles = tiles_of(elements), blocks = n * tiles;
  STD_TORCH_CHECK(blocks <= 0x7FFFFFFF, "pack_features: ", n, " images of ", elements, " elements are too many");
  const auto on_device = [&](int64_t count, ScalarType type) {
    return torch::stable::empty({count}, type, std::nullopt, x.device());
  };
  Tensor mask = torch::stable::empty({n, mask_bytes(elements)}, ScalarType::Byte, std::nullopt, x.device());
  Tensor offsets = on_device(n + 1, ScalarType::Long), starts = on_device(blocks, ScalarType::Long);
  if (blocks == 0) {
    torch::stable::zero_(offsets);
    return {mask, on_device(0, ScalarType::BFloat16), offsets};
  }
  const uint16_t* const from = static_cast<const uint16_t*>(x.const_data_ptr());
  int64_t* const at = static_cast<int64_t*>(starts.mutable_data_ptr());
  int64_t* const ends = static_cast<int64_t*>(offsets.mutable_data_ptr());
  const bool at_once = elements % kPerByte == 0 && aligned(from);
  const unsigned grid = static_cast<unsigned>(blocks);
  check_launch(launch(mask_kernel, grid, kTileThreads, 0, device.stream, from, elements, tiles, at_once,
                      static_cast<uint8_t*>(mask.mutable_data_ptr()), at),
               "pack_features");
  check_launch(launch(scan_kernel, 1, kScanThreads, 0, device.stream, at, blocks, tiles, ends), "pack_features");

  int64_t count = 0;
  cudaError_t error = cudaMemcpyAsync(&count, ends + n, sizeof count, cudaMemcpyDeviceToHost, device.stream);
  if (error == cudaSuccess) error = cudaStreamSynchronize(device.stream);
  STD_TORCH_CHECK(error == cudaSuccess,
                  "pack_features: the number of values does not reach the host: ", cudaGetErrorString(error));
  Tensor values = on_device(count, ScalarType::BFloat16);
  check_launch(launch(move_kernel, grid, kTileThreads, 0, device.stream, from, elements, tiles, at_once, at,
                      static_cast<uint16_t*>(values.mutable_data_ptr())),
               "pack_features");
  return {mask, values, offsets};
}

}  // namespace

FT_CUDA_LIBRARY(m) { m.impl("pack_features", TORCH_BOX(&pack_features)); }

}  // namespace fasttransfer
