// Packed layouts element by element: rounding, scales, strides, zero padding, alignment.
#include "cpu/pack.h"

#include <cmath>
#include <cstring>

#include "tests/expect.h"

using namespace headcount::cpu;
using namespace headcount::test;

namespace {

float bits(std::uint32_t pattern) {
  float x;
  std::memcpy(&x, &pattern, 4);
  return x;
}

std::uint16_t rounded(float x, Pool& pool) {
  const PackedBuffer packed = pack(&x, 1, 1, 1, 1, Kind::bfloat16, pool);
  std::uint16_t half;
  std::memcpy(&half, packed.view().data, 2);
  return half;
}

void try_rounding(Pool& pool) {
  const std::uint32_t patterns[][2] = {{0x3F800000, 0x3F80}, {0x3F808000, 0x3F80}, {0x3F808001, 0x3F81},
                                       {0x3F818000, 0x3F82}, {0x3F817FFF, 0x3F81}, {0x80000000, 0x8000},
                                       {0x00000001, 0x0000}, {0x00018000, 0x0002}, {0x7F7F7FFF, 0x7F7F},
                                       {0x7F7FFFFF, 0x7F80}, {0x7F800000, 0x7F80}, {0xFF800000, 0xFF80}};
  for (const auto& pattern : patterns)
    expect(rounded(bits(pattern[0]), pool) == pattern[1], "bfloat16 of " + std::to_string(pattern[0]));
  for (const std::uint32_t nan : {0x7FC00000u, 0x7F800001u, 0xFFFFFFFFu}) {
    const std::uint16_t half = rounded(bits(nan), pool);
    expect((half & 0x7F80) == 0x7F80 && (half & 0x7F) != 0, "a NaN stays one");
  }
}

// Where element (row, column) lies, as kernels.h says it.
std::int64_t place(std::int64_t row, std::int64_t column, std::int64_t k, Kind kind) {
  const std::int64_t group = kind == Kind::float32 ? 1 : kind == Kind::bfloat16 ? 2 : 4;
  return row / 16 * 16 * padded_k(k, kind) + column / group * 16 * group + row % 16 * group + column % group;
}

void try_matrix(std::int64_t n, std::int64_t k, Kind kind, bool transposed, Pool& pool) {
  const std::int64_t ld = (transposed ? n : k) + 3;
  const std::vector<float> w = Noise(static_cast<std::uint64_t>(n * 1000 + k)).vector((transposed ? k : n) * ld);
  const std::int64_t row_stride = transposed ? 1 : ld, column_stride = transposed ? ld : 1;
  const PackedBuffer packed = pack(w.data(), n, k, row_stride, column_stride, kind, pool);
  const Packed view = packed.view();
  const std::string name =
      "pack " + std::to_string(n) + "x" + std::to_string(k) + " kind " + std::to_string(static_cast<int>(kind));
  expect(reinterpret_cast<std::uintptr_t>(view.data) % 64 == 0, name + ": aligned");
  expect(packed.bytes() == panels(n) * (panel_bytes(k, kind) + (kind == Kind::int8 ? 64 : 0)), name + ": bytes");

  std::vector<float> back(static_cast<std::size_t>(n * k), not_a_number);
  unpack(view, back.data());
  for (std::int64_t row = 0; row < panels(n) * 16; ++row) {
    double largest = 0;
    for (std::int64_t c = 0; c < k && row < n; ++c)
      largest = std::max<double>(largest, std::fabs(w[row * row_stride + c * column_stride]));
    if (kind == Kind::int8) expect(std::fabs(view.scale[row] - largest / 127) <= 1e-7 * largest, name + ": scale");
    for (std::int64_t c = 0; c < padded_k(k, kind); ++c) {
      const std::int64_t at = place(row, c, k, kind);
      const float x = row < n && c < k ? w[row * row_stride + c * column_stride] : 0.0f;
      float stored;
      if (kind == Kind::float32)
        stored = static_cast<const float*>(view.data)[at];
      else if (kind == Kind::bfloat16)
        stored = bits(static_cast<std::uint32_t>(static_cast<const std::uint16_t*>(view.data)[at]) << 16);
      else
        stored = view.scale[row] * static_cast<const std::int8_t*>(view.data)[at];
      const double allowed = kind == Kind::float32 ? 0 : kind == Kind::bfloat16 ? std::fabs(x) / 256 : largest / 253;
      expect(std::fabs(stored - x) <= allowed, name + ": element");
      if (row < n && c < k) expect(back[row * k + c] == stored, name + ": unpack");
    }
  }
}

// Panels turned round are those of the transposed matrix, bit for bit.
void try_transposed(std::int64_t n, std::int64_t k, Kind kind, Pool& pool) {
  const std::vector<float> w = Noise(static_cast<std::uint64_t>(n + k)).vector(n * k);
  const PackedBuffer packed = pack(w.data(), n, k, k, 1, kind, pool);
  const PackedBuffer expected = pack(w.data(), k, n, 1, k, kind, pool);
  std::vector<char> panel(static_cast<std::size_t>(panel_bytes(n, kind)));
  for (std::int64_t i = 0; i < panels(k); ++i) {
    std::memset(panel.data(), 0x7F, panel.size());
    transpose_panel(packed.view(), i, panel.data());
    const char* own = static_cast<const char*>(expected.view().data) + i * panel_bytes(n, kind);
    expect(std::memcmp(panel.data(), own, panel.size()) == 0,
           "transposed " + std::to_string(n) + "x" + std::to_string(k));
  }
}

}  // namespace

int main() {
  Pool pool(2);
  try_rounding(pool);
  for (const std::int64_t n : {0, 1, 15, 16, 17, 48, 65})
    for (const std::int64_t k : {0, 1, 2, 3, 4, 5, 31, 64})
      for (const Kind kind : {Kind::float32, Kind::bfloat16, Kind::int8})
        for (const bool transposed : {false, true}) try_matrix(n, k, kind, transposed, pool);

  for (const std::int64_t n : {1, 2, 15, 16, 17, 65})
    for (const std::int64_t k : {1, 3, 16, 33})
      for (const Kind kind : {Kind::float32, Kind::bfloat16}) try_transposed(n, k, kind, pool);

  const std::vector<float> zeros(8), bad(8, not_a_number);
  const PackedBuffer nothing = pack(zeros.data(), 2, 4, 4, 1, Kind::int8, pool);
  expect(nothing.view().scale[1] == 0.0f && *static_cast<const char*>(nothing.view().data) == 0, "a row of zeros");
  pack(bad.data(), 2, 4, 4, 1, Kind::int8, pool);  // no undefined behaviour
  expect(refused([&] { transpose_panel(nothing.view(), 0, nullptr); }) == "w", "int8 is not turned round");
  expect(PackedBuffer().view().n == 0, "an empty buffer");
  expect(refused([] { PackedBuffer(-1, 4, Kind::float32); }) == "n", "negative rows refused");
  return finish("pack");
}
