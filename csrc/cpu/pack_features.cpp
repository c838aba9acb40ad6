// Packs features into masks and values. Two passes over the images, since the place of an image's values depends on all
// images before it: the first makes the masks and counts, the second moves the values, with much of x still cached.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <tuple>

#include "cpu/bitmask.h"
#include "packed_tensors.h"

namespace fasttransfer {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t kElementsPerThread = 65536;  // at least: less work ends before a second thread starts

std::tuple<Tensor, Tensor, Tensor> pack_features(const Tensor& x) {
  check_dense(x);
  const int64_t n = x.size(0), elements = x.size(1), bytes = mask_bytes(elements);
  Tensor mask = torch::stable::empty({n, bytes}, ScalarType::Byte);
  Tensor offsets = torch::stable::empty({n + 1}, ScalarType::Long);
  const uint16_t* const from = static_cast<const uint16_t*>(x.const_data_ptr());
  uint8_t* const masks = static_cast<uint8_t*>(mask.mutable_data_ptr());
  int64_t* const starts = static_cast<int64_t*>(offsets.mutable_data_ptr());
  const int64_t grain = std::max<int64_t>(1, kElementsPerThread / std::max<int64_t>(1, elements));
  torch::stable::parallel_for(0, n, grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      starts[i + 1] = make_mask(from + i * elements, elements, masks + i * bytes);
    }
  });
  starts[0] = 0;
  for (int64_t i = 0; i < n; ++i) starts[i + 1] += starts[i];

  Tensor values = torch::stable::empty({starts[n]}, ScalarType::BFloat16);
  uint16_t* const to = static_cast<uint16_t*>(values.mutable_data_ptr());
  torch::stable::parallel_for(0, n, grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      compress(from + i * elements, elements, masks + i * bytes, to + starts[i], starts[i + 1] - starts[i]);
    }
  });
  return {mask, values, offsets};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fasttransfer, CPU, m) { m.impl("pack_features", TORCH_BOX(&pack_features)); }

}  // namespace fasttransfer
