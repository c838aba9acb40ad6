// FT_CLONES before a function: the compiler makes it once for every level of x86-64 and the fastest that the
// processor knows is taken when the library is loaded. Needs a loader that can choose (glibc); elsewhere
// there is one plain version.
#pragma once

#if defined(__x86_64__) && defined(__gnu_linux__) && defined(__GNUC__) && !defined(__clang__)
#define FT_CLONES __attribute__((target_clones("default", "arch=x86-64-v3", "arch=x86-64-v4")))
#else
#define FT_CLONES
#endif

// A template cannot be cloned. It is written as a function that must be inlined into the clones that call it.
#if defined(_MSC_VER)
#define FT_INLINE __forceinline
#else
#define FT_INLINE inline __attribute__((always_inline))
#endif
