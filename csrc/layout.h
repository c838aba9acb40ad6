// Checks of tensors' memory layout, for the host sides of the operators on every device.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

namespace fasttransfer {

// Returns whether a 4-d tensor is channels-last: channels are contiguous, then columns, rows and images. A side of 1
// may have any stride.
inline bool is_channels_last(const torch::stable::Tensor& x) {
  if (x.dim() != 4) return false;
  if (x.numel() == 0) return true;
  int64_t expected = 1;
  for (const int d : {1, 3, 2, 0}) {
    if (x.size(d) != 1 && x.stride(d) != expected) return false;
    expected *= x.size(d);
  }
  return true;
}

// Returns whether x covers its memory from the first to the last element without gaps or overlaps.
inline bool is_dense(const torch::stable::Tensor& x) {
  if (x.numel() == 0) return true;
  std::vector<std::pair<int64_t, int64_t>> sides;  // stride, size
  for (int64_t d = 0; d < x.dim(); ++d) {
    if (x.size(d) != 1) sides.emplace_back(x.stride(d), x.size(d));
  }
  std::sort(sides.begin(), sides.end());
  int64_t expected = 1;
  for (const auto& [stride, size] : sides) {
    if (stride != expected) return false;
    expected *= size;
  }
  return true;
}

// Returns whether both tensors have their elements in the same order in memory. A side of 1 may have any stride.
inline bool lie_alike(const torch::stable::Tensor& a, const torch::stable::Tensor& b) {
  if (a.dim() != b.dim()) return false;
  for (int64_t d = 0; d < a.dim(); ++d) {
    if (a.size(d) != b.size(d) || (a.size(d) != 1 && a.stride(d) != b.stride(d))) return false;
  }
  return true;
}

}  // namespace fasttransfer
