// The part of CUDA that csrc/cuda/ uses, for a C++ compiler: it stands before CUDA's own header on the include path,
// and kernels run on the CPU. The threads of a block are fibers that give way only where they wait for each other, so a
// run is exactly repeatable; blocks run one after another. In which order the threads run, and the blocks, can be
// chosen: a result that depends on it is a race. What is waited for and never comes ends the program.
//
// This is a reading of CUDA's rules, not a GPU: docs/decisions/cuda-library.md says what it cannot show.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <utility>

#define __global__
#define __device__
#define __host__
#define __shared__ static  // one block runs at a time
#define __constant__ static
#define __forceinline__ inline
#define __grid_constant__
#define __launch_bounds__(...)
#define __align__(bytes) alignas(bytes)
#ifndef __restrict__
#define __restrict__ __restrict
#endif

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

struct uint3 {
  unsigned x, y, z;
};

extern dim3 gridDim, blockDim;
extern uint3 blockIdx, threadIdx;
constexpr int warpSize = 32;

using cudaStream_t = void*;
enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidConfiguration = 9 };
enum cudaMemcpyKind { cudaMemcpyDeviceToHost = 2 };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };

struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
};

namespace emulation {

// Calls `thread` for every thread of every block.
cudaError_t run(const cudaLaunchConfig_t& config, const std::function<void()>& thread);

// Where the running thread waits: for its block, or for the lanes of `mask` in its warp.
void wait_for_block();
void wait_for_warp(unsigned mask);

// After all lanes of `mask` have brought `bytes` bytes: what `lane` brought.
void exchange(unsigned mask, const void* mine, void* theirs, size_t bytes, int lane);

int this_lane();
unsigned char* dynamic_shared();

// `mine` where there is no such lane, as a shuffle has it.
template <typename T>
T from_lane(unsigned mask, T mine, int lane) {
  T theirs;
  exchange(mask, &mine, &theirs, sizeof(T), lane >= 0 && lane < warpSize ? lane : this_lane());
  return theirs;
}

}  // namespace emulation

inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaSuccess ? "no error" : "invalid configuration argument";
}

inline cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind, cudaStream_t) {
  std::memcpy(to, from, bytes);
  return cudaSuccess;
}
inline cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }

template <typename Kernel>
cudaError_t cudaFuncSetAttribute(Kernel*, cudaFuncAttribute, int) {
  return cudaSuccess;
}

template <typename... Parameters, typename... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments&&... arguments) {
  return emulation::run(*config, [&] { kernel(static_cast<Parameters>(arguments)...); });
}

inline void __syncthreads() { emulation::wait_for_block(); }
inline void __syncwarp(unsigned mask = 0xFFFFFFFFu) { emulation::wait_for_warp(mask); }

template <typename T>
T __shfl_sync(unsigned mask, T value, int lane) {
  return emulation::from_lane(mask, value, lane % warpSize);
}
template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned by) {
  return emulation::from_lane(mask, value, emulation::this_lane() - static_cast<int>(by));
}
template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned by) {
  return emulation::from_lane(mask, value, emulation::this_lane() + static_cast<int>(by));
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int with) {
  return emulation::from_lane(mask, value, emulation::this_lane() ^ with);
}

template <typename T>
T __ldg(const T* from) {
  return *from;
}

inline float __uint_as_float(unsigned bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}
inline unsigned __float_as_uint(float value) {
  unsigned bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}
