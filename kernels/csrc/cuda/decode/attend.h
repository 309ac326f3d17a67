// Attention of a decode step: an item's persistent vectors, which all rows share, on matrix units, and its part of each
// row's own context by dot products; one running softmax over both.
#pragma once

#include "cuda/decode/block.h"

namespace headcount::cuda::decode {

// Where an item's things stand in its stage and in the scores.
template <typename T, int D>
struct Keys {
  const Item& item;
  const Layer& layer;
  const unsigned char *blocks, *distances, *context, *context_values;
  const float *content_bias, *position_bias;
  int constants;   // columns of the scores before the context's
  uint32_t pitch;  // of a sequence's keys, in bytes

  DEVICE Keys(const Block<T, D>& b, const Item& i, const unsigned char* stage) : item(i), layer(b.layers[i.layer]) {
    blocks = stage;
    distances = blocks + item.count * block_keys * D * 4;
    const int tiles = layer.relative ? (item.near + tile_keys - 1) / tile_keys : 0;
    content_bias = reinterpret_cast<const float*>(distances + tiles * tile_keys * D * 2);
    position_bias = content_bias + D;
    context = stage + b.context_begins(item);
    pitch = b.row_pitch(item);
    context_values = context + b.p.rows * pitch;
    constants = item.count * block_keys;
  }

