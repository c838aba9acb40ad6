// Reads any bytes as a shard of features, with their checksums put right so that the rest is looked at as well.
//
// libFuzzer calls LLVMFuzzerTestOneInput; without it (-DREPLAY) the files named on the command line are read once.

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <vector>

#include "math/bitmask.h"
#include "shards/file.h"

using namespace fasttransfer::shards;

namespace {

constexpr uint64_t kMost = 1 << 16;  // elements of an image

void mend(std::vector<uint8_t>& data) {
  if (data.size() < sizeof(Header) + sizeof(Footer)) return;
  auto* const header = reinterpret_cast<Header*>(data.data());
  header->elements %= kMost;
  header->checksum = own_checksum(*header);
  Footer footer;
  uint8_t* const end = data.data() + data.size() - sizeof footer;
  std::memcpy(&footer, end, sizeof footer);
  footer.header_checksum = header->checksum;
  const uint64_t room = data.size() - sizeof footer;
  if (footer.index <= room && footer.records <= (room - footer.index) / sizeof(Place)) {
    for (uint64_t i = 0; i < footer.records; ++i) {
      Place place;
      uint8_t* const where = data.data() + footer.index + i * sizeof place;
      std::memcpy(&place, where, sizeof place);
      if (place.offset <= room && place.size <= room - place.offset) {
        place.checksum = checksum(data.data() + place.offset, place.size);
      }
      std::memcpy(where, &place, sizeof place);
    }
    footer.index_checksum = checksum(data.data() + footer.index, footer.records * sizeof(Place));
  }
  footer.checksum = own_checksum(footer);
  std::memcpy(end, &footer, sizeof footer);
}

void read_all(const std::vector<uint8_t>& data) {
  static const int file = ::memfd_create("shard", 0);
  static const std::string path = "/proc/self/fd/" + std::to_string(file);
  if (::ftruncate(file, 0) != 0 || ::pwrite(file, data.data(), data.size(), 0) != static_cast<ssize_t>(data.size())) {
    std::abort();
  }
  Identity identity{"", 0, 0, 0};
  if (data.size() >= sizeof(Header)) {
    Header header;
    std::memcpy(&header, data.data(), sizeof header);
    identity = {std::string(header.identity, strnlen(header.identity, kIdentity)), header.position, header.first,
                static_cast<int64_t>(header.elements % kMost)};
  }
  try {
    const File shard(path, identity);
    std::vector<uint16_t> values(static_cast<size_t>(identity.elements));
    std::vector<uint8_t> mask(fasttransfer::mask_bytes(identity.elements));
    for (int64_t i = 0; i < shard.records(); ++i) {
      shard.read_dense(i, values.data());
      if (shard.is_packed()) shard.read_packed(i, mask.data(), values.data());
    }
  } catch (const Damaged&) {
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* bytes, size_t size) {
  std::vector<uint8_t> data(bytes, bytes + size);
  read_all(data);
  mend(data);
  read_all(data);
  return 0;
}

#ifdef REPLAY
int main(int count, char** names) {
  for (int i = 1; i < count; ++i) {
    std::ifstream file(names[i], std::ios::binary);
    const std::vector<char> bytes{std::istreambuf_iterator<char>(file), {}};
    LLVMFuzzerTestOneInput(reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size());
  }
}
#endif
