// The tensors of one call of GPU kernels: on one device, those of 16 bits of one kind.
#pragma once

#include <algorithm>
#include <cstdint>
#include <deque>
#include <optional>
#include <string>
#include <vector>

#include "bindings/argument.h"
#include "cuda/types.h"

namespace headcount {

// What a tensor may hold: 16-bit numbers, all of the call's kind, or those named.
enum class Holds { number, float32, number_or_float32, int64, int32 };

#ifdef HEADCOUNT_CUDA_EMULATED
constexpr std::int32_t call_device = dlpack::cpu_device;
#else
constexpr std::int32_t call_device = dlpack::cuda_device;
#endif

// Holds the tensors until it goes; to be made and let go with the interpreter's lock held.
class DeviceCall {
 public:
  // A contiguous tensor of this shape, where -1 stands for any size; vectors: kernels read it by 16 bytes at a time.
  const PythonArray& take(PyObject* object, const char* name, const std::vector<std::int64_t>& shape, Holds holds,
                          bool vectors = false) {
    const PythonArray& array = tensors_.emplace_back(object, name, call_device);
    check(array.device_id == tensors_.front().device_id, name,
          "a tensor on GPU " + std::to_string(tensors_.front().device_id),
          "one on GPU " + std::to_string(array.device_id));
    bool fits = array.shape.size() == shape.size();
    for (std::size_t i = 0; fits && i < shape.size(); ++i) fits = shape[i] < 0 || shape[i] == array.shape[i];
    check(fits, name, "shape " + shape_text(shape), shape_text(array.shape));
    check_elements(array, name, holds);
    check_layout(array, name, vectors ? 16 : 1);
    return array;
  }

  // nullptr for None.
  void* take_pointer(PyObject* object, const char* name, const std::vector<std::int64_t>& shape, Holds holds,
                     bool vectors = false) {
    return object == Py_None ? nullptr : take(object, name, shape, holds, vectors).data;
  }

  cuda::Number number() const { return number_.value_or(cuda::Number::bfloat16); }

 private:
  void check_elements(const PythonArray& array, const char* name, Holds holds) {
    std::optional<cuda::Number> number;
    if (array.holds(dlpack::bfloat_code, 16)) number = cuda::Number::bfloat16;
    if (array.holds(dlpack::float_code, 16)) number = cuda::Number::float16;
    if (number && (holds == Holds::number || holds == Holds::number_or_float32)) {
      if (!number_) number_ = number;
      check(number == number_, name, "the kind of 16-bit numbers of the tensors before it", array.dtype);
      return;
    }
    switch (holds) {
      case Holds::number:
        return check(false, name, "bfloat16 or float16", array.dtype);
      case Holds::number_or_float32:
        return check(array.holds(dlpack::float_code, 32), name, "float32, bfloat16 or float16", array.dtype);
      case Holds::float32:
        return check(array.holds(dlpack::float_code, 32), name, "float32", array.dtype);
      case Holds::int64:
        return check(array.holds(dlpack::int_code, 64), name, "int64", array.dtype);
      case Holds::int32:
        return check(array.holds(dlpack::int_code, 32), name, "int32", array.dtype);
    }
  }

  static void check_layout(const PythonArray& array, const char* name, std::uintptr_t alignment) {
    const bool empty = std::any_of(array.shape.begin(), array.shape.end(), [](std::int64_t size) { return size == 0; });
    if (empty) return;
    std::int64_t step = array.element_bytes();
    bool contiguous = true;
    for (std::size_t i = array.shape.size(); i-- > 0; step *= array.shape[i])
      contiguous = contiguous && (array.shape[i] < 2 || array.strides[i] == step);
    check(contiguous, name, "a contiguous tensor", "a strided one");
    check(array.data != nullptr, name, "memory", "a null pointer: the tensor was freed");
    check(reinterpret_cast<std::uintptr_t>(array.data) % alignment == 0, name,
          "data aligned to " + std::to_string(alignment) + " bytes", "a misaligned one");
  }

  std::deque<PythonArray> tensors_;  // never moved
  std::optional<cuda::Number> number_;
};

}  // namespace headcount
