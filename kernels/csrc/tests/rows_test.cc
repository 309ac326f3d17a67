// LayerNorm, log-sum-exp and the added constant of every instruction set here against double loops.
#include <cmath>

#include "cpu/isa.h"
#include "tests/expect.h"

using namespace headcount::cpu;
using namespace headcount::test;

namespace {

constexpr float infinity = std::numeric_limits<float>::infinity();

void try_layer_norm(const Kernels& kernels, std::int64_t rows, std::int64_t width, float shift) {
  Noise noise(static_cast<std::uint64_t>(rows * 1000 + width));
  std::vector<float> x = noise.vector(rows * width);
  const std::vector<float> gain = noise.vector(width), bias = noise.vector(width);
  for (float& value : x) value += shift;
  for (const bool affine : {true, false}) {
    std::vector<float> y(x.size(), not_a_number), in_place = x;
    kernels.layer_norm(x.data(), affine ? gain.data() : nullptr, affine ? bias.data() : nullptr, rows, width, 1e-5f,
                       y.data());
    kernels.layer_norm(in_place.data(), affine ? gain.data() : nullptr, affine ? bias.data() : nullptr, rows, width,
                       1e-5f, in_place.data());
    expect(in_place == y, "layer_norm in place");
    for (std::int64_t row = 0; row < rows; ++row) {
      double mean = 0, variance = 0;
      for (std::int64_t i = 0; i < width; ++i) mean += x[row * width + i];
      mean /= static_cast<double>(width);
      for (std::int64_t i = 0; i < width; ++i) variance += std::pow(x[row * width + i] - mean, 2);
      const double scale = 1 / std::sqrt(variance / static_cast<double>(width) + 1e-5);
      for (std::int64_t i = 0; i < width; ++i) {
        const double plain = (x[row * width + i] - mean) * scale;
        const double exact = affine ? plain * gain[i] + bias[i] : plain;
        const double allowed =
            1e-6 * (std::fabs(plain) + 1) + 4e-7 * std::fabs(shift) * scale;  // of the mean's rounding
        expect(std::fabs(y[row * width + i] - exact) <= allowed, "layer_norm width " + std::to_string(width));
      }
    }
  }
}

void try_log_sum_exp(const Kernels& kernels, std::int64_t size, float scale) {
  Noise noise(static_cast<std::uint64_t>(size));
  std::vector<float> x = noise.vector(size);
  for (float& value : x) value *= scale;
  if (size > 2) x[static_cast<std::size_t>(size / 2)] = -infinity;
  double largest = -infinity, exact = 0;
  for (const float value : x) largest = std::max<double>(largest, value);
  for (const float value : x) exact += std::exp(value - largest);
  float maximum = not_a_number, sum = not_a_number;
  kernels.log_sum_exp(x.data(), size, &maximum, &sum);
  expect(maximum == static_cast<float>(largest), "maximum of " + std::to_string(size));
  expect(std::fabs(sum - exact) <= 6e-7 * exact, "sum of " + std::to_string(size));
}

void try_edges(const Kernels& kernels) {
  float maximum = not_a_number, sum = not_a_number;
  const std::vector<float> masked(19, -infinity);
  for (const std::int64_t size : {0, 1, 16, 19}) {
    kernels.log_sum_exp(masked.data(), size, &maximum, &sum);
    expect(maximum == -infinity && sum == 0.0f, "nothing to sum");
  }
  std::vector<float> x(40, -1e4f);
  kernels.log_sum_exp(x.data(), 40, &maximum, &sum);
  expect(maximum == -1e4f && sum == 40.0f, "exp(0) is exactly 1");
  x[33] = 1e4f;
  kernels.log_sum_exp(x.data(), 40, &maximum, &sum);
  expect(maximum == 1e4f && sum == 1.0f, "one beside forty of nothing");
  for (const std::size_t at : {0, 17, 32, 39}) {
    x[at] = not_a_number;
    kernels.log_sum_exp(x.data(), 40, &maximum, &sum);
    expect(std::isnan(sum), "a NaN reaches the sum");
    x[at] = -1e4f;
  }
}

// One 0 and 32 of -v: their sum shows the relative error of exp(-v), beside that of six additions.
void try_exponential(const Kernels& kernels) {
  for (float v = 0.0f; v < 5.0f; v += 0.00078125f) {
    std::vector<float> x(33, -v);
    x[0] = 0.0f;
    float maximum = not_a_number, sum = not_a_number;
    kernels.log_sum_exp(x.data(), 33, &maximum, &sum);
    const double exact = 1 + 32 * std::exp(-static_cast<double>(v));
    expect(std::fabs(sum - exact) <= 6e-7 * exact, "exp(-" + std::to_string(v) + ")");
  }
}

}  // namespace

int main() {
  for (const std::string& isa : isa_names()) {
    const Kernels& kernels = kernels_named(isa);
    for (const std::int64_t width : {1, 2, 15, 16, 17, 48, 63, 512, 513})
      for (const float shift : {0.0f, 100.0f})
        for (const std::int64_t rows : {0, 1, 3}) try_layer_norm(kernels, rows, width, shift);
    for (const std::int64_t size : {1, 2, 15, 16, 17, 33, 513, 20001})
      for (const float scale : {0.0f, 1.0f, 50.0f, 1e4f}) try_log_sum_exp(kernels, size, scale);
    try_edges(kernels);
    try_exponential(kernels);
    std::vector<float> x = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17};
    kernels.add_constant(x.data(), 17, 0.5f);
    for (int i = 0; i < 17; ++i) expect(x[i] == static_cast<float>(i) + 1.5f, "add_constant");
  }
  return finish("rows");
}
