#include "shards/checksum.h"

#include "cpu/dispatch.h"

// xxhash.h uses the widest registers that the compiler's flags allow, which in a library for every x86-64 are those of
// SSE2: half as fast as AVX2 on data in the cache. With XXH_X86DISPATCH it defines the loops for AVX2 and AVX-512 too,
// and the choice is made here, at run time. These are its internals: an update has to be held against them.
#if defined(FT_X86)
#ifndef __clang__
// GCC 12 warns of its own AVX-512 intrinsics, which start from undefined registers on purpose.
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>
#define XXH_X86DISPATCH
#define XXH_DISPATCH_AVX2 1
#define XXH_DISPATCH_AVX512 1
#define XXH_TARGET_AVX2 __attribute__((target("avx2")))
#define XXH_TARGET_AVX512 __attribute__((target("avx512f")))
#endif

#define XXH_INLINE_ALL
#include "third_party/xxhash/xxhash.h"

namespace fasttransfer::shards {

#ifdef XXH_X86DISPATCH
namespace {

using Hash = XXH64_hash_t (*)(const void* data, size_t size);

XXH64_hash_t with_sse2(const void* data, size_t size) { return XXH3_64bits(data, size); }

XXH_TARGET_AVX2 XXH64_hash_t with_avx2(const void* data, size_t size) {
  return XXH3_hashLong_64b_internal(data, size, XXH3_kSecret, sizeof XXH3_kSecret, XXH3_accumulate_avx2,
                                    XXH3_scrambleAcc_avx2);
}

XXH_TARGET_AVX512 XXH64_hash_t with_avx512(const void* data, size_t size) {
  return XXH3_hashLong_64b_internal(data, size, XXH3_kSecret, sizeof XXH3_kSecret, XXH3_accumulate_avx512,
                                    XXH3_scrambleAcc_avx512);
}

Hash fastest() {
  if (isa() == Isa::kAvx512) return with_avx512;
  return isa() == Isa::kAvx2 ? with_avx2 : with_sse2;
}

}  // namespace

uint64_t checksum(const void* data, size_t size) {
  static const Hash hash_long = fastest();
  return size <= XXH3_MIDSIZE_MAX ? XXH3_64bits(data, size) : hash_long(data, size);
}
#else
uint64_t checksum(const void* data, size_t size) { return XXH3_64bits(data, size); }
#endif

}  // namespace fasttransfer::shards
