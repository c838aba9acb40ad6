// Shared by the operators' host sides: the stream, checks of arguments, and the allocation of results.
#pragma once

#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>

#include "layout.h"

// The second way to compile is that of tests/cuda/: kernels on the CPU, beside the library's own.
#ifdef __CUDACC__
#define FT_CUDA_LIBRARY(m) STABLE_TORCH_LIBRARY_IMPL(fasttransfer, CUDA, m)
#else
#define FT_CUDA_LIBRARY(m) STABLE_TORCH_LIBRARY_IMPL(fasttransfer_emulated, CPU, m)
#endif

namespace fasttransfer {

using torch::headeronly::MemoryFormat;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Makes the device of a tensor the current one while it lives; `stream` is PyTorch's current stream there.
class OnDeviceOf {
 public:
#ifdef __CUDACC__
  explicit OnDeviceOf(const Tensor& tensor) : guard_(tensor.get_device_index()) {
    void* current = nullptr;
    const AOTITorchError error = aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &current);
    STD_TORCH_CHECK(error == AOTI_TORCH_SUCCESS, "PyTorch has no current stream on device ", tensor.get_device_index());
    stream = static_cast<cudaStream_t>(current);
  }
#else
  explicit OnDeviceOf(const Tensor&) {}
#endif

  cudaStream_t stream = nullptr;

#ifdef __CUDACC__
 private:
  torch::stable::accelerator::DeviceGuard guard_;
#endif
};

inline void check_launch(cudaError_t error, const char* name) {
  STD_TORCH_CHECK(error == cudaSuccess, name, ": the kernel could not be started: ", cudaGetErrorString(error));
}

inline bool same_device(const Tensor& a, const Tensor& b) { return a.device() == b.device(); }

inline Tensor empty_channels_last(const Tensor& like, int64_t n, int64_t channels, int64_t height, int64_t width) {
  return torch::stable::empty({n, channels, height, width}, like.scalar_type(), std::nullopt, like.device(),
                              std::nullopt, MemoryFormat::ChannelsLast);
}

}  // namespace fasttransfer
