// A shard: features of a range of an entry's images, a record each, in one file that is written once and then only
// read. Little-endian.
//
//   header    128 bytes, whose last 8 are the checksum of the others
//
//   records   each begins at a multiple of 8 and is dense (2 E bytes) or packed: the mask of math/bitmask.h, then the
//             values, in 12 bits each as narrow.h has them, or in 16 where they are too far apart for that
//
//   index     32 bytes per record: where it begins, how long it is, its checksum, how many values, in which form
//
//   footer    48 bytes: where the index begins, how many records, the checksums of index and header, the checksum of
//             these four, then a mark that is written last
//
// Checksums are XXH3 of 64 bits. Whose features these are stands inside the header and the footer repeats its
// checksum, so that a file, or half of one, that takes another's place is noticed.
#pragma once

#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>

#include "shards/checksum.h"

namespace fasttransfer::shards {

constexpr char kMagic[8] = {'\x89', 'F', 'T', 'S', '\r', '\n', '\x1a', '\n'};
constexpr char kEnd[8] = {'F', 'T', 'S', '-', 'e', 'n', 'd', '\n'};
constexpr uint32_t kVersion = 2;
constexpr uint32_t kByteOrder = 0x01020304;
constexpr uint32_t kOtherByteOrder = 0x04030201;
constexpr int64_t kAlign = 8;  // bytes
constexpr size_t kIdentity = 64;

enum class Kind : uint32_t { kDense = 0, kPacked = 1 };

// Where magic, version, byte order and checksum stand is the same in every version.
struct Header {
  char magic[8];
  uint32_t version, byte_order;
  uint32_t kind;
  uint32_t position;         // which shard of the entry this is, from 0
  uint64_t first;            // number in the entry of its first record
  uint64_t elements;         // of an image
  char identity[kIdentity];  // the entry's, filled up with 0
  uint64_t reserved[2];
  uint64_t checksum;
};
static_assert(sizeof(Header) == 128);

enum class Form : uint16_t { kPlain = 0, kNarrow = 1 };

struct Place {
  uint64_t offset, size, checksum;
  uint32_t values;
  uint16_t form;
  uint16_t least;  // upper byte of a narrow record's values
};
static_assert(sizeof(Place) == 32);

struct Footer {
  uint64_t index, records, index_checksum, header_checksum, checksum;
  char end[8];
};
static_assert(sizeof(Footer) == 48);

// The checksum of what comes before `checksum` in a header or footer.
template <typename Part>
uint64_t own_checksum(const Part& part) {
  const auto* const begin = reinterpret_cast<const uint8_t*>(&part);
  return checksum(begin, reinterpret_cast<const uint8_t*>(&part.checksum) - begin);
}

// A file that was changed after writing, or is another one than expected; the message begins with its path.
struct Damaged : std::runtime_error {
  Damaged(const std::string& path, const std::string& what) : std::runtime_error(path + ": " + what) {}
};

// A system error about a file, which becomes an OSError in Python.
struct Refused : std::runtime_error {
  explicit Refused(int number, const std::string& path = "")
      : std::runtime_error(std::strerror(number)), number(number), path(path) {}

  int number;
  std::string path;
};

// The expected entry, and the number of the shard in it.
struct Identity {
  std::string entry;  // at most kIdentity bytes
  uint32_t position;
  uint64_t first;
  int64_t elements;
};

}  // namespace fasttransfer::shards
