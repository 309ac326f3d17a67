// How much scratch the attention kernels need: the same for every instruction set.
#include "cpu/attend_scratch.h"

#include "cpu/kernels.h"

namespace headcount::cpu {

std::int64_t attend_rows_scratch(std::int64_t head_dim, std::int64_t reach, std::int64_t) {
  return kQueryRows * (3 * lanes(head_dim) + kKeyBlock + banded(reach)) + kKeyBlock * kPanel + banded(reach);
}

std::int64_t attend_persistent_scratch(std::int64_t batch, std::int64_t head_dim) {
  const std::int64_t rows = batch < kQueryRows ? batch : kQueryRows;
  return rows * (kKeyBlock + lanes(head_dim));
}

std::int64_t attend_ring_scratch(std::int64_t head_dim, std::int64_t reach) {
  return 3 * lanes(head_dim) + 3 * lanes(reach) + kKeyBlock * kPanel;
}

}  // namespace headcount::cpu
