// Floats aligned to a cache line: rings and scratch.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>

namespace headcount::cpu {

constexpr std::int64_t line_floats = 16;  // floats of a cache line

constexpr std::int64_t whole_lines(std::int64_t floats) {
  return (floats + line_floats - 1) / line_floats * line_floats;
}

struct FreeFloats {
  void operator()(float* data) const { std::free(data); }
};
using Floats = std::unique_ptr<float[], FreeFloats>;

inline Floats aligned_floats(std::int64_t size) {
  const std::size_t bytes = static_cast<std::size_t>(whole_lines(size > 0 ? size : 1)) * sizeof(float);
  void* data = std::aligned_alloc(64, bytes);
  if (data == nullptr) throw std::bad_alloc();
  return Floats(static_cast<float*>(data));
}

// Memory that grows to the largest size ever asked for; its contents do not survive the next request.
class Scratch {
 public:
  float* need(std::int64_t size) {
    if (size > size_ || data_ == nullptr) {
      data_.reset();  // never both at once
      data_ = aligned_floats(size);
      size_ = size;
    }
    return data_.get();
  }

  float* data() const { return data_.get(); }

 private:
  Floats data_;
  std::int64_t size_ = 0;
};

}  // namespace headcount::cpu
