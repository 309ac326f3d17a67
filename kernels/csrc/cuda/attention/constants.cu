// attend_constants: a flash loop without masks over the persistent vectors, and the scores by distance.
#include <algorithm>

#include "cuda/attention/attention.h"
#include "cuda/attention/every_key.h"
#include "cuda/launch.h"
#include "cuda/sizes.h"

namespace headcount::cuda {
namespace {

constexpr int split_unit = 64;  // splits end at multiples of it

struct alignas(8) Two {
  float low, high;
};

// The first of the warp's rows.
template <typename C>
DEVICE int first_row() {
  return blockIdx.x * C::rows + threadIdx.x / 32 * 16 * C::groups;
}

// Once the kernel before has ended: the queries of the warp's rows, and whether it has any.
template <typename C>
DEVICE bool load_rows(uint32_t (&queries)[C::groups][C::width / 16][4], const Attention& a, int head,
                      const float* bias) {
  using T = typename C::T;
  device::wait_for_earlier_kernels();
  device::let_next_kernel_start();
  UNROLL
  for (int g = 0; g < C::groups; ++g) {
    const int top = first_row<C>() + 16 * g;
    load_queries<T, C::width>(queries[g], a.head_dim, bias, [&](int r) {
      return top + r < a.rows ? static_cast<const T*>(a.query) + (int64_t{top + r} * a.heads + head) * a.head_dim
                              : nullptr;
    });
  }
  return first_row<C>() < a.rows;
}

// The states of this block's rows over one part of the persistent vectors.
template <typename C>
DEVICE void states_of_a_split(const Attention& a, int chunk) {
  using T = typename C::T;
  constexpr int width = C::width;
  const int part = blockIdx.y, head = blockIdx.z, d = a.head_dim;
  const int first = part * chunk, count = min(chunk, a.persistent - first);
  const int64_t at_first = (int64_t{head} * a.persistent + first) * d;
  State<width> states[C::groups];
  UNROLL
  for (int g = 0; g < C::groups; ++g) states[g].clear();
  see_every_key<C>(states, static_cast<const T*>(a.persistent_keys) + at_first,
                   static_cast<const T*>(a.persistent_values) + at_first, d, count, d, log2e,
                   [&](auto& queries) { return load_rows<C>(queries, a, head, nullptr); });
  UNROLL
  for (int g = 0; g < C::groups; ++g) {
    const State<width>& state = states[g];
    UNROLL
    for (int half = 0; half < 2; ++half) {
      const int row = first_row<C>() + 16 * g + row_of_thread() + 8 * half;
      if (row >= a.rows) continue;
      const int64_t at = (int64_t{part} * a.heads + head) * a.rows + row;
      if (column_of_thread() == 0) {
        a.peaks[at] = state.peak[half];
        a.totals[at] = state.total[half];
      }
      UNROLL
      for (int i = 0; i < width / 8; ++i) {
        if (i * 8 >= d) continue;
        Two* out = reinterpret_cast<Two*>(a.outs + at * d + i * 8 + column_of_thread());
        *out = {state.out[i][2 * half], state.out[i][2 * half + 1]};
      }
    }
  }
}

// The scores of this block's rows at one part of the distances.
template <typename C>
DEVICE void scores_by_distance(const Attention& a) {
  using T = typename C::T;
  constexpr int width = C::width, columns = EveryKey<C>::keys;
  const int head = blockIdx.z, d = a.head_dim, reach = a.visibility.reach;
  const int first = (blockIdx.y - a.splits) * columns;
  const T* table = static_cast<const T*>(a.distances) + int64_t{min(head, a.distance_tables - 1)} * reach * d;
  T* tile = reinterpret_cast<T*>(device::shared_memory());
  copy_rows<T, width, columns, 32 * C::warps>(
      tile, d, table, [&](int c) { return first + c < reach ? table + (reach - 1 - first - c) * d : nullptr; });
  device::close_copies();
  uint32_t queries[C::groups][width / 16][4];
  load_rows<C>(queries, a, head, a.position_bias != nullptr ? a.position_bias + head * d : nullptr);
  device::wait_copies<0>();
  device::barrier();
  float scores[C::groups][columns / 8][4] = {};
  multiply_keys<T, width>(scores, queries, [&](int i) { return tile + i * 8 * pitch<width>; });
  UNROLL
  for (int g = 0; g < C::groups; ++g) {
    UNROLL
    for (int half = 0; half < 2; ++half) {
      const int row = first_row<C>() + 16 * g + row_of_thread() + 8 * half;
      if (row >= a.rows) continue;
      T* line = static_cast<T*>(a.scores) + (int64_t{head} * a.rows + row) * a.pitch;
      UNROLL
      for (int i = 0; i < columns / 8; ++i) {
        const int column = first + i * 8 + column_of_thread();
        if (column >= reach) continue;
        const float (&two)[4] = scores[g][i];
        *reinterpret_cast<uint32_t*>(line + column) = device::pack<T>(two[2 * half], two[2 * half + 1]);
      }
    }
  }
}

// Blocks (tile of rows, part, head): parts below `splits` run over persistent vectors, those above over distances.
template <typename C>
__global__ void __launch_bounds__(32 * C::warps) constants_kernel(Attention attention, int chunk) {
  if (static_cast<int>(blockIdx.y) < attention.splits) {
    states_of_a_split<C>(attention, chunk);
  } else {
    scores_by_distance<C>(attention);
  }
}

int blocks_of(int count, int size) { return (count + size - 1) / size; }

template <typename C>
void start_constants(const Attention& attention, Stream stream) {
  const bool scored = attention.scores != nullptr && attention.distance_tables > 0;
  const int parts = attention.splits + (scored ? blocks_of(attention.visibility.reach, EveryKey<C>::keys) : 0);
  if (attention.rows == 0 || attention.heads == 0 || parts == 0) return;
  const int chunk = blocks_of(blocks_of(attention.persistent, std::max(attention.splits, 1)), split_unit) * split_unit;
  Launch launch;
  launch.name = "constants_kernel";
  launch.blocks_x = blocks_of(attention.rows, C::rows);
  launch.blocks_y = parts;
  launch.blocks_z = attention.heads;
  launch.threads = 32 * C::warps;
  launch.shared_bytes = EveryKey<C>::bytes(std::max(blocks_of(chunk, EveryKey<C>::keys), 1));
  launch.dependent = true;
  start(launch, stream, constants_kernel<C>, attention, chunk);
}

}  // namespace

int splits_of(int rows, int heads, int persistent) {
  constexpr int enough_blocks = 256, most_splits = 32;
  if (persistent == 0) return 0;
  const int tiles = std::max(blocks_of(rows, rows <= 16 ? 16 : 128) * heads, 1),
            units = blocks_of(persistent, split_unit);
  const int wanted = std::min({blocks_of(enough_blocks, tiles), most_splits, units});
  return blocks_of(units, blocks_of(units, wanted));  // none of them empty
}

void attend_constants(const Attention& attention, Stream stream) {
  const auto begin = [&](auto compiled) { start_constants<decltype(compiled)>(attention, stream); };
  attention.rows <= 16 ? with_sizes<1, 1>(attention, begin) : with_sizes<4, 2>(attention, begin);
}

}  // namespace headcount::cuda
