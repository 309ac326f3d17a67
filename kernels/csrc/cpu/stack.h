// The layers of a model and their caches: packed rows of several sequences through all layers in one call.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "cpu/compute.h"
#include "cpu/layer.h"
#include "cpu/rings.h"

namespace headcount::cpu {

constexpr std::int64_t part_rows = 256;  // rows of one sequence that go through the layers together

// Sequence s continues slots[s] at position starts[s] with lengths[s] rows; the rows of a batch follow one another.
// Where attention is bidirectional a sequence comes whole, from position 0.
struct Sequences {
  const std::int64_t* slots;
  const std::int64_t* starts;
  const std::int64_t* lengths;
  std::int64_t count;
};

class Stack {
 public:
  Stack(std::int64_t hidden, Kind kind, Compute& compute) : hidden_(hidden), kind_(kind), compute_(compute) {}

  void add_layer(const LayerShape& shape, const Arrays& arrays);

  // Room for at least `slots` slots; restart puts one to the start of a stream.
  void grow(std::int64_t slots);
  void restart(std::int64_t slot);

  // hidden [rows, hidden] in place; taps null or [layers, rows, hidden]: the residual stream after each layer. Throws
  // CheckError before anything is changed.
  void step(float* hidden, std::int64_t rows, const Sequences& sequences, float* taps);

  // The matrices of every layer, added to `parts`.
  void list_panels(std::vector<const Panels*>& parts) const {
    for (const Layer& layer : layers_) parts.push_back(&layer.memory);
  }

  std::int64_t layers() const { return static_cast<std::int64_t>(layers_.size()); }

 private:
  struct Part {  // rows of one sequence in one pass
    std::int64_t slot, start, length;
    std::int64_t row, origin;  // its first row in the pass and in the batch
    // Longer than one row: where its keys and values are gathered, and how much room a head's take.
    std::int64_t keys, values, key_floats, value_floats;
  };
  struct Shared {  // of the single rows of a pass: partial softmaxes [H][rows][splits][2 + D]
    const float* queries;
    std::int64_t stride, blocks, splits;
    float* partials;
  };

  bool bidirectional() const { return bidirectional_.value_or(false); }
  void check_sequences(std::int64_t rows, const Sequences& sequences);
  std::int64_t plan_pass(const Sequences& sequences);
  void run_layers(float* hidden, std::int64_t rows, float* taps, std::int64_t tap_rows);
  void run_layer(const Layer& layer, Rings& rings, float* hidden, std::int64_t rows);

  void attend(const Layer& layer, Rings& rings, const float* qkv, float* out);
  Shared share(const Layer& layer, const float* qkv);
  void place_keys(const Layer& layer);
  void attend_shared(const Layer& layer, const Shared& shared, std::int64_t unit, float* scratch);
  void gather(const Layer& layer, Rings& rings, const float* qkv, std::int64_t unit);
  void attend_single(const Layer& layer, Rings& rings, const Shared& shared, const float* qkv, std::int64_t unit,
                     float* out, float* scratch);
  void attend_block(const Layer& layer, const float* qkv, std::int64_t unit, float* out, float* scratch);

  const std::int64_t hidden_;
  const Kind kind_;
  Compute& compute_;
  std::vector<Layer> layers_;
  std::vector<Rings> rings_;           // of a layer without heads: empty
  std::optional<bool> bidirectional_;  // of the layers with heads
  std::int64_t slots_ = 0;
  std::int64_t widest_reach_ = 0;
  std::int64_t blocks_ = 0;  // units of a part and head in the pass at hand

  // The pass being run: its parts, of one row or longer, and how many rows of each sequence are done.
  std::vector<Part> parts_, singles_, longs_;
  std::vector<std::int64_t> done_, seen_;
  std::int64_t epoch_ = 0;
  Scratch staged_, normed_, qkv_, mixed_, inner_, queries_, partials_, keys_, values_;
};

}  // namespace headcount::cpu
