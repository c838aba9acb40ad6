// y = x * keep / (1 - p): word i of a Philox stream decides about element i, so that the forward pass stores
// nothing for the backward pass, which is the same operator on the gradient.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cmath>

#include "cpu/dispatch.h"
#include "cpu/element.h"
#include "math/philox.h"

namespace fasttransfer {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

struct Draws {
  uint64_t key, at;
  uint32_t threshold;  // words of at least this keep their element
};

constexpr int64_t kBlocks = 128;           // of four words, drawn at a time: the words stay in the L1 cache
constexpr int64_t kChunk = 4 * kBlocks;    // elements
constexpr int64_t kChunksPerThread = 128;  // at least: less work ends before a second thread starts

// Chunks `begin` to `end` of n elements.
template <typename T>
FT_INLINE void drop(const T* x, T* y, int64_t n, int64_t begin, int64_t end, Draws draws, Wide<T> scale) {
  uint32_t planes[4][kBlocks];
  uint32_t words[kChunk];
  for (int64_t chunk = begin; chunk < end; ++chunk) {
    for (int64_t b = 0; b < kBlocks; ++b) {
      const PhiloxBlock block = philox(draws.key, static_cast<uint64_t>(chunk * kBlocks + b), draws.at);
      for (int lane = 0; lane < 4; ++lane) planes[lane][b] = block.word[lane];
    }
    for (int64_t b = 0; b < kBlocks; ++b) {
      for (int lane = 0; lane < 4; ++lane) words[4 * b + lane] = planes[lane][b];
    }
    const int64_t first = chunk * kChunk;
    const int64_t count = std::min(kChunk, n - first);
    for (int64_t i = 0; i < count; ++i) {
      const Wide<T> kept = widen(x[first + i]) * scale;
      narrow(words[i] >= draws.threshold ? kept : Wide<T>(0), y + first + i);
    }
  }
}

template <typename T>
void run(const Tensor& x, Tensor& y, Draws draws, double scale) {
  const T* from = static_cast<const T*>(x.const_data_ptr());
  T* to = static_cast<T*>(y.mutable_data_ptr());
  const int64_t n = x.numel();
  const int64_t chunks = (n + kChunk - 1) / kChunk;
  torch::stable::parallel_for(0, chunks, kChunksPerThread, [&](int64_t begin, int64_t end) {
    dispatch(FT_FORM(drop), from, to, n, begin, end, draws, static_cast<Wide<T>>(scale));
  });
}

Tensor dropout(const Tensor& x, int64_t key, const Tensor& at, double p) {
  const double threshold = std::nearbyint(p * 4294967296.0);
  STD_TORCH_CHECK(p >= 0.0 && threshold < 4294967296.0, "dropout: p must be at least 0 and below 1, not ", p);
  STD_TORCH_CHECK(x.is_contiguous(), "dropout: x must be contiguous, its elements are numbered in memory order");
  STD_TORCH_CHECK(at.is_cpu() && at.numel() == 1 && at.scalar_type() == ScalarType::Long,
                  "dropout: at must be one int64 on cpu");
  const uint64_t step = *static_cast<const uint64_t*>(at.const_data_ptr());
  const Draws draws{static_cast<uint64_t>(key), step, static_cast<uint32_t>(threshold)};
  const double scale = 1.0 / (1.0 - p);
  Tensor y = torch::stable::empty_like(x);
  switch (x.scalar_type()) {
    case ScalarType::Float:
      run<float>(x, y, draws, scale);
      break;
    case ScalarType::Double:
      run<double>(x, y, draws, scale);
      break;
    case ScalarType::BFloat16:
      run<uint16_t>(x, y, draws, scale);
      break;
    default:
      STD_TORCH_CHECK(false, "dropout: x must be float32, bfloat16 or float64, not ",
                      torch::headeronly::toString(x.scalar_type()));
  }
  return y;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fasttransfer, CPU, m) { m.impl("dropout", TORCH_BOX(&dropout)); }

}  // namespace fasttransfer
