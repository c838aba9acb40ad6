#include "shards/narrow.h"

#include <algorithm>

#include "cpu/dispatch.h"

namespace fasttransfer::shards {
namespace {

constexpr uint16_t kWindow = 16;  // upper bytes that half a byte tells apart

struct Range {
  uint16_t least, most;
};

FT_INLINE void find_upper_bytes(const uint16_t* values, int64_t count, Range* range) {
  uint16_t least = 0xffff, most = 0;
  for (int64_t i = 0; i < count; ++i) {
    least = std::min(least, values[i]);
    most = std::max(most, values[i]);
  }
  *range = {static_cast<uint16_t>(least >> 8), static_cast<uint16_t>(most >> 8)};
}

FT_INLINE void split(const uint16_t* values, int64_t count, int least, uint8_t* to) {
  const int64_t half = (count + 1) / 2, rest = count - half;
  const auto base = static_cast<uint16_t>(least << 8);
  uint8_t* const upper = to + count;
  FT_NO_ALIAS
  for (int64_t i = 0; i < count; ++i) to[i] = static_cast<uint8_t>(values[i]);
  FT_NO_ALIAS
  for (int64_t i = 0; i < rest; ++i) {
    const int low = (values[i] - base) >> 8, high = (values[half + i] - base) >> 8;
    upper[i] = static_cast<uint8_t>(low | high << 4);
  }
  if (rest < half) upper[rest] = static_cast<uint8_t>((values[rest] - base) >> 8);
}

FT_INLINE void join(const uint8_t* from, int64_t count, int least, uint16_t* values) {
  const int64_t half = (count + 1) / 2, rest = count - half;
  const auto base = static_cast<uint16_t>(least << 8);
  const uint8_t* const upper = from + count;
  FT_NO_ALIAS
  for (int64_t i = 0; i < half; ++i) values[i] = static_cast<uint16_t>(base + ((upper[i] & 15) << 8) + from[i]);
  FT_NO_ALIAS
  for (int64_t i = 0; i < rest; ++i) {
    values[half + i] = static_cast<uint16_t>(base + ((upper[i] >> 4) << 8) + from[half + i]);
  }
}

}  // namespace

int narrow(const uint16_t* values, int64_t count, uint8_t* to) {
  if (count == 0) return 0;
  Range range;
  dispatch(FT_FORM(find_upper_bytes), values, count, &range);
  if (range.most - range.least >= kWindow) return -1;
  dispatch(FT_FORM(split), values, count, range.least, to);
  return range.least;
}

void widen(const uint8_t* from, int64_t count, int least, uint16_t* values) {
  dispatch(FT_FORM(join), from, count, least, values);
}

}  // namespace fasttransfer::shards
