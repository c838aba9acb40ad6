// The checksum of shards: XXH3 of 64 bits, without a seed.
#pragma once

#include <cstddef>
#include <cstdint>

namespace fasttransfer::shards {

uint64_t checksum(const void* data, size_t size);

}  // namespace fasttransfer::shards
