// Working memory of a thread, aligned for vectors and not initialised.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>

namespace fasttransfer {

struct Free {
  void operator()(void* memory) const { ::operator delete[](memory, std::align_val_t(64)); }
};
template <typename T>
using Buffer = std::unique_ptr<T[], Free>;

template <typename T>
Buffer<T> buffer(int64_t count) {
  return Buffer<T>(static_cast<T*>(::operator new[](static_cast<size_t>(count) * sizeof(T), std::align_val_t(64))));
}

}  // namespace fasttransfer
