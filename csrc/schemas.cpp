// What operators there are. Where one runs natively, its kernel registers itself beside its code (cpu/, cuda/);
// everywhere else the reference in Python runs. fasttransfer/ops/native.py repeats these lines for when this
// library is missing.
//
// N images, C channels, H x W pixels, PH x PW the same after pooling, S the side of a stored image. Activations
// are (N, C, H, W) in channels-last memory. A key is 64 bits, taken as they are: Python hands over the signed number
// of the same bits. What changes from step to step is a tensor without dimensions, so that neither a compiled graph
// nor a recorded CUDA graph has to be made again.

#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(fasttransfer, m) {
  // shards: each (R_i, S, S, 3) uint8; rows, top, left: (N,) int64; mean: (S, S, 3) float32; mirror: (N,) bool
  // -> (N, 3 * block^2, side, side) of `dtype`
  m.def(
      "augment(Tensor[] shards, Tensor rows, Tensor mean, Tensor top, Tensor left, Tensor mirror, int crop, int block, "
      "int side, float scale, ScalarType dtype) -> Tensor");

  // x: (N, C, H, W); weight: (K, C / groups, kernel, kernel) of x's type; bias: (K,) float32 -> (N, K, PH, PW)
  m.def("conv_relu_pool_lrn(Tensor x, Tensor weight, Tensor bias, int stride, int padding, int groups) -> Tensor");

  // x: any shape, contiguous; at: () int64 -> y: the same shape and type
  m.def("dropout(Tensor x, SymInt key, Tensor at, float p) -> Tensor");

  // x: (N, E) bfloat16, contiguous -> mask: (N, ceil(E / 64) * 8) uint8, see math/bitmask.h; values: (K,) bfloat16,
  // those of all images that are not zero; offsets: (N + 1,) int64, image i has values offsets[i] to offsets[i + 1]
  m.def("pack_features(Tensor x) -> (Tensor mask, Tensor values, Tensor offsets)");

  // x: (N, C, H, W); bias: (C,) float32 -> y: (N, C, PH, PW); argmax: (N, PH, PW, ceil(C / 2)) uint8, channel 2i in
  // the low and 2i + 1 in the high half of byte i, see math/pool.h; without `keep` argmax has no elements
  m.def("relu_pool(Tensor x, Tensor bias, bool keep) -> (Tensor y, Tensor argmax)");
  m.def("relu_pool_backward(Tensor gradient, Tensor argmax, SymInt height, SymInt width) -> (Tensor dx, Tensor dbias)");

  // As relu_pool; pooled: (N, C, PH, PW), what is normalised; without `keep` it has no elements either
  m.def("relu_pool_lrn(Tensor x, Tensor bias, bool keep) -> (Tensor y, Tensor pooled, Tensor argmax)");
  m.def(
      "relu_pool_lrn_backward(Tensor gradient, Tensor pooled, Tensor argmax, SymInt height, SymInt width) -> (Tensor "
      "dx, Tensor dbias)");

  // image: (H, W, 3) uint8; the part of it from (top, left) on that has height x width -> (size, size, 3) uint8
  m.def("resize(Tensor image, int size, int top, int left, int height, int width) -> Tensor");

  // One tensor a parameter in each list, all of the same strides; weights, velocities: float32; gradients and copies:
  // float32 or bfloat16; copies may be an empty list; lr: () float32
  m.def(
      "sgd_step(Tensor(a!)[] weights, Tensor(b!)[] velocities, Tensor[] gradients, Tensor(c!)[] copies, Tensor lr, "
      "float momentum, float[] lr_scale, float[] decay) -> ()");

  // gradient: (N, K, OH, OW); x: (N, C, H, W); weight: (K, C / groups, kernel, kernel), all of one type -> dx: as x,
  // without `input` it has no elements; dweight: as weight
  m.def(
      "sparse_conv_backward(Tensor gradient, Tensor x, Tensor weight, int stride, int padding, int groups, bool input) "
      "-> (Tensor dx, Tensor dweight)");

  // What pack_features made; rows: (M,) int64, which images -> (M, elements) bfloat16
  m.def("unpack_features(Tensor mask, Tensor values, Tensor offsets, Tensor rows, SymInt elements) -> Tensor");
}
