// The only file that includes pybind11: buffers become views, CheckError becomes engine_kernels.errors.KernelError.
#include <pybind11/pybind11.h>

#include <cstdint>
#include <exception>
#include <string>

#include "common/checks.h"
#include "common/tensor_view.h"
#include "cpu/all_finite.h"

namespace py = pybind11;

namespace {

void raise_kernel_error(std::exception_ptr thrown) {
  try {
    if (thrown) std::rethrow_exception(thrown);
  } catch (const headcount::CheckError& error) {
    const py::object type = py::module_::import("engine_kernels.errors").attr("KernelError");
    const py::object raised = type(error.argument, error.expected, error.got);
    PyErr_SetObject(type.ptr(), raised.ptr());
  }
}

headcount::TensorView as_view(const py::buffer_info& buffer, int dtype_code) {
  const auto dtype = static_cast<headcount::DType>(dtype_code);
  const auto bytes = static_cast<py::ssize_t>(headcount::element_size(dtype));
  const bool contiguous = buffer.ndim == 1 && (buffer.size < 2 || buffer.strides[0] == buffer.itemsize);
  headcount::check(bytes != 0, "dtype", "a code from 0 to 3", std::to_string(dtype_code));
  headcount::check(contiguous, "data", "a contiguous buffer of one dimension",
                   std::to_string(buffer.ndim) + (buffer.ndim == 1 ? " dimension, strided" : " dimensions"));
  headcount::check(buffer.itemsize == bytes, "data", "elements of " + std::to_string(bytes) + " bytes",
                   std::to_string(buffer.itemsize) + " bytes");
  return {buffer.ptr, static_cast<std::int64_t>(buffer.size), dtype};
}

bool all_finite(const py::buffer& data, int dtype) {
  const py::buffer_info buffer = data.request();
  const headcount::TensorView view = as_view(buffer, dtype);
  const py::gil_scoped_release release;
  return headcount::all_finite(view);
}

}  // namespace

PYBIND11_MODULE(_native, module) {
  py::register_exception_translator(&raise_kernel_error);
  module.def("all_finite", &all_finite, py::arg("data"), py::arg("dtype"));
}
