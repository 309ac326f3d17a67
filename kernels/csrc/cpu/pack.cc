#include "cpu/pack.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "common/checks.h"

namespace headcount::cpu {
namespace {

// Upper half of the bits, rounded to nearest, ties to even; a NaN stays one.
std::uint16_t to_bfloat16(float x) {
  std::uint32_t bits;
  std::memcpy(&bits, &x, 4);
  const std::uint32_t rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16;
  return static_cast<std::uint16_t>(x != x ? bits >> 16 | 0x40 : rounded);
}

float from_bfloat16(std::uint16_t half) {
  const std::uint32_t bits = static_cast<std::uint32_t>(half) << 16;
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}

// To nearest, ties to even: beside 1.5 · 2^23 no fraction is left. Bounds first, so that a NaN, which the loaders
// refuse, is no undefined behaviour here.
std::int8_t to_int8(float x) {
  constexpr float rounding = 12582912.0f;
  const float bounded = std::min(127.0f, std::max(-127.0f, x));
  return static_cast<std::int8_t>(static_cast<std::int32_t>((bounded + rounding) - rounding));
}

struct Source {
  const float* w;
  std::int64_t n, k, row_stride, column_stride;
};

void find_scales(const Source& source, std::int64_t panel, float* scale) {
  const std::int64_t first = panel * panel_width, lanes = std::min(panel_width, source.n - first);
  const float* w = source.w + first * source.row_stride;
  std::fill_n(scale, panel_width, 0.0f);
  const bool by_columns = source.column_stride != 1;
  for (std::int64_t outer = 0; outer < (by_columns ? source.k : lanes); ++outer)
    for (std::int64_t inner = 0; inner < (by_columns ? lanes : source.k); ++inner) {
      const std::int64_t lane = by_columns ? inner : outer, column = by_columns ? outer : inner;
      scale[lane] = std::max(scale[lane], std::fabs(w[lane * source.row_stride + column * source.column_stride]));
    }
  for (std::int64_t lane = 0; lane < panel_width; ++lane) scale[lane] /= 127.0f;
}

// Where element (lane, column) of a panel lies whose columns stand in groups.
template <std::int64_t GROUP>
constexpr std::int64_t place(std::int64_t lane, std::int64_t column) {
  return column / GROUP * GROUP * panel_width + lane * GROUP + column % GROUP;
}

// convert(x, lane) of every element; in squares of 16 by 16, so that neither side is read or written with long strides.
template <std::int64_t GROUP, typename Element, typename Convert>
void fill_panel(const Source& source, std::int64_t panel, std::int64_t stored, Element* out, Convert convert) {
  const std::int64_t first = panel * panel_width, lanes = std::min(panel_width, source.n - first);
  if (lanes < panel_width || stored > source.k) std::memset(out, 0, sizeof(Element) * stored * panel_width);
  const bool by_columns = source.column_stride != 1;
  for (std::int64_t begin = 0; begin < source.k; begin += panel_width) {
    const std::int64_t columns = std::min(panel_width, source.k - begin);
    Element* square = out + begin * panel_width;
    const float* w = &source.w[first * source.row_stride + begin * source.column_stride];
    if (by_columns) {
      for (std::int64_t column = 0; column < columns; ++column)
        for (std::int64_t lane = 0; lane < lanes; ++lane)
          square[place<GROUP>(lane, column)] =
              convert(w[lane * source.row_stride + column * source.column_stride], lane);
    } else if (columns == panel_width) {
      for (std::int64_t lane = 0; lane < lanes; ++lane)
        for (std::int64_t group = 0; group < panel_width / GROUP; ++group) {
          Element together[GROUP];
          for (std::int64_t i = 0; i < GROUP; ++i)
            together[i] = convert(w[lane * source.row_stride + group * GROUP + i], lane);
          std::memcpy(square + place<GROUP>(lane, group * GROUP), together, sizeof together);
        }
    } else {
      for (std::int64_t lane = 0; lane < lanes; ++lane)
        for (std::int64_t column = 0; column < columns; ++column)
          square[place<GROUP>(lane, column)] = convert(w[lane * source.row_stride + column], lane);
    }
  }
}

void fill(const Source& source, std::int64_t panel, Kind kind, PackedBuffer& packed) {
  char* out = packed.data() + panel * panel_bytes(source.k, kind);
  const std::int64_t stored = padded_k(source.k, kind);
  if (kind == Kind::float32) {
    fill_panel<1>(source, panel, stored, reinterpret_cast<float*>(out), [](float x, std::int64_t) { return x; });
  } else if (kind == Kind::bfloat16) {
    fill_panel<2>(source, panel, stored, reinterpret_cast<std::uint16_t*>(out),
                  [](float x, std::int64_t) { return to_bfloat16(x); });
  } else {
    float* scale = packed.scale() + panel * panel_width;
    find_scales(source, panel, scale);
    fill_panel<4>(source, panel, stored, reinterpret_cast<std::int8_t*>(out), [scale](float x, std::int64_t lane) {
      return scale[lane] > 0.0f ? to_int8(x / scale[lane]) : std::int8_t{0};
    });
  }
}

// Four chains of multiplications side by side over the 64-bit words of a panel, whose size is a multiple of 16 bytes.
std::uint64_t mixed(const char* data, std::int64_t bytes) {
  std::uint64_t chains[4] = {1, 2, 3, 4};
  for (std::int64_t at = 0; at < bytes; at += 16)
    for (int i = 0; i < 2; ++i) {
      std::uint64_t word;
      std::memcpy(&word, data + at + 8 * i, 8);
      std::uint64_t& chain = chains[at / 16 % 2 * 2 + i];
      chain = (chain ^ word) * 0x9E3779B97F4A7C15u;
      chain ^= chain >> 29;
    }
  std::uint64_t all = 0;
  for (const std::uint64_t chain : chains) all = (all ^ chain) * 0xD6E8FEB86659FD93u, all ^= all >> 32;
  return all;
}

template <std::int64_t GROUP, typename Element>
void transpose(const Packed& w, std::int64_t panel, Element* out) {
  const std::int64_t lanes = std::min(panel_width, w.k - panel * panel_width), stored = padded_k(w.n, w.kind);
  if (lanes < panel_width) std::memset(out, 0, sizeof(Element) * stored * panel_width);
  for (std::int64_t begin = 0; begin < stored; begin += panel_width) {
    const auto* from = reinterpret_cast<const Element*>(static_cast<const char*>(w.data) +
                                                        begin / panel_width * panel_bytes(w.k, w.kind)) +
                       panel * panel_width * panel_width;
    const std::int64_t columns = std::min(panel_width, stored - begin);
    for (std::int64_t lane = 0; lane < lanes; ++lane)
      for (std::int64_t column = 0; column < columns; ++column)
        out[begin * panel_width + place<GROUP>(lane, column)] = from[place<GROUP>(column, lane)];
  }
}

}  // namespace

PackedBuffer::PackedBuffer(std::int64_t n, std::int64_t k, Kind kind) : n_(n), k_(k), kind_(kind) {
  check(n >= 0, "n", "0 or more rows", std::to_string(n));
  check(k >= 0, "k", "0 or more columns", std::to_string(k));
  data_ = panel_memory(panels(n) * panel_bytes(k, kind));
  if (kind == Kind::int8) scale_.resize(static_cast<std::size_t>(panels(n) * panel_width));
}

std::int64_t PackedBuffer::bytes() const {
  return panels(n_) * panel_bytes(k_, kind_) + static_cast<std::int64_t>(scale_.size() * sizeof(float));
}

bool PackedBuffer::equals(const PackedBuffer& other) const {
  if (n_ != other.n_ || k_ != other.k_ || kind_ != other.kind_ || mark_ != other.mark_) return false;
  return scale_ == other.scale_ &&
         std::memcmp(data_.get(), other.data_.get(), panels(n_) * panel_bytes(k_, kind_)) == 0;
}

PackedBuffer pack(const float* w, std::int64_t n, std::int64_t k, std::int64_t row_stride, std::int64_t column_stride,
                  Kind kind, Pool& pool) {
  PackedBuffer packed(n, k, kind);
  const Source source{w, n, k, row_stride, column_stride};
  std::vector<std::uint64_t> marks(static_cast<std::size_t>(panels(n) + 1) / 2 * 2);  // whole 16 bytes
  pool.run(panels(n), [&](std::int64_t panel, int) {
    fill(source, panel, kind, packed);
    marks[panel] = mixed(packed.data() + panel * panel_bytes(k, kind), panel_bytes(k, kind));
  });
  packed.set_mark(mixed(reinterpret_cast<const char*>(marks.data()), static_cast<std::int64_t>(marks.size()) * 8));
  return packed;
}

void transpose_panel(const Packed& w, std::int64_t panel, void* out) {
  check(w.kind != Kind::int8, "w", "float32 or bfloat16: scales are by row", "int8");
  if (w.kind == Kind::float32)
    transpose<1>(w, panel, static_cast<float*>(out));
  else
    transpose<2>(w, panel, static_cast<std::uint16_t*>(out));
}

void unpack_row(const Packed& w, std::int64_t row, float* out) {
  const char* panel = static_cast<const char*>(w.data) + row / panel_width * panel_bytes(w.k, w.kind);
  const std::int64_t lane = row % panel_width;
  if (w.kind == Kind::float32) {
    const auto* values = reinterpret_cast<const float*>(panel);
    for (std::int64_t c = 0; c < w.k; ++c) out[c] = values[place<1>(lane, c)];
  } else if (w.kind == Kind::bfloat16) {
    const auto* values = reinterpret_cast<const std::uint16_t*>(panel);
    for (std::int64_t c = 0; c < w.k; ++c) out[c] = from_bfloat16(values[place<2>(lane, c)]);
  } else {
    const auto* values = reinterpret_cast<const std::int8_t*>(panel);
    for (std::int64_t c = 0; c < w.k; ++c) out[c] = w.scale[row] * static_cast<float>(values[place<4>(lane, c)]);
  }
}

void unpack(const Packed& w, float* out) {
  for (std::int64_t row = 0; row < w.n; ++row) unpack_row(w, row, out + row * w.k);
}

}  // namespace headcount::cpu
