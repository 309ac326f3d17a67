// One layer's constants, packed once: what is multiplied with in panels, what is added in float32.
#pragma once

#include <cstdint>
#include <vector>

#include "cpu/arrays.h"
#include "cpu/kernels.h"
#include "cpu/panel_store.h"

namespace headcount::cpu {

// The integers of engine/backends/plan.py LayerPlan; heads 0 = no attention, feed_forward 0 = none.
struct LayerShape {
  std::int64_t heads;
  std::int64_t head_dim;
  std::int64_t persistent;
  std::int64_t feed_forward;
  Activation activation;  // of the feed-forward
  Visibility see;
  bool norm_first;
  float norm_eps;
};

struct Norm {
  std::vector<float> gain, bias;
};

struct Layer {
  // Arrays by the names of engine/backends/runner.py Folded; `spans` [heads] where see.ramp > 0. Nothing of them is
  // kept.
  Layer(const LayerShape& shape, std::int64_t hidden, Kind kind, const Arrays& arrays, Pool& pool);

  std::int64_t width() const { return shape.heads * shape.head_dim; }

  LayerShape shape;
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
