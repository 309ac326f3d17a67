// What reads the last hidden states: the final norm, then a softmax over the vocabulary, plain or adaptive, behind a
// dense layer where there is one, or a head of labels.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "cpu/arrays.h"
#include "cpu/clusters.h"
#include "cpu/compute.h"
#include "cpu/enum_names.h"
#include "cpu/panel_store.h"

namespace headcount::cpu {

// By the names of engine_kernels/shapes.py HeadShape. No clusters, 0 and nothing: not there.
struct HeadShape {
  std::vector<ClusterShape> clusters;
  bool clusters_read_hidden;
  std::optional<float> final_norm_eps;
  std::optional<Activation> transform;  // of a dense layer with a norm, before the clusters
  float transform_eps;
  std::int64_t labels;
  std::optional<Activation> pooler;  // of a dense layer before the labels

  template <typename Visit>
  void each_field(const Visit& visit) {
    visit("clusters", clusters);
    visit("clusters_read_hidden", clusters_read_hidden);
    visit("final_norm_eps", final_norm_eps);
    visit("transform", transform);
    visit("transform_eps", transform_eps);
    visit("labels", labels);
    visit("pooler", pooler);
  }
};

class Head {
 public:
  // Arrays by the names of engine/backends/runner.py Folded. Nothing of them is kept. kind: float32 or bfloat16, of the
  // dense layers and of rows tied to the embedding; matrices: of all others.
  Head(const HeadShape& shape, std::int64_t hidden, Kind kind, Kind matrices, const Arrays& arrays, Compute& compute);

  const HeadShape& shape() const { return shape_; }
  std::int64_t words() const;  // of the first cluster; throws CheckError where there is none
  std::int64_t head_width() const { return words() + tails(); }
  std::int64_t tail_width(std::int64_t cluster) const;

  // A cluster's [size, width] and [width, hidden]: what an embedding that is tied to it reads.
  const Packed& rows(std::int64_t cluster) const { return clusters_[cluster].rows; }
  const Packed& projection(std::int64_t cluster) const { return clusters_[cluster].projection; }
  const Panels& memory() const { return memory_; }

  // The final norm in place, where there is one.
  void final_norm(float* hidden, std::int64_t rows);
  // The dense layer and norm before the clusters, in place.
  void transform(float* hidden, std::int64_t rows);
  // [rows, labels], through the pooler where there is one.
  void labels(const float* hidden, std::int64_t rows, float* out);
  // [rows, words of the first cluster], before any softmax.
  void logits(const float* hidden, std::int64_t rows, float* out);
  // [rows, head_width()]: log-softmax over the first cluster's words and the tails' entries.
  void head_log_probs(const float* hidden, std::int64_t rows, float* out);
  // [rows, size]: log-softmax inside tail `cluster` ≥ 1, without its entry's mass.
  void tail_log_probs(const float* hidden, std::int64_t rows, std::int64_t cluster, float* out);
  // out [rows]: -log p(targets[row]), NaN where the target is -1; no [rows, vocabulary] is formed.
  void target_nll(const float* hidden, std::int64_t rows, const std::int64_t* targets, float* out);

 private:
  struct Dense {
    Packed w{};
    std::vector<float> bias;
  };
  struct Cluster {
    Packed rows{}, projection{};
    std::vector<float> bias;
  };

  std::int64_t tails() const { return static_cast<std::int64_t>(shape_.clusters.size()) - 1; }
  std::int64_t size() const { return shape_.clusters.back().start + shape_.clusters.back().size; }  // ids
  Packed pack_rows(const float* w, std::int64_t n, std::int64_t k, Kind kind);
  void add_cluster(std::int64_t cluster, Kind kind, Kind matrices, const Arrays& arrays);
  Dense dense(const Arrays& arrays, const char* name, std::int64_t n, Kind kind);
  void apply(const Dense& dense, Activation activation, const float* x, std::int64_t rows, float* y);
  const float* projected(const float* hidden, std::int64_t rows, std::int64_t cluster);
  void log_mass(const Packed& w, const float* bias, const float* x, std::int64_t rows, const std::int64_t* wanted,
                float* mass, float* logits);
  const float* choose(const float* hidden, std::int64_t rows, const std::int64_t* targets, std::int64_t cluster);
  std::int64_t entry_column(std::int64_t target) const;
  void add_nll(const float* x, const std::int64_t* targets, std::int64_t cluster, float* out);

  const HeadShape shape_;
  const std::int64_t hidden_;
  Compute& compute_;
  std::vector<Cluster> clusters_;
  Packed entries_{};
  Dense transform_, pooler_, labels_;
  Panels memory_;  // what all of these stand in
  std::vector<float> entries_bias_, final_norm_, final_norm_bias_, transform_norm_, transform_norm_bias_;

  Scratch inner_, projected_, results_, partials_, chosen_;
  std::vector<std::int64_t> members_, wanted_;
};

}  // namespace headcount::cpu
