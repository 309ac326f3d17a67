// One case of the test of the CUDA attention kernels: sequences at positions of their own, in rings where whatever no
// row sees is NaN, and what their rows must be, by loops in double from the equations of engine_kernels/ops.py.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <random>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "cuda/attention/attention.h"
#include "cuda/device.h"
#include "tests/expect.h"

namespace headcount::test {

struct Case {
  std::string name;
  int heads = 2, head_dim = 16, persistent = 17;
  int window = 5, segment = 0, first_distance = 0;
  bool zeros = false;
  int tables = -1;  // of distances: heads, or 1, or 0; -1 = heads
  bool content_bias = true, position_bias = true;
  float ramp = 0;                                         // 0 = no spans
  std::vector<std::pair<int, int>> sequences = {{7, 3}};  // length and position of the first row
  int spare = 3;                                          // slots a ring has beyond those needed
  float size = 1;                                         // of keys

  int reach() const { return window + (segment > 0 ? segment - 1 : 0); }
  int rows() const {
    int count = 0;
    for (const auto& sequence : sequences) count += sequence.first;
    return count;
  }
  int capacity() const { return reach() + first_distance + spare; }
  int distance_tables() const { return tables < 0 ? heads : tables; }
};

// How much rounding a number near 1 to T may move it.
template <typename T>
constexpr double half_unit = std::is_same_v<T, bf16> ? 1.0 / 512 : 1.0 / 4096;

// Numbers of T, and the floats they are in place of those given.
template <typename T>
std::vector<T> rounded(std::vector<float>& values) {
  std::vector<T> result;
  for (float& x : values) {
    result.push_back(device::from_float<T>(x));
    x = device::to_float(result.back());
  }
  return result;
}

template <typename T>
struct Material {  // what the rows of a case are made of
  explicit Material(const Case& c_) : c(c_), random(static_cast<unsigned>(c_.name.size() * 31 + c_.rows())) {
    const int d = c.head_dim, h = c.heads;
    query = draw(c.rows() * h * d, 1);
    distances = draw(c.distance_tables() * c.reach() * d, c.size);
    persistent_keys = draw(h * c.persistent * d, 1.0f / std::sqrt(static_cast<float>(d)));
    persistent_values = draw(h * c.persistent * d, 1);
    content_bias = draw(h * d, 0.5f);
    position_bias = draw(h * d, 0.5f);
    for (int i = 0; i < h; ++i) spans.push_back(static_cast<float>(i) * 3.3f - 1.2f);
    query_numbers = rounded<T>(query);
    distance_numbers = rounded<T>(distances);
    persistent_key_numbers = rounded<T>(persistent_keys);
    persistent_value_numbers = rounded<T>(persistent_values);
    const T nan = device::from_float<T>(not_a_number);
    const size_t rings = c.sequences.size() + 1;
    for (auto* ring : {&ring_keys, &ring_values}) ring->assign(rings * h * c.capacity() * d, nan);
    for (auto* fresh : {&new_keys, &new_values}) fresh->assign(size_t(c.rows()) * h * d, nan);
    expected.assign(size_t(c.rows()) * h * d, 0);
    allowed.assign(expected.size(), 0);
    int row = 0;
    for (size_t i = 0; i < c.sequences.size(); ++i) {
      first_rows.push_back(row);
      lengths.push_back(c.sequences[i].first);
      positions.push_back(c.sequences[i].second);
      slots.push_back(static_cast<int64_t>(c.sequences.size() - i));
      offsets.push_back(positions.back());
      for (int head = 0; head < h; ++head) attend(static_cast<int>(i), head, row);
      row += c.sequences[i].first;
    }
  }

  std::vector<float> draw(int count, float size) {
    std::normal_distribution<float> normal(0, size);
    std::vector<float> values(static_cast<size_t>(count));
    for (float& x : values) x = normal(random);
    return values;
  }

  // One head of one sequence: its tokens, the places of those some row sees, and its rows.
  void attend(int sequence, int head, int row) {
    const int d = c.head_dim, length = c.sequences[sequence].first, position = c.sequences[sequence].second;
    const int before = c.reach() + c.first_distance, count = before + length;  // keys from position - before on
    std::vector<float> keys = draw(count * d, c.size), values = draw(count * d, 1);
    for (int i = 0; i < (before - position) * d; ++i) {  // the projection of zero rows is one vector
      keys[i] = keys[i % d];
      values[i] = values[i % d];
    }
    const std::vector<T> keys_ = rounded<T>(keys), values_ = rounded<T>(values);
    for (int t = 0; t < length; ++t) {
      const int64_t place = position + t;
      int limit = c.window + static_cast<int>(c.segment > 0 ? place % c.segment : 0);
      if (!c.zeros) limit = static_cast<int>(std::min<int64_t>(limit, place - c.first_distance + 1));
      attend_row(
          head, row + t, limit, [&](int i) { return &keys[(before + t - c.first_distance - i) * d]; },
          [&](int i) { return &values[(before + t - c.first_distance - i) * d]; });
      for (int i = 0; i < limit; ++i) {
        const int j = t - c.first_distance - i;
        for (int e = 0; e < d; ++e) {
          const T key = keys_[(before + j) * d + e], value = values_[(before + j) * d + e];
          if (j < 0 || length == 1) {
            const size_t slot = static_cast<size_t>((position + j + c.capacity() * 9) % c.capacity());
            const size_t at = ((slots[sequence] * c.heads + head) * c.capacity() + slot) * d + e;
            ring_keys[at] = key;
            ring_values[at] = value;
          }
          if (j >= 0) {
            const size_t at = (size_t(row + j) * c.heads + head) * d + e;
            new_keys[at] = key;
            new_values[at] = value;
          }
        }
      }
    }
  }

