#include "cuda/linear/projections.h"

#include "cuda/attention/store.h"
#include "cuda/launch.h"
#include "cuda/linear/multiply_few.h"
#include "cuda/linear/multiply_many.h"
#include "cuda/rows.h"

namespace headcount::cuda {
namespace {

constexpr int most_few_rows = 64, most_rows_of_small_tiles = 1024;
constexpr int norm_threads = 128;

// Grid: tiles of 64 columns × tiles of tile_rows rows.
template <typename T, int tile_rows, typename Store>
__global__ void __launch_bounds__(many::threads) multiply_and_store(Matrix<T> x, Matrix<T> weight, Store store) {
  device::wait_for_earlier_kernels();
  device::let_next_kernel_start();
  const int first_row = blockIdx.y * tile_rows;
  const auto finish = [&](const many::Sums<tile_rows>& sums, int first_column) {
#pragma unroll
    for (int i = 0; i < tile_rows / 32; ++i) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int row = first_row + many::row_of<tile_rows>(i, half);
        if (row >= x.rows) continue;
        const typename Store::Row begin = store.begin(row);
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const int column = first_column + many::column_of(j);
          if (column < weight.rows) store(begin, column, sums[i][j][half * 2], sums[i][j][half * 2 + 1]);
        }
      }
    }
  };
  multiply_many<T, tile_rows>(x, weight, first_row, blockIdx.x * many::columns, 1, finish);
}

// A warp for each row. Out: float or a 16-bit number; without a gain it only rounds.
template <typename Out>
__global__ void __launch_bounds__(norm_threads)
    normalise_rows(const float* x, int rows, int depth, Norm norm, Out* out) {
  device::wait_for_earlier_kernels();
  device::let_next_kernel_start();
  const int row = (blockIdx.x * norm_threads + threadIdx.x) / 32, lane = threadIdx.x % 32;
  if (row >= rows) return;
  const int64_t start = static_cast<int64_t>(row) * depth;
  float mean = 0, scale = 1;
  if (norm.gain != nullptr) row_statistics(x + start, depth, norm.eps, mean, scale);
  for (int column = lane; column < depth; column += 32) {
    float value = x[start + column];
    if (norm.gain != nullptr) value = (value - mean) * scale * norm.gain[column] + norm.shift[column];
    out[start + column] = device::from_float<Out>(value);
  }
}

struct alignas(16) SixteenBytes {
  uint32_t words[4];
};

// A thread for each 16 bytes of a head of a source row.
__global__ void __launch_bounds__(norm_threads)
    copy_into_rings(const SixteenBytes* keys, const SixteenBytes* values, const int64_t* source_rows, int count,
                    SixteenBytes* ring_keys, SixteenBytes* ring_values, const int64_t* slots, const int64_t* positions,
                    int heads, int capacity, int chunks) {
  device::wait_for_earlier_kernels();
  device::let_next_kernel_start();
  const int64_t index = static_cast<int64_t>(blockIdx.x) * norm_threads + threadIdx.x;
  if (index >= static_cast<int64_t>(count) * heads * chunks) return;
  const int64_t row = source_rows[index / (heads * chunks)];
  const int head = static_cast<int>(index / chunks % heads), chunk = static_cast<int>(index % chunks);
  const int64_t source = (row * heads + head) * chunks + chunk;
  const int64_t target = ((slots[row] * heads + head) * capacity + positions[row] % capacity) * chunks + chunk;
  ring_keys[target] = keys[source];
  ring_values[target] = values[source];
}

unsigned tiles(int64_t size, int tile) { return static_cast<unsigned>((size + tile - 1) / tile); }

bool is_even(const float* data) { return reinterpret_cast<uintptr_t>(data) % sizeof(TwoFloats) == 0; }

template <typename T, typename X, int row_tiles, typename Store>
void start_few(const Product& p, const Matrix<T>& weight, const Store& store, Stream stream) {
  Launch launch;
  launch.name = "multiply_few";
  launch.blocks_x = tiles(p.columns, few::columns);
  launch.blocks_y = tiles(p.rows, 8 * row_tiles);
  launch.threads = few::threads;
  launch.shared_bytes = few::shared_bytes<row_tiles>;
  launch.dependent = true;
  const bool aligned = is_aligned(p.x, p.depth) && is_even(p.norm.gain) && is_even(p.norm.shift);
  start(launch, stream, multiply_few<T, X, row_tiles, Store>, static_cast<const X*>(p.x), p.rows, aligned, p.norm,
        weight, store);
}

