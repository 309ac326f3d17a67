// What the attention kernels share: the online softmax, persistent vectors, visibility.
#pragma once

#include "cpu/attend_scratch.h"
#include "cpu/units/attend_multiply.h"
#include "cpu/units/vec.h"

namespace {

using headcount::cpu::HeadTables;
using headcount::cpu::key_block;
using headcount::cpu::lanes;
using headcount::cpu::Visibility;

constexpr float lowest = -3.40282347e38f;  // a maximum before any score: finite, so that no difference is -∞ - -∞
constexpr float masked = -__builtin_inff();

inline std::int64_t smaller(std::int64_t a, std::int64_t b) { return a < b ? a : b; }
inline std::int64_t larger(std::int64_t a, std::int64_t b) { return a > b ? a : b; }

inline void fill(float* x, std::int64_t begin, std::int64_t end, float value) {
  for (std::int64_t i = begin; i < end; ++i) x[i] = value;
}

// acc [rows, lanes(head_dim)] = acc · rescale + weights [rows, keys] · values [keys, head_dim], keys ≤ key_block. Lanes
// beyond head_dim come from a padded copy in `spare` [key_block · panel_width]: the array ends with its last row.
inline void add_values(const float* weights, std::int64_t ldw, std::int64_t rows, std::int64_t keys,
                       const float* values, std::int64_t head_dim, float* spare, const Target& to) {
  const std::int64_t whole = head_dim / panel_width, rest = head_dim % panel_width;
  multiply(weights, ldw, rows, keys, float_columns(values, panel_width, head_dim), whole, to);
  if (rest == 0) return;
  for (std::int64_t key = 0; key < keys; ++key) {
    store(spare + key * panel_width, load(values + key * head_dim + whole * panel_width, rest, 0.0f));
  }
  multiply(weights, ldw, rows, keys, float_columns(spare, 0, panel_width), 1,
           {to.y + whole * panel_width, to.ldy, to.rescale});
}

// The online softmax of up to query_rows rows.
struct Softmax {
  std::int64_t rows;
  float* scores;  // [rows, key_block]: of the block at hand, then its weights
  float* acc;     // [rows, lanes(head_dim)]: Σ weight · value
  std::int64_t width;
  float maximum[query_rows];  // of the scores so far
  float total[query_rows];    // Σ exp(score - maximum)
  float ramped[query_rows];   // the same with the span's ramp on each context key; total where there is no span
  float rescale[query_rows];  // what the block at hand makes of earlier weights
};

inline void start(Softmax& s) {
  fill(s.acc, 0, s.rows * s.width, 0.0f);
  for (std::int64_t row = 0; row < s.rows; ++row) {
    s.maximum[row] = lowest;
    s.total[row] = s.ramped[row] = 0.0f;
  }
}

HEADCOUNT_INLINE float exponential(float x) { return exponential(x - Lanes{})[0]; }

// A row's scores, `count` of them in whole panels, become weights relative to the new maximum; `ramp` is null or as
// long.
inline void weigh(Softmax& s, std::int64_t row, float* scores, std::int64_t count, const float* ramp) {
  Vec largest = broadcast(s.maximum[row]);
  for (std::int64_t i = 0; i < count; i += panel_width) largest = max(load(scores + i), largest);
  const float maximum = horizontal_max(largest);
  const Vec shift = broadcast(maximum);
  Vec total = broadcast(0.0f), ramped = total;
  for (std::int64_t i = 0; i < count; i += panel_width) {
    Vec weight = exponential(load(scores + i) - shift);
    total = total + weight;
    if (ramp != nullptr) {
      weight = weight * load(ramp + i);
      ramped = ramped + weight;
    }
    store(scores + i, weight);
  }
  const float rescale = exponential(s.maximum[row] - maximum), sum = horizontal_sum(total);
  s.maximum[row] = maximum;
  s.rescale[row] = rescale;
  s.total[row] = s.total[row] * rescale + sum;
  s.ramped[row] = s.ramped[row] * rescale + (ramp == nullptr ? sum : horizontal_sum(ramped));
}

// Persistent vectors [begin, end) of a head, begin a multiple of 16, for the rows of `query`.
inline void attend_constants(Softmax& s, const float* query, std::int64_t ldq, std::int64_t head_dim,
                             const HeadTables& head, std::int64_t begin, std::int64_t end) {
  for (std::int64_t key = begin; key < end; key += key_block) {
    const std::int64_t count = smaller(key_block, end - key), padded = lanes(count);
    multiply(query, ldq, s.rows, head_dim, packed_columns(head.persistent_keys, key), padded / panel_width,
             {s.scores, key_block, nullptr});
    for (std::int64_t row = 0; row < s.rows; ++row) {
      float* scores = s.scores + row * key_block;
      fill(scores, count, padded, masked);
      weigh(s, row, scores, padded, nullptr);
    }
    multiply(s.scores, key_block, s.rows, count, packed_columns(head.persistent_values, 0, key), s.width / panel_width,
             {s.acc, s.width, s.rescale});
  }
}

// How many of the nearest keys a row at `position` sees.
inline std::int64_t visible_keys(const Visibility& visibility, std::int64_t position) {
  std::int64_t count = visibility.window + (visibility.segment > 0 ? position % visibility.segment : 0);
  if (!visibility.attended_zeros) count = smaller(count, larger(position - visibility.first_distance + 1, 0));
  return smaller(count, visibility.reach);
}

// (q + bias) · scale, bias may be null.
inline void biased(const float* query, const float* bias, float scale, std::int64_t head_dim, float* to) {
  for (std::int64_t i = 0; i < head_dim; ++i) to[i] = (bias == nullptr ? query[i] : query[i] + bias[i]) * scale;
}

// The weight an adaptive span leaves a key at `distance`.
inline float ramp_at(float distance, float span, float ramp) {
  const float m = (1.0f - distance + span) / ramp + 1.0f;
  return m < 0.0f ? 0.0f : m > 1.0f ? 1.0f : m;
}

// out = acc / sum, with a span acc / (ramped + 1e-8 · sum).
inline void finish(const float* acc, float total, float ramped, float ramp, std::int64_t head_dim, float* out) {
  const float inverse = 1.0f / (ramp > 0.0f ? ramped + 1e-8f * total : total);
  for (std::int64_t i = 0; i < head_dim; ++i) out[i] = acc[i] * inverse;
}

}  // namespace
