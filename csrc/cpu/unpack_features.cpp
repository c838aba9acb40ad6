// Unpacks masks and values into dense features, any images in any order.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <atomic>

#include "cpu/bitmask.h"
#include "packed_tensors.h"

namespace fasttransfer {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t kElementsPerThread = 65536;  // at least: less work ends before a second thread starts

Tensor unpack_features(const Tensor& mask, const Tensor& values, const Tensor& offsets, const Tensor& rows,
                       int64_t elements) {
  check_packed(mask, values, offsets, rows, elements);
  const int64_t n = mask.size(0), wanted = rows.size(0), bytes = mask.size(1), held = values.size(0);
  const uint8_t* const masks = static_cast<const uint8_t*>(mask.const_data_ptr());
  const uint16_t* const from = static_cast<const uint16_t*>(values.const_data_ptr());
  const int64_t* const starts = static_cast<const int64_t*>(offsets.const_data_ptr());
  const int64_t* const row = static_cast<const int64_t*>(rows.const_data_ptr());
  for (int64_t i = 0; i < wanted; ++i) {
    STD_TORCH_CHECK(row[i] >= 0 && row[i] < n, "unpack_features: image ", row[i], " is asked for, there are ", n);
    const int64_t begin = starts[row[i]], end = starts[row[i] + 1];
    STD_TORCH_CHECK(begin >= 0 && begin <= end && end <= held, "unpack_features: image ", row[i], " has values ", begin,
                    " to ", end, ", there are ", held);
  }
  Tensor y = torch::stable::empty({wanted, elements}, ScalarType::BFloat16);
  uint16_t* const to = static_cast<uint16_t*>(y.mutable_data_ptr());
  const int64_t grain = std::max<int64_t>(1, kElementsPerThread / std::max<int64_t>(1, elements));
  std::atomic<int64_t> bad{-1};
  torch::stable::parallel_for(0, wanted, grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const uint8_t* const its_mask = masks + row[i] * bytes;
      const int64_t first = starts[row[i]], count = starts[row[i] + 1] - first;
      if (is_mask_of(its_mask, elements, count)) {
        expand(its_mask, from + first, count, elements, to + i * elements);
      } else {
        bad = row[i];
      }
    }
  });
  STD_TORCH_CHECK(bad < 0, "unpack_features: the mask of image ", bad.load(), " does not fit its number of values");
  return y;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fasttransfer, CPU, m) { m.impl("unpack_features", TORCH_BOX(&unpack_features)); }

}  // namespace fasttransfer