template <typename T, int tile_rows, typename Store>
void start_many(const Product& p, const void* x, const Matrix<T>& weight, const Store& store, Stream stream) {
  Launch launch;
  launch.name = "multiply_and_store";
  launch.blocks_x = tiles(p.columns, many::columns);
  launch.blocks_y = tiles(p.rows, tile_rows);
  launch.threads = many::threads;
  launch.shared_bytes = many::shared_bytes<tile_rows>;
  launch.dependent = true;
  const Matrix<T> rows{static_cast<const T*>(x), p.rows, p.depth, is_aligned(x, p.depth)};
  start(launch, stream, multiply_and_store<T, tile_rows, Store>, rows, weight, store);
}

// rounded_rows: whether x may be 16-bit.
template <typename T, bool rounded_rows, typename Store>
void multiply(const Product& p, const Store& store, Stream stream) {
  if (p.rows == 0 || p.columns == 0) return;
  const Matrix<T> weight{static_cast<const T*>(p.weight), p.columns, p.depth, is_aligned(p.weight, p.depth)};
  const void* x = p.x;
  if (!rounds_first(p.rows)) {
    if (p.x_is_float32 && p.rows <= 8) return start_few<T, float, 1>(p, weight, store, stream);
    if (p.x_is_float32) return start_few<T, float, 4>(p, weight, store, stream);
    if constexpr (rounded_rows) {
      if (p.rows <= 8) return start_few<T, T, 1>(p, weight, store, stream);
      return start_few<T, T, 4>(p, weight, store, stream);
    }
  }
  if (p.x_is_float32) {
    normalise_and_round(static_cast<const float*>(p.x), p.rows, p.depth, p.norm, p.number, p.scratch, stream);
    x = p.scratch;
  }
  if (p.rows <= most_rows_of_small_tiles) return start_many<T, 64>(p, x, weight, store, stream);
  start_many<T, 128>(p, x, weight, store, stream);
}

template <typename T>
void project_as(const Product& p, const Result& r, Stream stream) {
  float* out = r.out_is_float32 ? static_cast<float*>(r.out) : nullptr;
  const PlainStore<T> store{static_cast<const T*>(p.bias), r.activation, r.residual, out,
                            static_cast<T*>(r.out),        p.columns};
  multiply<T, true>(p, store, stream);
}

template <typename T>
void project_heads_as(const Product& p, void* query, const Rings& r, Stream stream) {
  const HeadStore<T> store{static_cast<const T*>(p.bias),
                           static_cast<T*>(query),
                           static_cast<T*>(r.keys),
                           static_cast<T*>(r.values),
                           r.slots,
                           r.positions,
                           r.heads,
                           r.capacity,
                           r.head_dim};
  multiply<T, false>(p, store, stream);
}

template <typename Out>
void start_normalise(const float* x, int rows, int depth, const Norm& norm, Out* out, Stream stream) {
  if (rows == 0) return;
  Launch launch;
  launch.name = "normalise_rows";
  launch.blocks_x = tiles(rows, norm_threads / 32);
  launch.threads = norm_threads;
  launch.dependent = true;
  start(launch, stream, normalise_rows<Out>, x, rows, depth, norm, out);
}

}  // namespace

bool rounds_first(int rows) { return rows > most_few_rows; }

void project(const Product& product, const Result& result, Stream stream) {
  if (product.number == Number::bfloat16) return project_as<bf16>(product, result, stream);
  project_as<fp16>(product, result, stream);
}

void project_heads(const Product& product, void* query, const Rings& rings, Stream stream) {
  if (product.number == Number::bfloat16) return project_heads_as<bf16>(product, query, rings, stream);
  project_heads_as<fp16>(product, query, rings, stream);
}

void write_rings(const void* keys, const void* values, const int64_t* source_rows, int count, const Rings& rings,
                 Stream stream) {
  const int chunks = rings.head_dim / 8;
  const int64_t copies = static_cast<int64_t>(count) * rings.heads * chunks;
  if (copies == 0) return;
  Launch launch;
  launch.name = "copy_into_rings";
  launch.blocks_x = tiles(copies, norm_threads);
  launch.threads = norm_threads;
  launch.dependent = true;
  start(launch, stream, copy_into_rings, static_cast<const SixteenBytes*>(keys),
        static_cast<const SixteenBytes*>(values), source_rows, count, static_cast<SixteenBytes*>(rings.keys),
        static_cast<SixteenBytes*>(rings.values), rings.slots, rings.positions, rings.heads, rings.capacity, chunks);
}

void normalise(const float* x, int rows, int depth, const Norm& norm, float* out, Stream stream) {
  start_normalise(x, rows, depth, norm, out, stream);
}

void normalise_and_round(const float* x, int rows, int depth, const Norm& norm, Number number, void* out,
                         Stream stream) {
  if (number == Number::bfloat16) return start_normalise(x, rows, depth, norm, static_cast<bf16*>(out), stream);
  start_normalise(x, rows, depth, norm, static_cast<fp16*>(out), stream);
}

}  // namespace headcount::cuda
