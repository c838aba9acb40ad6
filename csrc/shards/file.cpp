#include "shards/file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <utility>
#include <vector>

#include "cpu/bitmask.h"
#include "shards/narrow.h"

namespace fasttransfer::shards {
namespace {

std::string text(uint64_t number) { return std::to_string(number); }

struct Closed {  // at the end of the scope: a mapping needs its file no longer
  int file;
  ~Closed() { ::close(file); }
};

}  // namespace

File::File(std::string path, const Identity& expected) : path_(std::move(path)) {
  const int file = ::open(path_.c_str(), O_RDONLY | O_CLOEXEC);
  if (file < 0) throw Refused(errno, path_);
  const Closed closed{file};
  struct stat status;
  if (::fstat(file, &status) != 0) throw Refused(errno, path_);
  size_ = static_cast<size_t>(status.st_size);
  if (size_ < sizeof(Header) + sizeof(Footer)) damaged("cut short, it has " + text(size_) + " bytes");
  void* const mapped = ::mmap(nullptr, size_, PROT_READ, MAP_SHARED, file, 0);
  if (mapped == MAP_FAILED) throw Refused(errno, path_);
  data_ = static_cast<const uint8_t*>(mapped);
  try {
    check(expected);
  } catch (...) {
    ::munmap(mapped, size_);
    throw;
  }
}

File::~File() { ::munmap(const_cast<uint8_t*>(data_), size_); }

void File::damaged(const std::string& what) const { throw Damaged(path_, what); }

void File::check(const Identity& expected) {
  Header header;
  std::memcpy(&header, data_, sizeof header);
  if (std::memcmp(header.magic, kMagic, sizeof kMagic) != 0) damaged("not a shard of features");
  if (header.byte_order == kOtherByteOrder) damaged("written on a machine whose bytes have the other order");
  if (header.checksum != own_checksum(header)) damaged("damaged: its header does not match its checksum");
  if (header.version > kVersion) {
    damaged("written by a newer fasttransfer (format " + text(header.version) + ", this one reads " + text(kVersion) +
            ")");
  }
  if (header.version != kVersion || header.byte_order != kByteOrder ||
      header.kind > static_cast<uint32_t>(Kind::kPacked)) {
    damaged("damaged: its header makes no sense");
  }
  const std::string entry(header.identity, strnlen(header.identity, kIdentity));
  if (entry != expected.entry) damaged("belongs to entry " + entry + ", not to " + expected.entry);
  if (header.position != expected.position || header.first != expected.first) {
    damaged("is shard " + text(header.position) + " of its entry, from record " + text(header.first) +
            ", where shard " + text(expected.position) + ", from record " + text(expected.first) + ", should be");
  }
  if (header.elements != static_cast<uint64_t>(expected.elements)) {
    damaged("holds images of " + text(header.elements) + " elements, not " + text(expected.elements));
  }
  kind_ = static_cast<Kind>(header.kind);
  elements_ = expected.elements;

  Footer footer;
  std::memcpy(&footer, data_ + size_ - sizeof footer, sizeof footer);
  if (std::memcmp(footer.end, kEnd, sizeof kEnd) != 0) damaged("cut short, its end is missing");
  if (footer.checksum != own_checksum(footer)) damaged("damaged: its footer does not match its checksum");
  if (footer.header_checksum != header.checksum) damaged("damaged: its beginning and its end are of different shards");
  const size_t room = size_ - sizeof footer;
  if (footer.index % kAlign != 0 || footer.index < sizeof header || footer.index > room ||
      (room - footer.index) % sizeof(Place) != 0 || footer.records != (room - footer.index) / sizeof(Place)) {
    damaged("damaged: its index is not where its footer says");
  }
  records_ = static_cast<int64_t>(footer.records);
  index_ = reinterpret_cast<const Place*>(data_ + footer.index);
  if (footer.index_checksum != checksum(index_, footer.records * sizeof(Place))) {
    damaged("damaged: its index does not match its checksum");
  }
  check_index();
}

// The bytes of a record of this form and number of values; 0 if the form is unknown.
uint64_t File::size_of(const Place& place) const {
  const auto elements = static_cast<uint64_t>(elements_);
  if (!is_packed()) return place.values == elements && place.form == 0 ? 2 * elements : 0;
  if (place.values > elements || place.least > 0xff) return 0;
  switch (static_cast<Form>(place.form)) {
    case Form::kPlain:
      return mask_bytes(elements_) + 2 * uint64_t{place.values};
    case Form::kNarrow:
      return mask_bytes(elements_) + narrow_bytes(place.values);
  }
  return 0;
}

void File::check_index() const {
  uint64_t at = sizeof(Header);
  const uint64_t end = static_cast<uint64_t>(reinterpret_cast<const uint8_t*>(index_) - data_);
  for (int64_t i = 0; i < records_; ++i) {
    const uint64_t size = index_[i].size;
    if (size == 0 || size != size_of(index_[i]) || index_[i].offset != at || at > end || size > end - at) {
      damaged("damaged: record " + text(i) + " is not where its index says");
    }
    at += (size + kAlign - 1) / kAlign * kAlign;
  }
  if (at != end) damaged("damaged: its records do not end where its index begins");
}

const uint8_t* File::verified(int64_t i) const {
  const Place& place = index_[i];
  const uint8_t* const record = data_ + place.offset;
  if (checksum(record, place.size) != place.checksum) {
    damaged("damaged: record " + text(i) + " does not match its checksum");
  }
  if (is_packed() && !is_mask_of(record, elements_, values(i))) {
    damaged("damaged: the mask of record " + text(i) + " does not fit its number of values");
  }
  return record;
}

void File::read_dense(int64_t i, uint16_t* to) const {
  const uint8_t* const record = verified(i);
  if (!is_packed()) {
    std::memcpy(to, record, index_[i].size);
    return;
  }
  const uint8_t* const behind = record + mask_bytes(elements_);
  const auto* values = reinterpret_cast<const uint16_t*>(behind);
  if (is_narrow(i)) {
    thread_local std::vector<uint16_t> widened;  // stays in the cache of its core
    widened.resize(elements_);
    widen(behind, this->values(i), index_[i].least, widened.data());
    values = widened.data();
  }
  expand(record, values, this->values(i), elements_, to);
}

void File::read_packed(int64_t i, uint8_t* mask, uint16_t* to) const {
  const uint8_t* const record = verified(i);
  const int64_t bytes = mask_bytes(elements_);
  std::memcpy(mask, record, bytes);
  if (is_narrow(i)) {
    widen(record + bytes, values(i), index_[i].least, to);
  } else {
    std::memcpy(to, record + bytes, 2 * values(i));
  }
}

}  // namespace fasttransfer::shards
