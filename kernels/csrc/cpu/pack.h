// Constant matrices in the layout of kernels.h: packed once at load, read by every instruction set.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "cpu/kernels.h"
#include "cpu/panel_memory.h"
#include "cpu/pool.h"

namespace headcount::cpu {

// A packed matrix and the memory it lives in.
class PackedBuffer {
 public:
  PackedBuffer() = default;                                 // n = 0
  PackedBuffer(std::int64_t n, std::int64_t k, Kind kind);  // not yet filled

  // Valid while the buffer is, also after it was moved.
  Packed view() const { return {data_.get(), scale_.empty() ? nullptr : scale_.data(), n_, k_, kind_}; }
  std::int64_t bytes() const;

  // Equal matrices have equal marks; unequal ones may.
  std::uint64_t mark() const { return mark_; }
  void set_mark(std::uint64_t mark) { mark_ = mark; }
  // Size, kind and every byte.
  bool equals(const PackedBuffer& other) const;

  char* data() { return data_.get(); }
  float* scale() { return scale_.data(); }

 private:
  std::shared_ptr<char> data_;  // 64-byte aligned
  std::vector<float> scale_;    // int8: one per row, padded to whole panels
  std::int64_t n_ = 0, k_ = 0;
  Kind kind_ = Kind::float32;
  std::uint64_t mark_ = 0;
};

// Packs W [n, k] with W[i, c] = w[i · row_stride + c · column_stride], so that a transposed matrix needs no copy.
// bfloat16: rounded to nearest, ties to even. int8: symmetric per row, scale = max|row| / 127.
PackedBuffer pack(const float* w, std::int64_t n, std::int64_t k, std::int64_t row_stride, std::int64_t column_stride,
                  Kind kind, Pool& pool);

// The matrix as float32 [n, k], row-major: what the kernels compute with; or one row of it.
void unpack(const Packed& w, float* out);
void unpack_row(const Packed& w, std::int64_t row, float* out);

// Panel `panel` of the transposed matrix [k, n], bit for bit as packing it would give: panel_bytes(n) bytes. Not int8.
void transpose_panel(const Packed& w, std::int64_t panel, void* out);

}  // namespace headcount::cpu
