// fasttransfer.pipelines._stderr, which pipelines/jpeg_warnings.py wraps: catches what C code in this thread writes to
// stderr. libjpeg reports damage there and nowhere else: its callers cannot be asked for it, and a line on the screen
// names no file.
//
// glibc lets a program assign the variable `stderr`. While at least one thread catches, it is a stream that asks, for
// each line, whether the thread that writes it does; lines of other threads go where they always went. File descriptor
// 2 is never touched.

#include <pybind11/pybind11.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <mutex>
#include <string>

namespace py = pybind11;

namespace {

constexpr size_t kMost = 4096;  // bytes kept per call

struct Caught {
  bool active = false;
  std::string text;
};

thread_local Caught caught;
std::mutex mutex;
int catching = 0;  // threads
FILE* usual = nullptr;

ssize_t take(void*, const char* text, size_t size) {
  if (caught.active) {
    caught.text.append(text, std::min(size, kMost - std::min(kMost, caught.text.size())));
    return static_cast<ssize_t>(size);
  }
  return write(STDERR_FILENO, text, size);
}

FILE* catching_stream() {
  static FILE* const stream = [] {
    cookie_io_functions_t functions = {};
    functions.write = take;
    FILE* made = fopencookie(nullptr, "w", functions);
    if (made != nullptr) setvbuf(made, nullptr, _IONBF, 0);
    return made;
  }();
  return stream;
}

void begin() {
  FILE* const stream = catching_stream();
  if (stream == nullptr) throw std::bad_alloc();
  caught.active = true;
  caught.text.clear();
  const std::lock_guard<std::mutex> guard(mutex);
  if (catching++ == 0) {
    usual = stderr;
    stderr = stream;
  }
}

py::bytes end() {
  {
    const std::lock_guard<std::mutex> guard(mutex);
    if (--catching == 0) stderr = usual;
  }
  caught.active = false;
  return py::bytes(caught.text);
}

}  // namespace

PYBIND11_MODULE(_stderr, module) {
  module.def("begin", begin);
  module.def("end", end);
}
