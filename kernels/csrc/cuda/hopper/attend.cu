// Attention of many rows on sm_90a: one warpgroup fills a ring of stages, two others hold 64 rows each and go over the
// persistent vectors, then over the context's keys.
#include "cuda/hopper/attend.h"

#include <stdexcept>
#include <string>

#include "cuda/hopper/fill.h"
#include "cuda/hopper/rows.h"
#include "cuda/hopper/tile.h"

namespace headcount::cuda {
namespace {

constexpr int block_threads = 3 * hopper_group_threads;
// Of a thread of the warpgroup that fills stages, and of those that use them.
constexpr int filling_registers = 40, using_registers = 232;
static_assert(hopper_group_threads * (filling_registers + 2 * using_registers) <= 65536,
              "registers of a multiprocessor");

// Persistent vectors: the weights of a step are formed while those of the step before meet their values.
template <typename T>
DEVICE void attend_vectors(HopperRows& rows, const uint32_t (&query)[4][4], const Attention& a, const HopperTile& tile,
                           const HopperRing& ring, const Turns& turns) {
  constexpr int blocks = hopper_vectors / 8;
  float scores[blocks][4];
  uint32_t weights[blocks / 2][4];
  const auto start_scores = [&](int step) {
    ring.wait_full(step);
    device::begin_products();
    score_keys<T>(scores, query, ring.stage(step));
    device::close_products();
  };
  const auto start_values = [&](int step) {
    rows.add_values<T, blocks>(weights, ring.stage(step) + 2 * hopper_block_bytes);
    device::close_products();
  };
  const auto weigh = [&](int step) {
    const int there = a.persistent - step * hopper_vectors;
    if (there < hopper_vectors) {
      UNROLL
      for (int i = 0; i < blocks; ++i) {
        UNROLL
        for (int e = 0; e < 4; ++e) {
          if (i * 8 + column_of_thread() + e % 2 >= there) scores[i][e] = -INFINITY;
        }
      }
    }
    rows.weigh<true>(scores, log2e);
  };
  turns.begin();
  start_scores(0);
  device::wait_products<0>(scores);
  weigh(0);
  rows.settle();
  pack_weights<T>(weights, scores);
  for (int step = 1; step < tile.vector_steps; ++step) {
    turns.take();
    start_scores(step);
    start_values(step - 1);
    turns.give();
    device::wait_products<1>(scores);
    weigh(step);
    // A look ahead that depends on the sums of the weights, which it always finds positive: else ptxas moves the
    // exponentials behind the wait for the values, under whose products they belong.
    if (rows.total[0] + rows.total[1] > 0 && step + 1 < tile.vector_steps) ring.wait_full(step + 1);
    device::wait_products<0>(rows.out);
    ring.release(step - 1);
    rows.settle();
    pack_weights<T>(weights, scores);
  }
  device::begin_products();
  start_values(tile.vector_steps - 1);
  device::wait_products<0>(rows.out);
  ring.release(tile.vector_steps - 1);
}

// The band of distances of a warp's rows in one step of keys: 80 columns from `column` on.
template <typename T>
DEVICE void score_distances(float (&band)[10][4], const uint32_t (&query)[4][4], const HopperRing& ring, int step,
                            int column) {
  const int lane = threadIdx.x % 32;
  UNROLL
  for (int i = 0; i < 10; i += 2) {
    const int x = column + i * 8;
    unsigned char* distances = ring.stage(step + x / hopper_keys) + 2 * hopper_block_bytes;
    const int row = x % hopper_keys + lane % 8 + lane / 16 * 8;
    UNROLL
    for (int k = 0; k < 4; ++k) {
      uint32_t matrices[4];
      device::load_matrices(matrices, piece_of(distances, row, 2 * k + lane / 8 % 2));
      device::mma<T>(band[i], query[k], matrices[0], matrices[1]);
      device::mma<T>(band[i + 1], query[k], matrices[2], matrices[3]);
    }
  }
}

// The context: keys some row of this warpgroup sees, from `from` on in steps; the distances of a step by the warp while
// its scores are formed.
template <typename T>
DEVICE void attend_context(HopperRows& rows, const Attention& a, const HopperTile& tile, const HopperRing& ring,
                           int top) {
  constexpr int blocks = hopper_keys / 8;
  const int group_top = top / hopper_group_rows * hopper_group_rows;  // in the tile
  const int64_t at = tile.packed_row(a, tile.start);
  const T* queries = static_cast<const T*>(a.query) + at;
  const int64_t line = int64_t{a.heads} * hopper_width;
  const auto query_row = [&](int r) {
    return tile.start + top + r < tile.length ? queries + (top + r) * line : nullptr;
  };
  const auto bias_of = [&](const float* biases) {
    return biases != nullptr ? biases + tile.head * hopper_width : nullptr;
  };
  uint32_t content[4][4], by_position[4][4];
  load_queries<T, hopper_width>(content, hopper_width, bias_of(a.content_bias), query_row);
  load_queries<T, hopper_width>(by_position, hopper_width, bias_of(a.position_bias), query_row);
  int newest[2], seen[2];
  UNROLL
  for (int half = 0; half < 2; ++half) {
    const int time = tile.start + top + row_of_thread() + 8 * half;
    newest[half] = time - a.visibility.first_distance;
    seen[half] = time < tile.length ? keys_seen(a.visibility, tile.position + time) : 0;
  }
  const float scale = log2e / sqrtf(float{hopper_width}), span = a.spans != nullptr ? a.spans[tile.head] : 0;

  const int first_time = tile.start + group_top;
  const int oldest = tile.oldest(a.visibility, first_time) - tile.earliest;
  const int latest = min(first_time + hopper_group_rows, tile.length) - 1 - a.visibility.first_distance - tile.earliest;
  const int begin = min(oldest / hopper_keys, tile.key_steps), end = latest < oldest ? begin : latest / hopper_keys + 1;
  const int late = tile.lead > 0 ? 0 : 1;  // a stage that has no distances is released when its values have been used
  const auto step_of = [&](int i) { return tile.vector_steps + i; };
  const auto release = [&](int i) {
    if (i >= late) ring.release(step_of(i - late));
  };

  for (int i = 0; i < tile.lead; ++i) ring.wait_full(step_of(i));
  for (int i = 0; i < begin; ++i) {
    ring.wait_full(step_of(i + tile.lead));
    release(i);
  }
  uint32_t weights[blocks / 2][4];
  for (int i = begin; i < end; ++i) {
    float scores[blocks][4];
    ring.wait_full(step_of(i + tile.lead));
    const unsigned char* stage = ring.stage(step_of(i + tile.lead));
    device::begin_products();
    score_keys<T>(scores, content, stage);
    device::close_products();
    float band[blocks + 2][4] = {};
    if (tile.lead > 0) score_distances<T>(band, by_position, ring, step_of(i), hopper_tile_rows - 16 - top);
    device::wait_products<0>(scores);
    device::wait_products<0>(rows.out);
    release(i);
    if (tile.lead > 0) add_skewed(scores, band);
    const int key = tile.earliest + i * hopper_keys + column_of_thread();
    UNROLL
    for (int n = 0; n < blocks; ++n) {
      UNROLL
      for (int e = 0; e < 4; ++e) {
        const unsigned near = newest[e / 2] - (key + n * 8 + e % 2);
        if (near >= static_cast<unsigned>(seen[e / 2])) scores[n][e] = -INFINITY;
      }
    }
    rows.weigh<false>(scores, scale);
    if (a.spans != nullptr) {
      UNROLL
      for (int n = 0; n < blocks; ++n) {
        UNROLL
        for (int e = 0; e < 4; ++e) {
          const int distance = newest[e / 2] - (key + n * 8 + e % 2) + a.visibility.first_distance;
          scores[n][e] *= ramp_of(static_cast<float>(distance), span, a.span_ramp);
          rows.kept[e / 2] += scores[n][e];
        }
      }
    }
    rows.settle();
    pack_weights<T>(weights, scores);
    device::begin_products();
    rows.add_values<T, blocks>(weights, stage + hopper_block_bytes);
    device::close_products();
  }
  device::wait_products<0>(rows.out);
  for (int i = end; i < tile.key_steps; ++i) {
    ring.wait_full(step_of(i + tile.lead));
    release(i);
  }
}

template <typename T>
DEVICE void use_stages(const Attention& a, const HopperTile& tile, const HopperRing& ring, const Turns& turns) {
  const int top = (threadIdx.x - hopper_group_threads) / 32 * 16;  // the warp's first row in the tile
  const int64_t line = int64_t{a.heads} * hopper_width, at = tile.packed_row(a, tile.start + top);
  HopperRows rows;
  rows.clear();
  if (tile.vector_steps > 0) {
    uint32_t query[4][4];
    load_queries<T, hopper_width>(query, hopper_width, nullptr, [&](int r) {
      return tile.start + top + r < tile.length ? static_cast<const T*>(a.query) + at + r * line : nullptr;
    });
    attend_vectors<T>(rows, query, a, tile, ring, turns);
    rows.kept[0] = rows.total[0];
    rows.kept[1] = rows.total[1];
  }
  if (tile.key_steps > 0) attend_context<T>(rows, a, tile, ring, top);
  device::let_next_kernel_start();

  rows.sum_columns();
  UNROLL
  for (int half = 0; half < 2; ++half) {
    const int row = row_of_thread() + 8 * half;
    if (tile.start + top + row >= tile.length) continue;
    const float factor = 1.0f / share_of(a, rows.total[half], rows.kept[half]);
    T* to = static_cast<T*>(a.attended) + at + row * line + column_of_thread();
    UNROLL
    for (int i = 0; i < 8; ++i) {
      *reinterpret_cast<uint32_t*>(to + i * 8) =
          device::pack<T>(rows.out[i][2 * half] * factor, rows.out[i][2 * half + 1] * factor);
    }
  }
}

// Blocks (tile of rows, head).
template <typename T>
__global__ void __launch_bounds__(block_threads, 1)
    hopper_kernel(const __grid_constant__ TensorMap persistent_keys,
                  const __grid_constant__ TensorMap persistent_values, const __grid_constant__ Attention a,
                  const __grid_constant__ Sequences several, const __grid_constant__ NewRows fresh) {
// nvcc compiles this file for older targets too, which lack the instructions; hopper_attend_fits keeps it from them.
#if !defined(__CUDA_ARCH__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
  const HopperRing ring{device::shared_memory()};
  const HopperTile tile(a, several, fresh);
  const int groups = tile.length - tile.start > hopper_group_rows ? 2 : 1;  // that have rows
  if (threadIdx.x == 0) ring.init(4, 4 * groups);
  device::barrier();
  const int group = threadIdx.x / hopper_group_threads;  // the first one fills
  if (group == 0) {
    device::give_registers<filling_registers>();
    fill_vectors(persistent_keys, persistent_values, tile, ring);
    device::wait_for_earlier_kernels();
    fill_context<T>(a, fresh, tile, ring);
  } else if (group <= groups) {
    device::take_registers<using_registers>();
    device::wait_for_earlier_kernels();
    use_stages<T>(a, tile, ring, {group - 1, groups});
  }
#endif
}

template <typename T>
void start_kernel(const Attention& a, const Sequences& several, const NewRows& fresh, Stream stream) {
  Launch launch;
  launch.name = "hopper_kernel";
  launch.blocks_x = fresh.tiles;
  launch.blocks_y = a.heads;
  launch.threads = block_threads;
  launch.shared_bytes = HopperRing::bytes;
  launch.dependent = true;
  TensorMap keys{}, values{};
  if (a.persistent > 0) {
    keys = describe_tables(a.persistent_keys, a.heads, a.persistent, hopper_vectors);
    values = describe_tables(a.persistent_values, a.heads, a.persistent, hopper_vectors);
  }
  start(launch, stream, hopper_kernel<T>, keys, values, a, several, fresh);
}

// Multiprocessors of the current GPU where it is of the kind this file is for, else 0.
int multiprocessors() {
#ifdef __CUDACC__
  int device = 0, major = 0, minor = 0, count = 0;
  check(cudaGetDevice(&device), "current GPU");
  check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device), "compute capability");
  check(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device), "compute capability");
  check(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device), "multiprocessors");
  return major == 9 && minor == 0 ? count : 0;
#else
  return emulated_multiprocessors;
#endif
}

}  // namespace

bool hopper_attend_runs(int head_dim) { return multiprocessors() > 0 && head_dim == hopper_width; }

bool hopper_attend_fits(const Attention& attention, int tiles) {
  return hopper_attend_runs(attention.head_dim) && tiles * attention.heads >= multiprocessors() / 2;
}

void hopper_attend(const Attention& attention, const Sequences& several, const NewRows& fresh, Stream stream) {
  if (fresh.tiles == 0 || attention.heads == 0) return;
  if (attention.head_dim != hopper_width || fresh.tile_rows != hopper_tile_rows) {
    throw std::invalid_argument("hopper_attend: head_dim " + std::to_string(attention.head_dim) + " and tiles of " +
                                std::to_string(fresh.tile_rows) + " rows, expected 64 and 128; use attend_rows");
  }
  attention.number == Number::bfloat16 ? start_kernel<bf16>(attention, several, fresh, stream)
                                       : start_kernel<fp16>(attention, several, fresh, stream);
}

}  // namespace headcount::cuda
