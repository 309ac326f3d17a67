#include "cpu/units/attend_multiply.h"

#include "cpu/units/panel.h"
#include "cpu/units/vec.h"

namespace {

template <Kind KIND, int ROWS, int PANELS>
void multiply_tile(const float* x, std::int64_t ldx, std::int64_t k, const Columns& b, std::int64_t panel,
                   const Target& to) {
  Vec acc[ROWS * PANELS];
  clear(acc);
  const char* data = b.data + panel * b.stride;
  if constexpr (KIND == Kind::kFloat32)
    multiply_float32<ROWS, PANELS>(x, ldx, reinterpret_cast<const float*>(data), b.ldb, b.stride, k, acc);
  else if constexpr (KIND == Kind::kBFloat16)
    multiply_bfloat16<ROWS, PANELS>(x, ldx, data, b.stride, k, acc);
  else
    multiply_int8<ROWS, PANELS>(x, ldx, data, b.stride, k, acc);
#pragma GCC unroll 16
  for (int row = 0; row < ROWS; ++row) {
#pragma GCC unroll 4
    for (int p = 0; p < PANELS; ++p) {
      Vec result = acc[row * PANELS + p];
      if (b.scale != nullptr) result = result * load(b.scale + (panel + p) * kPanel);
      float* y = to.y + row * to.ldy + (panel + p) * kPanel;
      if (to.rescale != nullptr) multiply_add(result, to.rescale[row], load(y));
      store(y, result);
    }
  }
}

// Finds the instance for `rows`, from ROWS down; `panels` is what fits a tile alone, what fits a full tile, or 1.
template <Kind KIND, int ROWS>
void multiply_rows(std::int64_t rows, int panels, const float* x, std::int64_t ldx, std::int64_t k, const Columns& b,
                   std::int64_t panel, const Target& to) {
  constexpr int kAlone = panels_at_once(KIND, ROWS);
  constexpr int kFull = panels_at_once(KIND, rows_at_once(KIND));
  if (rows == ROWS) {
    if (panels == kAlone)
      multiply_tile<KIND, ROWS, kAlone>(x, ldx, k, b, panel, to);
    else if (panels == kFull)
      multiply_tile<KIND, ROWS, kFull>(x, ldx, k, b, panel, to);
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
  constexpr int kFull = rows_at_once(KIND);
  const std::int64_t tiles = (rows + kFull - 1) / kFull;
  const int fit = panels_at_once(KIND, tiles == 1 ? static_cast<int>(rows) : kFull);
  for (std::int64_t panel = 0; panel < panels;) {
    const int count = panel + fit <= panels ? fit : 1;
    std::int64_t row = 0;
    for (std::int64_t left = tiles; left > 0; --left) {
      const std::int64_t height = (rows - row + left - 1) / left;
      const float* rescale = to.rescale == nullptr ? nullptr : to.rescale + row;
      multiply_rows<KIND, kFull>(height, count, x + row * ldx, ldx, k, b, panel,
                                 {to.y + row * to.ldy, to.ldy, rescale});
      row += height;
    }
    panel += count;
  }
}

// A narrow panel as float32: exact, so that unpacking first or on the fly gives the same bits.
template <Kind KIND>
void unpack(const char* panel, std::int64_t k, float* to) {
  constexpr int kGroup = KIND == Kind::kBFloat16 ? 2 : 4;  // numbers in a lane's 4 bytes; a panel has whole groups
  for (std::int64_t i = 0; i < k; i += kGroup, panel += 64) {
#pragma GCC unroll 4
    for (int part = 0; part < kParts; ++part) {
      const Bits group = *reinterpret_cast<const LooseBits*>(panel + part * kLanes * 4);
#pragma GCC unroll 4
      for (int which = 0; which < kGroup; ++which) {
        Lanes column;
        if constexpr (KIND == Kind::kBFloat16)
          column = (Lanes)(which == 0 ? group << 16 : group & 0xFFFF0000u);
        else
          column = __builtin_convertvector((Ints)(group << (24 - 8 * which)) >> 24, Lanes);
        *reinterpret_cast<LooseLanes*>(to + (i + which) * kPanel + part * kLanes) = column;
      }
    }
  }
}

// Many rows against narrow panels: a few panels at a time are unpacked once for all tiles.
inline void multiply_unpacked(const float* x, std::int64_t ldx, std::int64_t rows, std::int64_t k, const Columns& b,
                              std::int64_t panels, const Target& to) {
  constexpr std::int64_t kTogether = panels_at_once(Kind::kFloat32, kRows);
  alignas(64) float unpacked[kTogether * kLongest * kPanel];
  for (std::int64_t panel = 0; panel < panels; panel += kTogether) {
    const std::int64_t count = panels - panel < kTogether ? panels - panel : kTogether;
    for (std::int64_t p = 0; p < count; ++p) {
      const char* narrow = b.data + (panel + p) * b.stride;
      float* wide = unpacked + p * kLongest * kPanel;
      if (b.kind == Kind::kBFloat16)
        unpack<Kind::kBFloat16>(narrow, k, wide);
      else
        unpack<Kind::kInt8>(narrow, k, wide);
    }
    Columns columns = float_columns(unpacked, kLongest * kPanel, kPanel);
    columns.scale = b.scale == nullptr ? nullptr : b.scale + panel * kPanel;
    multiply_tiles<Kind::kFloat32>(x, ldx, rows, k, columns, count, {to.y + panel * kPanel, to.ldy, to.rescale});
  }
}

}  // namespace

namespace headcount::cpu::HEADCOUNT_UNIT {

void multiply(const float* x, std::int64_t ldx, std::int64_t rows, std::int64_t k, const Columns& b,
              std::int64_t panels, const Target& to) {
  if (b.kind == Kind::kFloat32)
    multiply_tiles<Kind::kFloat32>(x, ldx, rows, k, b, panels, to);
  else if (rows > rows_at_once(b.kind) && k <= kLongest)
    multiply_unpacked(x, ldx, rows, k, b, panels, to);
  else if (b.kind == Kind::kBFloat16)
    multiply_tiles<Kind::kBFloat16>(x, ldx, rows, k, b, panels, to);
  else
    multiply_tiles<Kind::kInt8>(x, ldx, rows, k, b, panels, to);
}

}  // namespace headcount::cpu::HEADCOUNT_UNIT
