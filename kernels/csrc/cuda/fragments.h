// What the attention kernels share: a warp owns 16 rows, and thread 4r + q of it rows r and r + 8 of every product, in
// each block of 8 columns the columns 2q and 2q + 1 (PTX ISA, mma.m16n8k16).
#pragma once

#include <cmath>
#include <cstdint>

#include "cuda/device.h"

namespace headcount::cuda {

constexpr float log2e = 1.4426950408889634f;

// Numbers between two rows of a tile in shared memory: eight more than a row has, so that the eight rows of a matrix
// that ldmatrix reads lie in different banks.
template <int width>
constexpr int pitch = width + 8;

// Of this thread in the products of its warp.
DEVICE int row_of_thread() { return threadIdx.x % 32 / 4; }
DEVICE int column_of_thread() { return threadIdx.x % 4 * 2; }

// Starts copies of `count` rows of head_dim numbers into a tile, zeros beyond them; source(row) is the row in memory,
// or nullptr for a row of zeros. `anywhere` is an address of such memory.
template <typename T, int width, int count, int threads, typename Source>
DEVICE void copy_rows(T* tile, int head_dim, const T* anywhere, const Source& source) {
  constexpr int pieces = width / 8;  // of 16 bytes
  for (int i = threadIdx.x; i < count * pieces; i += threads) {
    const int row = i / pieces, column = i % pieces * 8;
    const T* from = source(row);
    const bool there = from != nullptr && column < head_dim;
    device::copy_16(tile + row * pitch<width> + column, there ? from + column : anywhere, there);
  }
}

// Queries of the warp's 16 rows: row r is at source(r), aligned to 4 bytes, or zeros for nullptr; `bias` [D] is added
// where there is one, and the sum rounded as queries are.
template <typename T, int width, typename Source>
DEVICE void load_queries(uint32_t (&query)[width / 16][4], int head_dim, const float* bias, const Source& source) {
  UNROLL
  for (int half = 0; half < 2; ++half) {
    const T* from = source(row_of_thread() + 8 * half);
    UNROLL
    for (int i = 0; i < width / 8; ++i) {
      const int column = i * 8 + column_of_thread();
      uint32_t& both = query[i / 2][i % 2 * 2 + half];
      both = 0;
      if (from == nullptr || column >= head_dim) continue;
      const uint32_t two = *reinterpret_cast<const uint32_t*>(from + column);
      float low = device::unpack<T>(two, 0), high = device::unpack<T>(two, 1);
      if (bias != nullptr) {
        low += bias[column];
        high += bias[column + 1];
      }
      both = device::pack<T>(low, high);
    }
  }
}

// products[g][i] += queries[g] · keysᵀ for groups g of 16 rows and blocks i of 8 keys; tile_of(i), for even i, has the
// 16 keys of blocks i and i + 1. Keys are read once for all groups.
template <typename T, int width, int groups, int blocks, typename Tile>
DEVICE void multiply_keys(float (&products)[groups][blocks][4], const uint32_t (&queries)[groups][width / 16][4],
                          const Tile& tile_of) {
  const int lane = threadIdx.x % 32;
  const int row = lane % 8 + lane / 16 * 8, column = lane / 8 % 2 * 8;  // of the matrix row this thread points at
  UNROLL
  for (int i = 0; i < blocks; i += 2) {
    const T* keys = tile_of(i) + row * pitch<width> + column;
    UNROLL
    for (int k = 0; k < width / 16; ++k) {
      uint32_t matrices[4];
      device::load_matrices(matrices, keys + k * 16);
      UNROLL
      for (int g = 0; g < groups; ++g) {
        device::mma<T>(products[g][i], queries[g][k], matrices[0], matrices[1]);
        device::mma<T>(products[g][i + 1], queries[g][k], matrices[2], matrices[3]);
      }
    }
  }
}

// The same for one group.
template <typename T, int width, int blocks, typename Tile>
DEVICE void multiply_keys(float (&products)[blocks][4], const uint32_t (&query)[width / 16][4], const Tile& tile_of) {
  multiply_keys<T, width>(reinterpret_cast<float (&)[1][blocks][4]>(products),
                          reinterpret_cast<const uint32_t (&)[1][width / 16][4]>(query), tile_of);
}

// Running softmax of the warp's rows; index of `peak`, `total`, `kept`: which of the thread's two rows. Peaks are in
// units of log2; totals are of this thread's columns until `sum_columns`.
template <int width>
struct State {
  float peak[2], total[2], kept[2];
  float out[width / 8][4];

  DEVICE void clear() {
    UNROLL
    for (int half = 0; half < 2; ++half) {
      peak[half] = -INFINITY;
      total[half] = kept[half] = 0;
    }
    UNROLL
    for (int i = 0; i < width / 8; ++i) {
      UNROLL
      for (int e = 0; e < 4; ++e) out[i][e] = 0;
    }
  }

