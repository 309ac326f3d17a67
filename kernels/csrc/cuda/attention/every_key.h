// The flash loop over keys that every row of a block sees: persistent vectors, and the whole sequence of an encoder.
#pragma once

#include <cstdint>

#include "cuda/fragments.h"

namespace headcount::cuda {

// Its tiles in shared memory: blocks of keys and values, on their way or in use.
template <typename C>
struct EveryKey {
  static constexpr int keys = C::width > 64 ? 32 : 64, size = keys * pitch<C::width>, stages = 3;
  // For `blocks` of them, or any number.
  static constexpr size_t bytes(int blocks = stages) {
    return sizeof(typename C::T) * (blocks < stages ? blocks : stages) * 2 * size;
  }
};

// Keys and values n of `count`, each head_dim numbers, `stride` numbers apart, into the states of the warp's rows.
// begin(queries) loads their queries and says whether the warp has any: by then the first keys are on their way. Scores
// are dot products times `scale`, in units of log2.
template <typename C, typename Begin>
DEVICE void see_every_key(State<C::width> (&states)[C::groups], const typename C::T* keys, const typename C::T* values,
                          int64_t stride, int count, int head_dim, float scale, const Begin& begin) {
  using T = typename C::T;
  using Tile = EveryKey<C>;
  constexpr int width = C::width, threads = 32 * C::warps;
  T* tiles = reinterpret_cast<T*>(device::shared_memory());
  const int blocks = (count + Tile::keys - 1) / Tile::keys;
  const auto fetch = [&](int block) {
    if (block < blocks) {
      T* tile = tiles + block % Tile::stages * 2 * Tile::size;
      const int start = block * Tile::keys;
      copy_rows<T, width, Tile::keys, threads>(
          tile, head_dim, keys, [&](int n) { return start + n < count ? keys + (start + n) * stride : nullptr; });
      copy_rows<T, width, Tile::keys, threads>(tile + Tile::size, head_dim, values, [&](int n) {
        return start + n < count ? values + (start + n) * stride : nullptr;
      });
    }
    device::close_copies();
  };
  for (int block = 0; block < Tile::stages - 1; ++block) fetch(block);
  uint32_t queries[C::groups][width / 16][4];
  const bool has_rows = begin(queries);
  for (int block = 0; block < blocks; ++block) {
    device::wait_copies<Tile::stages - 2>();
    device::barrier();
    fetch(block + Tile::stages - 1);
    if (!has_rows) continue;
    const T* tile = tiles + block % Tile::stages * 2 * Tile::size;
    float scores[C::groups][Tile::keys / 8][4] = {};
    multiply_keys<T, width>(scores, queries, [&](int i) { return tile + i * 8 * pitch<width>; });
    UNROLL
    for (int g = 0; g < C::groups; ++g) {
      UNROLL
      for (int i = 0; i < Tile::keys / 8; ++i) {
        UNROLL
        for (int e = 0; e < 4; ++e) scores[g][i][e] *= scale;
      }
      if (block == blocks - 1) {
        const int missing_from = count - block * Tile::keys - column_of_thread();  // the first column that is no key
        UNROLL
        for (int i = 0; i < Tile::keys / 8; ++i) {
          UNROLL
          for (int e = 0; e < 4; ++e) {
            if (i * 8 + e % 2 >= missing_from) scores[g][i][e] = -INFINITY;
          }
        }
      }
      states[g].weigh(scores[g]);
    }
    multiply_values<T, width>(states, scores, tile + Tile::size);
  }
  UNROLL
  for (int g = 0; g < C::groups; ++g) states[g].sum_columns();
}

}  // namespace headcount::cuda
