// CheckError becomes engine_kernels.errors.KernelError.
#pragma once

#include <pybind11/pybind11.h>

#include <exception>

#include "common/checks.h"

namespace headcount {

inline void raise_kernel_error(std::exception_ptr thrown) {
  try {
    if (thrown) std::rethrow_exception(thrown);
  } catch (const CheckError& error) {
    const auto type = pybind11::module_::import("engine_kernels.errors").attr("KernelError");
    const pybind11::object raised = type(error.argument, error.expected, error.got);
    PyErr_SetObject(type.ptr(), raised.ptr());
  }
}

}  // namespace headcount
