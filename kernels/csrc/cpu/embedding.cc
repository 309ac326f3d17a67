#include "cpu/embedding.h"

#include <algorithm>
#include <string>

namespace headcount::cpu {
namespace {

constexpr std::int64_t chunk_rows = 16;  // rows of a chunk

void check_rows(const char* name, const std::int64_t* rows, std::int64_t count, std::int64_t table) {
  check((rows != nullptr) == (table > 0), name,
        table > 0 ? "a row for every token" : "none: the model has no such table", rows != nullptr ? "rows" : "none");
  for (std::int64_t i = 0; rows != nullptr && i < count; ++i)
    check(rows[i] >= 0 && rows[i] < table, name, "rows from 0 to " + std::to_string(table - 1),
          std::to_string(rows[i]));
}

}  // namespace

Embedding::Embedding(const EmbeddingShape& shape, std::int64_t hidden, Kind kind, Kind matrices, const Arrays& arrays,
                     const Head& head, Compute& compute)
    : shape_(shape), hidden_(hidden), head_(head), compute_(compute) {
  check(!shape.clusters.empty(), "embedding", "at least one cluster", "none");
  check_clusters(shape.clusters, "embedding");
  if (!head.shape().clusters.empty()) {
    const ClusterShape& last = head.shape().clusters.back();
    check(size() == last.start + last.size, "embedding", std::to_string(last.start + last.size) + " ids",
          std::to_string(size()));
  }
  for (std::size_t i = 0; i < shape.clusters.size(); ++i) {
    const ClusterShape& cluster = shape.clusters[i];
    const auto c = static_cast<std::int64_t>(i);
    add_pieces(c, arrays.get(numbered("embedding.", c), {cluster.size, cluster.width}), kind);
    add_projection(c, matrices, arrays);
  }
  if (shape.positions > 0)
    positions_ = copied(arrays.get("embedding.positions", {shape.positions, hidden}), shape.positions * hidden);
  if (shape.token_types > 0)
    token_types_ = copied(arrays.get("embedding.token_types", {shape.token_types, hidden}), shape.token_types * hidden);
  if (shape.norm_eps) {
    norm_ = copied(arrays.get("embedding.norm", {hidden}), hidden);
    norm_bias_ = copied(arrays.get("embedding.norm_bias", {hidden}), hidden);
  }
  arrays.check_all_used();
}

Packed Embedding::pack_rows(const float* w, std::int64_t n, std::int64_t k, Kind kind) {
  return memory_.add(pack(w, n, k, k, 1, kind, compute_.pool));
}

// The rows of a cluster, cut where the head's clusters begin: those of a tied one are read from its panels.
void Embedding::add_pieces(std::int64_t c, const float* rows, Kind kind) {
  const ClusterShape& in = shape_.clusters[c];
  const std::vector<ClusterShape>& outputs = head_.shape().clusters;
  if (outputs.empty()) pieces_.push_back({in.start, in.start, pack_rows(rows, in.size, in.width, kind)});
  for (std::size_t o = 0; o < outputs.size(); ++o) {
    const ClusterShape& out = outputs[o];
    const std::int64_t start = std::max(in.start, out.start), stop = std::min(in.start + in.size, out.start + out.size);
    if (start >= stop) continue;
    if (out.tied) {
      check(out.width == in.width, "embedding", "the width of the head's rows that are tied to it",
            std::to_string(in.width));
      pieces_.push_back({start, out.start, head_.rows(static_cast<std::int64_t>(o))});
    } else {
      const float* own = rows + (start - in.start) * in.width;
      pieces_.push_back({start, start, pack_rows(own, stop - start, in.width, kind)});
    }
  }
}

// A projection that the head shares is packed as the head multiplies with it.
void Embedding::add_projection(std::int64_t c, Kind kind, const Arrays& arrays) {
  const ClusterShape& in = shape_.clusters[c];
  const std::vector<ClusterShape>& outputs = head_.shape().clusters;
  const std::string name = numbered("embedding.", c) + ".projection";
  projections_.emplace_back();
  if (!in.projected) {
    check(in.width == hidden_, "embedding", "a projection where the width is not hidden", name);
    return;
  }
  const float* stored = arrays.get(name, {hidden_, in.width});
  const bool tied = c < static_cast<std::int64_t>(outputs.size()) && outputs[c].tied_projection;
  check(!tied || (outputs[c].projected && outputs[c].width == in.width), "embedding",
        "the width of the head's projection that is tied to it", std::to_string(in.width));
  if (tied && kind != Kind::int8)  // int8 has its scales by row
    projections_.back().tied = c;
  else
    projections_.back().own = pack_rows(stored, hidden_, in.width, kind);
}

void Embedding::read_row(std::int64_t id, float* out) const {
  const auto after = std::upper_bound(pieces_.begin(), pieces_.end(), id,
                                      [](std::int64_t x, const Piece& piece) { return x < piece.start; });
  const Piece& piece = *(after - 1);
  unpack_row(piece.rows, id - piece.first, out);
}

// x [rows, width] → y [rows, hidden]. A tied projection is transposed panel by panel: the same bits as packed so.
void Embedding::project(const Projection& projection, const float* x, std::int64_t rows, float* y) {
  if (projection.tied < 0) {
    const Packed& own = projection.own;
    compute_.linear({x, own.k, rows, &own, nullptr, nullptr, y, hidden_, Activation::none});
    return;
  }
  const Packed& w = head_.projection(projection.tied);
  float* scratch = compute_.for_threads(panel_bytes(w.n, w.kind) / static_cast<std::int64_t>(sizeof(float)));
  const std::int64_t stride = compute_.thread_stride;
  const Packed turned{nullptr, nullptr, w.k, w.n, w.kind};
  const Linear whole = compute_.narrowed({x, w.n, rows, &turned, nullptr, nullptr, y, hidden_, Activation::none});
  compute_.pool.run(panels(w.k), [&](std::int64_t panel, int thread) {
    float* own = scratch + thread * stride;
    transpose_panel(w, panel, own);
    const std::int64_t column = panel * panel_width;
    const Packed part{own, nullptr, std::min(panel_width, w.k - column), w.n, w.kind};
    Linear call = whole;
    call.w = &part;
    call.y += column;
    compute_.kernels.linear(call, 0, 1);
  });
}

void Embedding::embed(const std::int64_t* ids, std::int64_t rows, const std::int64_t* positions,
                      const std::int64_t* token_types, float* hidden) {
  for (std::int64_t row = 0; row < rows; ++row)
    check(ids[row] >= 0 && ids[row] < size(), "ids", "ids from 0 to " + std::to_string(size() - 1),
          std::to_string(ids[row]));
  check_rows("positions", positions, rows, shape_.positions);
  check_rows("token_types", token_types, rows, shape_.token_types);
  read_tokens(ids, rows, hidden);
  if (positions != nullptr || token_types != nullptr) add_tables(rows, positions, token_types, hidden);
  if (shape_.norm_eps)
    compute_.layer_norm(hidden, norm_.data(), norm_bias_.data(), rows, hidden_, *shape_.norm_eps, hidden);
}

void Embedding::read_tokens(const std::int64_t* ids, std::int64_t rows, float* hidden) {
  for (std::size_t i = 0; i < shape_.clusters.size(); ++i) {
    const ClusterShape& cluster = shape_.clusters[i];
    members_.clear();
    for (std::int64_t row = 0; row < rows; ++row)
      if (ids[row] >= cluster.start && ids[row] < cluster.start + cluster.size) members_.push_back(row);
    const auto count = static_cast<std::int64_t>(members_.size());
    if (count == 0) continue;
    float* gathered = gathered_.need(count * cluster.width);
    compute_.pool.run((count + chunk_rows - 1) / chunk_rows, [&](std::int64_t chunk, int) {
      for (std::int64_t m = chunk * chunk_rows; m < std::min(count, (chunk + 1) * chunk_rows); ++m)
        read_row(ids[members_[m]], gathered + m * cluster.width);
    });
    const float* result = gathered;
    if (cluster.projected) {
      float* y = projected_.need(count * hidden_);
      project(projections_[i], gathered, count, y);
      result = y;
    }
    for (std::int64_t m = 0; m < count; ++m)
      for (std::int64_t j = 0; j < hidden_; ++j)
        hidden[members_[m] * hidden_ + j] = result[m * hidden_ + j] * shape_.scale;
  }
}

void Embedding::add_tables(std::int64_t rows, const std::int64_t* positions, const std::int64_t* token_types,
                           float* hidden) {
  compute_.pool.run((rows + chunk_rows - 1) / chunk_rows, [&](std::int64_t chunk, int) {
    for (std::int64_t row = chunk * chunk_rows; row < std::min(rows, (chunk + 1) * chunk_rows); ++row) {
      float* own = hidden + row * hidden_;
      const float* place = positions == nullptr ? nullptr : &positions_[positions[row] * hidden_];
      const float* type = token_types == nullptr ? nullptr : &token_types_[token_types[row] * hidden_];
      for (std::int64_t i = 0; place != nullptr && i < hidden_; ++i) own[i] += place[i];
      for (std::int64_t i = 0; type != nullptr && i < hidden_; ++i) own[i] += type[i];
    }
  });
}

}  // namespace headcount::cpu
