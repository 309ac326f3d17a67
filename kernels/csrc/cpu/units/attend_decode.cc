// Decode attention: persistent vectors for all rows of the batch at once, then each row's own ring, merged by
// log-sum-exp.
#include "cpu/units/attend_common.h"
#include "cpu/units/unit.h"

namespace {

using headcount::cpu::AttendRing;

// Slots [lo, hi) of a ring that a row sees; slot s is column s + shift of the distances, farthest first.
struct Run {
  std::int64_t lo, hi, shift;
};

// The visible slots in order of slot: two runs, because the farthest key follows the nearest one.
void find_runs(const AttendRing& call, Run (&runs)[2]) {
  const std::int64_t reach = call.visibility->reach, count = visible_keys(*call.visibility, call.position);
  const std::int64_t nearest = (call.position - call.visibility->first_distance + reach) % reach, after = nearest + 1;
  runs[0] = {larger(after - count, 0), after, reach - after};
  runs[1] = {smaller(after + reach - count, reach), reach, -after};
}

// Scores of slots begin .. end - 1, whole panels: content, relative term, -∞ where the row sees nothing.
void score_ring(const AttendRing& call, const Run (&runs)[2], std::int64_t begin, std::int64_t end, float* biased_query,
                float* by_distance, float* scores) {
  const float scale = 1.0f / __builtin_sqrtf(static_cast<float>(call.head_dim));
  const HeadTables& head = *call.head;
  biased(call.query, head.content_bias, scale, call.head_dim, biased_query);
  multiply(biased_query, 0, 1, call.head_dim,
           float_columns(call.keys + begin * call.head_dim, call.head_dim * panel_width, panel_width),
           (end - begin) / panel_width, {scores + begin, 0, nullptr});
  if (head.distances.n > 0) {
    biased(call.query, head.position_bias, scale, call.head_dim, biased_query);
    multiply(biased_query, 0, 1, call.head_dim, packed_columns(head.distances), lanes(head.distances.n) / panel_width,
             {by_distance, 0, nullptr});
    for (const Run& run : runs) {
      std::int64_t slot = run.lo;
      for (; slot + panel_width <= run.hi; slot += panel_width) {
        store(scores + slot, load(scores + slot) + load(by_distance + (slot + run.shift)));
      }
      for (; slot < run.hi; ++slot) scores[slot] += by_distance[slot + run.shift];
    }
  }
  fill(scores, begin, runs[0].lo, masked);
  fill(scores, runs[0].hi, smaller(runs[1].lo, end), masked);
  fill(scores, larger(runs[0].hi, runs[1].hi), end, masked);
}

// out = Σ share · acc / Σ share · total over the row's own softmax, then the partial ones in order.
void merge(const AttendRing& call, const Softmax& own, float* out) {
  float maximum = own.maximum[0];
  for (std::int64_t i = 0; i < call.splits; ++i) {
    const float other = call.partials[i * call.partial_stride];
    maximum = maximum > other ? maximum : other;
  }
  float share = exponential(own.maximum[0] - maximum);
  float total = own.total[0] * share, ramped = own.ramped[0] * share;
  for (std::int64_t lane = 0; lane < call.head_dim; ++lane) out[lane] = own.acc[lane] * share;
  for (std::int64_t i = 0; i < call.splits; ++i) {
    const float* partial = call.partials + i * call.partial_stride;
    share = exponential(partial[0] - maximum);
    total += partial[1] * share;
    ramped += partial[1] * share;
    for (std::int64_t lane = 0; lane < call.head_dim; ++lane) out[lane] += partial[2 + lane] * share;
  }
  finish(out, total, ramped, call.head->span_ramp, call.head_dim, out);
}

}  // namespace

namespace headcount::cpu::HEADCOUNT_UNIT {

void attend_persistent(const AttendPersistent& call) {
  const std::int64_t width = lanes(call.head_dim);
  Softmax s{};
  s.width = width;
  s.scores = call.scratch;
  s.acc = s.scores + smaller(call.batch, query_rows) * key_block;
  for (std::int64_t first = 0; first < call.batch; first += query_rows) {
    s.rows = smaller(query_rows, call.batch - first);
    start(s);
    attend_constants(s, call.query + first * call.ldq, call.ldq, call.head_dim, *call.head, call.begin, call.end);
    for (std::int64_t row = 0; row < s.rows; ++row) {
      float* partial = call.partial + (first + row) * call.partial_stride;
      partial[0] = s.maximum[row];
      partial[1] = s.total[row];
      for (std::int64_t i = 0; i < call.head_dim; ++i) partial[2 + i] = s.acc[row * width + i];
    }
  }
}

void attend_ring(const AttendRing& call) {
  const std::int64_t width = lanes(call.head_dim), ring = lanes(call.visibility->reach);
  const bool spans = call.head->span_ramp > 0.0f;
  float* query = call.scratch;
  float* by_distance = query + width;
  float* ramp = by_distance + ring;
  Softmax s{1, ramp + ring, nullptr, width, {}, {}, {}, {}};
  s.acc = s.scores + ring;
  float* spare = s.acc + width;
  start(s);

  Run runs[2];
  find_runs(call, runs);
  const std::int64_t begin = runs[1].lo < runs[1].hi ? 0 : runs[0].lo / panel_width * panel_width;
  const std::int64_t end = lanes(runs[1].lo < runs[1].hi ? call.visibility->reach : runs[0].hi);
  if (runs[0].lo < runs[0].hi) {
    score_ring(call, runs, begin, end, query, by_distance, s.scores);
    if (spans) {
      fill(ramp, begin, end, 0.0f);
      const float farthest = static_cast<float>(call.visibility->first_distance + call.visibility->reach - 1);
      for (const Run& run : runs) {
        for (std::int64_t slot = run.lo; slot < run.hi; ++slot) {
          ramp[slot] = ramp_at(farthest - static_cast<float>(slot + run.shift), call.head->span, call.head->span_ramp);
        }
      }
    }
    weigh(s, 0, s.scores + begin, end - begin, spans ? ramp + begin : nullptr);
    s.rescale[0] = 1.0f;
    for (const Run& run : runs) {
      for (std::int64_t slot = run.lo; slot < run.hi; slot += key_block) {
        add_values(s.scores + slot, 0, 1, smaller(key_block, run.hi - slot), call.values + slot * call.head_dim,
                   call.head_dim, spare, {s.acc, width, s.rescale});
      }
    }
  }
  merge(call, s, call.out);
}

}  // namespace headcount::cpu::HEADCOUNT_UNIT
