#include "cpu/units/narrow.h"
#include "cpu/units/unit.h"
#include "cpu/units/vec.h"

namespace {

constexpr float infinity = __builtin_inff();

// visit(vector, offset, lanes) for each sixteen floats of a row; lanes beyond the end hold `fill`.
template <typename Visit>
HEADCOUNT_INLINE void for_sixteens(const float* x, std::int64_t size, float fill, Visit visit) {
  std::int64_t i = 0;
  for (; i + 16 <= size; i += 16) visit(load(x + i), i, 16);
  if (i < size) visit(load(x + i, size - i, fill), i, size - i);
}

HEADCOUNT_INLINE Vec load_some(const float* p, std::int64_t lanes) { return lanes == 16 ? load(p) : load(p, lanes, 0); }

// Mean first, then the squares of the differences: a large mean costs no digits.
void normalise(const float* x, const float* gain, const float* bias, std::int64_t width, float eps, float* y) {
  Vec sum = broadcast(0.0f);
  for_sixteens(x, width, 0.0f, [&](const Vec& v, std::int64_t, std::int64_t) { sum = sum + v; });
  const float mean = horizontal_sum(sum) / static_cast<float>(width);

  Vec squares = broadcast(0.0f);
  for_sixteens(x, width, mean, [&](const Vec& v, std::int64_t, std::int64_t) {
    const Vec apart = v - broadcast(mean);
    multiply_add(squares, apart, apart);
  });
  const float scale = 1.0f / __builtin_sqrtf(horizontal_sum(squares) / static_cast<float>(width) + eps);

  for_sixteens(x, width, 0.0f, [&](const Vec& v, std::int64_t i, std::int64_t lanes) {
    Vec out = (v - broadcast(mean)) * broadcast(scale);
    if (gain != nullptr) out = out * load_some(gain + i, lanes);
    if (bias != nullptr) out = out + load_some(bias + i, lanes);
    if (lanes == 16)
      store(y + i, out);
    else
      store(y + i, out, lanes);
  });
}

}  // namespace

namespace headcount::cpu::HEADCOUNT_UNIT {

void layer_norm(const float* x, const float* gain, const float* bias, std::int64_t rows, std::int64_t width, float eps,
                float* y) {
  for (std::int64_t row = 0; row < rows; ++row) normalise(x + row * width, gain, bias, width, eps, y + row * width);
}

void narrow(const float* x, std::int64_t ldx, std::int64_t rows, std::int64_t k, Kind kind, float* to, float* scale) {
  for (std::int64_t row = 0; row < rows; ++row)
    narrow_row(x + row * ldx, k, kind, to + row * narrowed_stride(k), scale == nullptr ? nullptr : scale + row);
}

// A NaN is lost in the maximum but not in the sum. All -∞, or none at all: maximum -∞, sum 0.
void log_sum_exp(const float* x, std::int64_t size, float* maximum, float* sum) {
  Vec largest = broadcast(-infinity);
  for_sixteens(x, size, -infinity, [&](const Vec& v, std::int64_t, std::int64_t) { largest = max(largest, v); });
  *maximum = horizontal_max(largest);

  const Vec base = broadcast(*maximum == -infinity ? 0.0f : *maximum);
  Vec total = broadcast(0.0f);
  for_sixteens(x, size, -infinity,
               [&](const Vec& v, std::int64_t, std::int64_t) { total = total + exponential(v - base); });
  *sum = horizontal_sum(total);
}

void add_constant(float* x, std::int64_t size, float c) {
  const Vec constant = broadcast(c);
  std::int64_t i = 0;
  for (; i + 16 <= size; i += 16) store(x + i, load(x + i) + constant);
  for (; i < size; ++i) x[i] += c;
}

}  // namespace headcount::cpu::HEADCOUNT_UNIT
