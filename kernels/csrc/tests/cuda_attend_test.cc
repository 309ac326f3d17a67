// Python-free test of the CUDA attention kernels on the emulator: against loops in double, in two orders
// of threads, with copies as late and as early as may be, which must change nothing.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <string>
#include <type_traits>
#include <vector>

#include "cuda/attention/attention.h"
#include "cuda/fragments.h"
#include "cuda/launch.h"
#include "tests/cuda_attend_case.h"
#include "tests/expect.h"

using namespace headcount::test;
namespace cuda = headcount::cuda;

namespace {

// The sequences of a case whose length is 1, or the others.
struct Chosen {
  std::vector<int64_t> first_rows, lengths, slots, offsets, positions;
  cuda::Sequences told() const {
    return {static_cast<int>(lengths.size()),
            first_rows.data(),
            lengths.data(),
            slots.data(),
            offsets.data(),
            positions.data()};
  }
};

template <typename T>
Chosen choose(const Material<T>& m, bool single) {
  Chosen chosen;
  for (size_t i = 0; i < m.lengths.size(); ++i) {
    if ((m.lengths[i] == 1) != single) continue;
    chosen.first_rows.push_back(m.first_rows[i]);
    chosen.lengths.push_back(m.lengths[i]);
    chosen.slots.push_back(m.slots[i]);
    chosen.offsets.push_back(m.offsets[i]);
    chosen.positions.push_back(m.positions[i]);
  }
  return chosen;
}

// Rows of sequences in tiles, as the host lists them.
struct Tiles {
  Tiles(const std::vector<int64_t>& lengths, int rows_) : rows(rows_) {
    for (size_t i = 0; i < lengths.size(); ++i) {
      for (int row = 0; row < lengths[i]; row += rows) {
        sequence.push_back(static_cast<int32_t>(i));
        first_row.push_back(row);
      }
    }
  }
  cuda::NewRows told(const void* keys, const void* values) const {
    return {keys, values, sequence.data(), first_row.data(), static_cast<int>(sequence.size()), rows};
  }

