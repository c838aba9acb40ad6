// The types that an element is stored as and computed in: float and double are both; 16 bits are a bfloat16 that is
// computed in float.
#pragma once

#include <cstdint>

#include "cpu/dispatch.h"
#include "math/bf16.h"

namespace fasttransfer {

template <typename T>
struct Computed {
  using Type = T;
};

template <>
struct Computed<uint16_t> {
  using Type = float;
};

template <typename T>
using Wide = typename Computed<T>::Type;

FT_INLINE float widen(float x) { return x; }
FT_INLINE double widen(double x) { return x; }
FT_INLINE float widen(uint16_t x) { return bf16_to_float(x); }
FT_INLINE void narrow(float x, float* y) { *y = x; }
FT_INLINE void narrow(double x, double* y) { *y = x; }
FT_INLINE void narrow(float x, uint16_t* y) { *y = float_to_bf16(x); }

}  // namespace fasttransfer
