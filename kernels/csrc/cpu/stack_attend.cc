// The attention of a pass: single rows against persistent vectors and rings, longer parts in blocks of rows.
#include <algorithm>

#include "cpu/stack.h"

namespace headcount::cpu {
namespace {

constexpr std::int64_t unit_vectors = 512;  // persistent vectors of a unit
constexpr std::int64_t unit_rows = 64;      // single rows of a unit

std::int64_t pieces(std::int64_t whole, std::int64_t piece) { return (whole + piece - 1) / piece; }

}  // namespace

// Two rounds, whatever the mix: first what needs no ring or only reads it, then what needs the first round's results.
void Stack::attend(const Layer& layer, Rings& rings, const float* qkv, float* out) {
  const std::int64_t heads = layer.attention.heads, depth = layer.attention.head_dim;
  const std::int64_t singles = static_cast<std::int64_t>(singles_.size()) * heads;
  const std::int64_t longs = static_cast<std::int64_t>(longs_.size()) * heads;
  const Shared shared = share(layer, qkv);
  const std::int64_t persistent = singles > 0 ? shared.blocks * shared.splits * heads : 0;
  place_keys(layer);

  float* scratch = compute_.for_threads(std::max(
      {attend_persistent_scratch(unit_rows, depth), attend_ring_scratch(depth, layer.attention.visibility.reach),
       attend_rows_scratch(depth, layer.attention.visibility.reach, layer.attention.persistent)}));
  const std::int64_t stride = compute_.thread_stride;
  compute_.pool.run(persistent + longs, [&](std::int64_t unit, int thread) {
    if (unit < persistent)
      attend_shared(layer, shared, unit, scratch + thread * stride);
    else
      gather(layer, rings, qkv, unit - persistent);
  });
  compute_.pool.run(singles + longs * blocks_, [&](std::int64_t unit, int thread) {
    if (unit < singles)
      attend_single(layer, rings, shared, qkv, unit, out, scratch + thread * stride);
    else
      attend_block(layer, qkv, unit - singles, out, scratch + thread * stride);
  });
}

// What the single rows share: their queries one after the other, and room for a partial softmax per row and split.
Stack::Shared Stack::share(const Layer& layer, const float* qkv) {
  const std::int64_t width = layer.width(), count = static_cast<std::int64_t>(singles_.size());
  Shared shared{qkv, 3 * width, pieces(count, unit_rows), pieces(layer.attention.persistent, unit_vectors), nullptr};
  shared.partials = partials_.need(layer.attention.heads * count * shared.splits * (2 + layer.attention.head_dim));
  if (longs_.empty()) return shared;  // row s of qkv is single s
  float* queries = queries_.need(count * width);
  for (std::int64_t s = 0; s < count; ++s) std::copy_n(qkv + singles_[s].row * 3 * width, width, queries + s * width);
  shared.queries = queries;
  shared.stride = width;
  return shared;
}

// Where the gathered keys and values of each longer part go.
void Stack::place_keys(const Layer& layer) {
  const std::int64_t heads = layer.attention.heads, depth = layer.attention.head_dim;
  std::int64_t keys = 0, values = 0;
  for (Part& part : longs_) {
    const std::int64_t count = layer.attention.visibility.reach + part.length;
    part.keys = keys;
    part.values = values;
    part.key_floats = panels(count) * panel_width * depth;
    part.value_floats = whole_lines(count * depth);
    keys += heads * part.key_floats;
    values += heads * part.value_floats;
  }
  keys_.need(keys);
  values_.need(values);
}

void Stack::attend_shared(const Layer& layer, const Shared& shared, std::int64_t unit, float* scratch) {
  const std::int64_t depth = layer.attention.head_dim, count = static_cast<std::int64_t>(singles_.size());
  const std::int64_t block = unit % shared.blocks, split = unit / shared.blocks % shared.splits;
  const std::int64_t head = unit / shared.blocks / shared.splits, first = block * unit_rows;
  AttendPersistent call{};
  call.query = shared.queries + first * shared.stride + head * depth;
  call.ldq = shared.stride;
  call.batch = std::min(unit_rows, count - first);
  call.head_dim = depth;
  call.head = &layer.heads[head];
  call.begin = split * unit_vectors;
  call.end = std::min(layer.attention.persistent, call.begin + unit_vectors);
  call.partial_stride = shared.splits * (2 + depth);
  call.partial = shared.partials + (head * count + first) * call.partial_stride + split * (2 + depth);
  call.scratch = scratch;
  compute_.kernels.attend_persistent(call);
}

// The W keys before a part and its own, in order; then its last W take their places in the ring.
void Stack::gather(const Layer& layer, Rings& rings, const float* qkv, std::int64_t unit) {
  const std::int64_t heads = layer.attention.heads, depth = layer.attention.head_dim, width = layer.width();
  const std::int64_t head = unit % heads;
  const Part& part = longs_[unit / heads];
  const float* key = qkv + part.row * 3 * width + width + head * depth;
  const float* value = key + width;
  rings.gather(part.slot, head, part.start, key, value, part.length, 3 * width,
               keys_.data() + part.keys + head * part.key_floats,
               values_.data() + part.values + head * part.value_floats);
  for (std::int64_t row = std::max<std::int64_t>(0, part.length - layer.attention.visibility.reach); row < part.length;
       ++row)
    rings.write(part.slot, head, part.start + row, key + row * 3 * width, value + row * 3 * width);
}

// A row that does not see itself attends before its own key takes the place of the oldest.
void Stack::attend_single(const Layer& layer, Rings& rings, const Shared& shared, const float* qkv, std::int64_t unit,
                          float* out, float* scratch) {
  const std::int64_t heads = layer.attention.heads, depth = layer.attention.head_dim, width = layer.width();
  const std::int64_t head = unit % heads, single = unit / heads, count = static_cast<std::int64_t>(singles_.size());
  const Part& part = singles_[single];
  const float* query = qkv + part.row * 3 * width + head * depth;
  const auto write = [&] { rings.write(part.slot, head, part.start, query + width, query + 2 * width); };
  AttendRing call{};
  call.query = query;
  call.head_dim = depth;
  call.head = &layer.heads[head];
  call.visibility = &layer.attention.visibility;
  call.keys = rings.keys(part.slot, head);
  call.values = rings.values(part.slot, head);
  call.position = part.start;
  call.partials = shared.partials + (head * count + single) * shared.splits * (2 + depth);
  call.splits = shared.splits;
  call.partial_stride = 2 + depth;
  call.out = out + part.row * width + head * depth;
  call.scratch = scratch;
  if (layer.attention.visibility.first_distance == 0) write();
  compute_.kernels.attend_ring(call);
  if (layer.attention.visibility.first_distance == 1) write();
}

void Stack::attend_block(const Layer& layer, const float* qkv, std::int64_t unit, float* out, float* scratch) {
  const std::int64_t heads = layer.attention.heads, depth = layer.attention.head_dim, width = layer.width();
  const Part& part = longs_[unit / blocks_ / heads];
  const std::int64_t head = unit / blocks_ % heads, row = unit % blocks_ * query_rows;
  if (row >= part.length) return;
  AttendRows call{};
  call.query = qkv + (part.row + row) * 3 * width + head * depth;
  call.ldq = 3 * width;
  call.rows = std::min(query_rows, part.length - row);
  call.head_dim = depth;
  call.head = &layer.heads[head];
  call.visibility = &layer.attention.visibility;
  call.keys = keys_.data() + part.keys + head * part.key_floats;
  call.values = values_.data() + part.values + head * part.value_floats;
  call.row = row;
  call.position = part.start + row;
  call.out = out + (part.row + row) * width + head * depth;
  call.ldo = width;
  call.scratch = scratch;
  call.count = part.length;
  compute_.kernels.attend_rows(call);
}

}  // namespace headcount::cpu
