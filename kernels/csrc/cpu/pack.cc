#include "cpu/pack.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <new>

#include "common/checks.h"

namespace headcount::cpu {
namespace {

constexpr std::align_val_t kAlignment{64};

// Upper half of the bits, rounded to nearest, ties to even; a NaN stays one.
std::uint16_t to_bfloat16(float x) {
  std::uint32_t bits;
  std::memcpy(&bits, &x, 4);
  if (x != x) return static_cast<std::uint16_t>(bits >> 16 | 0x40);
  return static_cast<std::uint16_t>((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}

float from_bfloat16(std::uint16_t half) {
  const std::uint32_t bits = static_cast<std::uint32_t>(half) << 16;
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}

// Bounds before the conversion, so that a NaN, which the loaders refuse, is no undefined behaviour here.
std::int8_t to_int8(float x) {
  return static_cast<std::int8_t>(std::nearbyint(std::min(127.0f, std::max(-127.0f, x))));
}

struct Source {
  const float* w;
  std::int64_t n, k, row_stride, column_stride;

  float at(std::int64_t row, std::int64_t column) const {
    return row < n && column < k ? w[row * row_stride + column * column_stride] : 0.0f;
  }
};

float scale_of(const Source& source, std::int64_t row) {
  float largest = 0.0f;
  for (std::int64_t column = 0; column < source.k; ++column)
    largest = std::max(largest, std::fabs(source.at(row, column)));
  return largest / 127.0f;
}

template <typename Element, typename Convert>
void fill_panel(const Source& source, std::int64_t panel, std::int64_t group, std::int64_t stored, Element* out,
                Convert convert) {
  for (std::int64_t column = 0; column < stored; column += group)
    for (std::int64_t lane = 0; lane < kPanel; ++lane)
      for (std::int64_t i = 0; i < group; ++i)
        *out++ = convert(source.at(panel * kPanel + lane, column + i), panel * kPanel + lane);
}

void fill(const Source& source, std::int64_t panel, Kind kind, PackedBuffer& packed) {
  char* out = packed.data() + panel * panel_bytes(source.k, kind);
  const std::int64_t stored = padded_k(source.k, kind);
  if (kind == Kind::kFloat32) {
    fill_panel(source, panel, 1, stored, reinterpret_cast<float*>(out), [](float x, std::int64_t) { return x; });
  } else if (kind == Kind::kBFloat16) {
    fill_panel(source, panel, 2, stored, reinterpret_cast<std::uint16_t*>(out),
               [](float x, std::int64_t) { return to_bfloat16(x); });
  } else {
    float* scale = packed.scale();
    for (std::int64_t row = panel * kPanel; row < (panel + 1) * kPanel; ++row) scale[row] = scale_of(source, row);
    fill_panel(source, panel, 4, stored, reinterpret_cast<std::int8_t*>(out), [scale](float x, std::int64_t row) {
      return scale[row] > 0.0f ? to_int8(x / scale[row]) : std::int8_t{0};
    });
  }
}

}  // namespace

void PackedBuffer::Free::operator()(char* data) const { ::operator delete(data, kAlignment); }

PackedBuffer::PackedBuffer(std::int64_t n, std::int64_t k, Kind kind) : n_(n), k_(k), kind_(kind) {
  check(n >= 0, "n", "0 or more rows", std::to_string(n));
  check(k >= 0, "k", "0 or more columns", std::to_string(k));
  data_.reset(
      static_cast<char*>(::operator new(static_cast<std::size_t>(panels(n) * panel_bytes(k, kind)), kAlignment)));
  if (kind == Kind::kInt8) scale_.resize(static_cast<std::size_t>(panels(n) * kPanel));
}

std::int64_t PackedBuffer::bytes() const {
  return panels(n_) * panel_bytes(k_, kind_) + static_cast<std::int64_t>(scale_.size() * sizeof(float));
}

PackedBuffer pack(const float* w, std::int64_t n, std::int64_t k, std::int64_t row_stride, std::int64_t column_stride,
                  Kind kind, Pool& pool) {
  PackedBuffer packed(n, k, kind);
  const Source source{w, n, k, row_stride, column_stride};
  pool.run(panels(n), [&](std::int64_t panel, int) { fill(source, panel, kind, packed); });
  return packed;
}

void unpack(const Packed& w, float* out) {
  for (std::int64_t row = 0; row < w.n; ++row) {
    const char* panel = static_cast<const char*>(w.data) + row / kPanel * panel_bytes(w.k, w.kind);
    const std::int64_t lane = row % kPanel;
    for (std::int64_t column = 0; column < w.k; ++column) {
      float x;
      if (w.kind == Kind::kFloat32)
        x = reinterpret_cast<const float*>(panel)[column * kPanel + lane];
      else if (w.kind == Kind::kBFloat16)
        x = from_bfloat16(
            reinterpret_cast<const std::uint16_t*>(panel)[column / 2 * 2 * kPanel + lane * 2 + column % 2]);
      else
        x = w.scale[row] * static_cast<float>(reinterpret_cast<const std::int8_t*>(
                               panel)[column / 4 * 4 * kPanel + lane * 4 + column % 4]);
      *out++ = x;
    }
  }
}

}  // namespace headcount::cpu
