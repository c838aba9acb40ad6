// bfloat16 as its 16 bits, without branches, so that loops over it vectorise.
#pragma once

#include <cstdint>
#include <cstring>

#include "math/host_device.h"

namespace fasttransfer {

FT_HOST_DEVICE inline float bf16_to_float(uint16_t half) {
  const uint32_t bits = static_cast<uint32_t>(half) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// Rounds to nearest, ties to even; a NaN stays a NaN.
FT_HOST_DEVICE inline uint16_t float_to_bf16(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  const uint32_t rounded = bits + 0x7FFFu + ((bits >> 16) & 1u);
  return static_cast<uint16_t>(value == value ? rounded >> 16 : 0x7FC0u);
}

}  // namespace fasttransfer
