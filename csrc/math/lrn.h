// Caffe's local response normalisation across channels, for one value:
//   y_i = p_i * s_i^(-3/4),  s_i = 1 + alpha / 5 * (p_{i-2}^2 + ... + p_{i+2}^2)
// and its gradient
//   dp_i = g_i * s_i^(-3/4) - 2 * 3/4 * alpha / 5 * p_i * (t_{i-2} + ... + t_{i+2}),  t_j = g_j * p_j * s_j^(-7/4)
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "math/host_device.h"

namespace fasttransfer {

constexpr int kLrnReach = 2;  // channels on each side
constexpr double kLrnAlpha = 1e-4 / (2 * kLrnReach + 1);
constexpr double kLrnBeta = 0.75;

// s, from the sum of squares over the neighbourhood.
template <typename T>
FT_HOST_DEVICE inline T lrn_scale(T squares) {
  return T(1) + T(kLrnAlpha) * squares;
}

// s^(-3/4).
template <typename T>
FT_HOST_DEVICE inline T lrn_power(T scale) {
  const T root = T(1) / std::sqrt(scale);
  return root * std::sqrt(root);
}

// The same without the two roots and the division, the slowest instructions here: an estimate from the exponent, off by
// 4.5 % at most, and two steps that each cube the error. The relative error is 1.2e-7 at most, for scales from 1 to
// infinity, which counts as the largest number.
template <>
FT_HOST_DEVICE inline float lrn_power(float scale) {
  constexpr int32_t kInfinity = 0x7F800000;
  int32_t bits;
  std::memcpy(&bits, &scale, sizeof bits);
  bits -= bits == kInfinity;  // a NaN stays; a comparison of floats would keep GCC from vectorising with AVX2
  std::memcpy(&scale, &bits, sizeof scale);
  bits = 0x6F150000 - (bits >> 1) - (bits >> 2);
  float power;
  std::memcpy(&power, &bits, sizeof power);
  for (int step = 0; step < 2; ++step) {
    const float quarter = scale * power;                             // s^(1/4)
    const float off = 1.0f - quarter * quarter * (quarter * power);  // 0 where power^4 = s^-3
    power += power * off * (0.25f + 0.15625f * off);                 // (1 - off)^(-1/4), as a series
  }
  return power;
}

// t_j. `power` is s^(-3/4).
template <typename T>
FT_HOST_DEVICE inline T lrn_share(T gradient, T value, T scale, T power) {
  const T root = scale * power * power;  // s^(-1/2): no division
  return gradient * value * power * (root * root);
}

// dp_i. `shares` is the sum of t over the neighbourhood.
template <typename T>
FT_HOST_DEVICE inline T lrn_gradient(T gradient, T value, T power, T shares) {
  return gradient * power - T(2 * kLrnBeta * kLrnAlpha) * value * shares;
}

}  // namespace fasttransfer