  // New peaks not below `scores`, everything so far in their units, and scores as the weights 2^(score - peak).
  template <int blocks>
  DEVICE void weigh(float (&scores)[blocks][4]) {
    UNROLL
    for (int half = 0; half < 2; ++half) {
      float top = peak[half];
      UNROLL
      for (int i = 0; i < blocks; ++i) top = fmaxf(top, fmaxf(scores[i][2 * half], scores[i][2 * half + 1]));
      top = fmaxf(top, device::shuffle_xor(top, 1));
      top = fmaxf(top, device::shuffle_xor(top, 2));
      const float level = top == -INFINITY ? 0 : top;  // a row that has seen nothing yet
      const float fade = device::exp2_fast(peak[half] - level);
      peak[half] = top;
      kept[half] *= fade;
      float sum = 0;
      UNROLL
      for (int i = 0; i < blocks; ++i) {
        UNROLL
        for (int e = 2 * half; e < 2 * half + 2; ++e) {
          scores[i][e] = device::exp2_fast(scores[i][e] - level);
          sum += scores[i][e];
        }
      }
      total[half] = total[half] * fade + sum;
      UNROLL
      for (int i = 0; i < width / 8; ++i) {
        out[i][2 * half] *= fade;
        out[i][2 * half + 1] *= fade;
      }
    }
  }

  DEVICE void sum_columns() {
    UNROLL
    for (int half = 0; half < 2; ++half) {
      total[half] += device::shuffle_xor(total[half], 1);
      total[half] += device::shuffle_xor(total[half], 2);
      kept[half] += device::shuffle_xor(kept[half], 1);
      kept[half] += device::shuffle_xor(kept[half], 2);
    }
  }
};

// out += weights · values for groups of 16 rows, weights [groups, 16, 8 · blocks] rounded to T.
template <typename T, int width, int groups, int blocks>
DEVICE void multiply_values(State<width> (&states)[groups], const float (&weights)[groups][blocks][4],
                            const T* values) {
  const int lane = threadIdx.x % 32;
  const T* base = values + lane % 16 * pitch<width> + lane / 16 * 8;
  UNROLL
  for (int k = 0; k < blocks / 2; ++k) {
    uint32_t a[groups][4];
    UNROLL
    for (int g = 0; g < groups; ++g) {
      UNROLL
      for (int part = 0; part < 4; ++part) {
        const float* two = &weights[g][2 * k + part / 2][part % 2 * 2];
        a[g][part] = device::pack<T>(two[0], two[1]);
      }
    }
    UNROLL
    for (int i = 0; i < width / 8; i += 2) {
      uint32_t matrices[4];
      device::load_matrices_transposed(matrices, base + k * 16 * pitch<width> + i * 8);
      UNROLL
      for (int g = 0; g < groups; ++g) {
        device::mma<T>(states[g].out[i], a[g], matrices[0], matrices[1]);
        device::mma<T>(states[g].out[i + 1], a[g], matrices[2], matrices[3]);
      }
    }
  }
}

// The same for one group.
template <typename T, int width, int blocks>
DEVICE void multiply_values(State<width>& state, const float (&weights)[blocks][4], const T* values) {
  multiply_values<T, width>(reinterpret_cast<State<width>(&)[1]>(state),
                            reinterpret_cast<const float (&)[1][blocks][4]>(weights), values);
}

// One of the thread's two rows times `factor`, its first head_dim numbers.
template <typename T, int width>
DEVICE void store_row(T* row, int head_dim, const State<width>& state, int half, float factor) {
  UNROLL
  for (int i = 0; i < width / 8; ++i) {
    if (i * 8 >= head_dim) continue;
    *reinterpret_cast<uint32_t*>(row + i * 8 + column_of_thread()) =
        device::pack<T>(state.out[i][2 * half] * factor, state.out[i][2 * half + 1] * factor);
  }
}

// scores[r, c] += band[r, c + 15 - r] of a warp's 16 rows: row r of the band, moved 15 - r columns to the left. A row
// lies in the four threads of a quad and its move is one number, of which the eights choose a register known to the
// compiler (one on for rows below 8, none from there on), and the rest is a shuffle in the quad of what each reader
// wants: the thread it reads from knows whether its reader's column stands in the next block.
template <int blocks>
DEVICE void add_skewed(float (&scores)[blocks][4], const float (&band)[blocks + 2][4]) {
  const int lane = threadIdx.x % 32, row = lane / 4, quad = lane % 4;
  const int move = 7 - row, pairs = move / 2, odd = move % 2;
  UNROLL
  for (int half = 0; half < 2; ++half) {
    UNROLL
    for (int e = 0; e < 2; ++e) {
      const int steps = pairs + (e + odd) / 2;  // of two columns, from reader to source
      const bool next = quad < steps;           // the reader's column is in the block after its own
      const int from = row * 4 + (quad + steps) % 4;
      UNROLL
      for (int i = 0; i < blocks; ++i) {
        const int block = i + 1 - half;
        const float* here = &band[block][2 * half];
        const float* there = &band[block + 1][2 * half];
        const float offered = (e + odd) % 2 ? (next ? there[1] : here[1]) : (next ? there[0] : here[0]);
        scores[i][2 * half + e] += device::shuffle(offered, from);
      }
    }
  }
}

}  // namespace headcount::cuda
