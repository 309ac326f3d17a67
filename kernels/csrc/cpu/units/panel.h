// The microkernel of linear layers and attention: rows of x against panels of 16 columns, accumulators in registers.
// Every output is one chain of multiply-adds over k in ascending order, whatever the number of rows or panels, so that
// a row's result does not depend on the rows beside it.
#pragma once

#include <cstdint>

#include "cpu/kernels.h"
#include "cpu/units/narrow.h"
#include "cpu/units/vec.h"

namespace {

// Accumulators that leave registers for the operands; narrow kinds need more of those to be unpacked.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int accumulators(Kind) { return 24; }
#else
constexpr int accumulators(Kind kind) { return kind == Kind::float32 ? 12 : kind == Kind::bfloat16 ? 10 : 8; }
#endif

// Rows of a full tile: 6 on AVX2 (5 where W is unpacked), 12 on AVX-512, where two panels stand side by side.
constexpr int rows_at_once(Kind kind) { return register_lanes == 16 ? 12 : accumulators(kind) / vec_parts; }
constexpr int full_tile_rows = rows_at_once(Kind::float32);

// Panels side by side that fill the accumulators: for few rows enough independent chains to hide the latency of an
// addition, for many half the broadcasts of x.
constexpr int panels_at_once(Kind kind, int rows) {
  const int fit = accumulators(kind) / (rows * vec_parts);
  const int most = rows < 4 ? 4 : 2;
  return fit > most ? most : fit < 1 ? 1 : fit;
}

// acc[row · PANELS + panel] += x[row, which] · column(panel, which) for the GROUP consecutive k that share a register.
// On AVX-512 the columns come first, so that each x is broadcast once; with 16 registers a panel after the other.
template <int ROWS, int PANELS, int GROUP, typename Column>
HEADCOUNT_INLINE void multiply_group(const float* x, std::int64_t ldx, Vec (&acc)[ROWS * PANELS], Column column) {
  if constexpr (register_lanes == 16) {
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

HEADCOUNT_INLINE Bits load_bits(const char* p) { return *reinterpret_cast<const LooseBits*>(p); }

// Element `which` of each lane's pair.
HEADCOUNT_INLINE Vec load_bfloat16(const char* pairs, int which) {
  Vec v;
#pragma GCC unroll 4
  for (int i = 0; i < vec_parts; ++i) {
    const Bits pair = load_bits(pairs + i * register_lanes * 4);
    v.part[i] = which == 0 ? (Lanes)(pair << 16) : (Lanes)(pair & 0xFFFF0000u);
  }
  return v;
}

#if defined(HEADCOUNT_DOTS_BFLOAT16)
// Narrowed x.
template <int ROWS, int PANELS>
HEADCOUNT_INLINE void multiply_bfloat16(const float* x, std::int64_t ldx, const void* b, std::int64_t stride,
                                        std::int64_t k, Vec (&acc)[ROWS * PANELS]) {
  const char* panel = static_cast<const char*>(b);
  for (std::int64_t i = 0; i < k; i += 2, panel += 64, ++x) {
    Bits columns[PANELS][vec_parts];
#pragma GCC unroll 4
    for (int p = 0; p < PANELS; ++p)
      for (int part = 0; part < vec_parts; ++part)
        columns[p][part] = load_bits(panel + p * stride + part * register_lanes * 4);
#pragma GCC unroll 16
    for (int row = 0; row < ROWS; ++row) {
      const Bits pair = broadcast_bits(x + row * ldx);
#pragma GCC unroll 4
      for (int p = 0; p < PANELS; ++p)
        for (int part = 0; part < vec_parts; ++part) {
          Lanes& sum = acc[row * PANELS + p].part[part];
          sum = dot_bfloat16(sum, columns[p][part], pair);
        }
    }
  }
}
#else
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

#endif

// Narrowed x; without the scales of the rows of x and of W: multiply the finished accumulators by them.
template <int ROWS, int PANELS>
HEADCOUNT_INLINE void multiply_int8(const float* x, std::int64_t ldx, const void* b, std::int64_t stride,
                                    std::int64_t k, Vec (&acc)[ROWS * PANELS]) {
  const char* panel = static_cast<const char*>(b);
  Ints sums[ROWS * PANELS][vec_parts] = {};
  for (std::int64_t i = 0; i < k; i += 4, panel += 64, x += 2) {
#pragma GCC unroll 4
    for (int p = 0; p < PANELS; ++p) {
      Bits even[vec_parts], odd[vec_parts];
#pragma GCC unroll 4
      for (int part = 0; part < vec_parts; ++part) {
        const Bits quads = load_bits(panel + p * stride + part * register_lanes * 4);
        even[part] = low_bytes(quads);
        odd[part] = high_bytes(quads);
      }
#pragma GCC unroll 16
      for (int row = 0; row < ROWS; ++row) {
        const Bits evens = broadcast_bits(x + row * ldx), odds = broadcast_bits(x + row * ldx + 1);
#pragma GCC unroll 4
        for (int part = 0; part < vec_parts; ++part) {
          Ints& sum = sums[row * PANELS + p][part];
          sum = dot_shorts(dot_shorts(sum, even[part], evens), odd[part], odds);
        }
      }
    }
  }
#pragma GCC unroll 32
  for (int i = 0; i < ROWS * PANELS; ++i)
#pragma GCC unroll 4
    for (int part = 0; part < vec_parts; ++part) acc[i].part[part] = __builtin_convertvector(sums[i][part], Lanes);
}

// Keeps a value in one register, for the reason of `accumulate`: left to itself GCC forms all products before it adds
// any, which spills, and reads a column anew for every row.
template <typename Register>
HEADCOUNT_INLINE void pin(Register& value) {
#if defined(HEADCOUNT_EMULATED)  // no register holds one
  static_cast<void>(value);
#elif defined(__x86_64__)
  asm volatile("" : "+v"(value));
#elif defined(__aarch64__)
  asm volatile("" : "+w"(value));
#endif
}

// A panel of int8 as sixteen-bit pairs, in the order of narrowed rows: [k / 4][bytes 0 and 2, 1 and 3][16].
inline void widen(const char* panel, std::int64_t k, char* to) {
  for (std::int64_t i = 0; i < k; i += 4, panel += 64, to += 128)
#pragma GCC unroll 4
    for (int part = 0; part < vec_parts; ++part) {
      const Bits quads = load_bits(panel + part * register_lanes * 4);
      *reinterpret_cast<LooseBits*>(to + part * register_lanes * 4) = low_bytes(quads);
      *reinterpret_cast<LooseBits*>(to + 64 + part * register_lanes * 4) = high_bytes(quads);
    }
}

// As multiply_int8, of one panel that was widened.
template <int ROWS>
HEADCOUNT_INLINE void multiply_widened(const float* x, std::int64_t ldx, const char* wide, std::int64_t k,
                                       Vec (&acc)[ROWS]) {
  Ints sums[ROWS][vec_parts] = {};
  for (std::int64_t i = 0; i < k; i += 4)
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half, wide += 64, ++x) {
      Bits columns[vec_parts];
#pragma GCC unroll 4
      for (int part = 0; part < vec_parts; ++part) {
        columns[part] = load_bits(wide + part * register_lanes * 4);
        pin(columns[part]);
      }
#pragma GCC unroll 16
      for (int row = 0; row < ROWS; ++row) {
        const Bits pair = broadcast_bits(x + row * ldx);
#pragma GCC unroll 4
        for (int part = 0; part < vec_parts; ++part) {
          sums[row][part] = dot_shorts(sums[row][part], columns[part], pair);
          pin(sums[row][part]);
        }
      }
    }
#pragma GCC unroll 16
  for (int i = 0; i < ROWS; ++i)
#pragma GCC unroll 4
    for (int part = 0; part < vec_parts; ++part) acc[i].part[part] = __builtin_convertvector(sums[i][part], Lanes);
}

template <int COUNT>
HEADCOUNT_INLINE void clear(Vec (&acc)[COUNT]) {
#pragma GCC unroll 32
  for (int i = 0; i < COUNT; ++i) acc[i] = broadcast(0.0f);
}

}  // namespace
