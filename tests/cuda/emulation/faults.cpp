// Kernels that make mistakes, for the emulation to find.

#include <cuda_runtime.h>

#include <memory>

namespace {

void start(void (*kernel)(unsigned*), unsigned threads, size_t shared, unsigned* argument) {
  cudaLaunchConfig_t config{};
  config.blockDim = threads;
  config.dynamicSmemBytes = shared;
  cudaLaunchKernelEx(&config, kernel, argument);
}

unsigned* shared() { return reinterpret_cast<unsigned*>(emulation::dynamic_shared()); }

void write_shared(unsigned*) { shared()[threadIdx.x] = threadIdx.x; }

void write_global(unsigned* to) { to[threadIdx.x] = threadIdx.x; }

void read_wide(unsigned* from) { from[0] = reinterpret_cast<const uint4*>(from + 1)->x; }

void leave_early(unsigned*) {
  if (threadIdx.x == 3) return;
  __syncthreads();
}

void ask_absent(unsigned* to) {
  if (threadIdx.x < 16) to[threadIdx.x] = __shfl_sync(0xFFFFu, threadIdx.x, 20);
}

template <bool kBarrier>
void sum(unsigned* to) {
  shared()[threadIdx.x] = threadIdx.x;
  if (kBarrier) __syncthreads();
  if (threadIdx.x == 17) {
    to[0] = 0;
    for (unsigned i = 0; i < blockDim.x; ++i) to[0] += shared()[i];
  }
}

}  // namespace

extern "C" {

void beyond_shared() { start(write_shared, 64, 63 * sizeof(unsigned), nullptr); }

void beyond_global() {
  const auto memory = std::make_unique<unsigned[]>(63);
  start(write_global, 64, 0, memory.get());
}

void misaligned() {
  alignas(16) unsigned memory[8] = {};
  start(read_wide, 1, 0, memory);
}

void missed_barrier() { start(leave_early, 64, 0, nullptr); }

void absent_lane() {
  unsigned memory[32];
  start(ask_absent, 32, 0, memory);
}

unsigned shared_sum(int barrier) {
  unsigned total;
  start(barrier ? sum<true> : sum<false>, 64, 64 * sizeof(unsigned), &total);
  return total;
}
}