  template <typename Key, typename Value>
  void attend_row(int head, int row, int limit, const Key& key, const Value& value) {
    const int d = c.head_dim;
    const float* q = &query[(size_t(row) * c.heads + head) * d];
    std::vector<float> content(q, q + d), by_position(q, q + d);
    for (int e = 0; e < d; ++e) {  // queries and biases are summed in float32 and rounded
      if (c.content_bias) content[e] += content_bias[head * d + e];
      if (c.position_bias) by_position[e] += position_bias[head * d + e];
    }
    rounded<T>(content);
    rounded<T>(by_position);
    const auto dot = [&](const std::vector<float>& a, const float* b) {
      double sum = 0;
      for (int e = 0; e < d; ++e) sum += double(a[e]) * b[e];
      return sum;
    };
    std::vector<double> score, ramp;
    std::vector<const float*> vector;
    double largest_by_distance = 0, largest_value = 0;
    for (int i = 0; i < limit; ++i) {
      double s = dot(content, key(i));
      if (c.distance_tables() > 0) {
        const int table = std::min(head, c.distance_tables() - 1);
        const double r = dot(by_position, &distances[(size_t(table) * c.reach() + i) * d]);
        largest_by_distance = std::max(largest_by_distance, std::fabs(r));
        s += r;
      }
      score.push_back(s / std::sqrt(double(d)));
      const double m = (1.0 - (c.first_distance + i) + spans[head]) / c.ramp + 1;
      ramp.push_back(c.ramp > 0 ? std::clamp(m, 0.0, 1.0) : 1);
      vector.push_back(value(i));
    }
    for (int n = 0; n < c.persistent; ++n) {
      const size_t at = (size_t(head) * c.persistent + n) * d;
      score.push_back(dot(std::vector<float>(q, q + d), &persistent_keys[at]));
      ramp.push_back(1);
      vector.push_back(&persistent_values[at]);
    }
    const double top = *std::max_element(score.begin(), score.end());
    double all = 0, kept = 0;
    for (double& s : score) all += s = std::exp(s - top);
    for (size_t i = 0; i < score.size(); ++i) kept += score[i] * ramp[i];
    for (const float* v : vector) {
      for (int e = 0; e < d; ++e) largest_value = std::max(largest_value, double(std::fabs(v[e])));
    }
    // Weights, results and, for attend_ring, scores by distance are rounded to T, to half a unit of its last place;
    // under a span a small sum stands below weights of which each was rounded.
    const double share = c.ramp > 0 ? kept + 1e-8 * all : all;
    const double bound = largest_value * half_unit<T> * (2 + 2 * largest_by_distance / std::sqrt(double(d)));
    for (int e = 0; e < d; ++e) {
      double result = 0;
      for (size_t i = 0; i < score.size(); ++i) result += score[i] * ramp[i] / share * vector[i][e];
      expected[(size_t(row) * c.heads + head) * d + e] = result;
      allowed[(size_t(row) * c.heads + head) * d + e] = bound + 5e-5 * largest_value;
    }
  }

  Case c;
  std::mt19937 random;
  std::vector<float> query, distances, persistent_keys, persistent_values, content_bias, position_bias, spans;
  std::vector<T> query_numbers, distance_numbers, persistent_key_numbers, persistent_value_numbers, ring_keys,
      ring_values, new_keys, new_values;
  std::vector<int64_t> first_rows, lengths, slots, offsets, positions;
  std::vector<double> expected, allowed;  // [rows, H, D]
};

template <typename T>
T* data_of(std::vector<T>& values) {
  return values.empty() ? nullptr : values.data();
}

// What the kernels are told of a case, without room for states and scores.
template <typename T>
cuda::Attention told(Material<T>& m, std::vector<T>& attended) {
  const Case& c = m.c;
  cuda::Attention a = {};
  a.number = std::is_same_v<T, bf16> ? cuda::Number::bfloat16 : cuda::Number::float16;
  a.rows = c.rows();
  a.heads = c.heads;
  a.head_dim = c.head_dim;
  a.query = m.query_numbers.data();
  a.distances = data_of(m.distance_numbers);
  a.distance_tables = c.distance_tables();
  a.content_bias = c.content_bias ? m.content_bias.data() : nullptr;
  a.position_bias = c.position_bias ? m.position_bias.data() : nullptr;
  a.persistent_keys = data_of(m.persistent_key_numbers);
  a.persistent_values = data_of(m.persistent_value_numbers);
  a.persistent = c.persistent;
  a.spans = c.ramp > 0 ? m.spans.data() : nullptr;
  a.span_ramp = c.ramp;
  a.visibility = {c.window, c.segment, c.reach(), c.first_distance, c.zeros};
  a.ring_keys = m.ring_keys.data();
  a.ring_values = m.ring_values.data();
  a.capacity = c.capacity();
  a.attended = attended.data();
  return a;
}

}  // namespace headcount::test
