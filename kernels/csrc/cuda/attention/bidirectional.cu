// attend_bidirectional: rows of an encoder, packed without padding, each over all keys of its sequence.
#include "cuda/attention/attention.h"
#include "cuda/attention/every_key.h"
#include "cuda/launch.h"
#include "cuda/sizes.h"

namespace headcount::cuda {
namespace {

// Blocks (tile of rows, head). At least one of them to a multiprocessor: for more, ptxas would spill.
template <typename C>
__global__ void __launch_bounds__(32 * C::warps, 1)
    bidirectional_kernel(Attention a, Sequences sequences, NewRows fresh) {
  using T = typename C::T;
  constexpr int width = C::width;
  device::wait_for_earlier_kernels();
  device::let_next_kernel_start();
  const int head = blockIdx.y, d = a.head_dim, sequence = fresh.tile_sequence[blockIdx.x];
  const int top = fresh.tile_row[blockIdx.x] + threadIdx.x / 32 * 16;  // the warp's first row
  const int length = static_cast<int>(sequences.lengths[sequence]);
  const int64_t line = int64_t{a.heads} * d, start = sequences.first_rows[sequence] * line + int64_t{head} * d;
  State<width> states[1];
  State<width>& state = states[0];
  state.clear();
  see_every_key<C>(states, static_cast<const T*>(fresh.keys) + start, static_cast<const T*>(fresh.values) + start, line,
                   length, d, log2e / sqrtf(static_cast<float>(d)), [&](auto& queries) {
                     load_queries<T, width>(queries[0], d, nullptr, [&](int r) {
                       return top + r < length ? static_cast<const T*>(a.query) + start + (top + r) * line : nullptr;
                     });
                     return top < length;
                   });
  UNROLL
  for (int half = 0; half < 2; ++half) {
    const int row = top + row_of_thread() + 8 * half;
    if (row < length) {
      store_row<T>(static_cast<T*>(a.attended) + start + row * line, d, state, half, 1.0f / state.total[half]);
    }
  }
}

template <typename C>
void start_bidirectional(const Attention& attention, const Sequences& sequences, const NewRows& fresh, Stream stream) {
  Launch launch;
  launch.name = "bidirectional_kernel";
  launch.blocks_x = fresh.tiles;
  launch.blocks_y = attention.heads;
  launch.threads = 32 * C::warps;
  launch.shared_bytes = EveryKey<C>::bytes();
  launch.dependent = true;
  start(launch, stream, bidirectional_kernel<C>, attention, sequences, fresh);
}

}  // namespace

void attend_bidirectional(const Attention& attention, const Sequences& sequences, const NewRows& fresh, Stream stream) {
  if (fresh.tiles == 0 || attention.heads == 0) return;
  const auto begin = [&](auto compiled) {
    start_bidirectional<decltype(compiled)>(attention, sequences, fresh, stream);
  };
  fresh.tile_rows == 16 ? with_sizes<1, 1>(attention, begin) : with_sizes<4, 1>(attention, begin);
}

}  // namespace headcount::cuda
