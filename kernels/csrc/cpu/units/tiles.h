// Products of up to 32 narrowed rows with two panels of bfloat16, in the AMX unit's tile registers.
#pragma once

#include <cstdint>

#include "cpu/units/narrow.h"

#if defined(__AMX_BF16__) || defined(HEADCOUNT_EMULATED)
#define HEADCOUNT_TILES

namespace {

constexpr std::int64_t tile_register_rows = 16;
constexpr std::int64_t tiled_rows = 2 * tile_register_rows;  // rows of a product: two tiles below one another
constexpr std::int64_t fewest_tiled_rows = 5;  // fewer rows leave the tiles emptier than dot products cost

// Tiles 0 to 3 hold the sums (rows above, below × panel left, right), 4 and 5 the rows, 6 and 7 the panels.
struct alignas(64) TileShapes {
  std::uint8_t palette = 1, start = 0, reserved[14] = {};
  std::uint16_t bytes[16] = {};
  std::uint8_t rows[16] = {};
};

#if defined(HEADCOUNT_EMULATED)

struct Tiles {
  TileShapes shapes;
  alignas(64) std::uint32_t of[8][tile_register_rows][16];
};
thread_local Tiles tiles;

inline void load_shapes(const TileShapes& shapes) {
  tiles.shapes = shapes;
  __builtin_memset(tiles.of, 0, sizeof tiles.of);
}
inline void release_tiles() { __builtin_memset(tiles.of, 0xFF, sizeof tiles.of); }

inline void tile_zero(int to) { __builtin_memset(tiles.of[to], 0, sizeof tiles.of[to]); }

inline void tile_load(int to, const void* from, std::int64_t stride) {
  for (int row = 0; row < tiles.shapes.rows[to]; ++row)
    __builtin_memcpy(tiles.of[to][row], static_cast<const char*>(from) + row * stride, tiles.shapes.bytes[to]);
}

inline void tile_store(int from, void* to, std::int64_t stride) {
  for (int row = 0; row < tiles.shapes.rows[from]; ++row)
    __builtin_memcpy(static_cast<char*>(to) + row * stride, tiles.of[from][row], tiles.shapes.bytes[from]);
}

inline float half(std::uint32_t pair, int which) {
  const std::uint32_t bits = which == 0 ? pair << 16 : pair & 0xFFFF0000u;
  float x;
  __builtin_memcpy(&x, &bits, 4);
  return x;
}

inline void tile_dot(int sum, int a, int b) {
  for (int m = 0; m < tiles.shapes.rows[sum]; ++m)
    for (int n = 0; n < tiles.shapes.bytes[sum] / 4; ++n) {
      float x;
      __builtin_memcpy(&x, &tiles.of[sum][m][n], 4);
      for (int k = 0; k < tiles.shapes.bytes[a] / 4; ++k)
        for (int which = 0; which < 2; ++which) x += half(tiles.of[a][m][k], which) * half(tiles.of[b][k][n], which);
      __builtin_memcpy(&tiles.of[sum][m][n], &x, 4);
    }
}

#define HEADCOUNT_TILE_ZERO(to) tile_zero(to)
#define HEADCOUNT_TILE_LOAD(to, from, stride) tile_load(to, from, stride)
#define HEADCOUNT_TILE_STORE(from, to, stride) tile_store(from, to, stride)
#define HEADCOUNT_TILE_DOT(sum, a, b) tile_dot(sum, a, b)

#else

// Written out, because GCC 12's own say too little of the memory they read: the stores that fill a configuration or a
// buffer just before were moved behind them or dropped.
inline void load_shapes(const TileShapes& shapes) { asm volatile("ldtilecfg %0" ::"m"(shapes)); }
inline void release_tiles() { asm volatile("tilerelease"); }

#define HEADCOUNT_TILE_ZERO(to) asm volatile("tilezero %%tmm" #to::)
#define HEADCOUNT_TILE_LOAD(to, from, stride) \
  asm volatile("tileloadd (%0,%1,1), %%tmm" #to::"r"(from), "r"(static_cast<std::int64_t>(stride)) : "memory")
#define HEADCOUNT_TILE_STORE(from, to, stride) \
  asm volatile("tilestored %%tmm" #from ", (%0,%1,1)" ::"r"(to), "r"(static_cast<std::int64_t>(stride)) : "memory")
#define HEADCOUNT_TILE_DOT(sum, a, b) asm volatile("tdpbf16ps %%tmm" #b ", %%tmm" #a ", %%tmm" #sum::)

#endif

// Sixteen pairs of a panel's columns from pair `at` of `pairs`; the last ones are copied, zeros behind them.
inline const char* tile_of_panel(const char* panel, std::int64_t at, std::int64_t pairs, char* spare) {
  if (at + 16 <= pairs) return panel + at * 64;
  __builtin_memcpy(spare, panel + at * 64, static_cast<std::size_t>(pairs - at) * 64);
  __builtin_memset(spare + (pairs - at) * 64, 0, static_cast<std::size_t>(16 - (pairs - at)) * 64);
  return spare;
}

// sums [32][32] = x [rows, k] · the panels at `left` and `right` (null: left alone), 1 ≤ rows ≤ 32. Shapes as
// shape_tiles left them.
inline void multiply_by_tiles(const float* x, std::int64_t ldx, std::int64_t rows, std::int64_t k, const char* left,
                              const char* right, float* sums) {
  alignas(64) char spare[2][1024];
  const std::int64_t pairs = (k + 1) / 2, bytes = ldx * 4;
  const bool below = rows > tile_register_rows;
  HEADCOUNT_TILE_ZERO(0);
  HEADCOUNT_TILE_ZERO(1);
  HEADCOUNT_TILE_ZERO(2);
  HEADCOUNT_TILE_ZERO(3);
  for (std::int64_t at = 0; at < pairs; at += 16) {
    HEADCOUNT_TILE_LOAD(4, x + at, bytes);
    HEADCOUNT_TILE_LOAD(6, tile_of_panel(left, at, pairs, spare[0]), 64);
    HEADCOUNT_TILE_DOT(0, 4, 6);
    if (right != nullptr) {
      HEADCOUNT_TILE_LOAD(7, tile_of_panel(right, at, pairs, spare[1]), 64);
      HEADCOUNT_TILE_DOT(1, 4, 7);
    }
    if (!below) continue;
    HEADCOUNT_TILE_LOAD(5, x + tile_register_rows * ldx + at, bytes);
    HEADCOUNT_TILE_DOT(2, 5, 6);
    if (right != nullptr) HEADCOUNT_TILE_DOT(3, 5, 7);
  }
  HEADCOUNT_TILE_STORE(0, sums, 128);
  if (right != nullptr) HEADCOUNT_TILE_STORE(1, sums + 16, 128);
  if (!below) return;
  HEADCOUNT_TILE_STORE(2, sums + tile_register_rows * 32, 128);
  if (right != nullptr) HEADCOUNT_TILE_STORE(3, sums + tile_register_rows * 32 + 16, 128);
}

inline void shape_tiles(std::int64_t rows) {
  const auto above = static_cast<std::uint8_t>(rows < tile_register_rows ? rows : tile_register_rows);
  const auto below = static_cast<std::uint8_t>(rows > tile_register_rows ? rows - tile_register_rows : 1);
  TileShapes shapes;
  for (std::uint16_t& width : shapes.bytes) width = 64;
  for (int tile = 8; tile < 16; ++tile) shapes.bytes[tile] = 0;
  shapes.rows[0] = shapes.rows[1] = shapes.rows[4] = above;
  shapes.rows[2] = shapes.rows[3] = shapes.rows[5] = below;
  shapes.rows[6] = shapes.rows[7] = tile_register_rows;
  load_shapes(shapes);
}

}  // namespace

#endif
