#include "cpu/units/attend_multiply.h"

#include "cpu/units/panel.h"
#include "cpu/units/tiles.h"
#include "cpu/units/vec.h"

namespace {

template <Kind KIND, int ROWS, int PANELS>
void multiply_tile(const float* x, std::int64_t ldx, std::int64_t k, const Columns& b, std::int64_t panel,
                   const Target& to) {
  Vec acc[ROWS * PANELS];
  clear(acc);
  const char* data = b.data + panel * b.stride;
  if constexpr (KIND == Kind::float32)
    multiply_float32<ROWS, PANELS>(x, ldx, reinterpret_cast<const float*>(data), b.ldb, b.stride, k, acc);
  else if constexpr (KIND == Kind::bfloat16)
    multiply_bfloat16<ROWS, PANELS>(x, ldx, data, b.stride, k, acc);
  else
    multiply_int8<ROWS, PANELS>(x, ldx, data, b.stride, k, acc);
#pragma GCC unroll 16
  for (int row = 0; row < ROWS; ++row) {
#pragma GCC unroll 4
    for (int p = 0; p < PANELS; ++p) {
      Vec result = acc[row * PANELS + p];
      if constexpr (KIND == Kind::int8) {
        result = result * (load(b.scale + (panel + p) * panel_width) * broadcast(to.x_scale[row]));
      }
      float* y = to.y + row * to.ldy + (panel + p) * panel_width;
      if (to.rescale != nullptr) multiply_add(result, to.rescale[row], load(y));
      store(y, result);
    }
  }
}

// Finds the instance for `rows`, from ROWS down; `panels` is what fits a tile alone, what fits a full tile, or 1.
template <Kind KIND, int ROWS>
void multiply_rows(std::int64_t rows, int panels, const float* x, std::int64_t ldx, std::int64_t k, const Columns& b,
                   std::int64_t panel, const Target& to) {
  constexpr int alone = panels_at_once(KIND, ROWS);
  constexpr int full = panels_at_once(KIND, rows_at_once(KIND));
  if (rows == ROWS) {
    if (panels == alone)
      multiply_tile<KIND, ROWS, alone>(x, ldx, k, b, panel, to);
    else if (panels == full)
      multiply_tile<KIND, ROWS, full>(x, ldx, k, b, panel, to);
    else
      multiply_tile<KIND, ROWS, 1>(x, ldx, k, b, panel, to);
  } else if constexpr (ROWS > 1) {
    multiply_rows<KIND, ROWS - 1>(rows, panels, x, ldx, k, b, panel, to);
  }
}

// x [rows, k] against `panels` panels; rows are cut into tiles of nearly equal height, for one of a single row is slow.
template <Kind KIND>
void multiply_tiles(const float* x, std::int64_t ldx, std::int64_t rows, std::int64_t k, const Columns& b,
                    std::int64_t panels, const Target& to) {
  constexpr int full = rows_at_once(KIND);
  const std::int64_t tiles = (rows + full - 1) / full;
  const int fit = panels_at_once(KIND, tiles == 1 ? static_cast<int>(rows) : full);
  for (std::int64_t panel = 0; panel < panels;) {
    const int count = panel + fit <= panels ? fit : 1;
    std::int64_t row = 0;
    for (std::int64_t left = tiles; left > 0; --left) {
      const std::int64_t height = (rows - row + left - 1) / left;
      const float* rescale = to.rescale == nullptr ? nullptr : to.rescale + row;
      const float* x_scale = to.x_scale == nullptr ? nullptr : to.x_scale + row;
      multiply_rows<KIND, full>(height, count, x + row * ldx, ldx, k, b, panel,
                                {to.y + row * to.ldy, to.ldy, rescale, x_scale});
      row += height;
    }
    panel += count;
  }
}

// A panel of bfloat16 as float32: exact, so that unpacking first or on the fly gives the same bits.
inline void unpack(const char* panel, std::int64_t k, float* to) {
  for (std::int64_t i = 0; i < k; i += 2, panel += 64) {
    store(to + i * panel_width, load_bfloat16(panel, 0));
    store(to + (i + 1) * panel_width, load_bfloat16(panel, 1));
  }
}

// Many rows against panels of bfloat16: a few panels at a time are unpacked once for all tiles.
inline void multiply_unpacked(const float* x, std::int64_t ldx, std::int64_t rows, std::int64_t k, const Columns& b,
                              std::int64_t panels, const Target& to) {
  constexpr std::int64_t together = panels_at_once(Kind::float32, full_tile_rows);
  alignas(64) float unpacked[together * longest_piece * panel_width];
  for (std::int64_t panel = 0; panel < panels; panel += together) {
    const std::int64_t count = panels - panel < together ? panels - panel : together;
    for (std::int64_t p = 0; p < count; ++p)
      unpack(b.data + (panel + p) * b.stride, k, unpacked + p * longest_piece * panel_width);
    multiply_tiles<Kind::float32>(x, ldx, rows, k, float_columns(unpacked, longest_piece * panel_width, panel_width),
                                  count, {to.y + panel * panel_width, to.ldy, to.rescale, nullptr});
  }
}

#if defined(HEADCOUNT_TILES)
// As multiply_tiles, of bfloat16, in the tile registers.
inline void multiply_tiled(const float* x, std::int64_t ldx, std::int64_t rows, std::int64_t k, const Columns& b,
                           std::int64_t panels, const Target& to) {
  alignas(64) float sums[tiled_rows * 2 * panel_width];
  shape_tiles(rows);
  for (std::int64_t panel = 0; panel < panels; panel += 2) {
    const char* left = b.data + panel * b.stride;
    const std::int64_t count = panel + 1 < panels ? 2 : 1;
    multiply_by_tiles(x, ldx, rows, k, left, count == 2 ? left + b.stride : nullptr, sums);
    for (std::int64_t row = 0; row < rows; ++row)
      for (std::int64_t p = 0; p < count; ++p) {
        Vec result = load(sums + (row * 2 + p) * panel_width);
        float* y = to.y + row * to.ldy + (panel + p) * panel_width;
        if (to.rescale != nullptr) multiply_add(result, to.rescale[row], load(y));
        store(y, result);
      }
  }
  release_tiles();
}
static_assert(query_rows <= tiled_rows, "a block of rows fits the tiles");
#endif

// Rows the unit narrows, in pieces of k whose narrowed rows fit the stack.
template <Kind KIND>
void multiply_narrowed(const float* x, std::int64_t ldx, std::int64_t rows, std::int64_t k, const Columns& b,
                       std::int64_t panels, const Target& to) {
  alignas(64) float narrowed[query_rows * narrowed_stride(longest_piece)];
  float scale[query_rows], ones[query_rows];
  for (float& one : ones) one = 1.0f;
  for (std::int64_t begin = 0; begin < k; begin += longest_piece) {
    const std::int64_t count = k - begin < longest_piece ? k - begin : longest_piece, stride = narrowed_stride(count);
    for (std::int64_t row = 0; row < rows; ++row)
      narrow_row(x + row * ldx + begin, count, KIND, narrowed + row * stride, scale + row);
    Columns piece = b;
    piece.data += panel_bytes(begin, KIND);
    const Target target{to.y, to.ldy, begin == 0 ? to.rescale : ones, scale};
#if defined(HEADCOUNT_TILES)
    if (KIND == Kind::bfloat16 && rows >= fewest_tiled_rows) {
      multiply_tiled(narrowed, stride, rows, count, piece, panels, target);
      continue;
    }
#endif
    multiply_tiles<KIND>(narrowed, stride, rows, count, piece, panels, target);
  }
}

}  // namespace

namespace headcount::cpu::HEADCOUNT_UNIT {

void multiply(const float* x, std::int64_t ldx, std::int64_t rows, std::int64_t k, const Columns& b,
              std::int64_t panels, const Target& to) {
  if (b.kind == Kind::float32) return multiply_tiles<Kind::float32>(x, ldx, rows, k, b, panels, to);
  if (b.kind == Kind::int8) return multiply_narrowed<Kind::int8>(x, ldx, rows, k, b, panels, to);
#if defined(HEADCOUNT_DOTS_BFLOAT16)
  multiply_narrowed<Kind::bfloat16>(x, ldx, rows, k, b, panels, to);
#else
  if (rows > rows_at_once(b.kind) && k <= longest_piece)
    multiply_unpacked(x, ldx, rows, k, b, panels, to);
  else
    multiply_tiles<Kind::bfloat16>(x, ldx, rows, k, b, panels, to);
#endif
}

}  // namespace headcount::cpu::HEADCOUNT_UNIT
