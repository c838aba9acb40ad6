// Gathers images of a store, crops, subtracts the mean image, scales, mirrors, and turns blocks of pixels into
// channels. The store is one shard on the GPU. The rows and crops are only known there, and reading them would make the
// CPU wait: what lies outside of the store is moved to its edge, so that memory stays safe, and not reported.

#include <algorithm>
#include <vector>

#include "cuda/elements.cuh"
#include "cuda/launch.cuh"
#include "cuda/tensors.h"

namespace fasttransfer {
namespace {

constexpr int kThreads = 256;
constexpr int kColours = 3;

struct View {
  const uint8_t* store;  // (images, store side, store side, 3)
  const float* mean;     // (store side, store side, 3)
  const int64_t *rows, *top, *left;
  const bool* mirror;
  int64_t images;  // in the store
  int store_side, crop, block, side;
  float scale;
};

__device__ __forceinline__ int64_t clamped(int64_t i, int64_t largest) { return i < 0 ? 0 : i > largest ? largest : i; }

// Elements of the result are numbered in memory order: image, row, column, then (dy, dx, colour) within the block. A
// thread makes as many of them as 16 bytes hold.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    augment_kernel(const __grid_constant__ View view, T* __restrict__ result, int64_t n, bool at_once) {
  constexpr int kPerThread = kAtOnce<T>;
  const int64_t first = (int64_t{blockIdx.x} * kThreads + threadIdx.x) * kPerThread;
  if (first >= n) return;
  const int row_values = kColours * view.block;  // of one dy
  const int depth = row_values * view.block;
  const int64_t per_image = int64_t{view.side} * view.side * depth;
  int64_t image = first / per_image;
  const int within = static_cast<int>(first - image * per_image);
  int in_block = within % depth, pixel = within / depth;
  int column = pixel % view.side, row = pixel / view.side;

