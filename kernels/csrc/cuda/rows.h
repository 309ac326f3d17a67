// Rows in a kernel: statistics of a LayerNorm, and 16 bytes of a matrix at a time into shared memory.
#pragma once

#include <cstdint>

#include "cuda/device.h"
#include "cuda/linear/projections.h"

namespace headcount::cuda {

DEVICE float warp_sum(float x) {
  for (int mask = 16; mask > 0; mask /= 2) x += device::shuffle_xor(x, mask);
  return x;
}

// Mean and 1 / standard deviation of a row, by a warp: blocks of 512 numbers, each about its own mean, joined as Chan,
// Golub and LeVeque have it (Stanford STAN-CS-79-773, equation 2.1).
DEVICE void row_statistics(const float* row, int depth, float eps, float& mean, float& scale) {
  constexpr int each = 16;
  const int lane = threadIdx.x % 32;
  float squares = 0;
  mean = 0;
  for (int start = 0; start < depth; start += 32 * each) {
    float x[each], sum = 0;
#pragma unroll
    for (int i = 0; i < each; ++i) {
      const int column = start + 32 * i + lane;
      x[i] = column < depth ? row[column] : 0.0f;
      sum += x[i];
    }
    const float before = start, more = depth - start < 32 * each ? depth - start : 32 * each;
    const float block_mean = warp_sum(sum) / more, shift = block_mean - mean;
    float around = 0;
#pragma unroll
    for (int i = 0; i < each; ++i) {
      const float centred = start + 32 * i + lane < depth ? x[i] - block_mean : 0.0f;
      around += centred * centred;
    }
    squares += warp_sum(around) + shift * shift * (before * more / (before + more));
    mean += shift * (more / (before + more));
  }
  scale = device::inverse_root(squares / depth + eps);
}

// Rows [rows, depth] of 16-bit numbers; aligned: every 8 of them are 16 aligned bytes.
template <typename T>
struct Matrix {
  const T* data;
  int rows, depth;
  bool aligned;
};

inline bool is_aligned(const void* data, int depth) {
  return depth % 8 == 0 && reinterpret_cast<uintptr_t>(data) % 16 == 0;
}

// 8 numbers of a row from a column that is a multiple of 8; zeros beyond the matrix.
template <typename T>
DEVICE void fetch_8(T* target, const Matrix<T>& matrix, int row, int column) {
  const T* source = matrix.data + static_cast<int64_t>(row) * matrix.depth + column;
  if (matrix.aligned) {
    const bool there = row < matrix.rows && column < matrix.depth;
    device::copy_16(target, there ? source : matrix.data, there);
    return;
  }
  for (int i = 0; i < 8; ++i)
    target[i] = row < matrix.rows && column + i < matrix.depth ? source[i] : device::from_float<T>(0.0f);
}

// Where 8 numbers of a row of 64 stand in shared memory, so that 8 rows of one column lie in different banks.
DEVICE int swizzled(int row, int column) { return row * 64 + ((column / 8) ^ (row % 8)) * 8; }

}  // namespace headcount::cuda
