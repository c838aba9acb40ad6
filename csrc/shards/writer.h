// Writes one shard into a file that the caller opens, flushes and renames: see fasttransfer/core/files.py.
#pragma once

#include <cstdint>
#include <vector>

#include "shards/format.h"

namespace fasttransfer::shards {

class Writer {
 public:
  // Of features `kind`, into `file`, which is at its beginning.
  Writer(int file, const Identity& identity, Kind kind);

  // `n` images, each a record. Throws Refused if the disk refuses.
  void append(const uint16_t* x, int64_t n);

  // Index and footer: the shard is whole. Nothing may be called after it.
  void finish();

  int64_t records() const { return static_cast<int64_t>(index_.size()); }
  int64_t bytes() const { return static_cast<int64_t>(at_); }  // so far

 private:
  void pack(const uint16_t* x, Place& place);
  void put(const void* from, size_t bytes);
  void flush();

  int file_;
  Kind kind_;
  int64_t elements_;
  uint64_t header_checksum_;
  uint64_t at_ = 0;  // bytes, those in the buffer included
  std::vector<Place> index_;
  std::vector<uint8_t> buffer_;
  std::vector<uint8_t> record_;
  std::vector<uint16_t> values_;
};

}  // namespace fasttransfer::shards
