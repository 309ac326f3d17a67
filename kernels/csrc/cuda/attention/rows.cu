// attend_rows: from the states of the persistent vectors on over the ring's keys and then the new ones.
#include <algorithm>

#include "cuda/attention/attention.h"
#include "cuda/attention/visibility.h"
#include "cuda/fragments.h"
#include "cuda/launch.h"
#include "cuda/sizes.h"

namespace headcount::cuda {
namespace {

// Tiles of a block in shared memory: two blocks of keys and values, and the distances of a band, whose blocks follow
// each other in a circle: those that a block of keys needs, and the one the next needs beyond them.
template <typename C>
struct Tiles {
  static constexpr int rows = C::rows, keys = C::width > 64 ? 32 : 64, size = keys * pitch<C::width>;
  static constexpr int ahead = (rows + keys - 1) / keys;  // blocks of the band after the one at the keys' own number
  static constexpr int circle = ahead + 2;
  static constexpr size_t bytes = sizeof(typename C::T) * (4 + circle) * size;
};

// The states of the persistent vectors of row `at` of [H, rows], merged in the order of the splits.
template <int width>
DEVICE void merge_splits(State<width>& state, int half, const Attention& a, int64_t at) {
  const int64_t stride = int64_t{a.heads} * a.rows;
  float total = 0;
  for (int split = 0; split < a.splits; ++split, at += stride) {
    const float other = a.peaks[at], top = fmaxf(state.peak[half], other), level = top == -INFINITY ? 0 : top;
    const float fade = device::exp2_fast(state.peak[half] - level), rise = device::exp2_fast(other - level);
    total = total * fade + a.totals[at] * rise;
    state.peak[half] = top;
    UNROLL
    for (int i = 0; i < width / 8; ++i) {
      if (i * 8 >= a.head_dim) continue;
      UNROLL
      for (int e = 0; e < 2; ++e) {
        float& out = state.out[i][2 * half + e];
        out = out * fade + a.outs[at * a.head_dim + i * 8 + column_of_thread() + e] * rise;
      }
    }
  }
  state.total[half] = state.kept[half] = column_of_thread() == 0 ? total : 0;
}

// Blocks (tile of rows, head). Keys are counted from the sequence's first new row; those below 0 are the ring's.
template <typename C>
__global__ void __launch_bounds__(32 * C::warps) rows_kernel(Attention a, Sequences several, NewRows fresh) {
  using T = typename C::T;
  using Tile = Tiles<C>;
  constexpr int width = C::width, rows = Tile::rows, keys = Tile::keys, threads = 32 * C::warps;
  device::wait_for_earlier_kernels();
  device::let_next_kernel_start();
  const int head = blockIdx.y, d = a.head_dim;
  const int sequence = fresh.tile_sequence[blockIdx.x], start = fresh.tile_row[blockIdx.x];
  const int length = static_cast<int>(several.lengths[sequence]);
  const int64_t position = several.positions[sequence], packed = several.first_rows[sequence];
  const int offset = static_cast<int>(several.offsets[sequence] % a.capacity);
  const int64_t ring = (several.slots[sequence] * a.heads + head) * a.capacity * d;
  const int64_t line = int64_t{a.heads} * d, fresh_row = packed * line + int64_t{head} * d;
  const bool relative = a.distance_tables > 0;
  const int64_t table = relative ? int64_t{min(head, a.distance_tables - 1)} * a.visibility.reach * d : 0;
  const T* distances = static_cast<const T*>(a.distances) + table;

  // Row `time` sees keys time - first_distance - keys_seen + 1 .. time - first_distance, the first row of some the
  // farthest back.
  const auto oldest_of = [&](int time) {
    return time - a.visibility.first_distance - keys_seen(a.visibility, position + time) + 1;
  };
  const int earliest = oldest_of(start), last = min(start + rows, length) - 1 - a.visibility.first_distance;
  const int first_key = earliest & -keys;  // blocks of keys begin at multiples of their size, so none is in two places
  const int blocks = last < earliest ? 0 : (last - first_key) / keys + 1;

  T* key_tiles = reinterpret_cast<T*>(device::shared_memory());
  T* band_tiles = key_tiles + 4 * Tile::size;
  // What no row sees may be anything, and zero times NaN is NaN: it stays zero.
  const auto key_row = [&](const void* in_ring, const void* among_new, int j) -> const T* {
    if (j < earliest || j > last) return nullptr;
    if (j >= 0) return static_cast<const T*>(among_new) + fresh_row + j * line;
    const int slot = offset + j;
    return static_cast<const T*>(in_ring) + ring + int64_t{slot < 0 ? slot + a.capacity : slot} * d;
  };
  const int farthest = start + rows - 1 - a.visibility.first_distance - first_key;  // nearness of row 0 of the band
  const auto fetch_band = [&](int block) {
    copy_rows<T, width, keys, threads>(band_tiles + block % Tile::circle * Tile::size, d, distances, [&](int y) {
      const int near = farthest - block * keys - y;
      return near >= 0 && near < a.visibility.reach ? distances + near * d : nullptr;
    });
  };
  const auto fetch = [&](int block) {
    if (block < blocks) {
      T* tile = key_tiles + block % 2 * 2 * Tile::size;
      const int j = first_key + block * keys;
      const T* anywhere = static_cast<const T*>(fresh.keys);
      copy_rows<T, width, keys, threads>(tile, d, anywhere,
                                         [&](int n) { return key_row(a.ring_keys, fresh.keys, j + n); });
      copy_rows<T, width, keys, threads>(tile + Tile::size, d, anywhere,
                                         [&](int n) { return key_row(a.ring_values, fresh.values, j + n); });
      if (relative) fetch_band(block + Tile::ahead);
    }
    device::close_copies();
  };
  if (relative && blocks > 0) {
    for (int block = 0; block < Tile::ahead; ++block) fetch_band(block);
  }
  fetch(0);

  const int warp = threadIdx.x / 32, top = start + warp * 16;  // the warp's first row
  const auto query_row = [&](int r) {
    return top + r < length ? static_cast<const T*>(a.query) + fresh_row + (top + r) * line : nullptr;
  };
  uint32_t content[width / 16][4], by_position[width / 16][4];
  load_queries<T, width>(content, d, a.content_bias != nullptr ? a.content_bias + head * d : nullptr, query_row);
  if (relative) {
    load_queries<T, width>(by_position, d, a.position_bias != nullptr ? a.position_bias + head * d : nullptr,
                           query_row);
  }
  State<width> state;
  state.clear();
  int oldest[2], newest[2];
  UNROLL
  for (int half = 0; half < 2; ++half) {
    const int time = top + row_of_thread() + 8 * half;
    newest[half] = time - a.visibility.first_distance;
    oldest[half] = time < length ? oldest_of(time) : newest[half] + 1;
    if (time < length) merge_splits(state, half, a, int64_t{head} * a.rows + packed + time);
  }
  const int oldest_of_warp = oldest_of(top), newest_of_warp = min(top + 16, length) - 1 - a.visibility.first_distance;
  const float scale = log2e / sqrtf(static_cast<float>(d)), span = a.spans != nullptr ? a.spans[head] : 0;
  const int band_start = rows - 16 - warp * 16;  // of the warp's rows in the band of a block of keys

  for (int block = 0; block < blocks; ++block) {
    device::wait_copies<0>();
    device::barrier();
    fetch(block + 1);
    const int j = first_key + block * keys;
    if (j > newest_of_warp || j + keys <= oldest_of_warp) continue;
    const T* tile = key_tiles + block % 2 * 2 * Tile::size;
    float scores[keys / 8][4] = {};
    multiply_keys<T, width>(scores, content, [&](int i) { return tile + i * 8 * pitch<width>; });
    if (relative) {
      const int from = (block * keys + band_start) % (Tile::circle * keys);
      float band[keys / 8 + 2][4] = {};
      multiply_keys<T, width>(band, by_position, [&](int i) {
        const int row = from + i * 8;
        return band_tiles + (row < Tile::circle * keys ? row : row - Tile::circle * keys) * pitch<width>;
      });
      add_skewed(scores, band);
    }
    UNROLL
    for (int i = 0; i < keys / 8; ++i) {
      UNROLL
      for (int e = 0; e < 4; ++e) {
        const int key = j + i * 8 + column_of_thread() + e % 2;
        const bool seen = key >= oldest[e / 2] && key <= newest[e / 2];
        scores[i][e] = seen ? scores[i][e] * scale : -INFINITY;
      }
    }
    state.weigh(scores);
    if (a.spans != nullptr) {
      UNROLL
      for (int i = 0; i < keys / 8; ++i) {
        UNROLL
        for (int e = 0; e < 4; ++e) {
          const int distance = newest[e / 2] - (j + i * 8 + column_of_thread() + e % 2) + a.visibility.first_distance;
          scores[i][e] *= ramp_of(static_cast<float>(distance), span, a.span_ramp);
          state.kept[e / 2] += scores[i][e];
        }
      }
    }
    multiply_values<T, width>(state, scores, tile + Tile::size);
  }

  state.sum_columns();
  UNROLL
  for (int half = 0; half < 2; ++half) {
    const int time = top + row_of_thread() + 8 * half;
    if (time >= length) continue;
    const float factor = 1.0f / share_of(a, state.total[half], state.kept[half]);
    store_row<T>(static_cast<T*>(a.attended) + fresh_row + time * line, d, state, half, factor);
  }
}

template <typename C>
void start_rows(const Attention& attention, const Sequences& several, const NewRows& fresh, Stream stream) {
  Launch launch;
  launch.name = "rows_kernel";
  launch.blocks_x = fresh.tiles;
  launch.blocks_y = attention.heads;
  launch.threads = 32 * C::warps;
  launch.shared_bytes = Tiles<C>::bytes;
  launch.dependent = true;
  start(launch, stream, rows_kernel<C>, attention, several, fresh);
}

}  // namespace

int rows_of_a_tile(int longest) { return longest <= 16 ? 16 : 64; }

void attend_rows(const Attention& attention, const Sequences& several, const NewRows& fresh, Stream stream) {
  if (fresh.tiles == 0 || attention.heads == 0) return;
  const auto begin = [&](auto compiled) { start_rows<decltype(compiled)>(attention, several, fresh, stream); };
  fresh.tile_rows == 16 ? with_sizes<1, 1>(attention, begin) : with_sizes<4, 1>(attention, begin);
}

}  // namespace headcount::cuda
