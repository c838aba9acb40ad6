// fasttransfer.features._shards, which fasttransfer/features/shards.py wraps. Tensors come as addresses, which that
// file has checked; the GIL is released while reading, writing and waiting.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cerrno>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "shards/checksum.h"
#include "shards/reader.h"
#include "shards/writer.h"

namespace py = pybind11;

namespace fasttransfer::shards {
namespace {

using NoGil = py::call_guard<py::gil_scoped_release>;

template <typename T>
T* at(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

// A job with the reader whose threads do it and the tensors that it writes to, which must live until it has ended.
class Pending {
 public:
  Pending(std::shared_ptr<Reader> reader, std::shared_ptr<Job> job, py::object tensors)
      : reader_(std::move(reader)), job_(std::move(job)), tensors_(std::move(tensors)) {}
  Pending(Pending&&) = default;
  ~Pending() {
    if (job_ == nullptr) return;
    const py::gil_scoped_release no_gil;
    job_->abandon();
  }

  py::object wait() {
    {
      const py::gil_scoped_release no_gil;
      job_->wait();
    }
    return tensors_;
  }

 private:
  std::shared_ptr<Reader> reader_;
  std::shared_ptr<Job> job_;
  py::object tensors_;
};

Pending read_dense(const std::shared_ptr<Reader>& reader, std::vector<int64_t> rows, uintptr_t to, py::object tensors) {
  return {reader, reader->read_dense(std::move(rows), at<uint16_t>(to)), std::move(tensors)};
}

Pending read_packed(const std::shared_ptr<Reader>& reader, std::vector<int64_t> rows, uintptr_t masks, uintptr_t places,
                    uintptr_t to, py::object tensors) {
  return {reader, reader->read_packed(std::move(rows), at<uint8_t>(masks), at<int64_t>(places), at<uint16_t>(to)),
          std::move(tensors)};
}

}  // namespace

PYBIND11_MODULE(_shards, m) {
  py::register_exception<Damaged>(m, "Damaged");
  py::register_exception_translator([](std::exception_ptr thrown) {  // NOLINT(performance-unnecessary-value-param)
    try {
      if (thrown) std::rethrow_exception(thrown);
    } catch (const Refused& error) {
      errno = error.number;
      PyErr_SetFromErrnoWithFilename(PyExc_OSError, error.path.empty() ? nullptr : error.path.c_str());
    }
  });

  m.attr("VERSION") = kVersion;
  m.def("checksum", [](const py::bytes& data) {
    const std::string_view bytes = data;
    return checksum(bytes.data(), bytes.size());
  });

  py::class_<Writer>(m, "Writer")
      .def(py::init([](int file, std::string entry, uint32_t position, uint64_t first, int64_t elements, bool packed) {
        return std::make_unique<Writer>(file, Identity{std::move(entry), position, first, elements},
                                        packed ? Kind::kPacked : Kind::kDense);
      }))
      .def(
          "append", [](Writer& writer, uintptr_t x, int64_t n) { writer.append(at<uint16_t>(x), n); }, NoGil())
      .def("finish", &Writer::finish, NoGil())
      .def_property_readonly("records", &Writer::records)
      .def_property_readonly("bytes", &Writer::bytes);

  py::class_<Pending>(m, "Pending").def("wait", &Pending::wait);

  py::class_<Reader, std::shared_ptr<Reader>>(m, "Reader")
      .def(py::init<const std::vector<std::string>&, const std::string&, int64_t, int>(), NoGil())
      .def_property_readonly("records", &Reader::records)
      .def_property_readonly("bytes", &Reader::bytes)
      .def_property_readonly("packed", &Reader::is_packed)
      .def("offsets", [](const Reader& reader, const std::vector<int64_t>& rows,
                         uintptr_t to) { reader.offsets(rows, at<int64_t>(to)); })
      .def("read_dense", &read_dense)
      .def("read_packed", &read_packed);
}

}  // namespace fasttransfer::shards
