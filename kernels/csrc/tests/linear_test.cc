// Linear layers of every instruction set here against double loops over the same, dequantised weights.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "cpu/isa.h"
#include "cpu/pack.h"
#include "tests/expect.h"

using namespace headcount::cpu;
using namespace headcount::test;

namespace {

struct Case {
  std::int64_t rows, k, n;
  Kind kind;
  bool bias, residual;
  Activation activation;
  bool apart;  // apart: rows of x and y with a gap between them

  std::string name() const {
    return "linear " + std::to_string(rows) + "x" + std::to_string(k) + "x" + std::to_string(n) + " kind " +
           std::to_string(static_cast<int>(kind)) + (bias ? " bias" : "") + (residual ? " residual" : "") +
           " activation " + std::to_string(static_cast<int>(activation)) + (apart ? " apart" : "");
  }
};

struct Data {
  std::int64_t ldx, ldy;
  std::vector<float> x, bias, residual;
  PackedBuffer w;
};

Data make(const Case& of, Pool& pool) {
  Noise noise(static_cast<std::uint64_t>(of.rows * 7919 + of.k * 104729 + of.n));
  Data data;
  data.ldx = of.k + (of.apart ? 3 : 0);
  data.ldy = of.n + (of.apart ? 5 : 0);
  data.x = noise.vector((of.rows - 1) * data.ldx + of.k);
  for (std::size_t i = 0; i < data.x.size(); ++i)
    if (static_cast<std::int64_t>(i) % data.ldx >= of.k) data.x[i] = not_a_number;
  data.bias = noise.vector(of.n);
  data.residual = noise.vector((of.rows - 1) * data.ldy + of.n);
  data.w = pack(noise.vector(of.n * of.k).data(), of.n, of.k, of.k, 1, of.kind, pool);
  return data;
}

bool narrows(const Kernels& kernels, Kind kind) { return kernels.narrows[static_cast<int>(kind)]; }

// Rows of x as the unit wants them.
struct Rows {
  Rows(const Kernels& kernels, Kind kind, const float* x, std::int64_t ldx, std::int64_t rows, std::int64_t k)
      : x(x), ldx(ldx) {
    if (!narrows(kernels, kind)) return;
    this->ldx = narrowed_stride(k);
    numbers.assign(static_cast<std::size_t>(rows * this->ldx), not_a_number);
    scale.assign(static_cast<std::size_t>(rows), not_a_number);
    kernels.narrow(x, ldx, rows, k, kind, numbers.data(), scale.data());
    this->x = numbers.data();
  }

