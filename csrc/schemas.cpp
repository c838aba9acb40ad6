// What operators there are. Where one runs natively, its kernel registers itself beside its code (cpu/);
// everywhere else the reference in Python runs. fasttransfer/native.py repeats these lines for when this
// library is missing.

#include <torch/csrc/stable/library.h>

// A key is 64 bits, taken as they are: Python hands over the signed number of the same bits. SymInt instead
// of int lets a compiled graph see `at` change from step to step without being compiled again.
STABLE_TORCH_LIBRARY(fasttransfer, m) {
  // x: any shape, contiguous -> y: the same shape and type
  m.def("dropout(Tensor x, SymInt key, SymInt at, float p) -> Tensor");
}
