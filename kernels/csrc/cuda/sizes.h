// Which compilation of a kernel runs: by the type of number and by the head size as its fragments have it.
#pragma once

#include <stdexcept>
#include <string>

#include "cuda/attention/attention.h"
#include "cuda/device.h"

namespace headcount::cuda {

// A compilation: numbers of T, head sizes up to `width`, blocks of `warps` warps with so many groups of 16 rows each.
template <typename T_, int width_, int warps_, int groups_>
struct Compiled {
  using T = T_;
  static constexpr int width = width_, warps = warps_, groups = groups_, rows = 16 * groups * warps;
};

template <typename T, int warps, int groups, typename Act>
void with_width(int head_dim, const Act& act) {
  if (head_dim <= 16) return act(Compiled<T, 16, warps, groups>{});
  if (head_dim <= 32) return act(Compiled<T, 32, warps, groups>{});
  if (head_dim <= 64) return act(Compiled<T, 64, warps, groups>{});
  act(Compiled<T, 128, warps, 1>{});
}

// act(Compiled<T, width, warps, groups>{}) for what is asked for; heads above 64 leave registers for one group.
template <int warps, int groups, typename Act>
void with_sizes(const Attention& attention, const Act& act) {
  if (attention.head_dim <= 0 || attention.head_dim % 8 || attention.head_dim > 128) {
    throw std::invalid_argument("attention: head_dim must be a multiple of 8 up to 128, found " +
                                std::to_string(attention.head_dim));
  }
  if (attention.number == Number::bfloat16) return with_width<bf16, warps, groups>(attention.head_dim, act);
  with_width<fp16, warps, groups>(attention.head_dim, act);
}

}  // namespace headcount::cuda
