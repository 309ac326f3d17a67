// One layer's constants, packed once: what is multiplied with in panels, what is added in float32.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "cpu/arrays.h"
#include "cpu/enum_names.h"
#include "cpu/kernels.h"
#include "cpu/panel_store.h"

namespace headcount::cpu {

// What a layer is, by the names of engine_kernels/shapes.py: the binding fills a shape through its each_field.
struct AttentionShape {
  std::int64_t heads, head_dim, persistent;
  Visibility visibility;
  Relative relative;  // rows by distance: a table of each head's own, or one for all
  std::optional<std::vector<float>> spans;
  float span_ramp;  // where there are spans

  template <typename Visit>
  void each_field(const Visit& visit) {
    visit("heads", heads);
    visit("head_dim", head_dim);
    visit("persistent", persistent);
    visit("visibility", visibility);
    visit("relative", relative);
    visit("spans", spans);
    visit("span_ramp", span_ramp);
  }
};

struct LayerShape {
  std::optional<AttentionShape> attention;  // with at least one head
  std::int64_t feed_forward;                // its width, 0 = none
  Activation activation;                    // of the feed-forward
  bool norm_first;
  float norm_eps;

  template <typename Visit>
  void each_field(const Visit& visit) {
    visit("attention", attention);
    visit("feed_forward", feed_forward);
    visit("activation", activation);
    visit("norm_first", norm_first);
    visit("norm_eps", norm_eps);
  }
};

struct Norm {
  std::vector<float> gain, bias;
};

struct Layer {
  // Arrays by the names of engine/backends/runner.py Folded. Nothing of them is kept.
  Layer(const LayerShape& shape, std::int64_t hidden, Kind kind, const Arrays& arrays, Pool& pool);

  std::int64_t width() const { return attention.heads * attention.head_dim; }

  LayerShape shape;
  AttentionShape attention;  // the shape's, or one of 0 heads
  Norm attention_norm, feed_forward_norm;
  // [D, hidden] of each head: the queries' of all heads, the keys', the values', so that one pass over x gives all
  // three; where a head does not fill whole panels, one matrix [3 · H · D, hidden].
  std::vector<Packed> qkv;
  Packed output{}, up{}, down{};
  std::vector<float> qkv_bias, output_bias, up_bias, down_bias;
  std::vector<float> zero_key, zero_value;
  std::vector<HeadTables> heads;
  Panels memory;  // what all of these stand in

 private:
  void pack_attention(std::int64_t hidden, Kind kind, const Arrays& arrays, Pool& pool);
  void pack_heads(Kind kind, const Arrays& arrays, Pool& pool);

  std::vector<float> content_bias_, position_bias_;
};

}  // namespace headcount::cpu
