// Python-free test of the attention kernels: every instruction set of the machine against loops in double written from
// the equations of engine_kernels/ops.py; arrays of exactly the documented size, NaN in everything that must not count.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <initializer_list>
#include <random>
#include <string>
#include <vector>

#include "cpu/isa.h"
#include "cpu/kernels.h"
#include "tests/attend_case.h"
#include "tests/expect.h"

using namespace headcount::cpu;
using namespace headcount::test;
using std::int64_t;

namespace {

// What a unit's dot products read of a row for a kind, written from the definition in kernels.h.
std::vector<float> as_read(const Kernels* unit, Kind kind, std::vector<float> row) {
  if (unit == nullptr || !unit->narrows[static_cast<int>(kind)]) return row;
  float largest = 0;
  for (const float x : row) largest = std::max(largest, std::fabs(x));
  const auto levels = static_cast<float>(narrowed_levels(static_cast<int64_t>(row.size())));
  for (float& x : row) {
    if (kind == Kind::int8) {
      x = largest > 0 ? std::nearbyint(x * (levels / largest)) * (largest / levels) : 0;
    } else {
      std::uint32_t bits;
      std::memcpy(&bits, &x, 4);
      bits = (bits + 0x7FFFu + (bits >> 16 & 1u)) & 0xFFFF0000u;
      std::memcpy(&x, &bits, 4);
    }
  }
  return row;
}

// How far narrowed weights of persistent vectors may move a result, and numbers of a query that stand so near the
// middle of two steps that they fall to the other side; `largest` is of what is averaged.
double narrowing(const Kernels& unit, const Case& c, const Stream& s, double largest) {
  if (!unit.narrows[static_cast<int>(c.kind)]) return 0;
  if (c.kind == Kind::bfloat16) return largest / 128;
  double query = 0, held = 0;
  for (const float x : s.query) query = std::max<double>(query, std::fabs(x));
  for (const float x : s.position_bias) query = std::max<double>(query, std::fabs(x));
  for (const float x : s.persistent_keys.held) held = std::max<double>(held, std::fabs(x));
  for (const float x : s.distances.held) held = std::max<double>(held, std::fabs(x));
  const double step = 2 * query / static_cast<double>(narrowed_levels(c.head_dim));
  return largest * (static_cast<double>(c.persistent) / 65534 + 2 * step * held);
}

// Row by row from the equations, in `Real`; the rows that meet packed matrices as `unit` reads them, or whole.
template <typename Real>
std::vector<double> oracle(const Case& c, const Stream& s, const Kernels* unit) {
  std::vector<double> out;
  const int64_t d = c.head_dim;
  for (int64_t row = 0; row < c.rows; ++row) {
    const int64_t position = c.position + row;
    const int64_t seen = c.window + (c.segment > 0 ? position % c.segment : 0);
    const float* q = &s.query[row * d];
    std::vector<float> moved(q, q + d);
    const std::vector<float> constant = as_read(unit, c.kind, moved);
    for (int64_t i = 0; c.position_bias && i < d; ++i) moved[i] += s.position_bias[i];
    const bool narrows = unit != nullptr && unit->narrows[static_cast<int>(c.kind)];
    if (narrows)  // scaled first, as the unit does
      for (float& x : moved) x *= 1.0f / std::sqrt(static_cast<float>(d));
    moved = as_read(unit, c.kind, moved);
    std::vector<Real> score, ramp;
    std::vector<std::vector<float>> value;
    const int64_t nearest = c.bidirectional ? position - c.rows + 1 : c.first_distance,
                  behind = c.bidirectional ? c.rows : seen;
    for (int64_t distance = nearest; distance < nearest + behind; ++distance) {
      if (!c.zeros && distance > position) break;
      Real content = 0, relative = 0;
      value.emplace_back();
      for (int64_t i = 0; i < d; ++i) {
        content +=
            (Real(q[i]) + (c.content_bias ? s.content_bias[i] : 0)) * s.number(c, s.keys, position - distance, i);
        value.back().push_back(s.number(c, s.values, position - distance, i));
        if (!c.relative) continue;
        const int64_t column = c.first_distance + c.reach() - 1 - distance;  // farthest first
        relative += Real(moved[i]) * s.distances.held[column * d + i];
      }
      const Real root = std::sqrt(Real(d));
      score.push_back(content / root + (narrows ? relative : relative / root));
      const Real m = (1 - Real(distance) + c.span) / c.ramp + 1;
      ramp.push_back(c.ramp > 0 ? std::min(std::max(m, Real(0)), Real(1)) : Real(1));
    }
    for (int64_t n = 0; n < c.persistent; ++n) {
      Real dot = 0;
      value.emplace_back();
      for (int64_t i = 0; i < d; ++i) {
        dot += Real(constant[i]) * s.persistent_keys.held[n * d + i];
        value.back().push_back(s.persistent_values.held[i * c.persistent + n]);
      }
      score.push_back(dot);
      ramp.push_back(1);
    }
    const Real largest = *std::max_element(score.begin(), score.end());
    Real all = 0, kept = 0;
    for (std::size_t i = 0; i < score.size(); ++i) all += score[i] = std::exp(score[i] - largest);
    for (std::size_t i = 0; i < score.size(); ++i) kept += score[i] = score[i] / all * ramp[i];
    const Real sum = c.ramp > 0 ? kept + Real(1e-8) : kept;
    for (int64_t i = 0; i < d; ++i) {
      Real result = 0;
      for (std::size_t j = 0; j < score.size(); ++j) result += score[j] / sum * value[j][i];
      out.push_back(static_cast<double>(result));
    }
  }
  return out;
}

constexpr int64_t stride_gap = 3;  // strides exceed head_dim, and what lies between stays untouched

std::vector<double> without_gaps(const Array<float>& out, const Case& c, const char* unit) {
  std::vector<double> result;
  bool untouched = true;
  for (int64_t row = 0; row < c.rows; ++row) {
    for (int64_t i = 0; i < c.head_dim; ++i) result.push_back(out[row * (c.head_dim + stride_gap) + i]);
    for (int64_t i = c.head_dim; row + 1 < c.rows && i < c.head_dim + stride_gap; ++i)
      untouched = untouched && out[row * (c.head_dim + stride_gap) + i] == 7.0f;
  }
  expect(untouched, "nothing written between rows", unit, c);
  return result;
}

Array<float> strided_queries(const Case& c, const Stream& s) {
  Array<float> query(c.rows * (c.head_dim + stride_gap) - stride_gap, not_a_number);
  for (int64_t row = 0; row < c.rows; ++row)
    for (int64_t i = 0; i < c.head_dim; ++i) query[row * (c.head_dim + stride_gap) + i] = s.query[row * c.head_dim + i];
  return query;
}

// A key into panels [n / 16][D][16], a value into [n][D].
void put_key_value(const Case& c, const Stream& s, int64_t at, int64_t position, Array<float>& keys,
                   Array<float>& values) {
  for (int64_t i = 0; i < c.head_dim; ++i) {
    keys[(at / panel_width * c.head_dim + i) * panel_width + at % panel_width] = s.number(c, s.keys, position, i);
    values[at * c.head_dim + i] = s.number(c, s.values, position, i);
  }
}

std::vector<double> prefill(const Kernels& unit, const Case& c, const Stream& s, float scratch_value) {
  const int64_t d = c.head_dim, reach = c.reach(), count = reach + c.rows;
  Array<float> keys(panels(count) * d * panel_width, not_a_number), values(count * d, not_a_number),
      out(c.rows * (d + stride_gap) - stride_gap, 7.0f);
  for (int64_t i = 0; i < count; ++i) put_key_value(c, s, i, c.position + i - reach, keys, values);
  const Array<float> query = strided_queries(c, s);
  for (int64_t row = 0; row < c.rows; row += c.batch_rows) {
    Array<float> scratch(attend_rows_scratch(d, reach, c.persistent), scratch_value);
    unit.attend_rows({query.at(row * (d + stride_gap)), d + stride_gap, std::min(c.batch_rows, c.rows - row), d,
                      &s.tables, &s.visibility, keys.at(), values.at(), row, c.position + row,
                      out.at(row * (d + stride_gap)), d + stride_gap, scratch.at(), c.rows});
  }
  return without_gaps(out, c, unit.name);
}

// The rows as a batch of sequences, each with a ring of its own.
std::vector<double> decode(const Kernels& unit, const Case& c, const Stream& s, float scratch_value) {
  const int64_t d = c.head_dim, reach = c.reach(), splits = (c.persistent + c.split - 1) / c.split;
  const int64_t stride = 2 + d + stride_gap, ldq = d + stride_gap;
  Array<float> partials(c.rows * splits * stride, 7.0f), out(c.rows * ldq - stride_gap, 7.0f);
  const Array<float> query = strided_queries(c, s);
  for (int64_t i = 0; i < splits; ++i) {
    Array<float> scratch(attend_persistent_scratch(c.rows, d), scratch_value);
    const int64_t begin = i * c.split, end = std::min(begin + c.split, c.persistent);
    unit.attend_persistent(
        {query.at(), ldq, c.rows, d, &s.tables, begin, end, partials.at(i * stride), splits * stride, scratch.at()});
    Array<float> alone(2 + d, 7.0f);
    unit.attend_persistent({query.at(), ldq, 1, d, &s.tables, begin, end, alone.at(), 2 + d, scratch.at()});
    if (c.kind == Kind::bfloat16 && unit.narrows[1]) continue;  // tiles add in their own order
    expect(std::memcmp(alone.at(), partials.at(i * stride), static_cast<std::size_t>(2 + d) * 4) == 0,
           "a row does not depend on its batch", unit.name, c);
  }
  for (int64_t row = 0; row < c.rows; ++row) {
    Array<float> keys(panels(reach) * d * panel_width, not_a_number), values(reach * d, not_a_number);
    const int64_t position = c.position + row;
    for (int64_t i = 0; i < reach; ++i) {
      const int64_t held = position - c.first_distance - i;
      put_key_value(c, s, (held + reach) % reach, held, keys, values);
    }
    Array<float> scratch(attend_ring_scratch(d, reach), scratch_value);
    unit.attend_ring({query.at(row * ldq), d, &s.tables, &s.visibility, keys.at(), values.at(), position,
                      partials.at(row * splits * stride), splits, stride, out.at(row * ldq), scratch.at()});
  }
  return without_gaps(out, c, unit.name);
}

double difference(const std::vector<double>& x, const std::vector<double>& y) {
  double largest = 0;
  for (std::size_t i = 0; i < x.size(); ++i) {
    const double gap = std::fabs(x[i] - y[i]);
    if (!(gap <= largest)) largest = gap;  // keeps a NaN
    if (std::isnan(gap)) return gap;
  }
  return largest;
}

void check(const std::vector<const Kernels*>& units, const Case& c) {
  const Stream s(c);
  const std::vector<double> whole = oracle<double>(c, s, nullptr), plain = oracle<float>(c, s, nullptr);
  double largest = 0;  // of what is averaged: a plain result of one or two numbers may have no error at all
  for (const float x : s.values) largest = std::max<double>(largest, std::fabs(x));
  for (const float x : s.persistent_values.held) largest = std::max<double>(largest, std::fabs(x));
  const double allowed = 2 * difference(plain, whole) + 4 * std::ldexp(1.0, -23) * largest;
  for (const Kernels* unit : units) {
    const bool narrows = unit->narrows[static_cast<int>(c.kind)];
    const std::vector<double> exact = narrows ? oracle<double>(c, s, unit) : whole;
    const double allowed_here = allowed + narrowing(*unit, c, s, largest);
    const std::vector<double> rows = prefill(*unit, c, s, not_a_number);
    const std::vector<double> steps = c.bidirectional ? rows : decode(*unit, c, s, not_a_number);
    const double row_gap = difference(rows, exact), step_gap = difference(steps, exact);
    expect(row_gap <= allowed_here, "attend_rows", unit->name, c);
    expect(step_gap <= allowed_here, "attend_persistent, attend_ring", unit->name, c);
    expect(rows == prefill(*unit, c, s, 1.0f) && (c.bidirectional || steps == decode(*unit, c, s, 1.0f)),
           "same bits again", unit->name, c);
  }
}

void make_bidirectional(Case& c) {
  c.bidirectional = true;
  c.position = 0, c.first_distance = 0, c.segment = 0, c.ramp = 0;
  c.relative = c.zeros = false;
}

void covering_set(const std::vector<const Kernels*>& units) {
  const auto with = [&](auto change) {
    Case c;
    change(c);
    for (const Kind kind : {Kind::float32, Kind::bfloat16, Kind::int8}) {
      c.kind = kind;
      check(units, c);
    }
  };
  with([](Case&) {});
  with([](Case& c) { c.rows = 300, c.head_dim = 64, c.persistent = 0, make_bidirectional(c); });
  with([](Case& c) { c.rows = 1, c.head_dim = 5, c.persistent = 0, make_bidirectional(c); });
  with([](Case& c) { c.head_dim = 1, c.persistent = 0, c.window = 1, c.rows = 1, c.position = 0; });
  with([](Case& c) { c.persistent = 0, c.window = 193, c.rows = 70, c.position = 0, c.zeros = true, c.head_dim = 64; });
  with([](Case& c) {
    c.persistent = 300, c.window = 140, c.rows = 33, c.position = 500, c.split = 128, c.first_distance = 1;
  });
  with([](Case& c) {
    c.first_distance = 1, c.position = 0, c.rows = 40, c.window = 9;
  });  // row 0 sees persistent vectors only
  with([](Case& c) { c.window = 6, c.segment = 7, c.rows = 40, c.relative = false, c.head_dim = 5; });
  with([](Case& c) { c.ramp = 4, c.span = 2.5f, c.window = 20, c.rows = 40, c.position = 30, c.first_distance = 1; });
  with([](Case& c) { c.ramp = 3, c.span = -9, c.persistent = 0, c.window = 7, c.position = 20; });  // all weights 0
  with([](Case& c) { c.head_dim = 256, c.persistent = 40, c.window = 3, c.batch_rows = 1; });
  for (const float sign : {1.0f, -1.0f}) {  // scores up to 1e4 and beyond, exact in float
    with([=](Case& c) { c.size = 1024 * sign, c.data = Data::whole, c.window = 150, c.position = 200, c.rows = 35; });
  }
  with([](Case& c) { c.data = Data::equal, c.relative = false, c.persistent = 0, c.window = 30, c.rows = 50; });
}

Case random_case(std::mt19937& random) {
  const auto pick = [&random](std::initializer_list<int64_t> of) {
    return *(of.begin() + std::uniform_int_distribution<std::size_t>(0, of.size() - 1)(random));
  };
  Case c;
  c.head_dim = pick({1, 2, 5, 6, 15, 16, 17, 24, 32, 33, 64, 80, 128});
  c.persistent = pick({0, 1, 2, 15, 16, 17, 33, 127, 129, 200, 273});
  c.window = pick({1, 2, 3, 15, 16, 17, 31, 33, 65, 127, 129, 193});
  c.segment = pick({0, 0, 1, 2, 5, 16, 19});
  c.rows = pick({1, 1, 2, 3, 5, 6, 7, 12, 13, 31, 32, 33, 65});
  c.position = pick({0, 0, 1, 4, 15, 16, 31, 63, 100, 1000});
  c.split = pick({16, 48, 128, 1024});
  c.batch_rows = pick({1, 5, 7, 13, 32, 32, 32});
  c.zeros = pick({0, 1}) != 0;
  c.first_distance = c.persistent > 0 || c.zeros || c.position > 0 ? static_cast<int>(pick({0, 1})) : 0;
  c.relative = pick({0, 1, 1}) != 0;
  c.content_bias = pick({0, 1}) != 0;
  c.position_bias = pick({0, 1}) != 0;
  if (pick({0, 0, 1}) != 0) {
    c.ramp = static_cast<float>(pick({1, 4, 32}));
    c.span = std::uniform_real_distribution<float>(0, static_cast<float>(c.window))(random);
  }
  c.kind = static_cast<Kind>(pick({0, 0, 1, 1, 2}));
  c.seed = random();
  if (pick({0, 0, 0, 0, 1}) != 0) make_bidirectional(c);
  return c;
}

}  // namespace

// An argument asks for as many draws, and for none in the emulated unit: for emulators.
int main(int argc, char** argv) {
  std::vector<const Kernels*> units;
  for (const std::string& name : isa_names())
    if (argc < 2 || name != "emulated") units.push_back(&kernels_named(name));
  covering_set(units);
  std::mt19937 random(20261121);
  const int draws = argc > 1 ? std::atoi(argv[1]) : 200;
  for (int i = 0; i < draws; ++i) check(units, random_case(random));
  return headcount::test::finish("attend");
}
