// How much scratch the attention kernels need: the same for every instruction set.
#include "cpu/attend_scratch.h"

#include "cpu/kernels.h"

namespace headcount::cpu {

std::int64_t attend_rows_scratch(std::int64_t head_dim, std::int64_t reach, std::int64_t) {
  return query_rows * (3 * lanes(head_dim) + key_block + banded(reach)) + key_block * panel_width + banded(reach);
}

std::int64_t attend_persistent_scratch(std::int64_t batch, std::int64_t head_dim) {
  const std::int64_t rows = batch < query_rows ? batch : query_rows;
  return rows * (key_block + lanes(head_dim));
}

std::int64_t attend_ring_scratch(std::int64_t head_dim, std::int64_t reach) {
  return 3 * lanes(head_dim) + 3 * lanes(reach) + key_block * panel_width;
}

}  // namespace headcount::cpu