  // Of the context's j-th key, oldest first: the row itself is not in the ring that was read.
  DEVICE int nearness(int j) const { return item.nearest + item.near - 1 - j; }
  DEVICE int column(int j) const { return constants + item.near - 1 - j; }
  DEVICE const T* key(int row, int j, const T* fresh, const unsigned char* from) const {
    if (layer.first_distance == 0 && nearness(j) == 0) return fresh + row * D;
    return reinterpret_cast<const T*>(from + row * pitch) + j * D;
  }
  DEVICE bool visible(int j, int64_t position) const {
    const int near = nearness(j);
    const int limit = layer.segment ? layer.window + static_cast<int>(position % layer.segment) : layer.window;
    return near < limit && (layer.attended_zeros || near + layer.first_distance <= position);
  }
};

// q · persistent key, in units of log2, and (q + position bias) · distance.
template <typename T, int D>
DEVICE void score_constants(Block<T, D>& b, const Keys<T, D>& keys) {
  const int vectors = keys.item.count * (block_keys / 8);
  const int tiles = keys.layer.relative ? (keys.item.near + tile_keys - 1) / tile_keys : 0;
  uint32_t a[Block<T, D>::steps][2][4];
  const auto load = [&](const float* bias) {
    UNROLL
    for (int part = 0; part < 2 * b.steps; ++part)
      b.round_rows(a[part / 2][part % 2], b.query, b.query_pitch, part * 16, bias);
  };
  const auto score = [&](const unsigned char* tile, int column, float scale) {
    float sums[4] = {};
    UNROLL
    for (int step = 0; step < b.steps; ++step) b.multiply(sums, a[step], tile + step * 512);
    for (int half = 0; half < 2; ++half) {
      float* target = b.scores + (b.lane / 4 + half * 8) * b.p.shared.pitch + column + b.lane % 4 * 2;
      *reinterpret_cast<Two*>(target) = {sums[2 * half] * scale, sums[2 * half + 1] * scale};
    }
  };
  load(nullptr);
  for (int tile = b.warp; tile < vectors; tile += warps)
    score(keys.blocks + tile / 4 * (block_keys * D * 4) + tile % 4 * (D * 16), tile * 8, log2_e);
  if (tiles == 0) return;
  load(keys.position_bias);
  for (int tile = b.warp; tile < tiles; tile += warps)
    score(keys.distances + tile * (D * 16), keys.constants + tile * 8, 1.0f);
}

// (q + content bias) · key for each row's own keys, D / 8 lanes to a key.
template <typename T, int D>
DEVICE void score_context(Block<T, D>& b, const Keys<T, D>& keys) {
  constexpr int lanes = D / 8, at_once = 32 / lanes;
  const int groups = (keys.item.near + at_once - 1) / at_once, part = b.lane % lanes * 8;
  const float scale = log2_e / sqrtf(float(D));
  for (int i = b.warp; i < b.p.rows * groups; i += warps) {
    const int row = i / groups, j = i % groups * at_once + b.lane / lanes;
    const bool there = j < keys.item.near;
    float sum = 0;
    if (there) {
      const T* at = keys.key(row, j, b.fresh_keys, keys.context) + part;
      const Eight<T> key = *reinterpret_cast<const Eight<T>*>(at);
      const float* query = b.query + row * b.query_pitch + part;
      UNROLL
      for (int k = 0; k < 8; ++k) sum += (query[k] + keys.content_bias[part + k]) * device::to_float(key.x[k]);
    }
    for (int mask = 1; mask < lanes; mask *= 2) sum += device::shuffle_xor(sum, mask);
    if (!there || part) continue;
    float& score = b.scores[row * b.p.shared.pitch + keys.column(j)];
    const float by_distance = keys.layer.relative ? score : 0.0f;
    score = keys.visible(j, b.positions[row]) ? (sum + by_distance) * scale : -INFINITY;
  }
}

// Scores become weights, a warp to a row; padding becomes 0. With spans a weight is also multiplied by the ramp of its
// distance, and 1e-8 of what it was before goes into the total (ops.py).
template <typename T, int D>
DEVICE void weigh(Block<T, D>& b, const Keys<T, D>& keys) {
  const int columns = keys.constants + keys.item.near;
  const int left = keys.layer.persistent - keys.item.first * block_keys;
  const int vectors = left < keys.constants ? left : keys.constants;
  const bool spans = keys.layer.span_ramp > 0;
  const float span = spans ? keys.layer.spans[keys.item.head] : 0.0f;
  float *peak = b.row_states, *total = peak + most_rows, *fade = total + most_rows;
  const auto padded = [&](int column) { return column >= vectors && column < keys.constants; };
  for (int row = b.warp; row < b.p.rows; row += warps) {
    float* scores = b.scores + row * b.p.shared.pitch;
    const float old = peak[row];
    float top = old;
    for (int c = b.lane; c < columns; c += 32) top = padded(c) ? top : fmaxf(top, scores[c]);
    for (int mask = 16; mask; mask /= 2) top = fmaxf(top, device::shuffle_xor(top, mask));
    const float zero = top == -INFINITY ? 0.0f : top;  // nothing seen yet: all weights are 0
    float sum = 0;
    for (int c = b.lane; c < columns; c += 32) {
      float weight = padded(c) ? 0.0f : device::exp2_fast(scores[c] - zero);
      float counted = weight;
      if (spans && c >= keys.constants) {
        const float distance = static_cast<float>(keys.item.nearest + c - keys.constants + keys.layer.first_distance);
        const float ramp = fminf(fmaxf((1.0f - distance + span) / keys.layer.span_ramp + 1.0f, 0.0f), 1.0f);
        counted = weight * (ramp + 1e-8f);
        weight *= ramp;
      }
      sum += counted;
      scores[c] = weight;
    }
    sum = b.warp_sum(sum);
    device::warp_barrier();
    if (b.lane == 0) {
      fade[row] = device::exp2_fast(old - zero);
      total[row] = total[row] * fade[row] + sum;
      peak[row] = top;
    }
  }
}

// out += weights · values: a warp has its columns of all rows.
template <typename T, int D>
DEVICE void add_values(Block<T, D>& b, const Keys<T, D>& keys) {
  const float* fade = b.row_states + 2 * most_rows;
  const int pitch = b.p.shared.pitch, rows[2] = {b.lane / 4, b.lane / 4 + 8};
  UNROLL
  for (int half = 0; half < 2; ++half) {
    const float f = rows[half] < b.p.rows ? fade[rows[half]] : 0.0f;
    UNROLL
    for (int i = 0; i < b.outs; ++i) {
      b.out[i][2 * half] *= f;
      b.out[i][2 * half + 1] *= f;
    }
  }
  for (int block = 0; block < keys.item.count; ++block) {
    uint32_t a[2][4];
    for (int half = 0; half < 2; ++half)
      b.round_rows(a[half], b.scores, pitch, block * block_keys + half * 16, nullptr);
    const unsigned char* values = keys.blocks + block * (block_keys * D * 4) + block_keys * D * 2;
    UNROLL
    for (int i = 0; i < b.outs; ++i) {
      const int tile = b.warp + i * warps;
      if (tile < D / 8) b.multiply(b.out[i], a, values + tile * 512);
    }
  }
  UNROLL
  for (int i = 0; i < b.outs; ++i) {
    const int tile = b.warp + i * warps;
    if (tile >= D / 8) break;
    UNROLL
    for (int half = 0; half < 2; ++half) {
      const int row = rows[half];
      if (row >= b.p.rows) continue;
      for (int j = 0; j < keys.item.near; ++j) {
        const float weight = b.scores[row * pitch + keys.column(j)];
        if (weight == 0) continue;  // whatever stands where no row sees it
        const T* value = keys.key(row, j, b.fresh_values, keys.context_values) + tile * 8 + b.lane % 4 * 2;
        b.out[i][2 * half] += weight * device::to_float(value[0]);
        b.out[i][2 * half + 1] += weight * device::to_float(value[1]);
      }
    }
  }
}

template <typename T, int D>
DEVICE void attend(Block<T, D>& b, const Item& item, const unsigned char* stage) {
  const Keys<T, D> keys(b, item, stage);
  score_constants(b, keys);
  device::barrier();
  score_context(b, keys);
  device::barrier();
  weigh(b, keys);
  device::barrier();
  add_values(b, keys);
}

}  // namespace headcount::cuda::decode
