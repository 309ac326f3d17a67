// The names of hopper/tensors.h on the host.
#pragma once

#include <cstring>
#include <stdexcept>

#include "cuda/emulated/hopper.h"

struct TensorMap {
  const unsigned char* base;
  int64_t tables, rows;
  int box_rows;
};

inline TensorMap describe_tables(const void* base, int64_t tables, int64_t rows, int box_rows) {
  if (reinterpret_cast<uintptr_t>(base) % 16 || tables < 1 || rows < 1 || box_rows < 1 || box_rows > 256)
    throw std::invalid_argument("a tensor map the driver would refuse");
  return {static_cast<const unsigned char*>(base), tables, rows, box_rows};
}

namespace device {

inline void copy_box(void* target, const TensorMap& map, int table, int row, Mbarrier& barrier) {
  const size_t bytes = size_t{128} * map.box_rows;
  expect_shared(target, bytes, 1024);
  unsigned char* to = static_cast<unsigned char*>(target);
  const auto act = [map, to, table, row] {
    for (int r = 0; r < map.box_rows; ++r) {
      const bool there = table >= 0 && table < map.tables && row + r >= 0 && row + r < map.rows;
      for (int piece = 0; piece < 8; ++piece) {
        unsigned char* piece_to = to + r * 128 + (piece ^ (r & 7)) * 16;
        there ? std::memcpy(piece_to, map.base + ((table * map.rows + row + r) * 8 + piece) * 16, 16)
              : std::memset(piece_to, 0, 16);
      }
    }
  };
  start_copy({target, nullptr, bytes, &barrier, act}, barrier);
}

}  // namespace device
