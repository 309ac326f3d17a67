// What models other than plain language models have before and behind the layers: rows added to a token's own with a
// norm, a dense layer before the vocabulary, a head of labels.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "cpu/arrays.h"
#include "cpu/compute.h"
#include "cpu/panel_store.h"

namespace headcount::cpu {

// Sizes 0 and nothing: not there.
struct EndsShape {
  std::int64_t hidden;
  std::int64_t positions, token_types;  // rows of the tables
  std::optional<float> embedding_norm_eps;
  std::optional<Activation> transform;
  float transform_eps;
  std::int64_t labels;
  std::optional<Activation> pooler;
};

class Ends {
 public:
  // Arrays by the names of engine/backends/runner.py Folded. Nothing of them is kept.
  Ends(const EndsShape& shape, Kind kind, const Arrays& arrays, Compute& compute);

  // hidden [rows, hidden] += the rows of the two tables, then the norm; null where the model has no such table. Throws
  // CheckError for a row that is none of the table's, before anything is changed.
  void add(float* hidden, std::int64_t rows, const std::int64_t* positions, const std::int64_t* token_types);
  // The dense layer and norm before the vocabulary, in place.
  void transform(float* hidden, std::int64_t rows);
  // [rows, labels], through the pooler where there is one.
  void labels(const float* hidden, std::int64_t rows, float* out);

  const EndsShape& shape() const { return shape_; }
  const Panels& memory() const { return memory_; }

 private:
  struct Dense {
    Packed w{};
    std::vector<float> bias;
  };

  Dense dense(const Arrays& arrays, const char* name, std::int64_t n, Kind kind);
  void apply(const Dense& dense, Activation activation, const float* x, std::int64_t rows, float* y);

  EndsShape shape_;
  Compute& compute_;
  std::vector<float> positions_, token_types_, norm_, norm_bias_, transform_norm_, transform_norm_bias_;
  Dense transform_, pooler_, labels_;
  Scratch inner_;
  Panels memory_;
};

}  // namespace headcount::cpu
