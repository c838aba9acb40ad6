// Unpacks masks and values into dense features, any images in any order. The start of a tile's values is counted from
// the mask before it, which is short compared with the tile. The rows and offsets are only known on the GPU, and
// reading them would make the CPU wait: a row that does not exist becomes the nearest, and a missing value zero, so
// that memory stays safe.

#include <algorithm>

#include "cuda/bitmask.cuh"
#include "cuda/prefix.cuh"
#include "cuda/tensors.h"
#include "packed_tensors.h"

namespace fasttransfer {
namespace {

struct Packed {
  const uint8_t* mask;
  const uint16_t* values;
  const int64_t *offsets, *rows;
  int64_t images, held;  // values
};

__global__ void __launch_bounds__(kTileThreads) unpack_kernel(const __grid_constant__ Packed packed, int64_t elements,
                                                              int64_t tiles, bool at_once, uint16_t* __restrict__ y) {
  const int64_t image = blockIdx.x / tiles, tile = blockIdx.x - image * tiles;
  const int64_t asked = packed.rows[image], last = packed.images - 1;
  const int64_t row = asked < 0 ? 0 : asked > last ? last : asked;
  const int64_t bytes = mask_bytes(elements);
  const uint8_t* const mask = packed.mask + row * bytes;

  const uint64_t* const words = reinterpret_cast<const uint64_t*>(mask);
  int ahead = 0, before;
  for (int64_t word = threadIdx.x; word < tile * (kTile / kMaskWord); word += kTileThreads) {
    ahead += count_bits(words[word]);
  }
  (void)sum_before<kTileThreads>(ahead, before);

  const int64_t at = tile * kTileThreads + threadIdx.x, first = at * kPerByte;
  const unsigned byte = at < bytes ? mask[at] : 0u;
  int total;
  int64_t next = packed.offsets[row] + before + sum_before<kTileThreads>(count_bits(byte), total);
  if (first >= elements) return;
  uint16_t element[kPerByte];
#pragma unroll
  for (int i = 0; i < kPerByte; ++i) {
    element[i] = 0;
    if (byte >> i & 1u) {
      if (next >= 0 && next < packed.held) element[i] = packed.values[next];
      ++next;
    }
  }
  store_some(y + image * elements + first, elements - first, at_once, element);
}

Tensor unpack_features(const Tensor& mask, const Tensor& values, const Tensor& offsets, const Tensor& rows,
                       int64_t elements) {
  check_packed(mask, values, offsets, rows, elements);
  STD_TORCH_CHECK(reinterpret_cast<uintptr_t>(mask.const_data_ptr()) % kMaskWordBytes == 0,
                  "unpack_features: mask must begin at an address of 8 bytes");
  const OnDeviceOf device(mask);
  const int64_t wanted = rows.size(0), tiles = tiles_of(elements);
  STD_TORCH_CHECK(wanted * tiles <= 0x7FFFFFFF, "unpack_features: ", wanted, " images of ", elements,
                  " elements are too many");
  Tensor y = torch::stable::empty({wanted, elements}, ScalarType::BFloat16, std::nullopt, mask.device());
  const Packed packed{static_cast<const uint8_t*>(mask.const_data_ptr()),
                      static_cast<const uint16_t*>(values.const_data_ptr()),
                      static_cast<const int64_t*>(offsets.const_data_ptr()),
                      static_cast<const int64_t*>(rows.const_data_ptr()),
                      mask.size(0),
                      values.size(0)};
  uint16_t* const to = static_cast<uint16_t*>(y.mutable_data_ptr());
  check_launch(launch(unpack_kernel, static_cast<unsigned>(wanted * tiles), kTileThreads, 0, device.stream, packed,
                      elements, tiles, elements % kPerByte == 0 && aligned(to), to),
               "unpack_features");
  return y;
}

}  // namespace

FT_CUDA_LIBRARY(m) { m.impl("unpack_features", TORCH_BOX(&unpack_features)); }

}  // namespace fasttransfer
