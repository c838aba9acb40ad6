// y = x * keep / (1 - p): word i of a Philox stream decides about element i; see cpu/dropout.cpp.

#include <cmath>

#include "cuda/elements.cuh"
#include "cuda/launch.cuh"
#include "cuda/tensors.h"
#include "math/philox.h"

namespace fasttransfer {
namespace {

constexpr int kThreads = 256;
constexpr int kPerThread = 8;  // two blocks of words, 16 bytes of bfloat16

struct Draws {
  uint64_t key;
  uint32_t threshold;  // kept are words of at least this
};

__device__ __forceinline__ float drop(float x, bool keep, double scale) {
  return keep ? x * static_cast<float>(scale) : 0.0f;
}
__device__ __forceinline__ double drop(double x, bool keep, double scale) { return keep ? x * scale : 0.0; }
__device__ __forceinline__ uint16_t drop(uint16_t x, bool keep, double scale) {
  const float value = __uint_as_float(static_cast<uint32_t>(x) << 16);
  return static_cast<uint16_t>(pack(drop(value, keep, scale), 0.0f));
}

// As many elements as 16 bytes hold, whose words begin at `word`.
template <typename T>
__device__ __forceinline__ void drop_at_once(const T* x, T* y, const uint32_t* word, uint32_t threshold, double scale) {
  uint4 bytes = *reinterpret_cast<const uint4*>(x);
  T element[kAtOnce<T>];
  memcpy(element, &bytes, sizeof bytes);
#pragma unroll
  for (int i = 0; i < kAtOnce<T>; ++i) element[i] = drop(element[i], word[i] >= threshold, scale);
  memcpy(&bytes, element, sizeof bytes);
  *reinterpret_cast<uint4*>(y) = bytes;
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    dropout_kernel(const T* __restrict__ x, T* __restrict__ y, int64_t n, const int64_t* __restrict__ at, Draws draws,
                   double scale, bool at_once) {
  const int64_t first = (int64_t{blockIdx.x} * kThreads + threadIdx.x) * kPerThread;
  if (first >= n) return;
  const uint64_t step = static_cast<uint64_t>(*at);
  uint32_t word[kPerThread];
#pragma unroll
  for (int b = 0; b < kPerThread / 4; ++b) {
    const PhiloxBlock block = philox(draws.key, static_cast<uint64_t>(first / 4 + b), step);
#pragma unroll
    for (int i = 0; i < 4; ++i) word[4 * b + i] = block.word[i];
  }
  if (at_once && first + kPerThread <= n) {
#pragma unroll
    for (int i = 0; i < kPerThread; i += kAtOnce<T>) {
      drop_at_once(x + first + i, y + first + i, word + i, draws.threshold, scale);
    }
    return;
  }
#pragma unroll
  for (int i = 0; i < kPerThread; ++i) {
    if (first + i < n) y[first + i] = drop(x[first + i], word[i] >= draws.threshold, scale);
  }
}

template <typename T>
cudaError_t launch_dropout(const void* x, void* y, int64_t n, const int64_t* at, Draws draws, double scale,
                           cudaStream_t stream) {
  const unsigned blocks = static_cast<unsigned>(blocks_for(n, kThreads * kPerThread));
  return launch(dropout_kernel<T>, blocks, kThreads, 0, stream, static_cast<const T*>(x), static_cast<T*>(y), n, at,
                draws, scale, aligned(x) && aligned(y));
}

Tensor dropout(const Tensor& x, int64_t key, const Tensor& at, double p) {
  const double threshold = std::nearbyint(p * 4294967296.0);
  STD_TORCH_CHECK(p >= 0.0 && threshold < 4294967296.0, "dropout: p must be at least 0 and below 1, not ", p);
  STD_TORCH_CHECK(x.is_contiguous(), "dropout: x must be contiguous, its elements are numbered in memory order");
  STD_TORCH_CHECK(same_device(at, x) && at.numel() == 1 && at.scalar_type() == ScalarType::Long,
                  "dropout: at must be one int64 on x's device");
  const OnDeviceOf device(x);
  const Draws draws{static_cast<uint64_t>(key), static_cast<uint32_t>(threshold)};
  const int64_t* step = static_cast<const int64_t*>(at.const_data_ptr());
  Tensor y = torch::stable::empty_like(x);
  const auto run = [&](auto launch_typed) {
    check_launch(
        launch_typed(x.const_data_ptr(), y.mutable_data_ptr(), x.numel(), step, draws, 1.0 / (1.0 - p), device.stream),
        "dropout");
  };
  switch (x.scalar_type()) {
    case ScalarType::Float:
      run(launch_dropout<float>);
      break;
    case ScalarType::Double:
      run(launch_dropout<double>);
      break;
    case ScalarType::BFloat16:
      run(launch_dropout<uint16_t>);
      break;
    default:
      STD_TORCH_CHECK(false, "dropout: x must be float32, bfloat16 or float64, not ",
                      torch::headeronly::toString(x.scalar_type()));
  }
  return y;
}

}  // namespace

FT_CUDA_LIBRARY(m) { m.impl("dropout", TORCH_BOX(&dropout)); }

}  // namespace fasttransfer