  const float* x;
  std::int64_t ldx;
  std::vector<float> numbers, scale;
};

std::vector<float> run(const Kernels& kernels, const Case& of, const Data& data, std::int64_t step) {
  std::vector<float> y((of.rows - 1) * data.ldy + of.n, not_a_number);
  const Packed w = data.w.view();
  const Rows rows(kernels, of.kind, data.x.data(), data.ldx, of.rows, of.k);
  const Linear call = {rows.x,
                       rows.ldx,
                       of.rows,
                       &w,
                       of.bias ? data.bias.data() : nullptr,
                       of.residual ? data.residual.data() : nullptr,
                       y.data(),
                       data.ldy,
                       of.activation,
                       rows.scale.data()};
  for (std::int64_t panel = 0; panel < panels(of.n); panel += step)
    kernels.linear(call, panel, std::min(panels(of.n), panel + step));
  return y;
}

// How far narrowing may move a number of a row: `step`, or `share` of itself.
struct Moved {
  double step = 0, share = 0;
};

Moved narrowing(const Kernels& kernels, const Case& of, const float* x) {
  if (!narrows(kernels, of.kind)) return {};
  if (of.kind == Kind::bfloat16) return {0, 1.0 / 256};
  double largest = 0;
  for (std::int64_t c = 0; c < of.k; ++c) largest = std::max<double>(largest, std::fabs(x[c]));
  return {largest / static_cast<double>(narrowed_levels(of.k)) * 0.5001, 0};
}

double activated(double x, Activation activation) {
  if (activation == Activation::relu) return std::max(0.0, x);
  if (activation == Activation::gelu) return 0.5 * x * std::erfc(-x * std::sqrt(0.5));
  if (activation == Activation::gelu_tanh)
    return 0.5 * x * (1 + std::tanh(std::sqrt(2 / std::acos(-1.0)) * (x + 0.044715 * x * x * x)));
  if (activation == Activation::quick_gelu) return x / (1 + std::exp(-1.702 * x));
  if (activation == Activation::silu) return x / (1 + std::exp(-x));
  if (activation == Activation::tanh) return std::tanh(x);
  return x;
}

// |y - exact| within the worst rounding of k additions and three more, and of narrowing; nothing written between the
// rows.
void compare(const Kernels& kernels, const Case& of, const Data& data, const std::vector<float>& w,
             const std::vector<float>& y, const std::string& name) {
  for (std::int64_t row = 0; row < of.rows; ++row) {
    const Moved by = narrowing(kernels, of, &data.x[row * data.ldx]);
    for (std::int64_t i = 0; i < of.n; ++i) {
      double sum = 0, size = 0, moved = 0;
      for (std::int64_t c = 0; c < of.k; ++c) {
        const double product = static_cast<double>(data.x[row * data.ldx + c]) * w[i * of.k + c];
        sum += product;
        size += std::fabs(product);
        moved += by.step * std::fabs(w[i * of.k + c]) + by.share * std::fabs(product);
      }
      if (of.bias) sum += data.bias[i];
      double exact = activated(sum, of.activation);
      if (of.residual) exact += data.residual[row * data.ldy + i];
      const double allowed = static_cast<double>(of.k + 4) * 6e-8 * (size + 2.0) + 1.13 * moved;
      expect(std::fabs(y[row * data.ldy + i] - exact) <= allowed,
             name + " at " + std::to_string(row) + ", " + std::to_string(i));
    }
    for (std::int64_t i = of.n; i < data.ldy && row + 1 < of.rows; ++i)
      expect(std::isnan(y[row * data.ldy + i]), name + ": wrote beyond a row");
  }
}

bool same_bits(const float* a, const float* b, std::int64_t count) {
  return std::memcmp(a, b, static_cast<std::size_t>(count) * sizeof(float)) == 0;
}

// Bits do not depend on how panels are shared out, nor on the rows beside a row.
void compare_splits(const Kernels& kernels, const Case& of, const Data& data, const std::vector<float>& y,
                    const std::string& name) {
  const std::vector<float> singly = run(kernels, of, data, 1);
  for (std::int64_t row = 0; row < of.rows; ++row) {
    expect(same_bits(&y[row * data.ldy], &singly[row * data.ldy], of.n), name + ": panel by panel");
    if (row % 5 != 0 || (of.kind == Kind::bfloat16 && narrows(kernels, of.kind))) continue;  // tiles add in their order
    const std::vector<float> x(&data.x[row * data.ldx], &data.x[row * data.ldx] + of.k);
    const Rows alone(kernels, of.kind, x.data(), of.k, 1, of.k);
    const Packed w = data.w.view();
    std::vector<float> out(static_cast<std::size_t>(of.n), not_a_number);
    const Linear call = {alone.x,
                         alone.ldx,
                         1,
                         &w,
                         of.bias ? data.bias.data() : nullptr,
                         of.residual ? &data.residual[row * data.ldy] : nullptr,
                         out.data(),
                         of.n,
                         of.activation,
                         alone.scale.data()};
    kernels.linear(call, 0, panels(of.n));
    expect(same_bits(out.data(), &y[row * data.ldy], of.n), name + ": row by row");
  }
}

void nan_passes(const Kernels& kernels, Pool& pool) {
  for (const Kind kind : {Kind::float32, Kind::bfloat16, Kind::int8}) {
    Case of = {3, 5, 18, kind, true, true, Activation::relu, false};
    Data data = make(of, pool);
    data.x[5 + 2] = not_a_number;
    const std::vector<float> y = run(kernels, of, data, 2);
    for (std::int64_t i = 0; i < 3 * 18; ++i)
      expect(std::isnan(y[i]) == (i / 18 == 1), "a NaN of x stays in its row and passes ReLU");
  }
}

}  // namespace

// With an argument, a fifth of the work and none in the emulated unit: for emulators.
int main(int count, char**) {
  std::vector<std::string> units = isa_names();
  if (count > 1 && units.back() == "emulated") units.pop_back();
  const std::int64_t largest = count > 1 ? 500000 : 5000000;
  Pool pool(2);
  int draw = 0;
  for (const std::int64_t rows : {1, 2, 5, 6, 7, 8, 13, 65, 193}) {
    for (const std::int64_t k : {1, 2, 3, 16, 31, 64, 512}) {
      for (const std::int64_t n : {1, 15, 16, 17, 48, 513}) {
        if (rows * k * n > largest) continue;  // larger ones add time, no new paths
        for (const Kind kind : {Kind::float32, Kind::bfloat16, Kind::int8}) {
          ++draw;
          const Case of = {rows,        k, n, kind, draw % 2 == 0, draw % 3 == 0, static_cast<Activation>(draw % 9 % 7),
                           draw % 4 < 2};
          const Data data = make(of, pool);
          std::vector<float> w(static_cast<std::size_t>(n * k));
          unpack(data.w.view(), w.data());
          for (const std::string& isa : units) {
            const Kernels& kernels = kernels_named(isa);
            const std::vector<float> y = run(kernels, of, data, panels(n));
            compare(kernels, of, data, w, y, isa + " " + of.name());
            compare_splits(kernels, of, data, y, isa + " " + of.name());
          }
        }
      }
    }
  }
  for (const std::string& isa : units) nan_passes(kernels_named(isa), pool);
  return finish("linear");
}
