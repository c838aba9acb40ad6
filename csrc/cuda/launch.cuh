// How kernels are started, and what they share. Free of PyTorch. Kernels are started by a function and not by <<<>>>,
// so that tests/cuda/ can compile the same files with a C++ compiler and run them where there is no GPU.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

namespace fasttransfer {

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xFFFFFFFFu;
constexpr size_t kSharedByDefault = 48 * 1024;  // bytes a block may have without asking

// Starts `kernel` on `stream`; `shared` is in bytes. An empty grid is nothing to do.
template <typename... Parameters, typename... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared, cudaStream_t stream,
                   Arguments... arguments) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return cudaSuccess;
  if (shared > kSharedByDefault) {
    const cudaError_t error =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared));
    if (error != cudaSuccess) return error;
  }
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared;
  config.stream = stream;
  const cudaError_t error = cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...);
  // What went wrong has been reported: the next call that asks for the last error must not find it again.
  if (error != cudaSuccess) (void)cudaGetLastError();
  return error;
}

// The memory that launch() was asked for, aligned to 16 bytes.
__device__ __forceinline__ unsigned char* dynamic_shared() {
#ifdef __CUDACC__
  extern __shared__ uint4 memory[];
  return reinterpret_cast<unsigned char*>(memory);
#else
  return emulation::dynamic_shared();
#endif
}

inline int64_t blocks_for(int64_t work, int64_t per_block) { return (work + per_block - 1) / per_block; }

// What lies next to each other in memory and is read or written at once.
constexpr int kBytesAtOnce = 16;

inline bool aligned(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % kBytesAtOnce == 0; }

}  // namespace fasttransfer
