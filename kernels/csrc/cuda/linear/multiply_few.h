// Few rows times weights: bound by reading the weights, once. A block owns 16 columns; each of its 4 warps streams
// every fourth slice of 64 of their depth through a ring of its own and multiplies with the weights as the left matrix,
// so that 8 rows fill an instruction; then the warps' sums are added in their order. The weights are on their way
// before the kernel that makes the rows has ended.
#pragma once

#include "cuda/attention/store.h"
#include "cuda/rows.h"

namespace headcount::cuda {

namespace few {

constexpr int threads = 128, warps = 4, columns = 16, slice = 64, stages = 4;
constexpr int ring_bytes = warps * stages * columns * slice * 2;

template <int row_tiles>
constexpr int shared_bytes = ring_bytes + row_tiles * 8 * (warps * columns + 2) * int{sizeof(float)};

}  // namespace few

// Two neighbouring numbers of a row, zeros beyond it.
DEVICE TwoFloats load_two(const float* row, int column, int depth, bool aligned) {
  if (aligned) return column < depth ? *reinterpret_cast<const TwoFloats*>(row + column) : TwoFloats{0, 0};
  return {column < depth ? row[column] : 0.0f, column + 1 < depth ? row[column + 1] : 0.0f};
}

// The same, normalised and rounded as the right matrix of a product takes them.
template <typename T>
DEVICE uint32_t load_two_as(const float* row, int column, int depth, bool aligned, const Norm& norm, float mean,
                            float scale) {
  TwoFloats x = load_two(row, column, depth, aligned);
  if (norm.gain != nullptr) {
    const TwoFloats gain = load_two(norm.gain, column, depth, aligned);
    const TwoFloats shift = load_two(norm.shift, column, depth, aligned);
    x = {(x.low - mean) * scale * gain.low + shift.low, (x.high - mean) * scale * gain.high + shift.high};
  }
  return device::pack<T>(x.low, x.high);
}
template <typename T>
DEVICE uint32_t load_two_as(const T* row, int column, int depth, bool aligned, const Norm&, float, float) {
  if (aligned) return column < depth ? *reinterpret_cast<const uint32_t*>(row + column) : 0;
  return device::pack<T>(column < depth ? device::to_float(row[column]) : 0.0f,
                         column + 1 < depth ? device::to_float(row[column + 1]) : 0.0f);
}

// Grid: tiles of 16 columns × tiles of 8 · row_tiles rows. X: float or T.
template <typename T, typename X, int row_tiles, typename Store>
__global__ void __launch_bounds__(few::threads)
    multiply_few(const X* x, int rows, bool x_aligned, Norm norm, Matrix<T> weight, Store store) {
  using namespace few;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int first_column = blockIdx.x * columns, first_row = blockIdx.y * 8 * row_tiles, depth = weight.depth;
  T* ring = reinterpret_cast<T*>(device::shared_memory()) + warp * stages * columns * slice;
  float* partial = reinterpret_cast<float*>(device::shared_memory() + ring_bytes);  // [warps, rows, columns]
  float* means = partial + warps * 8 * row_tiles * columns;
  float* scales = means + 8 * row_tiles;

  const int slices = (depth + slice - 1) / slice, steps = (slices - warp + warps - 1) / warps;  // this warp's
  const auto fetch = [&](int step) {
    if (step < steps) {
      T* stage = ring + step % stages * columns * slice;
      for (int chunk = lane; chunk < columns * slice / 8; chunk += 32) {
        const int row = chunk / 8, column = chunk % 8 * 8;
        fetch_8(stage + swizzled(row, column), weight, first_column + row, (step * warps + warp) * slice + column);
      }
    }
    device::close_copies();
  };
  for (int step = 0; step < stages - 1; ++step) fetch(step);

  device::wait_for_earlier_kernels();
  device::let_next_kernel_start();
  if (norm.gain != nullptr) {
    if constexpr (sizeof(X) == sizeof(float)) {
      for (int row = warp; row < 8 * row_tiles && first_row + row < rows; row += warps) {
        float mean, scale;
        row_statistics(x + static_cast<int64_t>(first_row + row) * depth, depth, norm.eps, mean, scale);
        if (lane == 0) {
          means[row] = mean;
          scales[row] = scale;
        }
      }
    }
    device::barrier();
  }

  const X* row_of[row_tiles];
  float mean[row_tiles], scale[row_tiles], sums[row_tiles][4];
#pragma unroll
  for (int tile = 0; tile < row_tiles; ++tile) {
    const int row = tile * 8 + lane / 4;
    const bool there = first_row + row < rows;  // what is computed of others goes nowhere
    row_of[tile] = x + static_cast<int64_t>(there ? first_row + row : 0) * depth;
    mean[tile] = norm.gain != nullptr && there ? means[row] : 0.0f;
    scale[tile] = norm.gain != nullptr && there ? scales[row] : 0.0f;
    for (float& sum : sums[tile]) sum = 0;
  }
  for (int step = 0; step < steps; ++step) {
    device::wait_copies<stages - 2>();
    device::warp_barrier();
    fetch(step + stages - 1);  // over the stage all lanes left before the barrier
    const T* stage = ring + step % stages * columns * slice;
#pragma unroll
    for (int k = 0; k < slice; k += 16) {
      uint32_t a[4];
      device::load_matrices(a, stage + swizzled(lane % 16, k + lane / 16 * 8));
      const int column = (step * warps + warp) * slice + k + lane % 4 * 2;
#pragma unroll
      for (int tile = 0; tile < row_tiles; ++tile) {
        const uint32_t b0 = load_two_as<T>(row_of[tile], column, depth, x_aligned, norm, mean[tile], scale[tile]);
        const uint32_t b1 = load_two_as<T>(row_of[tile], column + 8, depth, x_aligned, norm, mean[tile], scale[tile]);
        device::mma<T>(sums[tile], a, b0, b1);
      }
    }
  }

#pragma unroll
  for (int tile = 0; tile < row_tiles; ++tile) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int row = tile * 8 + lane % 4 * 2 + i % 2, column = lane / 4 + i / 2 * 8;
      partial[(warp * 8 * row_tiles + row) * columns + column] = sums[tile][i];
    }
  }
  device::barrier();
  for (int pair = threadIdx.x; pair < 8 * row_tiles * columns / 2; pair += threads) {
    const int row = pair / (columns / 2), column = pair % (columns / 2) * 2;
    float low = 0, high = 0;
    for (int part = 0; part < warps; ++part) {
      low += partial[(part * 8 * row_tiles + row) * columns + column];
      high += partial[(part * 8 * row_tiles + row) * columns + column + 1];
    }
    if (first_row + row < rows && first_column + column < weight.rows)
      store(store.begin(first_row + row), first_column + column, low, high);
  }
}

}  // namespace headcount::cuda
