// Rows as the dot products of a unit read them, and those dot products.
#pragma once

#include <cstdint>

#include "cpu/kernels.h"
#include "cpu/units/vec.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#if defined(__AVX512BF16__) || defined(HEADCOUNT_EMULATED)
#define HEADCOUNT_DOTS_BFLOAT16
#endif

namespace {

using headcount::cpu::Kind;
using headcount::cpu::narrowed_levels;
using headcount::cpu::narrowed_stride;

#if defined(HEADCOUNT_DOTS_BFLOAT16)
constexpr bool dots_bfloat16 = true;
#else
constexpr bool dots_bfloat16 = false;
#endif

constexpr bool narrows(Kind kind) { return kind == Kind::int8 || (kind == Kind::bfloat16 && dots_bfloat16); }

typedef std::uint16_t Halves __attribute__((vector_size(register_lanes * 2)));
typedef std::uint16_t LooseHalves __attribute__((vector_size(register_lanes * 2), aligned(2), may_alias));
typedef std::int16_t Shorts __attribute__((vector_size(register_lanes * 4)));
typedef std::int16_t Quads __attribute__((vector_size(32)));
typedef std::int16_t LooseQuads __attribute__((vector_size(32), aligned(4), may_alias));

HEADCOUNT_INLINE Bits broadcast_bits(const void* p) {
  std::uint32_t bits;
  __builtin_memcpy(&bits, p, 4);
  return bits - Bits{};
}

// acc + a · b over the two signed 16-bit halves of each lane, exact.
HEADCOUNT_INLINE Ints dot_shorts(const Ints& acc, const Bits& a, const Bits& b) {
#if defined(HEADCOUNT_EMULATED) || !defined(__x86_64__)
  return acc + ((Ints)(a << 16) >> 16) * ((Ints)(b << 16) >> 16) + ((Ints)a >> 16) * ((Ints)b >> 16);
#elif defined(__AVX512VNNI__)
  return (Ints)_mm512_dpwssd_epi32((__m512i)acc, (__m512i)a, (__m512i)b);
#elif defined(__AVX512BW__)
  return acc + (Ints)_mm512_madd_epi16((__m512i)a, (__m512i)b);
#elif defined(__AVX2__)
  return acc + (Ints)_mm256_madd_epi16((__m256i)a, (__m256i)b);
#else
  return acc + (Ints)_mm_madd_epi16((__m128i)a, (__m128i)b);
#endif
}

// The bytes 0 and 2, or 1 and 3, of each lane as signed 16-bit halves.
HEADCOUNT_INLINE Bits low_bytes(const Bits& quads) { return (Bits)((Shorts)(quads << 8) >> 8); }
HEADCOUNT_INLINE Bits high_bytes(const Bits& quads) { return (Bits)((Shorts)quads >> 8); }

#if defined(HEADCOUNT_DOTS_BFLOAT16)
// acc + a · b over the two bfloat16 of each lane.
HEADCOUNT_INLINE Lanes dot_bfloat16(const Lanes& acc, const Bits& a, const Bits& b) {
#if defined(HEADCOUNT_EMULATED)
  return acc + (Lanes)(a << 16) * (Lanes)(b << 16) + (Lanes)(a & 0xFFFF0000u) * (Lanes)(b & 0xFFFF0000u);
#else
  return (Lanes)_mm512_dpbf16_ps((__m512)acc, (__m512bh)a, (__m512bh)b);
#endif
}
#endif

// Rounded to nearest, ties to even; a NaN stays one.
HEADCOUNT_INLINE Halves to_bfloat16(const Lanes& x) {
  const Bits bits = (Bits)x, rounded = (bits + 0x7FFFu + (bits >> 16 & 1u)) >> 16;
  return __builtin_convertvector(x == x ? rounded : (bits >> 16 | 0x40u), Halves);
}

// Sixteen floats at a time: read(i) is the sixteen from i on, zeros where x has ended.
template <typename Read>
HEADCOUNT_INLINE void narrow_bfloat16(std::int64_t k, std::uint16_t* to, Read read) {
  for (std::int64_t i = 0; i < (k + 31) / 32 * 32; i += 16) {
    const Vec v = read(i);
#pragma GCC unroll 4
    for (int part = 0; part < vec_parts; ++part)
      *reinterpret_cast<LooseHalves*>(to + i + part * register_lanes) = to_bfloat16(v.part[part]);
  }
}

// Each four numbers in the order 0, 2, 1, 3: the even and the odd bytes of a quad of weights are what two shifts give.
template <typename Read>
HEADCOUNT_INLINE float narrow_shorts(std::int64_t k, std::int16_t* to, Read read) {
  Vec largest = broadcast(0.0f), poison = largest;
  for (std::int64_t i = 0; i < k; i += 16) {
    const Vec v = read(i), negative = broadcast(0.0f) - v;
    largest = max(max(v, negative), largest);
    poison = poison + v * broadcast(0.0f);
  }
  const float levels = static_cast<float>(narrowed_levels(k)), most = horizontal_max(largest);
  const float inverse = most > 1e-30f ? levels / most : 0.0f;  // no infinity
  const Lanes rounding = 12582912.0f - Lanes{};                // as in exponential()
  for (std::int64_t i = 0; i < (k + 31) / 32 * 32; i += 16) {
    const Vec v = read(i);
    alignas(64) std::int16_t numbers[16];
#pragma GCC unroll 4
    for (int part = 0; part < vec_parts; ++part) {
      const Bits number = (Bits)(v.part[part] * inverse + rounding) - (Bits)rounding;
      *reinterpret_cast<LooseHalves*>(numbers + part * register_lanes) = __builtin_convertvector(number, Halves);
    }
    const Quads quads = *reinterpret_cast<const LooseQuads*>(numbers);
    *reinterpret_cast<LooseQuads*>(to + i) =
        __builtin_shufflevector(quads, quads, 0, 2, 1, 3, 4, 6, 5, 7, 8, 10, 9, 11, 12, 14, 13, 15);
  }
  return most / levels + horizontal_sum(poison);
}

HEADCOUNT_INLINE void narrow_row(const float* x, std::int64_t k, Kind kind, float* to, float* scale) {
  const auto read = [=](std::int64_t i) __attribute__((always_inline)) {
    return i + 16 <= k ? load(x + i) : i < k ? load(x + i, k - i, 0.0f) : broadcast(0.0f);
  };
  if (kind == Kind::bfloat16)
    narrow_bfloat16(k, reinterpret_cast<std::uint16_t*>(to), read);
  else
    *scale = narrow_shorts(k, reinterpret_cast<std::int16_t*>(to), read);
}

}  // namespace
