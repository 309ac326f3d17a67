// What a kernel sees of an array: a pointer, a type and a size. Owns nothing.
#pragma once

#include <cstddef>
#include <cstdint>

namespace headcount {

// The codes are part of the binding: engine_kernels/native.py passes the same numbers.
enum class DType : int { float32 = 0, float64 = 1, float16 = 2, bfloat16 = 3 };

// Bytes of one element; 0 for a code that names no type.
constexpr std::size_t element_size(DType dtype) {
  switch (dtype) {
    case DType::float32:
      return 4;
    case DType::float64:
      return 8;
    case DType::float16:
    case DType::bfloat16:
      return 2;
  }
  return 0;
}

// Contiguous elements; `data` may be null only when `size` is 0.
struct TensorView {
  const void* data;
  std::int64_t size;  // elements
  DType dtype;
};

}  // namespace headcount