  int rows;
  std::vector<int32_t> sequence, first_row;
};

// The bits of all rows: sequences of one row by attend_ring or, like the others, by attend_rows.
template <typename T>
std::vector<T> attend(Material<T>& m, int splits, bool by_ring) {
  const Case& c = m.c;
  const int rows = c.rows(), pitch = (c.reach() + 15) / 16 * 16;
  std::vector<float> outs(size_t(splits) * c.heads * rows * c.head_dim, not_a_number);
  std::vector<float> peaks(size_t(splits) * c.heads * rows, not_a_number), totals(peaks.size(), not_a_number);
  std::vector<T> scores(size_t(c.heads) * rows * pitch, device::from_float<T>(not_a_number));
  std::vector<T> attended(m.query_numbers.size(), device::from_float<T>(not_a_number));
  cuda::Attention a = told(m, attended);
  a.outs = data_of(outs);
  a.peaks = data_of(peaks);
  a.totals = data_of(totals);
  a.splits = splits;
  a.scores = by_ring && a.distance_tables > 0 ? scores.data() : nullptr;
  a.pitch = pitch;
  cuda::attend_constants(a, nullptr);

  Chosen several = choose(m, false), single = choose(m, true);
  if (by_ring) {
    cuda::attend_ring(a, single.told(), nullptr);
  } else {
    for (size_t i = 0; i < single.lengths.size(); ++i) {
      several.first_rows.push_back(single.first_rows[i]);
      several.lengths.push_back(1);
      several.slots.push_back(single.slots[i]);
      several.offsets.push_back(single.offsets[i]);
      several.positions.push_back(single.positions[i]);
    }
  }
  int64_t longest = 0;
  for (const int64_t length : several.lengths) longest = std::max(longest, length);
  const Tiles tiles(several.lengths, cuda::rows_of_a_tile(static_cast<int>(longest)));
  cuda::attend_rows(a, several.told(), tiles.told(m.new_keys.data(), m.new_values.data()), nullptr);
  return attended;
}

template <typename T>
void check(const Case& c, int splits, bool by_ring) {
  Material<T> m(c);
  emulated_order = 0;
  const std::vector<T> attended = attend(m, splits, by_ring);
  const std::string what = c.name + (std::is_same_v<T, bf16> ? ", bfloat16, " : ", float16, ") +
                           std::to_string(splits) + " splits" + (by_ring ? ", rings" : "");
  int wrong = 0;
  double worst = 0;
  for (size_t i = 0; i < attended.size(); ++i) {
    const double error = std::fabs(device::to_float(attended[i]) - m.expected[i]);
    wrong += !(error <= m.allowed[i]);
    worst = std::max(worst, error / m.allowed[i]);
  }
  expect(wrong == 0, what + ": " + std::to_string(wrong) + " of " + std::to_string(attended.size()) +
                         " numbers wrong, the worst " + std::to_string(worst) + " times what is allowed");
  emulated_order = 20261;
  emulated::copies_at_once = true;
  const std::vector<T> again = attend(m, splits, by_ring);
  expect(std::memcmp(attended.data(), again.data(), attended.size() * sizeof(T)) == 0,
         what + ": another order of threads and copies changes bits");
  emulated::copies_at_once = false;
}

// Sequences of an encoder: rows between them belong to no sequence and are NaN.
template <typename T>
void check_bidirectional(int heads, int d, const std::vector<int64_t>& lengths) {
  constexpr int gap = 2;
  std::vector<int64_t> first_rows;
  int64_t rows = gap, longest = 0;
  for (const int64_t length : lengths) {
    first_rows.push_back(rows);
    rows += length + gap;
    longest = std::max(longest, length);
  }
  Noise noise(static_cast<unsigned>(d));
  std::vector<float> query = noise.vector(rows * heads * d), keys = noise.vector(query.size()),
                     values = noise.vector(query.size());
  int64_t free = 0;  // the first row that may be of a sequence
  for (size_t i = 0; i <= lengths.size(); ++i) {
    const int64_t end = i < lengths.size() ? first_rows[i] : rows;
    for (auto* numbers : {&query, &keys, &values}) {
      std::fill(numbers->begin() + free * heads * d, numbers->begin() + end * heads * d, not_a_number);
    }
    if (i < lengths.size()) free = end + lengths[i];
  }
  for (float& x : query) x *= 4;
  const std::vector<T> query_numbers = rounded<T>(query), key_numbers = rounded<T>(keys),
                       value_numbers = rounded<T>(values);
  std::vector<T> attended(query.size(), device::from_float<T>(7));
  cuda::Attention a = {};
  a.number = std::is_same_v<T, bf16> ? cuda::Number::bfloat16 : cuda::Number::float16;
  a.rows = static_cast<int>(rows);
  a.heads = heads;
  a.head_dim = d;
  a.query = query_numbers.data();
  a.attended = attended.data();
  const Tiles tiles(lengths, cuda::rows_of_a_tile(static_cast<int>(longest)));
  const cuda::Sequences sequences = {
      static_cast<int>(lengths.size()), first_rows.data(), lengths.data(), nullptr, nullptr, nullptr};
  emulated_order = 5;
  cuda::attend_bidirectional(a, sequences, tiles.told(key_numbers.data(), value_numbers.data()), nullptr);

  std::vector<double> expected(query.size(), 7), allowed(query.size(), 0);
  for (size_t s = 0; s < lengths.size(); ++s) {
    for (int64_t row = 0; row < lengths[s]; ++row) {
      for (int head = 0; head < heads; ++head) {
        const auto at = [&](int64_t r) { return ((first_rows[s] + r) * heads + head) * d; };
        std::vector<double> out(d);
        double all = 0;
        for (int64_t j = 0; j < lengths[s]; ++j) {
          double dot = 0;
          for (int e = 0; e < d; ++e) dot += double(query[at(row) + e]) * keys[at(j) + e];
          const double weight = std::exp(dot / std::sqrt(double(d)));
          all += weight;
          for (int e = 0; e < d; ++e) out[e] += weight * values[at(j) + e];
        }
        for (int e = 0; e < d; ++e) {
          expected[at(row) + e] = out[e] / all;
          allowed[at(row) + e] = 2 * half_unit<T> + 5e-5;  // weights and results are rounded; values are below 1
        }
      }
    }
  }
  bool right = true;
  for (size_t i = 0; i < expected.size(); ++i) {
    right = right && std::fabs(device::to_float(attended[i]) - expected[i]) <= allowed[i];
  }
  expect(right, "whole sequences, head_dim " + std::to_string(d));
}

template <int blocks>
__global__ void skew_kernel(const float* matrix, float* moved) {
  const int row = cuda::row_of_thread(), column = cuda::column_of_thread();
  float band[blocks + 2][4], scores[blocks][4];
  for (int i = 0; i < blocks + 2; ++i) {
    for (int e = 0; e < 4; ++e) band[i][e] = matrix[(row + e / 2 * 8) * (blocks + 2) * 8 + i * 8 + column + e % 2];
  }
  for (auto& block : scores) {
    for (float& x : block) x = 0;
  }
  cuda::add_skewed(scores, band);
  for (int i = 0; i < blocks; ++i) {
    for (int e = 0; e < 4; ++e) moved[(row + e / 2 * 8) * blocks * 8 + i * 8 + column + e % 2] = scores[i][e];
  }
}

// Every number of a band is another one, and lands where the definition says.
template <int blocks>
void check_skew(unsigned order) {
  constexpr int wide = (blocks + 2) * 8, narrow = blocks * 8;
  std::vector<float> matrix(16 * wide), moved(16 * narrow);
  for (size_t i = 0; i < matrix.size(); ++i) matrix[i] = static_cast<float>(i + 1);
  emulated_order = order;
  Launch launch;
  launch.threads = 32;
  start(launch, nullptr, skew_kernel<blocks>, static_cast<const float*>(matrix.data()), moved.data());
  bool exact = true;
  for (int r = 0; r < 16; ++r) {
    for (int col = 0; col < narrow; ++col) exact = exact && moved[r * narrow + col] == matrix[r * wide + col + 15 - r];
  }
  expect(exact, "the band moved by shuffles, " + std::to_string(blocks) + " blocks");
}

// What may be asked for, each thing at an odd size somewhere.
std::vector<Case> cases() {
  std::vector<Case> all(11);
  all[0] = {"plain", 2, 16, 17, 5};
  all[0].sequences = {{7, 3}, {1, 0}, {3, 0}, {1, 11}, {18, 40}};
  all[1] = {"tiles", 1, 64, 130, 70};
  all[1].sequences = {{80, 100}, {65, 0}};
  all[2] = {"wide heads", 3, 128, 33, 41};
  all[2].sequences = {{37, 9}, {1, 200}, {2, 39}};
  all[3] = {"padded heads", 3, 24, 65, 33};
  all[3].sequences = {{20, 31}, {1, 31}, {1, 30}};
  all[4] = {"padded wide heads", 1, 72, 0, 50};
  all[4].sequences = {{19, 60}, {1, 7}};
  all[5] = {"previous tokens, spans", 5, 8, 20, 21, 0, 1};
  all[5].tables = 1;
  all[5].content_bias = all[5].position_bias = false;
  all[5].ramp = 4.5f;
  all[5].sequences = {{23, 2}, {1, 0}, {1, 77}, {5, 0}};
  all[6] = {"segments of zeros", 2, 32, 9, 11, 6, 0, true};
  all[6].sequences = {{17, 0}, {9, 4}, {1, 2}, {1, 100}};
  all[7] = {"segments", 2, 40, 0, 67, 7};
  all[7].sequences = {{71, 5}, {6, 99}, {1, 68}};
  all[8] = {"nothing relative", 2, 16, 64, 20};
  all[8].tables = 0;
  all[8].position_bias = false;
  all[8].spare = 0;
  all[8].sequences = {{33, 50}, {1, 19}};
  all[9] = {"peaks far apart", 1, 16, 40, 30};
  all[9].size = 6;
  all[9].sequences = {{21, 100}, {1, 64}};
  all[10] = {"one row each", 7, 64, 192, 100, 0, 0};
  all[10].content_bias = false;
  all[10].sequences = {{1, 150}, {1, 0}, {1, 99}};
  return all;
}

}  // namespace

int main() {
  for (const unsigned order : {0u, 7u}) {
    check_skew<2>(order);
    check_skew<4>(order);
    check_skew<8>(order);
  }
  for (const Case& c : cases()) {
    const int splits = cuda::splits_of(c.rows(), c.heads, c.persistent);
    check<bf16>(c, splits, true);
    check<fp16>(c, splits > 1 ? 1 : splits, true);
    check<fp16>(c, splits, false);
  }
  check_bidirectional<bf16>(3, 64, {1, 70, 5});
  check_bidirectional<fp16>(2, 24, {16, 2, 9});
  check_bidirectional<fp16>(1, 128, {67});
  return finish("cuda_attend");
}
