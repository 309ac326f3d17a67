// One case of the attention test: its shape, its stream of tokens, its packed matrices.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "cpu/kernels.h"
#include "tests/expect.h"

namespace headcount::test {

using namespace headcount::cpu;
using std::int64_t;

enum class Data { normal, whole, equal };  // whole numbers: large scores without rounding; equal: one key, repeated

// `rows` new tokens of one head's stream, from `position` on.
struct Case {
  int64_t head_dim = 16, persistent = 17, window = 5, segment = 0, rows = 7, position = 3, split = 16, batch_rows = 32;
  int first_distance = 0;
  bool bidirectional = false;  // position 0, nothing relative
  bool zeros = false, relative = true, content_bias = true, position_bias = true;
  float ramp = 0, span = 0, size = 1;
  Data data = Data::normal;
  Kind kind = Kind::float32;
  unsigned seed = 1;

  // Persistent logits are not divided by √D.
  float persistent_size() const { return data == Data::whole ? size : size / std::sqrt(static_cast<float>(head_dim)); }
  int64_t reach() const { return bidirectional ? 0 : window + (segment > 0 ? segment - 1 : 0); }
};

inline std::string describe(const Case& c) {
  char text[320];
  std::snprintf(
      text, sizeof text,
      "D %d N %d window %d segment %d rows %d position %d first_distance %d zeros %d relative %d biases %d%d ramp %g "
      "span %g size %g data %d kind %d bidirectional %d seed %u",
      int(c.head_dim), int(c.persistent), int(c.window), int(c.segment), int(c.rows), int(c.position), c.first_distance,
      c.zeros, c.relative, c.content_bias, c.position_bias, c.ramp, c.span, c.size, int(c.data), int(c.kind),
      c.bidirectional, c.seed);
  return text;
}

inline void expect(bool condition, const char* what, const char* unit, const Case& c) {
  if (!condition) headcount::test::expect(false, std::string(unit) + ", " + what + ": " + describe(c));
}

// n elements at a 64-byte boundary and not one more: the sanitizer catches a read beyond them.
template <typename T>
class Array {
 public:
  explicit Array(int64_t n, T value = T{}) : size(n) {
    void* memory = nullptr;
    if (posix_memalign(&memory, 64, static_cast<std::size_t>(std::max<int64_t>(n, 1)) * sizeof(T)) != 0) std::abort();
    data.reset(static_cast<T*>(memory));
    std::fill(data.get(), data.get() + n, value);
  }
  T& operator[](int64_t i) { return data.get()[i]; }
  const T& operator[](int64_t i) const { return data.get()[i]; }
  T* at(int64_t i = 0) const { return data.get() + i; }
  int64_t size;

 private:
  struct Free {
    void operator()(T* p) const { std::free(p); }
  };
  std::unique_ptr<T, Free> data;
};

// A constant matrix, packed, and the numbers the packed form holds.
struct Matrix {
  Matrix(int64_t n, int64_t k, Kind kind, const std::vector<float>& source)
      : bytes(panels(n) * panel_bytes(k, kind), 0), scale(panels(n) * panel_width, 0.0f), held(source) {
    for (int64_t row = 0; row < n; ++row) {
      float largest = 1e-20f;
      for (int64_t i = 0; i < k; ++i) largest = std::max(largest, std::fabs(source[row * k + i]));
      scale[row] = largest / 127;
      for (int64_t i = 0; i < k; ++i) put(row, i, k, kind, held[row * k + i]);
    }
    packed = {bytes.at(), kind == Kind::int8 ? scale.at() : nullptr, n, k, kind};
  }

  void put(int64_t row, int64_t i, int64_t k, Kind kind, float& x) {
    char* panel = bytes.at(row / panel_width * panel_bytes(k, kind));
    const int64_t lane = row % panel_width;
    if (kind == Kind::float32) {
      std::memcpy(panel + (i * panel_width + lane) * 4, &x, 4);
    } else if (kind == Kind::bfloat16) {
      std::uint32_t bits;
      std::memcpy(&bits, &x, 4);
      bits &= 0xFFFF0000u;
      std::memcpy(&x, &bits, 4);
      const auto half = static_cast<std::uint16_t>(bits >> 16);
      std::memcpy(panel + (i / 2 * 2 * panel_width + lane * 2 + i % 2) * 2, &half, 2);
    } else {
      const auto byte = static_cast<signed char>(std::lrint(x / scale[row]));
      x = byte * scale[row];
      panel[i / 4 * 4 * panel_width + lane * 4 + i % 4] = byte;
    }
  }

  Array<char> bytes;
  Array<float> scale;
  std::vector<float> held;
  Packed packed;
};

inline std::vector<float> draw(std::mt19937& random, int64_t n, float size, Data data) {
  std::normal_distribution<float> normal(0, 1);
  std::vector<float> x(static_cast<std::size_t>(n));
  for (float& v : x) v = data == Data::whole ? std::round(normal(random) * 2) * size : normal(random) * size;
  return x;
}

// Everything a case is about; keys and values by position, then those of the zero rows before the stream.
struct Stream {
  explicit Stream(const Case& c) : Stream(c, std::mt19937(c.seed)) {}

  Stream(const Case& c, std::mt19937 random)
      : length(c.position + c.rows),
        persistent_keys(c.persistent, c.head_dim, c.kind,
                        draw(random, c.persistent * c.head_dim, c.persistent_size(), c.data)),
        persistent_values(c.head_dim, c.persistent, c.kind, draw(random, c.persistent * c.head_dim, 1, Data::normal)),
        distances(c.relative ? c.reach() : 0, c.head_dim, c.kind,
                  draw(random, c.relative ? c.reach() * c.head_dim : 0, c.size, c.data)),
        content_bias(draw(random, c.head_dim, 1, c.data)),
        position_bias(draw(random, c.head_dim, 1, c.data)),
        query(draw(random, c.rows * c.head_dim, 1, c.data)),
        keys(draw(random, (length + 1) * c.head_dim, c.size, c.data)),
        values(draw(random, (length + 1) * c.head_dim, 1, Data::normal)),
        tables{persistent_keys.packed,
               persistent_values.packed,
               distances.packed,
               c.content_bias ? content_bias.data() : nullptr,
               c.position_bias ? position_bias.data() : nullptr,
               c.span,
               c.ramp},
        visibility{c.window, c.segment, c.reach(), c.first_distance, c.zeros, c.bidirectional} {
    if (c.data == Data::equal) {
      for (int64_t i = c.head_dim; i < (length + 1) * c.head_dim; ++i) keys[i] = keys[i - c.head_dim];
    }
  }

  // Number i of the key (or value) at a position; what no row may see is NaN.
  float number(const Case& c, const std::vector<float>& x, int64_t position, int64_t i) const {
    if (position < 0 && !c.zeros) return not_a_number;
    return x[(position < 0 ? length : position) * c.head_dim + i];
  }

  int64_t length;
  Matrix persistent_keys, persistent_values, distances;
  std::vector<float> content_bias, position_bias, query, keys, values;
  HeadTables tables;
  Visibility visibility;
};

}  // namespace headcount::test
