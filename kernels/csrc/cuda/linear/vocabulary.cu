#include "cuda/linear/vocabulary.h"

#include <cmath>

#include "cuda/launch.h"
#include "cuda/linear/multiply_many.h"

namespace headcount::cuda {
namespace {

constexpr int tile_rows = 64;
constexpr float log2e = 1.4426950408889634f, ln2 = 0.6931471805599453f;
constexpr int blocks_wanted = 264, most_parts = 128;  // two for each unit of the largest GPU known

// What one thread has seen of the words of its rows.
template <typename T>
struct Seen {
  static constexpr int rows = tile_rows / 16;  // of a thread
  const T* bias;
  int last;
  int target[rows];  // -1: none
  float peak[rows], total[rows], picked[rows];

  DEVICE void operator()(const many::Sums<tile_rows>& sums, int first_column) {
#pragma unroll
    for (int r = 0; r < rows; ++r) {
      float scores[8], top = peak[r];
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        const int word = first_column + many::column_of(i / 2) + i % 2;
        float logit = sums[r / 2][i / 2][r % 2 * 2 + i % 2];
        if (bias != nullptr && word < last) logit += device::to_float(bias[word]);
        if (word == target[r]) picked[r] += logit;
        scores[i] = word < last ? logit * log2e : -INFINITY;
        top = scores[i] > top ? scores[i] : top;
      }
      if (top == -INFINITY) continue;  // no word yet
      float sum = total[r] * device::exp2_fast(peak[r] - top);
#pragma unroll
      for (float score : scores) sum += device::exp2_fast(score - top);
      total[r] = sum;
      peak[r] = top;
    }
  }

  // With what another thread has seen of the same rows.
  DEVICE void join(int r, float other_peak, float other_total, float other_picked) {
    const float top = other_peak > peak[r] ? other_peak : peak[r];
    if (top != -INFINITY)
      total[r] = total[r] * device::exp2_fast(peak[r] - top) + other_total * device::exp2_fast(other_peak - top);
    peak[r] = top;
    picked[r] += other_picked;
  }
};

// Grid: parts of the words × tiles of rows.
template <typename T>
__global__ void __launch_bounds__(many::threads)
    score_parts(Matrix<T> x, Matrix<T> weight, const T* bias, const int64_t* targets, int chunk, float* peaks,
                float* totals, float* picked) {
  device::wait_for_earlier_kernels();
  device::let_next_kernel_start();
  const int lane = threadIdx.x % 32, first_row = blockIdx.y * tile_rows, first = blockIdx.x * chunk;
  const int last = first + chunk < weight.rows ? first + chunk : weight.rows;
  Seen<T> seen;
  seen.bias = bias;
  seen.last = last;
#pragma unroll
  for (int r = 0; r < Seen<T>::rows; ++r) {
    const int row = first_row + many::row_of<tile_rows>(r / 2, r % 2);
    seen.target[r] = row < x.rows ? static_cast<int>(targets[row]) : -1;
    seen.peak[r] = -INFINITY;
    seen.total[r] = seen.picked[r] = 0;
  }
  multiply_many<T, tile_rows>(x, weight, first_row, first, (last - first + many::columns - 1) / many::columns, seen);

  // The 4 lanes of a row, in any order alike; then its two warps, the left one first.
  device::wait_copies<0>();
  device::barrier();
  float* right = reinterpret_cast<float*>(device::shared_memory());  // [tile rows, 3]
  const bool is_right = threadIdx.x / 32 % 2 == 1;
#pragma unroll
  for (int r = 0; r < Seen<T>::rows; ++r) {
    for (int mask = 1; mask <= 2; mask *= 2) {
      const float peak = device::shuffle_xor(seen.peak[r], mask), total = device::shuffle_xor(seen.total[r], mask);
      seen.join(r, peak, total, device::shuffle_xor(seen.picked[r], mask));
    }
    float* mine = right + many::row_of<tile_rows>(r / 2, r % 2) * 3;
    if (is_right && lane % 4 == 0) {
      mine[0] = seen.peak[r];
      mine[1] = seen.total[r];
      mine[2] = seen.picked[r];
    }
  }
  device::barrier();
  if (is_right || lane % 4 != 0) return;
#pragma unroll
  for (int r = 0; r < Seen<T>::rows; ++r) {
    const int row = many::row_of<tile_rows>(r / 2, r % 2);
    if (first_row + row >= x.rows) continue;
    seen.join(r, right[row * 3], right[row * 3 + 1], right[row * 3 + 2]);
    const int64_t at = static_cast<int64_t>(blockIdx.x) * x.rows + first_row + row;
    peaks[at] = seen.peak[r];
    totals[at] = seen.total[r];
    picked[at] = seen.picked[r];
  }
}

// A thread for each row: the parts in their order.
__global__ void __launch_bounds__(many::threads)
    join_parts(const float* peaks, const float* totals, const float* picked, int parts, int rows, float* everything,
               float* logit) {
  device::wait_for_earlier_kernels();
  device::let_next_kernel_start();
  const int row = blockIdx.x * many::threads + threadIdx.x;
  if (row >= rows) return;
  float top = -INFINITY, total = 0, sum = 0;
  for (int64_t at = row; at < static_cast<int64_t>(parts) * rows; at += rows) top = peaks[at] > top ? peaks[at] : top;
  for (int64_t at = row; at < static_cast<int64_t>(parts) * rows; at += rows) {
    total += totals[at] * device::exp2_fast(peaks[at] - top);
    sum += picked[at];
  }
  everything[row] = (top + device::log2_fast(total)) * ln2;
  logit[row] = sum;
}

int ceiling(int size, int tile) { return (size + tile - 1) / tile; }

int chunk_of(int rows, int words) {  // a multiple of a tile's columns
  const int wanted = blocks_wanted / ceiling(rows, tile_rows), tiles = ceiling(words, many::columns);
  const int parts = wanted < 1 ? 1 : wanted > most_parts ? most_parts : wanted;
  return ceiling(tiles, parts) * many::columns;
}

template <typename T>
void score_words_as(const Words& w, Stream stream) {
  const Matrix<T> x{static_cast<const T*>(w.x), w.rows, w.depth, is_aligned(w.x, w.depth)};
  const Matrix<T> weight{static_cast<const T*>(w.weight), w.words, w.depth, is_aligned(w.weight, w.depth)};
  const int parts = word_parts(w.rows, w.words);
  Launch launch;
  launch.name = "score_parts";
  launch.blocks_x = parts;
  launch.blocks_y = ceiling(w.rows, tile_rows);
  launch.threads = many::threads;
  launch.shared_bytes = many::shared_bytes<tile_rows>;
  launch.dependent = true;
  start(launch, stream, score_parts<T>, x, weight, static_cast<const T*>(w.bias), w.targets, chunk_of(w.rows, w.words),
        w.peaks, w.totals, w.picked);
  Launch joined;
  joined.name = "join_parts";
  joined.blocks_x = ceiling(w.rows, many::threads);
  joined.threads = many::threads;
  joined.dependent = true;
  start(joined, stream, join_parts, w.peaks, w.totals, w.picked, parts, w.rows, w.everything, w.logit);
}

}  // namespace

int word_parts(int rows, int words) { return rows == 0 ? 0 : ceiling(words, chunk_of(rows, words)); }

void score_words(const Words& words, Stream stream) {
  if (words.rows == 0) return;
  if (words.number == Number::bfloat16) return score_words_as<bf16>(words, stream);
  score_words_as<fp16>(words, stream);
}

}  // namespace headcount::cuda
