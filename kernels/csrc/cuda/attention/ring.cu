// attend_ring: one row per sequence merges the splits and streams the keys its ring holds, on vector units: one row has
// no use for matrix units.
#include "cuda/attention/attention.h"
#include "cuda/attention/visibility.h"
#include "cuda/fragments.h"
#include "cuda/launch.h"
#include "cuda/sizes.h"

namespace headcount::cuda {
namespace {

constexpr int warps = 4;
constexpr int at_once = 4;  // keys of a team on their way together

template <typename T>
struct alignas(16) Eight {
  T number[8];
};
struct alignas(16) Four {
  float number[4];
};

// A running softmax; `out` has eight columns. Peaks are in units of log2.
struct Part {
  float peak = -INFINITY, total = 0, kept = 0;
  float out[8] = {};

  // Into the units of a peak not below its own.
  DEVICE void raise(float top) {
    const float fade = device::exp2_fast(peak - (top == -INFINITY ? 0 : top));
    peak = top;
    total *= fade;
    kept *= fade;
    UNROLL
    for (float& x : out) x *= fade;
  }
  // Adds another part, in the units of the same peak.
  DEVICE void add(const Part& other) {
    total += other.total;
    kept += other.kept;
    UNROLL
    for (int i = 0; i < 8; ++i) out[i] += other.out[i];
  }
};

// The sum of what the `lanes` threads of a team bring, each of them.
template <int lanes>
DEVICE float sum_of_team(float x) {
  UNROLL
  for (int mask = 1; mask < lanes; mask *= 2) x += device::shuffle_xor(x, mask);
  return x;
}

// What the teams of a warp have, in each of them; pairs in an order of their own, always the same.
template <int lanes>
DEVICE void merge_teams(Part& part) {
  UNROLL
  for (int mask = lanes; mask < 32; mask *= 2) {
    const float top = fmaxf(part.peak, device::shuffle_xor(part.peak, mask));
    part.raise(top);
    Part other;
    other.total = device::shuffle_xor(part.total, mask);
    other.kept = device::shuffle_xor(part.kept, mask);
    UNROLL
    for (int i = 0; i < 8; ++i) other.out[i] = device::shuffle_xor(part.out[i], mask);
    part.add(other);
  }
}

// Blocks (sequence, head). A team of threads takes a key at a time, each thread eight columns of it.
template <typename C>
__global__ void __launch_bounds__(32 * warps) ring_kernel(Attention a, Sequences single) {
  using T = typename C::T;
  constexpr int width = C::width, lanes = width / 8, teams = 32 * warps / lanes;
  device::wait_for_earlier_kernels();
  device::let_next_kernel_start();
  const int head = blockIdx.y, d = a.head_dim, team = threadIdx.x / lanes, column = threadIdx.x % lanes * 8;
  const int sequence = blockIdx.x;
  const int64_t row = single.first_rows[sequence], position = single.positions[sequence];
  const int64_t ring = (single.slots[sequence] * a.heads + head) * a.capacity * d;
  const T* ring_keys = static_cast<const T*>(a.ring_keys) + ring;
  const T* ring_values = static_cast<const T*>(a.ring_values) + ring;
  const bool real = column < d;

  float query[8] = {};
  if (real) {
    const auto q =
        *reinterpret_cast<const Eight<T>*>(static_cast<const T*>(a.query) + (row * a.heads + head) * d + column);
    UNROLL
    for (int i = 0; i < 8; ++i) {
      query[i] = device::to_float(q.number[i]);
      if (a.content_bias != nullptr) {
        query[i] = device::to_float(device::from_float<T>(query[i] + a.content_bias[head * d + column + i]));
      }
    }
  }

  // The splits, shared out among the teams.
  Part part;
  for (int split = team; split < a.splits; split += teams) {
    const int64_t at = (int64_t{split} * a.heads + head) * a.rows + row;
    const float other = a.peaks[at], top = fmaxf(part.peak, other);
    const float rise = device::exp2_fast(other - (top == -INFINITY ? 0 : top));
    part.raise(top);
    const float total = a.totals[at] * rise;
    part.total += total;
    part.kept += total;
    if (!real) continue;
    const Four* out = reinterpret_cast<const Four*>(a.outs + at * d + column);
    UNROLL
    for (int i = 0; i < 2; ++i) {
      const Four four = out[i];
      UNROLL
      for (int e = 0; e < 4; ++e) part.out[4 * i + e] += four.number[e] * rise;
    }
  }

  const int limit = keys_seen(a.visibility, position);
  const int newest =
      static_cast<int>((position - a.visibility.first_distance + a.capacity) % a.capacity);  // slot of nearness 0
  const T* score = a.distance_tables > 0 ? static_cast<const T*>(a.scores) + (int64_t{head} * a.rows + row) * a.pitch +
                                               a.visibility.reach - 1
                                         : nullptr;
  const float scale = log2e / sqrtf(static_cast<float>(d)), span = a.spans != nullptr ? a.spans[head] : 0;
  for (int start = 0; start < limit; start += teams * at_once) {
    Eight<T> keys[at_once], values[at_once];
    float by_distance[at_once] = {};
    UNROLL
    for (int u = 0; u < at_once; ++u) {
      const int near = start + u * teams + team;
      if (near >= limit || !real) continue;
      const int slot = newest - near < 0 ? newest - near + a.capacity : newest - near;
      keys[u] = *reinterpret_cast<const Eight<T>*>(ring_keys + int64_t{slot} * d + column);
      values[u] = *reinterpret_cast<const Eight<T>*>(ring_values + int64_t{slot} * d + column);
      if (score != nullptr) by_distance[u] = device::to_float(score[-near]);
    }
    float scores[at_once], top = part.peak;
    UNROLL
    for (int u = 0; u < at_once; ++u) {
      const bool seen = start + u * teams + team < limit;
      float sum = column == 0 ? by_distance[u] : 0;
      if (seen && real) {
        UNROLL
        for (int i = 0; i < 8; ++i) sum += query[i] * device::to_float(keys[u].number[i]);
      }
      sum = sum_of_team<lanes>(sum);
      scores[u] = seen ? sum * scale : -INFINITY;
      top = fmaxf(top, scores[u]);
    }
    part.raise(top);
    UNROLL
    for (int u = 0; u < at_once; ++u) {
      const int near = start + u * teams + team;
      if (near >= limit) continue;
      float weight = device::exp2_fast(scores[u] - top);
      part.total += weight;
      if (a.spans != nullptr) {
        weight *= ramp_of(static_cast<float>(near + a.visibility.first_distance), span, a.span_ramp);
        part.kept += weight;
      }
      if (!real) continue;
      UNROLL
      for (int i = 0; i < 8; ++i) part.out[i] += weight * device::to_float(values[u].number[i]);
    }
  }

  merge_teams<lanes>(part);
  Part* parts = reinterpret_cast<Part*>(device::shared_memory());  // [warps, lanes]
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  if (lane < lanes) parts[warp * lanes + lane] = part;
  device::barrier();
  if (static_cast<int>(threadIdx.x) >= lanes || !real) return;
  for (int w = 1; w < warps; ++w) {
    Part other = parts[w * lanes + lane];
    const float top = fmaxf(part.peak, other.peak);
    part.raise(top);
    other.raise(top);
    part.add(other);
  }
  const float factor = 1.0f / share_of(a, part.total, part.kept);
  Eight<T> result;
  UNROLL
  for (int i = 0; i < 8; ++i) result.number[i] = device::from_float<T>(part.out[i] * factor);
  *reinterpret_cast<Eight<T>*>(static_cast<T*>(a.attended) + (row * a.heads + head) * d + column) = result;
}

template <typename C>
void start_ring(const Attention& attention, const Sequences& single, Stream stream) {
  Launch launch;
  launch.name = "ring_kernel";
  launch.blocks_x = single.count;
  launch.blocks_y = attention.heads;
  launch.threads = 32 * warps;
  launch.shared_bytes = sizeof(Part) * warps * (C::width / 8);
  launch.dependent = true;
  start(launch, stream, ring_kernel<C>, attention, single);
}

}  // namespace

void attend_ring(const Attention& attention, const Sequences& single, Stream stream) {
  if (single.count == 0 || attention.heads == 0) return;
  with_sizes<warps, 1>(attention, [&](auto compiled) { start_ring<decltype(compiled)>(attention, single, stream); });
}

}  // namespace headcount::cuda
