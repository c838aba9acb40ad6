// FT_CLONES before a function: the compiler makes a version for every level of x86-64, and the loader chooses the
// fastest that the processor supports. Needs glibc; elsewhere there is one plain version.
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

// The same after the parameters of a lambda.
#if defined(_MSC_VER)
#define FT_INLINED [[msvc::forceinline]]
#else
#define FT_INLINED __attribute__((always_inline))
#endif

// Before a loop whose steps do not write what others read: saves the test of whether they do.
#if defined(__GNUC__) && !defined(__clang__)
#define FT_NO_ALIAS _Pragma("GCC ivdep")
#elif defined(__clang__)
#define FT_NO_ALIAS _Pragma("clang loop vectorize(assume_safety)")
#else
#define FT_NO_ALIAS
#endif

// Before a loop of at most 32 steps, a number known at compile time: its operands can stay in registers.
#if defined(__GNUC__) && !defined(__clang__)
#define FT_UNROLL _Pragma("GCC unroll 32")
#elif defined(__clang__)
#define FT_UNROLL _Pragma("unroll")
#else
#define FT_UNROLL
#endif

#if defined(__GNUC__)
#define FT_PREFETCH(address) __builtin_prefetch(address)
#else
#define FT_PREFETCH(address) static_cast<void>(address)
#endif
