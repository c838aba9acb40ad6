// Caffe's SGD for all parameters in one pass over each array: decay, momentum, update, and the copy that the next
// forward pass reads. The many parameters of a network take few launches: each has a table of parameters.

#include <algorithm>
#include <vector>

#include "cuda/elements.cuh"
#include "cuda/launch.cuh"
#include "cuda/tensors.h"
#include "math/sgd.h"
#include "sgd_tensors.h"

namespace fasttransfer {
namespace {

constexpr int kThreads = 256;
constexpr int kAtATime = 4;  // weights: 16 bytes
constexpr int kChunk = kThreads * kAtATime * 4;
constexpr int kPerLaunch = 32;  // parameters: the table stays below the 4 KB that every GPU takes with a launch

enum class Copy : uint8_t { kNone, kFloat, kBf16 };

struct Parameter {
  float *weight, *velocity;
  const void* gradient;
  void* copy;
  int64_t size;
  float lr_scale, decay;
  bool bf16_gradient, at_once;
  Copy copied;
};

struct Table {
  Parameter parameter[kPerLaunch];
  unsigned last_block[kPerLaunch];  // the first block after each parameter's
  int count;
};
static_assert(sizeof(Table) + 64 <= 4096);

template <int V, typename Gradient>
__device__ __forceinline__ void update(const Parameter& parameter, SgdRule rule, int64_t at) {
  float weight[V], velocity[V], gradient[V];
  load(parameter.weight + at, weight);
  load(parameter.velocity + at, velocity);
  load(static_cast<const Gradient*>(parameter.gradient) + at, gradient);
#pragma unroll
  for (int i = 0; i < V; ++i) sgd(rule, gradient[i], weight[i], velocity[i]);
  store(parameter.weight + at, weight);
  store(parameter.velocity + at, velocity);
  if (parameter.copied == Copy::kFloat) store(static_cast<float*>(parameter.copy) + at, weight);
  if (parameter.copied == Copy::kBf16) store(static_cast<uint16_t*>(parameter.copy) + at, weight);
}

template <int V>
__device__ __forceinline__ void update_chunk(const Parameter& parameter, SgdRule rule, int64_t begin, int64_t end) {
  for (int64_t at = begin + int64_t{threadIdx.x} * V; at + V <= end; at += kThreads * V) {
    if (parameter.bf16_gradient) {
      update<V, uint16_t>(parameter, rule, at);
    } else {
      update<V, float>(parameter, rule, at);
    }
  }
}

__global__ void __launch_bounds__(kThreads)
    sgd_kernel(const __grid_constant__ Table table, const float* __restrict__ lr, float momentum) {
  int which = 0;
  while (blockIdx.x >= table.last_block[which]) ++which;
  const Parameter& parameter = table.parameter[which];
  const unsigned chunk = blockIdx.x - (which == 0 ? 0 : table.last_block[which - 1]);
  const int64_t begin = int64_t{chunk} * kChunk;
  const int64_t end = begin + kChunk < parameter.size ? begin + kChunk : parameter.size;
  const SgdRule rule{*lr * parameter.lr_scale, momentum, parameter.decay};
  int64_t done = begin;
  if (parameter.at_once) {
    update_chunk<kAtATime>(parameter, rule, begin, end);
    done = end - (end - begin) % kAtATime;
  }
  update_chunk<1>(parameter, rule, done, end);
}

cudaError_t launch_sgd(const std::vector<Parameter>& parameters, const float* lr, float momentum, cudaStream_t stream) {
  for (size_t first = 0; first < parameters.size(); first += kPerLaunch) {
    Table table{};
    table.count = static_cast<int>(std::min<size_t>(kPerLaunch, parameters.size() - first));
    unsigned blocks = 0;
    for (int i = 0; i < table.count; ++i) {
      table.parameter[i] = parameters[first + i];
      blocks += static_cast<unsigned>(blocks_for(table.parameter[i].size, kChunk));
      table.last_block[i] = blocks;
    }
    const cudaError_t error = launch(sgd_kernel, blocks, kThreads, 0, stream, table, lr, momentum);
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

void sgd_step(const std::vector<Tensor>& weights, const std::vector<Tensor>& velocities,
              const std::vector<Tensor>& gradients, const std::vector<Tensor>& copies, const Tensor& lr,
              double momentum, const std::vector<double>& lr_scale, const std::vector<double>& decay) {
  check_sgd(weights, velocities, gradients, copies, lr, lr_scale, decay);
  std::vector<Parameter> parameters;
  for (size_t i = 0; i < weights.size(); ++i) {
    Parameter p{static_cast<float*>(weights[i].mutable_data_ptr()),
                static_cast<float*>(velocities[i].mutable_data_ptr()),
                gradients[i].const_data_ptr(),
                nullptr,
                weights[i].numel(),
                static_cast<float>(lr_scale[i]),
                static_cast<float>(decay[i]),
                gradients[i].scalar_type() == ScalarType::BFloat16,
                false,
                Copy::kNone};
    if (!copies.empty()) {
      p.copy = copies[i].mutable_data_ptr();
      p.copied = copies[i].scalar_type() == ScalarType::Float ? Copy::kFloat : Copy::kBf16;
    }
    p.at_once = aligned(p.weight) && aligned(p.velocity) && aligned(p.gradient) && aligned(p.copy);
    if (p.size > 0) parameters.push_back(p);
  }
  const OnDeviceOf device(lr);
  check_launch(launch_sgd(parameters, static_cast<const float*>(lr.const_data_ptr()), static_cast<float>(momentum),
                          device.stream),
               "sgd_step");
}

}  // namespace

FT_CUDA_LIBRARY(m) { m.impl("sgd_step", TORCH_BOX(&sgd_step)); }

}  // namespace fasttransfer
