// Items of a decode step around attention: rows, project, share, merge, output.
#pragma once

#include "cuda/decode/block.h"

namespace headcount::cuda::decode {

// x [hidden] of a row by a warp: write(column, normed x).
template <typename Write>
DEVICE void normalise(const float* x, int hidden, const float* gain, const float* shift, float eps, Write write) {
  const int lane = threadIdx.x % 32;
  const auto sum_of = [&](auto term) {
    float sum = 0;
    for (int c = lane; c < hidden; c += 32) sum += term(x[c]);
    for (int mask = 16; mask; mask /= 2) sum += device::shuffle_xor(sum, mask);
    return sum;
  };
  const float mean = sum_of([](float value) { return value; }) / hidden;
  const float variance = sum_of([&](float value) { return (value - mean) * (value - mean); }) / hidden;
  const float scale = 1.0f / sqrtf(variance + eps);
  for (int c = lane; c < hidden; c += 32) write(c, (x[c] - mean) * scale * gain[c] + shift[c]);
}

// Sum of weighted outs of one head, in units of its largest peak.
struct Merged {
  float peak = -INFINITY, total = 0, out = 0;

  DEVICE void add(float other_peak, float other_total, float other_out) {
    const float top = fmaxf(peak, other_peak);
    if (top == -INFINITY) return;
    const float fade = device::exp2_fast(peak - top), rise = device::exp2_fast(other_peak - top);
    peak = top;
    total = total * fade + other_total * rise;
    out = out * fade + other_out * rise;
  }
  DEVICE float share() const { return total > 0 ? out / total : 0.0f; }
};

// What the jobs of a layer wrote for one number of one row, merged in their order: heads add up, the ways of a head are
// parts of one softmax, each out already divided by its total.
template <typename T, int D>
DEVICE float sum_of_jobs(const Block<T, D>& b, const Layer& layer, int row, int column) {
  constexpr int at_once = 16;  // loads on the way
  const Parameters& p = b.p;
  const int jobs = layer.heads * layer.ways;
  const size_t buffer = size_t(layer.buffer) * p.most_jobs;
  float sum = 0;
  Merged head;
  int way = 0;
  for (int first = 0; first < jobs; first += at_once) {
    float peak[at_once], total[at_once], out[at_once];
    UNROLL
    for (int i = 0; i < at_once; ++i) {
      const size_t at = (buffer + first + i) * p.rows + row;
      const bool there = first + i < jobs;
      peak[i] = there ? p.step.peaks[at] : -INFINITY;
      total[i] = there ? p.step.totals[at] : 0.0f;
      out[i] = there ? p.step.outputs[at * p.hidden + column] : 0.0f;
    }
    UNROLL
    for (int i = 0; i < at_once; ++i) {
      if (first + i >= jobs) break;
      head.add(peak[i], total[i], out[i] * total[i]);
      if (++way < layer.ways) continue;
      sum += head.share();
      head = Merged();
      way = 0;
    }
  }
  return sum;
}

// The residual after the layer before, by every block for its share of columns and then for all; and the rows that the
// new layer's projections read. Returns whether to go on.
template <typename T, int D>
DEVICE bool begin_layer(Block<T, D>& b, const Item& item, const unsigned char* stage) {
  const Parameters& p = b.p;
  const float* vectors = reinterpret_cast<const float*>(stage);
  if (item.layer > 0) {
    const Layer& before = b.layers[item.layer - 1];
    if (before.heads) {
      b.meet_grid(item.layer);
      const int first = p.hidden * b.rank / p.cluster, columns = p.hidden * (b.rank + 1) / p.cluster - first;
      for (int i = b.thread; i < p.rows * columns; i += threads) {
        const int row = i / columns, column = first + i % columns;
        float& mine = b.residual[row * p.hidden + column];
        const float x = mine + (sum_of_jobs(b, before, row, column) + vectors[column]);
        for (int other = 0; other < p.cluster; ++other) *device::in_block(&mine, other) = x;
      }
      if (!b.meet_cluster()) return false;
    } else {
      // By every block for itself: no meeting of the grid has seen to it that the others read the rows before.
      for (int i = b.thread; i < p.rows * p.hidden; i += threads) b.residual[i] += vectors[i % p.hidden];
      device::barrier();
    }
    if (!before.norm_first) {
      for (int row = b.warp; row < p.rows; row += warps) {
        float* x = b.residual + row * p.hidden;
        normalise(x, p.hidden, vectors + p.hidden, vectors + 2 * p.hidden, before.norm_eps,
                  [&](int c, float value) { x[c] = value; });
      }
      device::barrier();
      vectors += 2 * p.hidden;
    }
    vectors += p.hidden;
  }
  if (item.layer == p.layers) {
    const bool mine = blockIdx.x == 0;
    for (int i = b.thread; mine && i < p.rows * p.hidden; i += threads) p.step.out[i] = b.residual[i];
    return true;
  }
  if (item.job == 0) return true;  // no head of this layer is this cluster's
  const Layer& layer = b.layers[item.layer];
  for (int row = b.warp; row < p.rows; row += warps) {
    const float* x = b.residual + row * p.hidden;
    T* target = b.normed + row * (p.hidden + 8);
    if (layer.norm_first) {
      normalise(x, p.hidden, vectors, vectors + p.hidden, layer.norm_eps,
                [&](int c, float value) { target[c] = device::from_float<T>(value); });
    } else {
      for (int c = b.lane; c < p.hidden; c += 32) target[c] = device::from_float<T>(x[c]);
    }
  }
  return true;
}

// Up to 4 tiles of 8 columns of query, key and value: each warp sums over a part of the hidden numbers. Every block of
// the cluster is given the results.
template <typename T, int D>
DEVICE void project(Block<T, D>& b, const Item& item, const unsigned char* stage) {
  const Parameters& p = b.p;
  const int steps = p.hidden / 32, columns = item.count * 8;
  float sums[item_tiles][4] = {};
  for (int step = b.warp; step < steps; step += warps) {
    uint32_t a[2][4];
    for (int half = 0; half < 2; ++half) b.load_rows(a[half], b.normed, p.hidden + 8, step * 32 + half * 16);
    UNROLL
    for (int tile = 0; tile < item_tiles; ++tile) {
      if (tile < item.count) b.multiply(sums[tile], a, stage + (tile * steps + step) * 512);
    }
  }
  float* const partial = b.scores + b.warp * p.rows * columns;
  UNROLL
  for (int tile = 0; tile < item_tiles; ++tile) {
    for (int half = 0; tile < item.count && half < 2; ++half) {
      const int row = b.lane / 4 + half * 8;
      if (row >= p.rows) continue;
      *reinterpret_cast<Two*>(partial + row * columns + tile * 8 + b.lane % 4 * 2) = {sums[tile][2 * half],
                                                                                      sums[tile][2 * half + 1]};
    }
  }
  device::barrier();
  const float* bias = reinterpret_cast<const float*>(stage + columns * p.hidden * 2);
  for (int i = b.thread; i < p.rows * columns; i += threads) {
    const int row = i / columns, column = item.first * 8 + i % columns, matrix = column / D, number = column % D;
    float x = 0;
    for (int part = 0; part < warps; ++part) x += b.scores[part * p.rows * columns + i];
    x += bias[i % columns];
    if (matrix == 0) {
      float* target = b.query + row * b.query_pitch + number;
      for (int other = 0; other < p.cluster; ++other) *device::in_block(target, other) = x;
      continue;
    }
    const T rounded = device::from_float<T>(x);
    T* target = (matrix == 1 ? b.fresh_keys : b.fresh_values) + row * D + number;
    for (int other = 0; other < p.cluster; ++other) *device::in_block(target, other) = rounded;
  }
}

// New keys and values of a job into the rings, by its cluster together, 16 bytes a thread.
template <typename T, int D>
DEVICE void keep(const Block<T, D>& b, const Item& item) {
  constexpr int words = D / 8;
  const Layer& layer = b.layers[item.layer];
  const int one = b.p.rows * words;
  for (int i = b.rank * threads + b.thread; i < 2 * one; i += b.p.cluster * threads) {
    const int row = i % one / words, word = i % words;
    const size_t place = (b.slots[row] * layer.heads + item.head) * layer.capacity + b.positions[row] % layer.capacity;
    const T* from = (i < one ? b.fresh_keys : b.fresh_values) + row * D;
    T* to = static_cast<T*>(i < one ? layer.ring_keys : layer.ring_values) + place * D;
    reinterpret_cast<Words*>(to)[word] = reinterpret_cast<const Words*>(from)[word];
  }
}

// Queries, new keys and values are in every block; nothing is attended to yet. Rings are written after the meeting,
// which would wait for these stores: nothing in this launch reads them.
template <typename T, int D>
DEVICE bool share(Block<T, D>& b, const Item& item) {
  for (auto& tile : b.out) {
    for (float& x : tile) x = 0;
  }
  if (b.thread < most_rows) {
    b.row_states[b.thread] = -INFINITY;
    b.row_states[most_rows + b.thread] = 0;
  }
  if (!b.meet_cluster()) return false;
  if (item.job % b.layers[item.layer].ways == 0) keep(b, item);  // way 0 alone has them
  return true;
}

// Every block is given the states of all and merges them, in order, to the attended rows of the job.
template <typename T, int D>
DEVICE bool merge(Block<T, D>& b, const Item& item) {
  const Parameters& p = b.p;
  constexpr int pitch = D + 2;  // outs, peak, total
  float* const mine = b.states + b.rank * p.rows * pitch;
  for (int other = 0; other < p.cluster; ++other) {
    float* const target = device::in_block(mine, other);
    UNROLL
    for (int i = 0; i < b.outs; ++i) {
      const int tile = b.warp + i * warps;
      for (int half = 0; half < 2; ++half) {
        const int row = b.lane / 4 + half * 8;
        if (tile >= D / 8 || row >= p.rows) continue;
        *reinterpret_cast<Two*>(target + row * pitch + tile * 8 + b.lane % 4 * 2) = {b.out[i][2 * half],
                                                                                     b.out[i][2 * half + 1]};
      }
    }
    if (b.thread < p.rows) {
      target[b.thread * pitch + D] = b.row_states[b.thread];
      target[b.thread * pitch + D + 1] = b.row_states[most_rows + b.thread];
    }
  }
  if (!b.meet_cluster()) return false;
  const size_t job = size_t(b.layers[item.layer].buffer) * p.most_jobs + item.job;
  for (int i = b.thread; i < p.rows * D; i += threads) {
    const int row = i / D, number = i % D;
    Merged all;
    for (int other = 0; other < p.cluster; ++other) {
      const float* state = b.states + (other * p.rows + row) * pitch;
      all.add(state[D], state[D + 1], state[number]);
    }
    b.attended[row * b.attended_pitch + number] = device::from_float<T>(all.share());
    if (b.rank == 0 && number == 0) {
      p.step.peaks[job * p.rows + row] = all.peak;
      p.step.totals[job * p.rows + row] = all.total;
    }
  }
  return true;
}

// Tiles of 8 columns of the output, of this job alone.
template <typename T, int D>
DEVICE void project_output(Block<T, D>& b, const Item& item, const unsigned char* stage) {
  const Parameters& p = b.p;
  const size_t job = size_t(b.layers[item.layer].buffer) * p.most_jobs + item.job;
  for (int tile = b.warp; tile < item.count; tile += warps) {
    float sums[4] = {};
    UNROLL
    for (int step = 0; step < b.steps; ++step) {
      uint32_t a[2][4];
      for (int half = 0; half < 2; ++half) b.load_rows(a[half], b.attended, b.attended_pitch, step * 32 + half * 16);
      b.multiply(sums, a, stage + (tile * b.steps + step) * 512);
    }
    for (int half = 0; half < 2; ++half) {
      const int row = b.lane / 4 + half * 8;
      if (row >= p.rows) continue;
      float* target = p.step.outputs + (job * p.rows + row) * p.hidden + (item.first + tile) * 8 + b.lane % 4 * 2;
      *reinterpret_cast<Two*>(target) = {sums[2 * half], sums[2 * half + 1]};
    }
  }
}

}  // namespace headcount::cuda::decode
