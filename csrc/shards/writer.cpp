#include "shards/writer.h"

#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "cpu/bitmask.h"
#include "shards/narrow.h"

namespace fasttransfer::shards {
namespace {

constexpr size_t kBuffer = 4 << 20;  // bytes that are written at once

}  // namespace

Writer::Writer(int file, const Identity& identity, Kind kind) : file_(file), kind_(kind), elements_(identity.elements) {
  buffer_.reserve(kBuffer);
  record_.resize(mask_bytes(elements_) + 2 * elements_);
  values_.resize(elements_);
  Header header{};
  std::memcpy(header.magic, kMagic, sizeof kMagic);
  header.version = kVersion;
  header.byte_order = kByteOrder;
  header.kind = static_cast<uint32_t>(kind);
  header.position = identity.position;
  header.first = identity.first;
  header.elements = static_cast<uint64_t>(identity.elements);
  std::memcpy(header.identity, identity.entry.data(), std::min(identity.entry.size(), kIdentity));
  header.checksum = own_checksum(header);
  header_checksum_ = header.checksum;
  put(&header, sizeof header);
}

void Writer::append(const uint16_t* x, int64_t n) {
  for (int64_t i = 0; i < n; ++i, x += elements_) {
    const void* from = x;
    Place place{at_, 2 * static_cast<uint64_t>(elements_), 0, static_cast<uint32_t>(elements_), 0, 0};
    if (kind_ == Kind::kPacked) {
      from = record_.data();
      pack(x, place);
    }
    place.checksum = checksum(from, place.size);
    index_.push_back(place);
    put(from, place.size);
    constexpr uint8_t kPadding[kAlign] = {};
    put(kPadding, (kAlign - at_ % kAlign) % kAlign);
  }
}

// To record_.
void Writer::pack(const uint16_t* x, Place& place) {
  uint8_t* const behind = record_.data() + mask_bytes(elements_);
  const int64_t count = make_mask(x, elements_, record_.data());
  compress(x, elements_, record_.data(), values_.data(), count);
  place.values = static_cast<uint32_t>(count);
  const int least = narrow(values_.data(), count, behind);
  if (least >= 0) {
    place.form = static_cast<uint16_t>(Form::kNarrow);
    place.least = static_cast<uint16_t>(least);
    place.size = mask_bytes(elements_) + narrow_bytes(count);
  } else {
    std::memcpy(behind, values_.data(), 2 * count);
    place.size = mask_bytes(elements_) + 2 * count;
  }
}

void Writer::finish() {
  Footer footer{};
  footer.index = at_;
  footer.records = index_.size();
  footer.index_checksum = checksum(index_.data(), index_.size() * sizeof(Place));
  footer.header_checksum = header_checksum_;
  footer.checksum = own_checksum(footer);
  std::memcpy(footer.end, kEnd, sizeof kEnd);
  put(index_.data(), index_.size() * sizeof(Place));
  put(&footer, sizeof footer);
  flush();
}

void Writer::put(const void* from, size_t bytes) {
  const auto* const begin = static_cast<const uint8_t*>(from);
  buffer_.insert(buffer_.end(), begin, begin + bytes);
  at_ += bytes;
  if (buffer_.size() >= kBuffer) flush();
}

void Writer::flush() {
  for (size_t done = 0; done < buffer_.size();) {
    const ssize_t wrote = ::write(file_, buffer_.data() + done, buffer_.size() - done);
    if (wrote < 0 && errno == EINTR) continue;
    if (wrote < 0) throw Refused(errno);
    done += static_cast<size_t>(wrote);
  }
  buffer_.clear();
}

}  // namespace fasttransfer::shards
