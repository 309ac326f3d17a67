// Token ids → rows of the residual stream: the tokens' rows in clusters, projected and scaled, the rows of positions
// and token types added to them, a norm. Rows and projections that the head shares are read from its panels.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "cpu/arrays.h"
#include "cpu/clusters.h"
#include "cpu/compute.h"
#include "cpu/head.h"
#include "cpu/panel_store.h"

namespace headcount::cpu {

// By the names of engine_kernels/shapes.py EmbeddingShape. 0 and nothing: not there.
struct EmbeddingShape {
  std::vector<ClusterShape> clusters;
  float scale;                          // of the tokens' rows, projected
  std::int64_t positions, token_types;  // rows of the tables
  std::optional<float> norm_eps;

  template <typename Visit>
  void each_field(const Visit& visit) {
    visit("clusters", clusters);
    visit("scale", scale);
    visit("positions", positions);
    visit("token_types", token_types);
    visit("norm_eps", norm_eps);
  }
};

class Embedding {
 public:
  // Arrays by the names of engine/backends/runner.py Folded. Nothing of them is kept; the head must stay alive. kind:
  // float32 or bfloat16, of the tokens' rows; matrices: of the projections.
  Embedding(const EmbeddingShape& shape, std::int64_t hidden, Kind kind, Kind matrices, const Arrays& arrays,
            const Head& head, Compute& compute);

  // ids [rows], and the rows of the other two tables, null where the model has no such table → hidden [rows, hidden].
  // Throws CheckError for an id outside the vocabulary and a row that is none of its table, before anything is written.
  void embed(const std::int64_t* ids, std::int64_t rows, const std::int64_t* positions, const std::int64_t* token_types,
             float* hidden);

  const Panels& memory() const { return memory_; }

 private:
  struct Piece {  // consecutive ids whose rows stand in one matrix
    std::int64_t start;
    std::int64_t first;  // the id of its row 0
    Packed rows;         // a cluster's of the head, where tied, or its own [size, width]
  };
  struct Projection {
    Packed own{};            // [hidden, width]
    std::int64_t tied = -1;  // the cluster of the head whose [width, hidden] it is, read as its transpose
  };

  std::int64_t size() const { return shape_.clusters.back().start + shape_.clusters.back().size; }  // ids
  Packed pack_rows(const float* w, std::int64_t n, std::int64_t k, Kind kind);
  void add_pieces(std::int64_t cluster, const float* rows, Kind kind);
  void add_projection(std::int64_t cluster, Kind kind, const Arrays& arrays);
  void read_row(std::int64_t id, float* out) const;
  void project(const Projection& projection, const float* x, std::int64_t rows, float* y);
  void read_tokens(const std::int64_t* ids, std::int64_t rows, float* hidden);
  void add_tables(std::int64_t rows, const std::int64_t* positions, const std::int64_t* token_types, float* hidden);

  const EmbeddingShape shape_;
  const std::int64_t hidden_;
  const Head& head_;
  Compute& compute_;
  std::vector<Piece> pieces_;  // by start
  std::vector<Projection> projections_;
  Panels memory_;  // what stands here and not in the head
  std::vector<float> positions_, token_types_, norm_, norm_bias_;

  Scratch gathered_, projected_;
  std::vector<std::int64_t> members_;
};

}  // namespace headcount::cpu
