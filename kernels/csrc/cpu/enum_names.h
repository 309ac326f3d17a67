// Enumerators and the names Python tells them by.
#pragma once

#include <array>

#include "cpu/kernels.h"

namespace headcount::cpu {

// How a layer's scores depend on the distance of a key.
enum class Relative : int { none, per_head, shared };

// In the order of the enumerators.
constexpr std::array<const char*, 3> names_of(Relative) { return {"none", "per_head", "shared"}; }
constexpr std::array<const char*, 7> names_of(Activation) {
  return {"none", "relu", "gelu", "gelu_tanh", "quick_gelu", "silu", "tanh"};
}

}  // namespace headcount::cpu
