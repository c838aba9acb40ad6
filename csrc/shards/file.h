// One shard, mapped into memory and checked: header, footer and index when it is opened, each record when it is read.
#pragma once

#include <cstdint>
#include <string>

#include "shards/format.h"

namespace fasttransfer::shards {

class File {
 public:
  // Opens the shard at `path`. Throws Damaged if it is not whole or not the one that `expected` names, and
  // Refused if the system cannot read it.
  File(std::string path, const Identity& expected);
  ~File();
  File(const File&) = delete;
  File& operator=(const File&) = delete;

  int64_t records() const { return records_; }
  int64_t bytes() const { return static_cast<int64_t>(size_); }

  // The number of values of record `i`: all of its elements if they are dense.
  int64_t values(int64_t i) const { return index_[i].values; }

  // Record `i`, unpacked to `to`, which has room for an image. Throws Damaged.
  void read_dense(int64_t i, uint16_t* to) const;

  // Record `i`, packed: its mask and values(i) values. Throws Damaged; only for shards that are packed.
  void read_packed(int64_t i, uint8_t* mask, uint16_t* to) const;

  bool is_packed() const { return kind_ == Kind::kPacked; }

 private:
  const uint8_t* verified(int64_t i) const;
  void check(const Identity& expected);
  void check_index() const;
  uint64_t size_of(const Place& place) const;
  bool is_narrow(int64_t i) const { return index_[i].form == static_cast<uint16_t>(Form::kNarrow); }
  [[noreturn]] void damaged(const std::string& what) const;

  std::string path_;
  const uint8_t* data_ = nullptr;
  size_t size_ = 0;
  const Place* index_ = nullptr;
  int64_t records_ = 0, elements_ = 0;
  Kind kind_ = Kind::kDense;
};

}  // namespace fasttransfer::shards
