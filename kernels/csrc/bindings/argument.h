// An argument of a call: a tensor that must have this element type, shape and layout.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "bindings/python_array.h"

namespace headcount {

inline std::string shape_text(const std::vector<std::int64_t>& shape) {
  std::string text = "[";
  for (const std::int64_t size : shape) text += (text.size() > 1 ? ", " : "") + (size < 0 ? "?" : std::to_string(size));
  return text + "]";
}

// C-contiguous T: float or std::int64_t.
template <typename T>
class Argument {
 public:
  // Of a shape, where -1 stands for any size.
  Argument(PyObject* object, const char* name, const std::vector<std::int64_t>& shape, bool written = false)
      : Argument(object, name) {
    bool fits = array_.shape.size() == shape.size();
    for (std::size_t i = 0; fits && i < shape.size(); ++i) fits = shape[i] < 0 || shape[i] == array_.shape[i];
    check(fits, name, "shape " + shape_text(shape), shape_text(array_.shape));
    check_layout(name);
    check(!written || !array_.read_only, name, "an array that may be written", "a read-only one");
  }

  // Of any shape.
  static Argument of_any_shape(PyObject* object, const char* name) {
    Argument argument(object, name);
    argument.check_layout(name);
    return argument;
  }

  T* data() const { return static_cast<T*>(array_.data); }
  std::int64_t size(int axis) const { return array_.shape[axis]; }
  const std::vector<std::int64_t>& shape() const { return array_.shape; }

 private:
  Argument(PyObject* object, const char* name) : array_(object, name) {
    check(array_.template holds<T>(), name, sizeof(T) == 4 ? "float32" : "int64", array_.dtype);
  }

  void check_layout(const char* name) const {
    std::int64_t step = sizeof(T);
    bool contiguous = true, empty = false;
    for (std::size_t i = array_.shape.size(); i-- > 0; step *= array_.shape[i]) {
      contiguous = contiguous && (array_.shape[i] < 2 || array_.strides[i] == step);
      empty = empty || array_.shape[i] == 0;
    }
    if (empty) return;
    check(contiguous, name, "a contiguous array", "a strided one");
    check(array_.data != nullptr, name, "memory", "a null pointer: the tensor was freed");
    const bool aligned = reinterpret_cast<std::uintptr_t>(array_.data) % sizeof(T) == 0;
    check(aligned, name, "data aligned to its elements", "a misaligned one");
  }

  PythonArray array_;
};

}  // namespace headcount
