// Caffe's SGD over all parameters in one pass: each array is read once and written once, and the copy for the next
// forward pass is rounded while its weight is still in a register. The parameters are cut into chunks and laid end to
// end, so that one call is one parallel loop: threads share large parameters, and small ones cost little.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstddef>
#include <type_traits>
#include <utility>
#include <vector>

#include "cpu/dispatch.h"
#include "cpu/element.h"
#include "math/sgd.h"
#include "sgd_tensors.h"

namespace fasttransfer {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t kChunk = 16384;        // elements
constexpr int64_t kChunksPerThread = 4;  // at least: less work ends before a second thread starts

struct Parameter {
  float* weight;
  float* velocity;
  const void* gradient;
  void* copy;  // or null
  int64_t size;
  SgdRule rule;
  void (*update)(const Parameter&, int64_t begin, int64_t end);  // elements in memory order
};

// Gradient, Copy: what is stored; a Copy of void is none.
template <typename Gradient, typename Copy>
FT_INLINE void update_inline(const Parameter& parameter, int64_t begin, int64_t end) {
  const SgdRule rule = parameter.rule;
  float* __restrict weight = parameter.weight;
  float* __restrict velocity = parameter.velocity;
  const Gradient* __restrict gradient = static_cast<const Gradient*>(parameter.gradient);
  Copy* __restrict copy = static_cast<Copy*>(parameter.copy);
  for (int64_t i = begin; i < end; ++i) {
    float w = weight[i], v = velocity[i];
    sgd(rule, widen(gradient[i]), w, v);
    weight[i] = w;
    velocity[i] = v;
    if constexpr (!std::is_void_v<Copy>) narrow(w, copy + i);
  }
}

template <typename Gradient, typename Copy>
void update(const Parameter& parameter, int64_t begin, int64_t end) {
  dispatch(FT_FORM(update_inline<Gradient, Copy>), parameter, begin, end);
}

void sgd_step(const std::vector<Tensor>& weights, const std::vector<Tensor>& velocities,
              const std::vector<Tensor>& gradients, const std::vector<Tensor>& copies, const Tensor& lr,
              double momentum, const std::vector<double>& lr_scale, const std::vector<double>& decay) {
  const size_t count = weights.size();
  check_sgd(weights, velocities, gradients, copies, lr, lr_scale, decay);
  const float rate = *static_cast<const float*>(lr.const_data_ptr());

  // Indexed by whether the gradient is bfloat16, and by what the copy is: none, float32, bfloat16.
  constexpr decltype(Parameter::update) updates[2][3] = {
      {update<float, void>, update<float, float>, update<float, uint16_t>},
      {update<uint16_t, void>, update<uint16_t, float>, update<uint16_t, uint16_t>}};
  std::vector<Parameter> parameters;
  std::vector<int64_t> starts{0};  // the first chunk of each parameter, then how many there are
  for (size_t i = 0; i < count; ++i) {
    const bool rounded = gradients[i].scalar_type() == ScalarType::BFloat16;
    const int kind = copies.empty() ? 0 : copies[i].scalar_type() == ScalarType::Float ? 1 : 2;
    const SgdRule rule{rate * static_cast<float>(lr_scale[i]), static_cast<float>(momentum),
                       static_cast<float>(decay[i])};
    const int64_t size = weights[i].numel();
    parameters.push_back({static_cast<float*>(weights[i].mutable_data_ptr()),
                          static_cast<float*>(velocities[i].mutable_data_ptr()), gradients[i].const_data_ptr(),
                          copies.empty() ? nullptr : copies[i].mutable_data_ptr(), size, rule, updates[rounded][kind]});
    starts.push_back(starts.back() + (size + kChunk - 1) / kChunk);
  }

  torch::stable::parallel_for(0, starts.back(), kChunksPerThread, [&](int64_t begin, int64_t end) {
    // The parameter that chunk `begin` belongs to.
    size_t i = std::upper_bound(starts.begin(), starts.end(), begin) - starts.begin() - 1;
    for (; begin < end; ++i) {
      const Parameter& parameter = parameters[i];
      const int64_t stop = std::min(end, starts[i + 1]);
      parameter.update(parameter, (begin - starts[i]) * kChunk, std::min(parameter.size, (stop - starts[i]) * kChunk));
      begin = stop;
    }
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fasttransfer, CPU, m) { m.impl("sgd_step", TORCH_BOX(&sgd_step)); }

}  // namespace fasttransfer
