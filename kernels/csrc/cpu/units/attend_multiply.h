// Products of a few rows with many panels, and their one instance per instruction set.
#pragma once

#include "cpu/kernels.h"
#include "cpu/units/unit.h"

namespace headcount::cpu::HEADCOUNT_UNIT {

// B of a product X · B, in panels of 16 columns.
struct Columns {
  const char* data;
  std::int64_t stride;  // bytes from panel to panel
  std::int64_t ldb;     // float32: floats from one k to the next
  Kind kind;
  const float* scale;  // int8: of each column
};

// Where a product goes: y = X · B, or y = y · rescale[row] + X · B.
struct Target {
  float* y;
  std::int64_t ldy;
  const float* rescale;            // [rows] or null
  const float* x_scale = nullptr;  // [rows]: of rows narrowed for int8
};

constexpr std::int64_t longest_piece = 256;  // k of which a copy on the stack is made: panels unpacked, rows narrowed

// x [rows, k], rows ≤ query_rows, against the first `panels` panels: panels outside, rows inside, so that a panel is
// read from memory once.
void multiply(const float* x, std::int64_t ldx, std::int64_t rows, std::int64_t k, const Columns& b,
              std::int64_t panels, const Target& to);

}  // namespace headcount::cpu::HEADCOUNT_UNIT

namespace {

using headcount::cpu::Kind;
using headcount::cpu::Packed;
using headcount::cpu::panel_bytes;
using headcount::cpu::panel_width;
using headcount::cpu::query_rows;
using headcount::cpu::HEADCOUNT_UNIT::Columns;
using headcount::cpu::HEADCOUNT_UNIT::longest_piece;
using headcount::cpu::HEADCOUNT_UNIT::multiply;
using headcount::cpu::HEADCOUNT_UNIT::Target;

// The rows of a packed matrix from `row` on as columns, their numbers from `k` on; both multiples of 16.
inline Columns packed_columns(const Packed& w, std::int64_t row = 0, std::int64_t k = 0) {
  const std::int64_t stride = panel_bytes(w.k, w.kind), skipped = k == 0 ? 0 : panel_bytes(k, w.kind);
  return {static_cast<const char*>(w.data) + row / panel_width * stride + skipped, stride, panel_width, w.kind,
          w.scale == nullptr ? nullptr : w.scale + row};
}

inline Columns float_columns(const float* data, std::int64_t panel, std::int64_t ldb) {
  return {reinterpret_cast<const char*>(data), panel * 4, ldb, Kind::float32, nullptr};
}

}  // namespace
