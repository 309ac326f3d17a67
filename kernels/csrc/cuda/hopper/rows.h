// The rows a thread of hopper_attend holds, two of its warp's 16, in the layout of fragments.h, and what happens to
// them: running softmax, weights times values.
#pragma once

#include <cmath>

#include "cuda/fragments.h"
#include "cuda/hopper/hopper.h"

namespace headcount::cuda {

// Scores may pass the peak they are measured by so far, in units of log2, before everything is brought to a new one.
constexpr float peak_slack = 8;

// 2^x to 8e-5 for -126 < x < 127, at most 2e-38 below, by multiplications: 2^n · p(x - n), n the nearest integer, p the
// cubic with the least relative error over [-1/2, 1/2]. Not for NaN.
DEVICE float exp2_by_cubic(float x) {
  constexpr float shift = 3 << 22;  // what brings the units of a float to its last bit
  const float clamped = fmaxf(x, -126.0f), shifted = clamped + shift, f = clamped - (shifted - shift);
  const float p = ((0.05517168f * f + 0.24261116f) * f + 0.69326099f) * f + 0.99992807f;
  const uint32_t bits = device::to_bits(p) + (device::to_bits(shifted) << 23);
  return device::from_bits(bits);
}

// Peaks are in units of log2; totals are of this thread's columns until `sum_columns`.
struct HopperRows {
  float peak[2], total[2], kept[2], fade[2];  // fade: what `out` has yet to be multiplied by
  float out[8][4];

  DEVICE void clear() {
    UNROLL
    for (int half = 0; half < 2; ++half) {
      peak[half] = -INFINITY;
      total[half] = kept[half] = 0;
      fade[half] = 1;
    }
    UNROLL
    for (int i = 0; i < 8; ++i) {
      UNROLL
      for (int e = 0; e < 4; ++e) out[i][e] = 0;
    }
  }

  // Scores become the weights 2^(scale · score - peak); `out` is not touched, products may be adding to it. `mixed`: a
  // quarter of the powers is formed by multiplications, as the unit for them has as much to do as the matrix units.
  template <bool mixed, int blocks>
  DEVICE void weigh(float (&scores)[blocks][4], float scale) {
    UNROLL
    for (int half = 0; half < 2; ++half) {
      float top = -INFINITY;
      UNROLL
      for (int i = 0; i < blocks; ++i) top = fmaxf(top, fmaxf(scores[i][2 * half], scores[i][2 * half + 1]));
      top = fmaxf(top, device::shuffle_xor(top, 1));
      top = scale * fmaxf(top, device::shuffle_xor(top, 2));
      const float next = top > peak[half] + peak_slack ? top : peak[half];
      const float level = next == -INFINITY ? 0 : next;  // a row that has seen nothing yet
      fade[half] = device::exp2_fast(peak[half] - level);
      peak[half] = next;
      float sum = 0;
      UNROLL
      for (int i = 0; i < blocks; ++i) {
        UNROLL
        for (int e = 2 * half; e < 2 * half + 2; ++e) {
          const float x = scores[i][e] * scale - level;
          scores[i][e] = mixed && i % 2 == 1 && e % 2 == 1 ? exp2_by_cubic(x) : device::exp2_fast(x);
          sum += scores[i][e];
        }
      }
      total[half] = total[half] * fade[half] + sum;
      kept[half] *= fade[half];
    }
  }

  // Brings `out`, to which nothing is being added, to the new peaks.
  DEVICE void settle() {
    if (!device::any(fade[0] != 1 || fade[1] != 1)) return;
    UNROLL
    for (int i = 0; i < 8; ++i) {
      UNROLL
      for (int e = 0; e < 4; ++e) out[i][e] *= fade[e / 2];
    }
  }

  // Starts out += weights · values, a swizzled matrix [8 · blocks, 64].
  template <typename T, int blocks>
  DEVICE void add_values(const uint32_t (&weights)[blocks / 2][4], const unsigned char* values) {
    UNROLL
    for (int k = 0; k < blocks / 2; ++k)
      device::multiply_columns<T>(out, weights[k], device::swizzled_matrix(values + k * 16 * 128), true);
  }

  DEVICE void sum_columns() {
    UNROLL
    for (int half = 0; half < 2; ++half) {
      UNROLL
      for (int step = 1; step < 4; step *= 2) {
        total[half] += device::shuffle_xor(total[half], step);
        kept[half] += device::shuffle_xor(kept[half], step);
      }
    }
  }
};

// Starts scores = queries · keysᵀ, keys a swizzled matrix [8 · blocks, 64].
template <typename T, int blocks>
DEVICE void score_keys(float (&scores)[blocks][4], const uint32_t (&query)[4][4], const unsigned char* keys) {
  UNROLL
  for (int k = 0; k < 4; ++k) device::multiply_rows<T>(scores, query[k], device::swizzled_matrix(keys + k * 32), k > 0);
}

// As the left operand of products, rounded.
template <typename T, int blocks>
DEVICE void pack_weights(uint32_t (&packed)[blocks / 2][4], const float (&weights)[blocks][4]) {
  UNROLL
  for (int k = 0; k < blocks / 2; ++k) {
    UNROLL
    for (int part = 0; part < 4; ++part) {
      const float* two = &weights[2 * k + part / 2][part % 2 * 2];
      packed[k][part] = device::pack<T>(two[0], two[1]);
    }
  }
}

}  // namespace headcount::cuda
