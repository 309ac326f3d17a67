#include "cpu/units/panel.h"
#include "cpu/units/tiles.h"
#include "cpu/units/unit.h"

namespace {

using headcount::cpu::Activation;
using headcount::cpu::Linear;
using headcount::cpu::panel_bytes;
using headcount::cpu::panel_width;

// x · Φ(x), Φ by the error function's approximation 7.1.26 of Abramowitz and Stegun, absolute error below 1.5e-7.
HEADCOUNT_INLINE Lanes gelu(const Lanes& x) {
  const Lanes size = x < 0.0f ? -x : x, t = 1.0f / (size * (0.3275911f * 0.70710678f) + 1.0f);
  const Lanes series =
      ((((t * 1.061405429f - 1.453152027f) * t + 1.421413741f) * t - 0.284496736f) * t + 0.254829592f) * t;
  const Lanes tail = series * exponential(x * x * -0.5f) * 0.5f;  // 1 - Φ(|x|)
  return x * (x < 0.0f ? tail : 1.0f - tail);
}

// tanh(x) = 2 sigmoid(2 x) - 1, so x / 2 · (1 + tanh u) = x · sigmoid(2 u).
HEADCOUNT_INLINE Lanes sigmoid(const Lanes& x) {
  return 1.0f / (exponential(x < -80.0f ? Lanes{} + 80.0f : -x) + 1.0f);
}

template <typename Function>
HEADCOUNT_INLINE Vec each(Vec x, Function function) {
#pragma GCC unroll 4
  for (int i = 0; i < vec_parts; ++i) x.part[i] = function(x.part[i]);
  return x;
}

HEADCOUNT_INLINE Vec activated(const Vec& x, Activation activation) {
  switch (activation) {
    case Activation::relu:
      return max(broadcast(0.0f), x);
    case Activation::gelu:
      return each(x, [](const Lanes& v) { return gelu(v); });
    case Activation::gelu_tanh:
      return each(x,
                  [](const Lanes& v) { return v * sigmoid((v * v * 0.044715f + 1.0f) * v * (2.0f * 0.7978845608f)); });
    case Activation::quick_gelu:
      return each(x, [](const Lanes& v) { return v * sigmoid(v * 1.702f); });
    case Activation::silu:
      return each(x, [](const Lanes& v) { return v * sigmoid(v); });
    case Activation::tanh:
      return each(x, [](const Lanes& v) { return sigmoid(v + v) * 2.0f - 1.0f; });
    default:
      return x;
  }
}

// y = residual + activation(sum + bias) of `count` lanes.
HEADCOUNT_INLINE void finish(const Linear& call, std::int64_t row, std::int64_t column, std::int64_t count, Vec sum) {
  const bool whole = count >= panel_width;
  const auto read = [&](const float* p) { return whole ? load(p) : load(p, count, 0.0f); };
  const std::int64_t at = row * call.ldy + column;
  if (call.w->kind == Kind::int8) sum = sum * (load(call.w->scale + column) * broadcast(call.x_scale[row]));
  if (call.bias != nullptr) sum = sum + read(call.bias + column);
  sum = activated(sum, call.activation);
  if (call.residual != nullptr) sum = read(call.residual + at) + sum;
  if (whole)
    store(call.y + at, sum);
  else
    store(call.y + at, sum, count);
}

// Once for all tiles, out of line: inlined into each of a hundred instances it would be most of the code.
__attribute__((noinline)) void finish_tile(const Linear& call, std::int64_t row, std::int64_t panel, int rows,
                                           int panels, const float* sums) {
  for (int i = 0; i < rows; ++i)
    for (int p = 0; p < panels; ++p, sums += panel_width) {
      const std::int64_t column = (panel + p) * panel_width;
      finish(call, row + i, column, call.w->n - column, load(sums));
    }
}

template <Kind KIND, int ROWS, int PANELS>
void tile(const Linear& call, std::int64_t row, std::int64_t panel) {
  const std::int64_t stride = panel_bytes(call.w->k, KIND);
  const char* w = static_cast<const char*>(call.w->data) + panel * stride;
  const float* x = call.x + row * call.ldx;
  Vec acc[ROWS * PANELS];
  clear(acc);
  if constexpr (KIND == Kind::float32)
    multiply_float32<ROWS, PANELS>(x, call.ldx, reinterpret_cast<const float*>(w), panel_width, stride, call.w->k, acc);
  else if constexpr (KIND == Kind::bfloat16)
    multiply_bfloat16<ROWS, PANELS>(x, call.ldx, w, stride, call.w->k, acc);
  else
    multiply_int8<ROWS, PANELS>(x, call.ldx, w, stride, call.w->k, acc);
  float sums[ROWS * PANELS * panel_width];
#pragma GCC unroll 32
  for (int i = 0; i < ROWS * PANELS; ++i) store(sums + i * panel_width, acc[i]);
  finish_tile(call, row, panel, ROWS, PANELS, sums);
}

// Finds the instance for `rows`, from a full tile down. `panels` is what fits a tile alone, what fits a full tile,
// or 1.
template <Kind KIND, int ROWS>
void tile_of(std::int64_t rows, int panels, const Linear& call, std::int64_t row, std::int64_t panel) {
  constexpr int alone = panels_at_once(KIND, ROWS);
  constexpr int full = panels_at_once(KIND, rows_at_once(KIND));
  if (rows == ROWS) {
    if (panels == alone)
      tile<KIND, ROWS, alone>(call, row, panel);
    else if (panels == full)
      tile<KIND, ROWS, full>(call, row, panel);
    else
      tile<KIND, ROWS, 1>(call, row, panel);
  } else if constexpr (ROWS > 1) {
    tile_of<KIND, ROWS - 1>(rows, panels, call, row, panel);
  }
}

// The weights outside, read from memory once; x inside. Rows are cut into tiles of nearly equal height.
template <Kind KIND>
void multiply(const Linear& call, std::int64_t panel_begin, std::int64_t panel_end) {
  constexpr int full = rows_at_once(KIND);
  const std::int64_t tiles = (call.rows + full - 1) / full;
  const int fit = panels_at_once(KIND, tiles == 1 ? static_cast<int>(call.rows) : full);
  for (std::int64_t panel = panel_begin; panel < panel_end;) {
    const int panels = panel + fit <= panel_end ? fit : 1;
    std::int64_t row = 0;
    for (std::int64_t left = tiles; left > 0; --left) {
      const std::int64_t rows = (call.rows - row + left - 1) / left;
      tile_of<KIND, full>(rows, panels, call, row, panel);
      row += rows;
    }
    panel += panels;
  }
}

// As tile<Kind::int8, ROWS, 1>, the panel widened by `widen`.
template <int ROWS>
void widened_tile(const Linear& call, std::int64_t row, std::int64_t panel, const char* wide) {
  Vec acc[ROWS];
  multiply_widened<ROWS>(call.x + row * call.ldx, call.ldx, wide, call.w->k, acc);
  float sums[ROWS * panel_width];
#pragma GCC unroll 16
  for (int i = 0; i < ROWS; ++i) store(sums + i * panel_width, acc[i]);
  finish_tile(call, row, panel, ROWS, 1, sums);
}

template <int ROWS>
void widened_tile_of(std::int64_t rows, const Linear& call, std::int64_t row, std::int64_t panel, const char* wide) {
  if (rows == ROWS)
    widened_tile<ROWS>(call, row, panel, wide);
  else if constexpr (ROWS > 1)
    widened_tile_of<ROWS - 1>(rows, call, row, panel, wide);
}

constexpr std::int64_t most_widened = 4096;  // columns of a panel widened on the stack, 128 KiB

// Many rows against int8: each panel is widened once for all tiles, which are then higher than where W is unpacked on
// the fly. Whole numbers: the same bits either way.
void multiply_widening(const Linear& call, std::int64_t panel_begin, std::int64_t panel_end) {
  alignas(64) char wide[most_widened * panel_width * 2];
  const std::int64_t stride = panel_bytes(call.w->k, Kind::int8),
                     tiles = (call.rows + full_tile_rows - 1) / full_tile_rows;
  for (std::int64_t panel = panel_begin; panel < panel_end; ++panel) {
    widen(static_cast<const char*>(call.w->data) + panel * stride, call.w->k, wide);
    std::int64_t row = 0;
    for (std::int64_t left = tiles; left > 0; --left) {
      const std::int64_t rows = (call.rows - row + left - 1) / left;
      widened_tile_of<full_tile_rows>(rows, call, row, panel, wide);
      row += rows;
    }
  }
}

#if defined(HEADCOUNT_TILES)
void multiply_tiled(const Linear& call, std::int64_t panel_begin, std::int64_t panel_end) {
  const std::int64_t stride = panel_bytes(call.w->k, Kind::bfloat16), n = call.w->n;
  alignas(64) float sums[tiled_rows * 2 * panel_width];
  for (std::int64_t row = 0; row < call.rows; row += tiled_rows) {
    const std::int64_t rows = call.rows - row < tiled_rows ? call.rows - row : tiled_rows;
    shape_tiles(rows);
    for (std::int64_t panel = panel_begin; panel < panel_end; panel += 2) {
      const char* left = static_cast<const char*>(call.w->data) + panel * stride;
      const bool two = panel + 1 < panel_end;
      multiply_by_tiles(call.x + row * call.ldx, call.ldx, rows, call.w->k, left, two ? left + stride : nullptr, sums);
      for (std::int64_t i = 0; i < rows; ++i)
        for (std::int64_t p = 0; p < (two ? 2 : 1); ++p) {
          const std::int64_t column = (panel + p) * panel_width;
          finish(call, row + i, column, n - column, load(sums + (i * 2 + p) * panel_width));
        }
    }
  }
  release_tiles();
}
#endif

}  // namespace

namespace headcount::cpu::HEADCOUNT_UNIT {

void linear(const Linear& call, std::int64_t panel_begin, std::int64_t panel_end) {
  if (call.rows == 0) return;
#if defined(HEADCOUNT_TILES)
  if (call.w->kind == Kind::bfloat16 && call.rows >= fewest_tiled_rows)
    return multiply_tiled(call, panel_begin, panel_end);
#endif
  switch (call.w->kind) {
    case Kind::float32:
      return multiply<Kind::float32>(call, panel_begin, panel_end);
    case Kind::bfloat16:
      return multiply<Kind::bfloat16>(call, panel_begin, panel_end);
    case Kind::int8:
      if (register_lanes < 16 && call.rows > 3 * rows_at_once(Kind::int8) && call.w->k <= most_widened)
        return multiply_widening(call, panel_begin, panel_end);
      return multiply<Kind::int8>(call, panel_begin, panel_end);
  }
}

}  // namespace headcount::cpu::HEADCOUNT_UNIT
