// Many rows times weights, both 16-bit: bound by the matrix units. A block owns tile_rows × 64 of the product, its 4
// warps a quarter each, and streams 64 of the depth at a time through a ring in shared memory that the copies of later
// steps fill while the units work on this one.
#pragma once

#include "cuda/rows.h"

namespace headcount::cuda {

namespace many {

constexpr int threads = 128, columns = 64, slice = 64;

template <int tile_rows>
constexpr int stages = tile_rows == 64 ? 4 : 3;
template <int tile_rows>
constexpr int shared_bytes = stages<tile_rows> * (tile_rows + columns) * slice * 2;

// A quarter of a tile in mma's fragments: [tiles of 16 rows, tiles of 8 columns, fragment].
template <int tile_rows>
using Sums = float[tile_rows / 32][4][4];

// Of this thread's part of a tile: the row of fragment half `half` of row tile i, the first of two columns of tile j.
template <int tile_rows>
DEVICE int row_of(int i, int half) {
  return threadIdx.x / 64 * (tile_rows / 2) + i * 16 + half * 8 + threadIdx.x % 32 / 4;
}
DEVICE int column_of(int j) { return threadIdx.x / 32 % 2 * 32 + j * 8 + threadIdx.x % 4 * 2; }

}  // namespace many

// finish(sums, first column) for each of column_tiles tiles from first_column on, one after another in one stream of
// copies.
template <typename T, int tile_rows, typename Finish>
DEVICE void multiply_many(const Matrix<T>& x, const Matrix<T>& weight, int first_row, int first_column,
                          int column_tiles, Finish& finish) {
  using namespace many;
  constexpr int ring_stages = stages<tile_rows>;
  const int lane = threadIdx.x % 32, warp_row = threadIdx.x / 64 * (tile_rows / 2),
            warp_column = threadIdx.x / 32 % 2 * 32;
  T* ring = reinterpret_cast<T*>(device::shared_memory());  // [stages, rows then columns, slice]
  const int slices = (weight.depth + slice - 1) / slice, steps = slices * column_tiles;
  const auto fetch = [&](int step) {
    if (step < steps) {
      T* stage = ring + step % ring_stages * (tile_rows + columns) * slice;
      const int tile = step / slices, start = (step - tile * slices) * slice;
      const int row = threadIdx.x / 8, column = threadIdx.x % 8 * 8;
#pragma unroll
      for (int r = row; r < tile_rows; r += threads / 8)
        fetch_8(stage + swizzled(r, column), x, first_row + r, start + column);
      T* weights = stage + tile_rows * slice;
#pragma unroll
      for (int r = row; r < columns; r += threads / 8)
        fetch_8(weights + swizzled(r, column), weight, first_column + tile * columns + r, start + column);
    }
    device::close_copies();
  };

  Sums<tile_rows> sums;
  for (int step = 0; step < ring_stages - 1; ++step) fetch(step);
  for (int step = 0; step < steps; ++step) {
    const int tile = step / slices, slice_of_tile = step - tile * slices;
    if (slice_of_tile == 0) {
      for (auto& of_rows : sums)
        for (auto& of_columns : of_rows)
          for (float& sum : of_columns) sum = 0;
    }
    device::wait_copies<ring_stages - 2>();
    device::barrier();
    fetch(step + ring_stages - 1);  // over the stage all threads left before the barrier
    const T* stage = ring + step % ring_stages * (tile_rows + columns) * slice;
    const T* weights = stage + tile_rows * slice;
#pragma unroll
    for (int k = 0; k < slice; k += 16) {
      uint32_t a[tile_rows / 32][4], b[2][4];
#pragma unroll
      for (int i = 0; i < tile_rows / 32; ++i)
        device::load_matrices(a[i], stage + swizzled(warp_row + i * 16 + lane % 16, k + lane / 16 * 8));
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const int row = warp_column + j * 16 + lane / 16 * 8 + lane % 8;
        device::load_matrices(b[j], weights + swizzled(row, k + lane / 8 % 2 * 8));
      }
#pragma unroll
      for (int i = 0; i < tile_rows / 32; ++i) {
#pragma unroll
        for (int j = 0; j < 4; ++j) device::mma<T>(sums[i][j], a[i], b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]);
      }
    }
    if (slice_of_tile == slices - 1) finish(sums, first_column + tile * columns);
  }
}

}  // namespace headcount::cuda