  const int margin = view.store_side - view.crop;
  float values[kPerThread];
  const uint8_t* pixels = nullptr;
  int top = 0, left = 0;
  bool mirrored = false;
#pragma unroll
  for (int i = 0; i < kPerThread; ++i) {
    values[i] = 0.0f;
    if (first + i >= n) break;
    if (pixels == nullptr) {
      pixels = view.store + clamped(view.rows[image], view.images - 1) * view.store_side * view.store_side * kColours;
      top = static_cast<int>(clamped(view.top[image], margin));
      left = static_cast<int>(clamped(view.left[image], margin));
      mirrored = view.mirror[image];
    }
    const int dy = in_block / row_values, in_row = in_block % row_values;
    const int y = row * view.block + dy, x = column * view.block + in_row / kColours;
    if (y < view.crop && x < view.crop) {
      const int from = mirrored ? view.crop - 1 - x : x;
      const int at = ((top + y) * view.store_side + left + from) * kColours + in_row % kColours;
      values[i] = (static_cast<float>(pixels[at]) - view.mean[at]) * view.scale;
    }
    if (++in_block == depth) {
      in_block = 0;
      if (++column == view.side) {
        column = 0;
        if (++row == view.side) {
          row = 0;
          ++image;
          pixels = nullptr;
        }
      }
    }
  }
  if (at_once && first + kPerThread <= n) {
    store(result + first, values);
    return;
  }
#pragma unroll
  for (int i = 0; i < kPerThread; ++i) {
    const float value[1] = {values[i]};
    if (first + i < n) store(result + first + i, value);
  }
}

template <typename T>
cudaError_t launch_augment(const View& view, void* result, int64_t n, cudaStream_t stream) {
  const unsigned blocks = static_cast<unsigned>(blocks_for(n, kThreads * kAtOnce<T>));
  return launch(augment_kernel<T>, blocks, kThreads, 0, stream, view, static_cast<T*>(result), n, aligned(result));
}

void check_list(const char* name, const Tensor& list, const Tensor& store, int64_t count, ScalarType type) {
  STD_TORCH_CHECK(same_device(list, store) && list.scalar_type() == type && list.dim() == 1 && list.size(0) == count &&
                      list.is_contiguous(),
                  "augment: ", name, " must be ", count, " ", type == ScalarType::Bool ? "bool" : "int64",
                  " on the device of the images, one after another");
}

Tensor augment(const std::vector<Tensor>& shards, const Tensor& rows, const Tensor& mean, const Tensor& top,
               const Tensor& left, const Tensor& mirror, int64_t crop, int64_t block, int64_t side, double scale,
               ScalarType dtype) {
  STD_TORCH_CHECK(shards.size() == 1, "augment: on a GPU the images must be one shard, not ", shards.size());
  const Tensor& store = shards[0];
  STD_TORCH_CHECK(mean.scalar_type() == ScalarType::Float && mean.dim() == 3 && mean.size(0) == mean.size(1) &&
                      mean.size(2) == kColours && mean.is_contiguous() && same_device(mean, store),
                  "augment: mean must be (side, side, 3) float32 on the device of the images, contiguous");
  const int64_t store_side = mean.size(0);
  STD_TORCH_CHECK(store.scalar_type() == ScalarType::Byte && store.dim() == 4 && store.size(1) == store_side &&
                      store.size(2) == store_side && store.size(3) == kColours && store.is_contiguous(),
                  "augment: the shard must be (rows, ", store_side, ", ", store_side, ", 3) uint8, contiguous");
  STD_TORCH_CHECK(crop >= 1 && crop <= store_side, "augment: crop must lie in 1 to ", store_side, ", not ", crop);
  STD_TORCH_CHECK(block >= 1 && side >= 1, "augment: block and side must be at least 1, not ", block, " and ", side);
  constexpr int64_t kLargest = 1 << 29;  // values per image: counters have 32 bits
  STD_TORCH_CHECK(
      store_side < 16384 && block < 4096 && side < 16384 && side * side * block * block * kColours <= kLargest,
      "augment: images of ", store_side, " pixels per side, or ", side, " blocks of ", block, ", are too large");
  const int64_t count = rows.numel();
  check_list("rows", rows, store, count, ScalarType::Long);
  check_list("top", top, store, count, ScalarType::Long);
  check_list("left", left, store, count, ScalarType::Long);
  check_list("mirror", mirror, store, count, ScalarType::Bool);
  STD_TORCH_CHECK(count == 0 || store.size(0) > 0, "augment: ", count, " images are asked for, the shard is empty");
  STD_TORCH_CHECK(dtype == ScalarType::Float || dtype == ScalarType::BFloat16,
                  "augment: dtype must be float32 or bfloat16, not ", torch::headeronly::toString(dtype));

  const OnDeviceOf device(store);
  const View view{static_cast<const uint8_t*>(store.const_data_ptr()),
                  static_cast<const float*>(mean.const_data_ptr()),
                  static_cast<const int64_t*>(rows.const_data_ptr()),
                  static_cast<const int64_t*>(top.const_data_ptr()),
                  static_cast<const int64_t*>(left.const_data_ptr()),
                  static_cast<const bool*>(mirror.const_data_ptr()),
                  store.size(0),
                  static_cast<int>(store_side),
                  static_cast<int>(crop),
                  static_cast<int>(block),
                  static_cast<int>(side),
                  static_cast<float>(scale)};
  Tensor result = torch::stable::empty({count, kColours * block * block, side, side}, dtype, std::nullopt,
                                       store.device(), std::nullopt, MemoryFormat::ChannelsLast);
  const auto launch_typed = dtype == ScalarType::Float ? launch_augment<float> : launch_augment<uint16_t>;
  check_launch(launch_typed(view, result.mutable_data_ptr(), result.numel(), device.stream), "augment");
  return result;
}

}  // namespace

FT_CUDA_LIBRARY(m) { m.impl("augment", TORCH_BOX(&augment)); }

}  // namespace fasttransfer
