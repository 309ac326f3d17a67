#include "cpu/layer.h"

#include <string>
#include <utility>

namespace headcount::cpu {
namespace {

Norm norm(const Arrays& arrays, const std::string& name, std::int64_t hidden) {
  return {copied(arrays.get(name, {hidden}), hidden), copied(arrays.get(name + "_bias", {hidden}), hidden)};
}

void check_shape(const LayerShape& shape) {
  const auto at_least = [](const char* name, std::int64_t value, std::int64_t least) {
    check(value >= least, name, "at least " + std::to_string(least), std::to_string(value));
  };
  at_least("feed_forward", shape.feed_forward, 0);
  if (!shape.attention) return;
  const AttentionShape& attention = *shape.attention;
  const Visibility& visibility = attention.visibility;
  at_least("heads", attention.heads, 1);
  at_least("head_dim", attention.head_dim, 1);
  at_least("persistent", attention.persistent, 0);
  at_least("window", visibility.window, 0);
  at_least("segment", visibility.segment, 0);
  at_least("reach", visibility.reach, visibility.bidirectional ? 0 : 1);
  check(!visibility.bidirectional || visibility.reach == 0, "reach", "0 where attention is bidirectional",
        std::to_string(visibility.reach));
  check(visibility.first_distance == 0 || visibility.first_distance == 1, "first_distance", "0 or 1",
        std::to_string(visibility.first_distance));
  if (!attention.spans) return;
  check(static_cast<std::int64_t>(attention.spans->size()) == attention.heads, "spans",
        "one for each of " + std::to_string(attention.heads) + " heads", std::to_string(attention.spans->size()));
  check(attention.span_ramp > 0, "span_ramp", "above 0 where there are spans", std::to_string(attention.span_ramp));
}

}  // namespace

Layer::Layer(const LayerShape& shape, std::int64_t hidden, Kind kind, const Arrays& arrays, Pool& pool)
    : shape(shape), attention(shape.attention.value_or(AttentionShape{})) {
  check_shape(shape);
  attention_norm = norm(arrays, "attention_norm", hidden);
  output_bias = copied(arrays.find("attention.output_bias", {hidden}), hidden);
  if (shape.attention) pack_attention(hidden, kind, arrays, pool);
  if (shape.feed_forward > 0) {
    const std::int64_t width = shape.feed_forward;
    feed_forward_norm = norm(arrays, "feed_forward_norm", hidden);
    up = memory.add(pack(arrays.get("feed_forward.up", {width, hidden}), width, hidden, hidden, 1, kind, pool));
    up_bias = copied(arrays.find("feed_forward.up_bias", {width}), width);
    down = memory.add(pack(arrays.get("feed_forward.down", {hidden, width}), hidden, width, width, 1, kind, pool));
    down_bias = copied(arrays.find("feed_forward.down_bias", {hidden}), hidden);
  }
  arrays.check_all_used();
}

void Layer::pack_attention(std::int64_t hidden, Kind kind, const Arrays& arrays, Pool& pool) {
  const bool whole_panels = attention.head_dim % panel_width == 0;
  std::vector<float> joined;
  for (const char* part : {"query", "key", "value"}) {
    const std::string name = std::string("attention.") + part;
    const float* rows = arrays.get(name, {width(), hidden});
    if (whole_panels)
      for (std::int64_t head = 0; head < attention.heads; ++head)
        qkv.push_back(memory.add(
            pack(rows + head * attention.head_dim * hidden, attention.head_dim, hidden, hidden, 1, kind, pool)));
    else
      joined.insert(joined.end(), rows, rows + width() * hidden);
    if (!arrays.has(name + "_bias")) continue;
    const float* bias = arrays.get(name + "_bias", {width()});
    qkv_bias.insert(qkv_bias.end(), bias, bias + width());
  }
  if (!whole_panels) qkv.push_back(memory.add(pack(joined.data(), 3 * width(), hidden, hidden, 1, kind, pool)));
  check(qkv_bias.empty() || static_cast<std::int64_t>(qkv_bias.size()) == 3 * width(), "attention.query_bias",
        "query, key and value biases, or none", "some of them");
  output = memory.add(pack(arrays.get("attention.output", {hidden, width()}), hidden, width(), width(), 1, kind, pool));
  if (attention.visibility.attended_zeros) {
    zero_key = copied(arrays.get("attention.zero_key", {attention.heads, attention.head_dim}), width());
    zero_value = copied(arrays.get("attention.zero_value", {attention.heads, attention.head_dim}), width());
  }
  pack_heads(kind, arrays, pool);
}

void Layer::pack_heads(Kind kind, const Arrays& arrays, Pool& pool) {
  const std::int64_t depth = attention.head_dim, count = attention.persistent, reach = attention.visibility.reach;
  const float *keys = nullptr, *values = nullptr;
  if (count > 0) {
    keys = arrays.get("attention.persistent_keys", {attention.heads, count, depth});
    values = arrays.get("attention.persistent_values", {attention.heads, count, depth});
  }
  content_bias_ = copied(arrays.find("attention.content_bias", {attention.heads, depth}), width());
  position_bias_ = copied(arrays.find("attention.position_bias", {attention.heads, depth}), width());
  const auto distances = [&](const float* nearest_first) {
    return memory.add(pack(nearest_first + (reach - 1) * depth, reach, depth, -depth, 1, kind, pool));
  };
  const Packed none{nullptr, nullptr, 0, depth, kind};
  const float* own_distances = nullptr;
  Packed shared = none;
  if (attention.relative == Relative::shared) shared = distances(arrays.get("attention.distances", {1, reach, depth}));
  if (attention.relative == Relative::per_head)
    own_distances = arrays.get("attention.distances", {attention.heads, reach, depth});

  for (std::int64_t head = 0; head < attention.heads; ++head) {
    HeadTables tables{none, Packed{nullptr, nullptr, depth, 0, kind}, shared, nullptr, nullptr, 0.0f, 0.0f};
    if (count > 0) {
      const std::int64_t at = head * count * depth;
      tables.persistent_keys = memory.add(pack(keys + at, count, depth, depth, 1, kind, pool));
      tables.persistent_values = memory.add(pack(values + at, depth, count, 1, depth, kind, pool));
    }
    if (own_distances != nullptr) tables.distances = distances(own_distances + head * reach * depth);
    if (!content_bias_.empty()) tables.content_bias = content_bias_.data() + head * depth;
    if (!position_bias_.empty()) tables.position_bias = position_bias_.data() + head * depth;
    if (attention.spans) {
      tables.span = (*attention.spans)[head];
      tables.span_ramp = attention.span_ramp;
    }
    heads.push_back(tables);
  }
}

}  // namespace headcount::cpu
