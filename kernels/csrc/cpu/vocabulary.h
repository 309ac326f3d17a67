// Embedding and softmax over the vocabulary, plain or adaptive; rows that both sides share are stored once, in panels.
#pragma once

#include <cstdint>
#include <vector>

#include "cpu/arrays.h"
#include "cpu/compute.h"
#include "cpu/panel_store.h"

namespace headcount::cpu {

// Token ids start .. start + size - 1; rows of `width`. entry: the cluster's place in the first cluster's softmax.
struct Cluster {
  std::int64_t start, size, width, entry;
  bool projected;
  bool tied;  // output side: the rows are the embedding's own
};

struct VocabularyShape {
  std::int64_t hidden;
  std::vector<Cluster> inputs, outputs;
  bool clusters_read_hidden;
  bool final_norm;
  float final_norm_eps;
  float embedding_scale;
};

class Vocabulary {
 public:
  // Arrays by the names of engine/backends/runner.py Folded. Nothing of them is kept. kind: float32 or bfloat16, of the
  // embedding and of the output rows tied to it; matrices: of all others.
  Vocabulary(const VocabularyShape& shape, Kind kind, Kind matrices, const Arrays& arrays, Compute& compute);

  std::int64_t size() const;   // ids; without output clusters, as of an encoder, only embed and finish can be called
  std::int64_t words() const;  // of the first output cluster
  std::int64_t head_width() const { return words() + tails(); }
  std::int64_t tail_width(std::int64_t cluster) const;

  const Panels& memory() const { return memory_; }

  // ids [rows] → hidden [rows, hidden]. Throws CheckError for an id outside the vocabulary.
  void embed(const std::int64_t* ids, std::int64_t rows, float* hidden);
  // The final norm in place, where there is one.
  void finish(float* hidden, std::int64_t rows);
  // [rows, head_width()]: log-softmax over the first cluster's words and the tails' entries.
  void head_log_probs(const float* hidden, std::int64_t rows, float* out);
  // [rows, words of the first cluster], before any softmax.
  void logits(const float* hidden, std::int64_t rows, float* out);
  // [rows, size]: log-softmax inside tail `cluster` ≥ 1, without its entry's mass.
  void tail_log_probs(const float* hidden, std::int64_t rows, std::int64_t cluster, float* out);
  // out [rows]: -log p(targets[row]), NaN where the target is -1; no [rows, vocabulary] is formed.
  void target_nll(const float* hidden, std::int64_t rows, const std::int64_t* targets, float* out);

 private:
  struct Piece {  // consecutive ids whose embedding rows stand in one matrix
    std::int64_t start, input;
    std::int64_t first;  // the id of its row 0
    Packed rows;         // an output cluster's, where tied, or its own [size, width]
  };
  struct Input {
    Packed projection{};     // [hidden, width]
    std::int64_t tied = -1;  // the output cluster whose [width, hidden] it is, read as its transpose
  };
  struct Output {
    Packed rows{}, projection{};  // [size, width], [width, hidden]
    std::vector<float> bias;
  };

  std::int64_t tails() const { return static_cast<std::int64_t>(shape_.outputs.size()) - 1; }
  Packed pack_rows(const float* w, std::int64_t n, std::int64_t k, Kind kind);
  void add_pieces(std::int64_t input, const float* rows, Kind kind);
  void add_projection(std::int64_t input, Kind kind, const Arrays& arrays);
  void add_output(std::int64_t cluster, Kind kind, Kind matrices, const Arrays& arrays);
  void read_row(std::int64_t id, float* out) const;
  void project(const Input& input, const float* x, std::int64_t rows, float* y);
  const float* projected(const float* hidden, std::int64_t rows, std::int64_t cluster);
  void log_mass(const Packed& w, const float* bias, const float* x, std::int64_t rows, const std::int64_t* wanted,
                float* mass, float* logits);
  const float* choose(const float* hidden, std::int64_t rows, const std::int64_t* targets, std::int64_t cluster);
  std::int64_t entry_column(std::int64_t target) const;
  void add_nll(const float* x, const std::int64_t* targets, std::int64_t cluster, float* out);

  VocabularyShape shape_;
  Compute& compute_;
  std::vector<Piece> pieces_;  // by start
  std::vector<Input> inputs_;
  std::vector<Output> outputs_;
  Packed entries_{};
  Panels memory_;  // what all of these stand in
  std::vector<float> entries_bias_, final_norm_, final_norm_bias_;

  Scratch gathered_, projected_, results_, partials_, chosen_;
  std::vector<std::int64_t> members_, wanted_;
};

}  // namespace headcount::cpu
