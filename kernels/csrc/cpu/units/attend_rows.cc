// Prefill attention: a block of rows of one head, its persistent vectors first, then its band of context keys, in one
// online softmax. The relative term of row r and key j is by_distance[r][j - r's first key]: farthest distance first,
// so that it stands in the order of the keys and needs no gather.
#include "cpu/units/attend_common.h"
#include "cpu/units/unit.h"

namespace {

using headcount::cpu::AttendRows;
using headcount::cpu::banded;

// Keys [lo, hi) are what a row sees of the W + T; column c of its band is key `origin` + c.
struct Band {
  std::int64_t lo, hi, origin;
};

struct Context {
  const AttendRows& call;
  float* content;      // [rows, width]: (q + content_bias) / √D
  float* by_distance;  // [rows, banded(W)]: column c of a row's band at c + panel_width; null without relative term
  float* ramp;         // [banded(W)]: the span's factor, likewise, 0 outside the band; null without spans
  float* spare;        // [key_block, panel_width]
  Band band[query_rows];
};

// Scores of keys first .. first + key_block - 1, `first` a multiple of 16, become weights: 0 where a row sees nothing.
void weigh_context(Softmax& s, const Context& context, std::int64_t first) {
  const std::int64_t ld = banded(context.call.visibility->reach);
  for (std::int64_t row = 0; row < s.rows; ++row) {
    const Band& band = context.band[row];
    float* scores = s.scores + row * key_block;
    const std::int64_t lo = larger(band.lo - first, 0), hi = smaller(band.hi - first, key_block);
    if (lo >= hi) {
      fill(scores, 0, key_block, 0.0f);
      s.rescale[row] = 1.0f;
      continue;
    }
    const std::int64_t begin = lo / panel_width * panel_width, end = lanes(hi);
    const std::int64_t column = first + begin - band.origin + panel_width;  // of `begin` in by_distance and ramp
    if (context.by_distance != nullptr) {
      const float* bias = context.by_distance + (row * ld + column);
      for (std::int64_t i = begin; i < end; i += panel_width)
        store(scores + i, load(scores + i) + load(bias + (i - begin)));
    }
    fill(scores, 0, begin, 0.0f);
    fill(scores, begin, lo, masked);
    fill(scores, hi, end, masked);
    fill(scores, end, key_block, 0.0f);
    weigh(s, row, scores + begin, end - begin, context.ramp == nullptr ? nullptr : context.ramp + column);
  }
}

void attend_context(Softmax& s, const Context& context) {
  const AttendRows& call = context.call;
  std::int64_t lo = context.band[0].lo, hi = 0;
  for (std::int64_t row = 0; row < s.rows; ++row) {
    const Band& band = context.band[row];
    if (band.lo >= band.hi) continue;
    lo = hi == 0 ? band.lo : smaller(lo, band.lo);
    hi = band.hi;
  }
  for (std::int64_t first = lo / panel_width * panel_width; first < hi; first += key_block) {
    const std::int64_t begin = larger(lo, first), end = smaller(hi, first + key_block);
    const Columns keys = float_columns(call.keys + first * call.head_dim, call.head_dim * panel_width, panel_width);
    multiply(context.content, s.width, s.rows, call.head_dim, keys, lanes(end - first) / panel_width,
             {s.scores, key_block, nullptr});
    weigh_context(s, context, first);
    // Only keys that some row sees: what stands in the others may be no number, and 0 · NaN is NaN.
    add_values(s.scores + (begin - first), key_block, s.rows, end - begin, call.values + begin * call.head_dim,
               call.head_dim, context.spare, {s.acc, s.width, s.rescale});
  }
}

// Every row's scores by distance, from the nearest `most` distances' first panel on.
void multiply_distances(const AttendRows& call, const float* relative, std::int64_t width, std::int64_t most,
                        float* by_distance) {
  const std::int64_t reach = call.visibility->reach, begin = (reach - most) / panel_width * panel_width;
  multiply(relative, width, call.rows, call.head_dim, packed_columns(call.head->distances, begin),
           lanes(reach - begin) / panel_width, {by_distance + panel_width + begin, banded(reach), nullptr});
}

void fill_ramp(const AttendRows& call, float* ramp) {
  const std::int64_t reach = call.visibility->reach;
  fill(ramp, 0, banded(reach), 0.0f);
  const float farthest = static_cast<float>(call.visibility->first_distance + reach - 1);
  for (std::int64_t c = 0; c < reach; ++c) {
    ramp[panel_width + c] = ramp_at(farthest - static_cast<float>(c), call.head->span, call.head->span_ramp);
  }
}

}  // namespace

namespace headcount::cpu::HEADCOUNT_UNIT {

void attend_rows(const AttendRows& call) {
  const std::int64_t width = lanes(call.head_dim), reach = call.visibility->reach, band = banded(reach);
  const float scale = 1.0f / __builtin_sqrtf(static_cast<float>(call.head_dim));
  float* relative = call.scratch;
  float* content = relative + query_rows * width;
  Softmax s{call.rows, content + query_rows * width, nullptr, width, {}, {}, {}, {}};
  s.acc = s.scores + query_rows * key_block;
  float* spare = s.acc + query_rows * width;
  float* ramp = spare + key_block * panel_width;
  float* by_distance = ramp + band;
  Context context{call, content, by_distance, ramp, spare, {}};
  if (call.head->distances.n == 0) context.by_distance = nullptr;
  if (!(call.head->span_ramp > 0.0f)) context.ramp = nullptr;

  std::int64_t most = 0;
  for (std::int64_t row = 0; row < call.rows; ++row) {
    const float* query = call.query + row * call.ldq;
    biased(query, call.head->content_bias, scale, call.head_dim, content + row * width);
    biased(query, call.head->position_bias, scale, call.head_dim, relative + row * width);
    if (call.visibility->bidirectional) {
      context.band[row] = {0, call.count, 0};
      continue;
    }
    const std::int64_t count = visible_keys(*call.visibility, call.position + row);
    const std::int64_t origin = call.row + row + 1 - call.visibility->first_distance;
    context.band[row] = {origin + reach - count, origin + reach, origin};
    most = larger(most, count);
  }
  if (context.by_distance != nullptr && most > 0) multiply_distances(call, relative, width, most, by_distance);
  if (context.ramp != nullptr) fill_ramp(call, ramp);

  start(s);
  attend_constants(s, call.query, call.ldq, call.head_dim, *call.head, 0, call.head->persistent_keys.n);
  attend_context(s, context);
  for (std::int64_t row = 0; row < call.rows; ++row) {
    finish(s.acc + row * width, s.total[row], s.ramped[row], call.head->span_ramp, call.head_dim,
           call.out + row * call.ldo);
  }
}

}  // namespace headcount::cpu::HEADCOUNT_UNIT
