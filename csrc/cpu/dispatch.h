// The form of an operator on this processor: the compiler makes one for each level of x86-64, and the first call
// chooses the highest that the processor has, or a lower one that FASTTRANSFER_ISA names.
#pragma once

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <type_traits>

// Where there are forms beside the portable one, and the intrinsics of their instructions.
#if defined(__x86_64__) && defined(__GNUC__)
#define FT_X86
#endif

// Before a function, or after the parameters of a lambda, which must be inlined: into each form that calls it.
#if defined(_MSC_VER)
#define FT_INLINE __forceinline
#define FT_INLINED [[msvc::forceinline]]
#else
#define FT_INLINE inline __attribute__((always_inline))
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

namespace fasttransfer {

// Instructions, each with those before it: x86-64-v3 (AVX2, FMA, BMI) and x86-64-v4 (AVX-512 F, BW, CD, DQ and VL).
// Elsewhere than on x86-64 there is only kPortable, what the compiler makes of plain code.
enum class Isa { kPortable, kAvx2, kAvx512 };
constexpr const char* kIsaNames[] = {"portable", "avx2", "avx512"};

inline Isa find_isa() {
  Isa found = Isa::kPortable;
#if defined(FT_X86)
  __builtin_cpu_init();
  // What else the two levels have came to processors with these or before.
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi") &&
      __builtin_cpu_supports("bmi2")) {
    found = Isa::kAvx2;
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512cd") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
      found = Isa::kAvx512;
    }
  }
#endif
  const char* const named = std::getenv("FASTTRANSFER_ISA");
  for (Isa isa : {Isa::kPortable, Isa::kAvx2}) {
    if (named && std::strcmp(named, kIsaNames[static_cast<int>(isa)]) == 0) found = std::min(found, isa);
  }
  return found;
}

// Returns the instructions that operators use in this process.
inline Isa isa() {
  static const Isa chosen = find_isa();
  return chosen;
}

// A lambda that calls a function, which is inlined: what dispatch() takes.
#define FT_FORM(...) [](const auto&... arguments) FT_INLINED { __VA_ARGS__(arguments...); }

// Scalars and pointers are passed by value: of parameters, unlike of what is read from a closure, the compiler knows
// that they do not point to memory which the function allocates.
template <typename T>
using Passed = std::conditional_t<std::is_scalar_v<T>, T, const T&>;

#if defined(FT_X86)
template <typename Form, typename... Arguments>
__attribute__((target("arch=x86-64-v4"))) void dispatch_avx512(const Form& form, Passed<Arguments>... arguments) {
  form(arguments...);
}

template <typename Form, typename... Arguments>
__attribute__((target("arch=x86-64-v3"))) void dispatch_avx2(const Form& form, Passed<Arguments>... arguments) {
  form(arguments...);
}
#endif

template <typename Form, typename... Arguments>
void dispatch_portable(const Form& form, Passed<Arguments>... arguments) {
  form(arguments...);
}

// Calls a form for this processor: dispatch(FT_FORM(function), arguments...).
template <typename Form, typename... Arguments>
void dispatch(const Form& form, const Arguments&... arguments) {
#if defined(FT_X86)
  if (isa() == Isa::kAvx512) return dispatch_avx512<Form, Arguments...>(form, arguments...);
  if (isa() == Isa::kAvx2) return dispatch_avx2<Form, Arguments...>(form, arguments...);
#endif
  dispatch_portable<Form, Arguments...>(form, arguments...);
}

}  // namespace fasttransfer
