// Sixteen floats as whatever registers the unit's instruction set has; included by the units only, everything in an
// unnamed namespace, because the same inline function compiled for two instruction sets must never be merged by the
// linker.
#pragma once

#include <cstdint>

#define HEADCOUNT_INLINE inline __attribute__((always_inline))

namespace {

// HEADCOUNT_EMULATED: the wide units' source on any CPU, GCC cutting the registers into those it has; tests only.
#if defined(__AVX512F__) || defined(HEADCOUNT_EMULATED)
constexpr int register_lanes = 16;
#elif defined(__AVX__)
constexpr int register_lanes = 8;
#else
constexpr int register_lanes = 4;
#endif
constexpr int vec_parts = 16 / register_lanes;

typedef float Lanes __attribute__((vector_size(register_lanes * 4)));
typedef std::uint32_t Bits __attribute__((vector_size(register_lanes * 4)));
typedef std::int32_t Ints __attribute__((vector_size(register_lanes * 4)));
typedef float LooseLanes __attribute__((vector_size(register_lanes * 4), aligned(4), may_alias));
typedef std::uint32_t LooseBits __attribute__((vector_size(register_lanes * 4), aligned(2), may_alias));

struct Vec {
  Lanes part[vec_parts];
};

HEADCOUNT_INLINE Vec broadcast(float x) {
  Vec v;
#pragma GCC unroll 4
  for (int i = 0; i < vec_parts; ++i) v.part[i] = x - Lanes{};  // -0 stays -0
  return v;
}

HEADCOUNT_INLINE Vec load(const float* p) {
  Vec v;
#pragma GCC unroll 4
  for (int i = 0; i < vec_parts; ++i) v.part[i] = *reinterpret_cast<const LooseLanes*>(p + i * register_lanes);
  return v;
}

HEADCOUNT_INLINE void store(float* p, const Vec& v) {
#pragma GCC unroll 4
  for (int i = 0; i < vec_parts; ++i) *reinterpret_cast<LooseLanes*>(p + i * register_lanes) = v.part[i];
}

// The first `count` lanes of 1 to 16, the others filled; nothing beyond them is touched.
HEADCOUNT_INLINE Vec load(const float* p, std::int64_t count, float fill) {
  float lanes[16];
  for (std::int64_t i = 0; i < 16; ++i) lanes[i] = i < count ? p[i] : fill;
  return load(lanes);
}

HEADCOUNT_INLINE void store(float* p, const Vec& v, std::int64_t count) {
  float lanes[16];
  store(lanes, v);
  for (std::int64_t i = 0; i < count; ++i) p[i] = lanes[i];
}

HEADCOUNT_INLINE Vec operator+(const Vec& a, const Vec& b) {
  Vec v;
#pragma GCC unroll 4
  for (int i = 0; i < vec_parts; ++i) v.part[i] = a.part[i] + b.part[i];
  return v;
}

HEADCOUNT_INLINE Vec operator-(const Vec& a, const Vec& b) {
  Vec v;
#pragma GCC unroll 4
  for (int i = 0; i < vec_parts; ++i) v.part[i] = a.part[i] - b.part[i];
  return v;
}

HEADCOUNT_INLINE Vec operator*(const Vec& a, const Vec& b) {
  Vec v;
#pragma GCC unroll 4
  for (int i = 0; i < vec_parts; ++i) v.part[i] = a.part[i] * b.part[i];
  return v;
}

// acc + x · b, contracted to one instruction where the instruction set has it.
HEADCOUNT_INLINE void multiply_add(Vec& acc, float x, const Vec& b) {
#pragma GCC unroll 4
  for (int i = 0; i < vec_parts; ++i) acc.part[i] += x * b.part[i];
}

// The same where GCC must keep acc in one register: without the empty asm its allocator copies and spills accumulators
// that are updated twice in a loop (10 of 16 registers live: 55% of the peak instead of 97%).
HEADCOUNT_INLINE void accumulate(Vec& acc, float x, const Vec& b) {
#pragma GCC unroll 4
  for (int i = 0; i < vec_parts; ++i) {
    acc.part[i] += x * b.part[i];
#if defined(HEADCOUNT_EMULATED)  // no register holds one
#elif defined(__x86_64__)
    asm volatile("" : "+v"(acc.part[i]));
#elif defined(__aarch64__)
    asm volatile("" : "+w"(acc.part[i]));
#endif
  }
}

HEADCOUNT_INLINE void multiply_add(Vec& acc, const Vec& a, const Vec& b) {
#pragma GCC unroll 4
  for (int i = 0; i < vec_parts; ++i) acc.part[i] += a.part[i] * b.part[i];
}

// b where a lane of either is NaN, as the x86 instruction; so max(bound, x) keeps a NaN of x.
HEADCOUNT_INLINE Vec max(const Vec& a, const Vec& b) {
  Vec v;
#pragma GCC unroll 4
  for (int i = 0; i < vec_parts; ++i) v.part[i] = a.part[i] > b.part[i] ? a.part[i] : b.part[i];
  return v;
}

HEADCOUNT_INLINE float horizontal_max(const Vec& v) {
  float lanes[16];
  store(lanes, v);
#pragma GCC unroll 4
  for (int width = 8; width > 0; width /= 2)
    for (int i = 0; i < width; ++i) lanes[i] = lanes[i] > lanes[i + width] ? lanes[i] : lanes[i + width];
  return lanes[0];
}

// In pairs at distance 8, 4, 2, 1: the same order on every instruction set.
HEADCOUNT_INLINE float horizontal_sum(const Vec& v) {
  float lanes[16];
  store(lanes, v);
#pragma GCC unroll 4
  for (int width = 8; width > 0; width /= 2)
    for (int i = 0; i < width; ++i) lanes[i] += lanes[i + width];
  return lanes[0];
}

// exp(x) for x ≤ 88 with a relative error below 3e-7; exactly 1 at 0, 0 below -87.3 and at -∞, NaN for NaN.
// 2^n · p(r) with n = round(x / ln 2), p the degree-5 minimax polynomial of exp on ±ln 2 / 2 with p(0) = 1.
HEADCOUNT_INLINE Lanes exponential(const Lanes& x) {
  const Lanes rounding = 12582912.0f - Lanes{};  // 1.5 · 2^23: adding it leaves the rounded integer in the low bits
  const Lanes shifted = x * 1.44269504f + rounding;
  const Lanes n = shifted - rounding;
  const Lanes r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  Lanes p = r * 0.008290229365229607f + 0.04189838841557503f;
  p = p * r + 0.16667640209197998f;
  p = p * r + 0.49999144673347473f;
  p = p * r + 0.9999997019767761f;
  p = p * r + 1.0f;
  const Lanes power = (Lanes)(((Bits)shifted << 23) + 0x3F800000u);
  return x < -87.3f ? Lanes{} : p * power;
}

HEADCOUNT_INLINE Vec exponential(const Vec& x) {
  Vec v;
#pragma GCC unroll 4
  for (int i = 0; i < vec_parts; ++i) v.part[i] = exponential(x.part[i]);
  return v;
}

}  // namespace
