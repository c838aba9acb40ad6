// What the library says of itself.

#include "cpu/dispatch.h"

#if defined(_MSC_VER)
#define FT_EXPORT __declspec(dllexport)
#else
#define FT_EXPORT __attribute__((visibility("default")))
#endif

// Returns the name of the instructions that the operators use in this process.
extern "C" FT_EXPORT const char* fasttransfer_isa() {
  return fasttransfer::kIsaNames[static_cast<int>(fasttransfer::isa())];
}
