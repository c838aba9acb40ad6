// Philox4x32-10, one block at a time: the same function of (key, block, at) as fasttransfer/core/randomness.py.
// Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
#pragma once

#include <cstdint>

#include "math/host_device.h"

namespace fasttransfer {

struct PhiloxBlock {
  uint32_t word[4];
};

// Returns the block numbered `block` of the stream of `key` at `at` (a step or an epoch). The counter's four words
// are, low word first, `block` and then `at`.
FT_HOST_DEVICE inline PhiloxBlock philox(uint64_t key, uint64_t block, uint64_t at) {
  uint32_t c0 = static_cast<uint32_t>(block), c1 = static_cast<uint32_t>(block >> 32);
  uint32_t c2 = static_cast<uint32_t>(at), c3 = static_cast<uint32_t>(at >> 32);
  uint32_t k0 = static_cast<uint32_t>(key), k1 = static_cast<uint32_t>(key >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t product0 = static_cast<uint64_t>(0xD2511F53u) * c0;
    const uint64_t product1 = static_cast<uint64_t>(0xCD9E8D57u) * c2;
    c0 = static_cast<uint32_t>(product1 >> 32) ^ c1 ^ k0;
    c1 = static_cast<uint32_t>(product1);
    c2 = static_cast<uint32_t>(product0 >> 32) ^ c3 ^ k1;
    c3 = static_cast<uint32_t>(product0);
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return {{c0, c1, c2, c3}};
}

}  // namespace fasttransfer
