// Checks of arguments: which one, what was expected, what was got. The binding turns CheckError into KernelError.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>
#include <utility>

#include "common/tensor_view.h"

namespace headcount {

class CheckError : public std::invalid_argument {
 public:
  CheckError(std::string argument, std::string expected, std::string got)
      : std::invalid_argument(argument + ": expected " + expected + ", got " + got),
        argument(std::move(argument)),
        expected(std::move(expected)),
        got(std::move(got)) {}

  const std::string argument, expected, got;
};

inline void check(bool condition, const char* argument, const std::string& expected, const std::string& got) {
  if (!condition) throw CheckError(argument, expected, got);
}

// A view a kernel may read: a known type, and a pointer that is aligned to it.
inline void check_view(const TensorView& view, const char* argument) {
  const std::size_t bytes = element_size(view.dtype);
  check(bytes != 0, "dtype", "a code from 0 to 3", std::to_string(static_cast<int>(view.dtype)));
  check(view.size >= 0, argument, "a size of 0 or more", std::to_string(view.size));
  if (view.size == 0) return;
  check(view.data != nullptr, argument, "a pointer", "null");
  const auto offset = reinterpret_cast<std::uintptr_t>(view.data) % bytes;
  check(offset == 0, argument, "data aligned to " + std::to_string(bytes) + " bytes",
        "offset " + std::to_string(offset));
}

}  // namespace headcount
