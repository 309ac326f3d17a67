#include "cpu/stack.h"

#include <algorithm>
#include <string>

namespace headcount::cpu {
namespace {

constexpr std::int64_t pass_rows = 1024;  // rows of a pass
constexpr std::int64_t pass_keys = 8192;  // keys gathered for a pass, over its sequences
constexpr std::int64_t last_position = 1LL << 62;

}  // namespace

void Stack::add_layer(const LayerShape& shape, const Arrays& arrays) {
  check(slots_ == 0, "model", "its layers before any slot", std::to_string(slots_) + " slots");
  if (shape.attention)
    check(
        shape.attention->visibility.bidirectional == bidirectional_.value_or(shape.attention->visibility.bidirectional),
        "layers", "all of them bidirectional, or none", "some of them");
  layers_.emplace_back(shape, hidden_, kind_, arrays, compute_.pool);
  const Layer& layer = layers_.back();
  const AttentionShape& attention = layer.attention;
  const std::int64_t reach = attention.visibility.reach;
  if (shape.attention) bidirectional_ = attention.visibility.bidirectional;
  rings_.emplace_back(attention.heads, attention.head_dim, reach, data_or_null(layer.zero_key),
                      data_or_null(layer.zero_value));
  widest_reach_ = std::max(widest_reach_, reach);
}

void Stack::grow(std::int64_t slots) {
  for (Rings& rings : rings_) rings.grow(slots);
  slots_ = std::max(slots_, slots);
  seen_.resize(slots_);
}

void Stack::restart(std::int64_t slot) {
  check(slot >= 0 && slot < slots_, "slot", "one that was opened", std::to_string(slot));
  for (Rings& rings : rings_) rings.restart(slot);
}

void Stack::check_sequences(std::int64_t rows, const Sequences& sequences) {
  std::int64_t total = 0;
  ++epoch_;
  for (std::int64_t s = 0; s < sequences.count; ++s) {
    const std::int64_t slot = sequences.slots[s], start = sequences.starts[s], length = sequences.lengths[s];
    check(slot >= 0 && slot < slots_, "slots", "slots that were opened", std::to_string(slot));
    check(seen_[slot] != epoch_, "slots", "each slot once", std::to_string(slot) + " twice");
    seen_[slot] = epoch_;
    check(start >= 0 && start <= (bidirectional() ? 0 : last_position), "starts",
          bidirectional() ? "position 0, as attention is bidirectional" : "positions from 0", std::to_string(start));
    check(length >= 1 && length <= rows, "lengths", "at least 1, at most all rows", std::to_string(length));
    total += length;
  }
  check(total == rows, "lengths", "a sum of " + std::to_string(rows) + " rows", std::to_string(total));
}

void Stack::step(float* hidden, std::int64_t rows, const Sequences& sequences, float* taps) {
  check_sequences(rows, sequences);
  done_.assign(sequences.count, 0);
  for (std::int64_t left = rows; left > 0;) {
    const std::int64_t count = plan_pass(sequences);
    left -= count;
    if (count == rows) {
      run_layers(hidden, rows, taps, rows);
      return;
    }
    float* staged = staged_.need(count * hidden_);
    for (const Part& part : parts_)
      std::copy_n(hidden + part.origin * hidden_, part.length * hidden_, staged + part.row * hidden_);
    run_layers(staged, count, taps, rows);
    for (const Part& part : parts_)
      std::copy_n(staged + part.row * hidden_, part.length * hidden_, hidden + part.origin * hidden_);
  }
}

// The next rows of the first sequences that have any left. The rings carry over, so a sequence may be cut anywhere.
std::int64_t Stack::plan_pass(const Sequences& sequences) {
  parts_.clear();
  singles_.clear();
  longs_.clear();
  std::int64_t rows = 0, keys = 0, origin = 0, longest = 0;
  const bool whole = bidirectional();  // sequences are not cut
  for (std::int64_t s = 0; s < sequences.count; origin += sequences.lengths[s], ++s) {
    const std::int64_t left = sequences.lengths[s] - done_[s];
    if (left == 0) continue;
    const std::int64_t length = whole ? left : std::min(left, part_rows);
    const bool single = length == 1 && !whole;
    const std::int64_t gathered = single ? 0 : widest_reach_ + length;
    if (rows > 0 && (rows + length > pass_rows || keys + gathered > pass_keys)) break;
    const Part part{sequences.slots[s], sequences.starts[s] + done_[s], length, rows, origin + done_[s], 0, 0, 0, 0};
    parts_.push_back(part);
    (single ? singles_ : longs_).push_back(part);
    longest = std::max(longest, length);
    done_[s] += length;
    rows += length;
    keys += gathered;
  }
  blocks_ = (longest + query_rows - 1) / query_rows;
  return rows;
}

void Stack::run_layers(float* hidden, std::int64_t rows, float* taps, std::int64_t tap_rows) {
  for (std::size_t index = 0; index < layers_.size(); ++index) {
    run_layer(layers_[index], rings_[index], hidden, rows);
    if (taps == nullptr) continue;
    float* tap = taps + static_cast<std::int64_t>(index) * tap_rows * hidden_;
    for (const Part& part : parts_)
      std::copy_n(hidden + part.row * hidden_, part.length * hidden_, tap + part.origin * hidden_);
  }
}

// hidden += attention(hidden), then hidden += feed_forward(hidden); the norm in front of each or behind the sum.
void Stack::run_layer(const Layer& layer, Rings& rings, float* hidden, std::int64_t rows) {
  const LayerShape& shape = layer.shape;
  float* normed = shape.norm_first ? normed_.need(rows * hidden_) : hidden;
  const auto apply = [&](const Norm& norm, float* y) {
    compute_.layer_norm(hidden, norm.gain.data(), norm.bias.data(), rows, hidden_, shape.norm_eps, y);
  };
  const auto multiply = [&](const Packed& w, const std::vector<float>& bias, const float* x, float* y,
                            Activation activation, bool add) {
    compute_.linear({x, w.k, rows, &w, data_or_null(bias), add ? y : nullptr, y, w.n, activation});
  };

  if (shape.attention) {
    float* qkv = qkv_.need(rows * 3 * layer.width());
    float* mixed = mixed_.need(rows * layer.width());
    if (shape.norm_first) apply(layer.attention_norm, normed);
    compute_.linear({normed, hidden_, rows, nullptr, data_or_null(layer.qkv_bias), nullptr, qkv, 3 * layer.width(),
                     Activation::none},
                    layer.qkv);
    attend(layer, rings, qkv, mixed);
    multiply(layer.output, layer.output_bias, mixed, hidden, Activation::none, true);
  } else if (!layer.output_bias.empty()) {
    for (std::int64_t i = 0; i < rows * hidden_; ++i) hidden[i] += layer.output_bias[i % hidden_];
  }
  if (!shape.norm_first) apply(layer.attention_norm, hidden);
  if (shape.feed_forward == 0) return;

  float* inner = inner_.need(rows * shape.feed_forward);
  if (shape.norm_first) apply(layer.feed_forward_norm, normed);
  multiply(layer.up, layer.up_bias, normed, inner, shape.activation, false);
  multiply(layer.down, layer.down_bias, inner, hidden, Activation::none, true);
  if (!shape.norm_first) apply(layer.feed_forward_norm, hidden);
}

}  // namespace headcount::cpu
