// The microkernel of linear layers and attention: rows of x against panels of 16 columns, accumulators in registers.
// Every output is one chain of multiply-adds over k in ascending order, whatever the number of rows or panels, so that
// a row's result does not depend on the rows beside it.
#pragma once

#include <cstdint>

#include "cpu/kernels.h"
#include "cpu/units/vec.h"

namespace {

using headcount::cpu::Kind;

// Accumulators that leave registers for the operands; narrow kinds need more of those to be unpacked.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int accumulators(Kind) { return 24; }
#else
constexpr int accumulators(Kind kind) { return kind == Kind::kFloat32 ? 12 : 10; }
#endif

// Rows of a full tile: 6 on AVX2 (5 where W is unpacked), 12 on AVX-512, where two panels stand side by side.
constexpr int rows_at_once(Kind kind) { return kLanes == 16 ? 12 : accumulators(kind) / kParts; }
constexpr int kRows = rows_at_once(Kind::kFloat32);

// Panels side by side that fill the accumulators: for few rows enough independent chains to hide the latency of an
// addition, for many half the broadcasts of x.
constexpr int panels_at_once(Kind kind, int rows) {
  const int fit = accumulators(kind) / (rows * kParts);
  const int most = rows < 4 ? 4 : 2;
  return fit > most ? most : fit < 1 ? 1 : fit;
}

// acc[row · PANELS + panel] += x[row, which] · column(panel, which) for the GROUP consecutive k that share a register.
// On AVX-512 the columns come first, so that each x is broadcast once; with 16 registers a panel after the other.
template <int ROWS, int PANELS, int GROUP, typename Column>
HEADCOUNT_INLINE void multiply_group(const float* x, std::int64_t ldx, Vec (&acc)[ROWS * PANELS], Column column) {
  if constexpr (kLanes == 16) {
#pragma GCC unroll 4
    for (int which = 0; which < GROUP; ++which) {
      Vec columns[PANELS];
#pragma GCC unroll 4
      for (int p = 0; p < PANELS; ++p) columns[p] = column(p, which);
#pragma GCC unroll 16
      for (int row = 0; row < ROWS; ++row)
#pragma GCC unroll 4
        for (int p = 0; p < PANELS; ++p) accumulate(acc[row * PANELS + p], x[row * ldx + which], columns[p]);
    }
  } else {
#pragma GCC unroll 4
    for (int p = 0; p < PANELS; ++p) {
#pragma GCC unroll 4
      for (int which = 0; which < GROUP; ++which) {
        const Vec one = column(p, which);
#pragma GCC unroll 16
        for (int row = 0; row < ROWS; ++row) accumulate(acc[row * PANELS + p], x[row * ldx + which], one);
      }
    }
  }
}

// acc[row · PANELS + panel] += Σ_k x[row, k] · B[k, panel, lane], with `stride` bytes between two panels and `ldb`
// floats between two k of one: 16 in a packed matrix, more for 16 columns of a row-major one.
template <int ROWS, int PANELS>
HEADCOUNT_INLINE void multiply_float32(const float* x, std::int64_t ldx, const float* b, std::int64_t ldb,
                                       std::int64_t stride, std::int64_t k, Vec (&acc)[ROWS * PANELS]) {
  const char* panel = reinterpret_cast<const char*>(b);
  for (std::int64_t i = 0; i < k; ++i, panel += ldb * 4)
    multiply_group<ROWS, PANELS, 1>(x + i, ldx, acc, [&](int p, int) __attribute__((always_inline)) {
      return load(reinterpret_cast<const float*>(panel + p * stride));
    });
}

// Element `which` of each lane's pair.
HEADCOUNT_INLINE Vec load_bfloat16(const char* pairs, int which) {
  Vec v;
#pragma GCC unroll 4
  for (int i = 0; i < kParts; ++i) {
    const Bits pair = *reinterpret_cast<const LooseBits*>(pairs + i * kLanes * 4);
    v.part[i] = which == 0 ? (Lanes)(pair << 16) : (Lanes)(pair & 0xFFFF0000u);
  }
  return v;
}

// Element `which` of each lane's quad.
HEADCOUNT_INLINE Vec load_int8(const char* quads, int which) {
  Vec v;
#pragma GCC unroll 4
  for (int i = 0; i < kParts; ++i) {
    const Bits quad = *reinterpret_cast<const LooseBits*>(quads + i * kLanes * 4);
    v.part[i] = __builtin_convertvector((Ints)(quad << (24 - 8 * which)) >> 24, Lanes);
  }
  return v;
}

template <int ROWS, int PANELS>
HEADCOUNT_INLINE void multiply_bfloat16(const float* x, std::int64_t ldx, const void* b, std::int64_t stride,
                                        std::int64_t k, Vec (&acc)[ROWS * PANELS]) {
  const char* panel = static_cast<const char*>(b);
  const auto column = [&](int p, int which)
                          __attribute__((always_inline)) { return load_bfloat16(panel + p * stride, which); };
  std::int64_t i = 0;
  for (; i + 2 <= k; i += 2, panel += 64) multiply_group<ROWS, PANELS, 2>(x + i, ldx, acc, column);
  if (i < k) multiply_group<ROWS, PANELS, 1>(x + i, ldx, acc, column);  // x ends here
}

// Without the scale of the rows: multiply the finished accumulators by it.
template <int ROWS, int PANELS>
HEADCOUNT_INLINE void multiply_int8(const float* x, std::int64_t ldx, const void* b, std::int64_t stride,
                                    std::int64_t k, Vec (&acc)[ROWS * PANELS]) {
  const char* panel = static_cast<const char*>(b);
  int first = 0;
  const auto column = [&](int p, int which)
                          __attribute__((always_inline)) { return load_int8(panel + p * stride, first + which); };
  std::int64_t i = 0;
  for (; i + 4 <= k; i += 4, panel += 64) multiply_group<ROWS, PANELS, 4>(x + i, ldx, acc, column);
  for (; i < k; ++i, ++first) multiply_group<ROWS, PANELS, 1>(x + i, ldx, acc, column);  // x ends here
}

// One panel of any kind; ldb is used by float32 only.
template <int ROWS>
HEADCOUNT_INLINE void multiply_panel(const float* x, std::int64_t ldx, const void* panel, Kind kind, std::int64_t ldb,
                                     std::int64_t k, Vec (&acc)[ROWS]) {
  if (kind == Kind::kFloat32)
    multiply_float32<ROWS, 1>(x, ldx, static_cast<const float*>(panel), ldb, 0, k, acc);
  else if (kind == Kind::kBFloat16)
    multiply_bfloat16<ROWS, 1>(x, ldx, panel, 0, k, acc);
  else
    multiply_int8<ROWS, 1>(x, ldx, panel, 0, k, acc);
}

template <int COUNT>
HEADCOUNT_INLINE void clear(Vec (&acc)[COUNT]) {
#pragma GCC unroll 32
  for (int i = 0; i < COUNT; ++i) acc[i] = broadcast(0.0f);
}

}  // namespace
