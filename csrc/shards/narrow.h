// bfloat16 values in 12 bits each, without loss, where their upper bytes lie within 16 of each other: a byte and half
// of one. Behind a ReLU there is no sign, so the upper byte is seven bits of the exponent, and 16 of them span a factor
// of 2^32 between the largest value of an image and the smallest: a trained network's features keep well within it.
#pragma once

#include <cstdint>

namespace fasttransfer::shards {

// Bytes that `count` values take: the lower byte of each, then the upper ones less their least, two to a byte. Byte i
// of these has value i's below and above that of the value half of all further on, so that whole registers of them
// part.
constexpr int64_t narrow_bytes(int64_t count) { return count + (count + 1) / 2; }

// Writes narrow_bytes(count) bytes and returns the least upper byte; returns -1 where the values are too far apart.
int narrow(const uint16_t* values, int64_t count, uint8_t* to);

// Widens the values again.
void widen(const uint8_t* from, int64_t count, int least, uint16_t* values);

}  // namespace fasttransfer::shards
