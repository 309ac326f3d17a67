#include "cpu/vocabulary.h"

#include <algorithm>
#include <string>

namespace headcount::cpu {
namespace {

constexpr std::int64_t chunk_rows = 16;  // embedding rows of a chunk

std::string name_of(const char* side, std::int64_t cluster) { return std::string(side) + std::to_string(cluster); }

void check_clusters(const std::vector<Cluster>& clusters, const char* side) {
  check(!clusters.empty(), side, "at least one cluster", "none");
  std::int64_t start = 0;
  for (const Cluster& cluster : clusters) {
    check(cluster.start == start && cluster.size >= 1 && cluster.width >= 1, side, "clusters that follow one another",
          std::to_string(cluster.size) + " ids from " + std::to_string(cluster.start));
    start += cluster.size;
  }
}

}  // namespace

Vocabulary::Vocabulary(const VocabularyShape& shape, Kind kind, Kind matrices, const Arrays& arrays, Compute& compute)
    : shape_(shape), compute_(compute) {
  check_clusters(shape.inputs, "inputs");
  if (!shape.outputs.empty()) check_clusters(shape.outputs, "outputs");
  const std::int64_t size = this->size(), embedded = shape.inputs.back().start + shape.inputs.back().size;
  check(embedded == size, "inputs", std::to_string(size) + " ids", std::to_string(embedded));
  for (std::int64_t c = 0; c <= tails(); ++c) {
    const std::int64_t entry = shape.outputs[c].entry - shape.outputs[0].size;
    check(c == 0 || (entry >= 0 && entry < tails()), "outputs", "an entry behind the first cluster's words",
          std::to_string(shape.outputs[c].entry));
    add_output(c, kind, matrices, arrays);
  }
  for (std::size_t i = 0; i < shape.inputs.size(); ++i) {
    const Cluster& cluster = shape.inputs[i];
    const std::string name = name_of("embedding.", static_cast<std::int64_t>(i));
    add_pieces(static_cast<std::int64_t>(i), arrays.get(name, {cluster.size, cluster.width}), kind);
    add_projection(static_cast<std::int64_t>(i), matrices, arrays);
  }
  if (tails() > 0) {
    const std::int64_t width = shape.clusters_read_hidden ? shape.hidden : shape.outputs[0].width;
    entries_ = pack_rows(arrays.get("head.clusters", {tails(), width}), tails(), width, matrices);
    entries_bias_ = copied(arrays.find("head.clusters_bias", {tails()}), tails());
  }
  if (shape.final_norm) {
    final_norm_ = copied(arrays.get("final_norm", {shape.hidden}), shape.hidden);
    final_norm_bias_ = copied(arrays.get("final_norm_bias", {shape.hidden}), shape.hidden);
  }
  arrays.check_all_used();
}

Packed Vocabulary::pack_rows(const float* w, std::int64_t n, std::int64_t k, Kind kind) {
  return memory_.add(pack(w, n, k, k, 1, kind, compute_.pool));
}

std::int64_t Vocabulary::size() const {
  const Cluster& last = shape_.outputs.empty() ? shape_.inputs.back() : shape_.outputs.back();
  return last.start + last.size;
}

std::int64_t Vocabulary::words() const {
  check(!shape_.outputs.empty(), "model", "one with an output vocabulary", "one without");
  return shape_.outputs[0].size;
}

std::int64_t Vocabulary::tail_width(std::int64_t cluster) const {
  check(cluster >= 1 && cluster <= tails(), "cluster", "a tail from 1 to " + std::to_string(tails()),
        std::to_string(cluster));
  return shape_.outputs[cluster].size;
}

void Vocabulary::add_output(std::int64_t c, Kind kind, Kind matrices, const Arrays& arrays) {
  const Cluster& cluster = shape_.outputs[c];
  const std::string name = name_of("head.", c);
  Output output;
  output.rows = pack_rows(arrays.get(name, {cluster.size, cluster.width}), cluster.size, cluster.width,
                          cluster.tied ? kind : matrices);
  output.bias = copied(arrays.find(name + ".bias", {cluster.size}), cluster.size);
  if (cluster.projected) {
    const float* stored = arrays.get(name + ".projection", {shape_.hidden, cluster.width});
    // [hidden, width], read as its transpose.
    output.projection =
        memory_.add(pack(stored, cluster.width, shape_.hidden, 1, cluster.width, matrices, compute_.pool));
  } else {
    check(cluster.width == shape_.hidden, "outputs", "a projection where the width is not hidden", name);
  }
  outputs_.push_back(std::move(output));
}

// The rows of an input cluster, cut where output clusters begin: those of a tied one are read from its panels.
void Vocabulary::add_pieces(std::int64_t input, const float* rows, Kind kind) {
  const Cluster& in = shape_.inputs[input];
  if (shape_.outputs.empty()) pieces_.push_back({in.start, input, in.start, pack_rows(rows, in.size, in.width, kind)});
  for (std::size_t c = 0; c < shape_.outputs.size(); ++c) {
    const Cluster& out = shape_.outputs[c];
    const std::int64_t start = std::max(in.start, out.start), stop = std::min(in.start + in.size, out.start + out.size);
    if (start >= stop) continue;
    if (out.tied) {
      check(out.width == in.width, "outputs", "the width of the embedding it is tied to", std::to_string(out.width));
      pieces_.push_back({start, input, out.start, outputs_[c].rows});
    } else {
      const float* own = rows + (start - in.start) * in.width;
      pieces_.push_back({start, input, start, pack_rows(own, stop - start, in.width, kind)});
    }
  }
}

// A projection that both sides share is packed as the output side multiplies with it.
void Vocabulary::add_projection(std::int64_t i, Kind kind, const Arrays& arrays) {
  const Cluster& in = shape_.inputs[i];
  const std::string name = name_of("embedding.", i) + ".projection", other = name_of("head.", i) + ".projection";
  inputs_.emplace_back();
  if (!in.projected) {
    check(in.width == shape_.hidden, "inputs", "a projection where the width is not hidden", name);
    return;
  }
  const float* stored = arrays.get(name, {shape_.hidden, in.width});
  const bool shared = i <= tails() && shape_.outputs[i].projected &&
                      arrays.get(other, {shape_.hidden, shape_.outputs[i].width}) == stored;
  if (shared && kind != Kind::int8)  // int8 has its scales by row
    inputs_.back().tied = i;
  else
    inputs_.back().projection = pack_rows(stored, shape_.hidden, in.width, kind);
}

void Vocabulary::read_row(std::int64_t id, float* out) const {
  const auto after = std::upper_bound(pieces_.begin(), pieces_.end(), id,
                                      [](std::int64_t x, const Piece& piece) { return x < piece.start; });
  const Piece& piece = *(after - 1);
  unpack_row(piece.rows, id - piece.first, out);
}

// x [rows, width] → y [rows, hidden]. A tied projection is turned round panel by panel: the same bits as packed so.
void Vocabulary::project(const Input& input, const float* x, std::int64_t rows, float* y) {
  if (input.tied < 0) {
    compute_.linear(
        {x, input.projection.k, rows, &input.projection, nullptr, nullptr, y, shape_.hidden, Activation::none});
    return;
  }
  const Packed& w = outputs_[input.tied].projection;
  float* scratch = compute_.for_threads(panel_bytes(w.n, w.kind) / static_cast<std::int64_t>(sizeof(float)));
  const std::int64_t stride = compute_.thread_stride;
  const Packed turned{nullptr, nullptr, w.k, w.n, w.kind};
  const Linear whole = compute_.narrowed({x, w.n, rows, &turned, nullptr, nullptr, y, shape_.hidden, Activation::none});
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

void Vocabulary::embed(const std::int64_t* ids, std::int64_t rows, float* hidden) {
  for (std::int64_t row = 0; row < rows; ++row)
    check(ids[row] >= 0 && ids[row] < size(), "ids", "ids from 0 to " + std::to_string(size() - 1),
          std::to_string(ids[row]));
  for (std::size_t i = 0; i < shape_.inputs.size(); ++i) {
    const Cluster& cluster = shape_.inputs[i];
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
      float* y = projected_.need(count * shape_.hidden);
      project(inputs_[i], gathered, count, y);
      result = y;
    }
    for (std::int64_t m = 0; m < count; ++m)
      for (std::int64_t j = 0; j < shape_.hidden; ++j)
        hidden[members_[m] * shape_.hidden + j] = result[m * shape_.hidden + j] * shape_.embedding_scale;
  }
}

void Vocabulary::finish(float* hidden, std::int64_t rows) {
  if (!shape_.final_norm) return;
  compute_.layer_norm(hidden, final_norm_.data(), final_norm_bias_.data(), rows, shape_.hidden, shape_.final_norm_eps,
                      hidden);
}

}  // namespace headcount::cpu
