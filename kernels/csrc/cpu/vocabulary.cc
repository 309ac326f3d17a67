#include "cpu/vocabulary.h"

#include <algorithm>
#include <cstring>
#include <string>

namespace headcount::cpu {
namespace {

constexpr std::int64_t kRowsOfChunk = 16;  // embedding rows of a chunk

std::string name_of(const char* side, std::int64_t cluster) { return std::string(side) + std::to_string(cluster); }

// Round to nearest even; the weights are finite.
std::uint16_t to_bfloat16(float x) {
  std::uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return static_cast<std::uint16_t>((bits + 0x7FFFu + (bits >> 16 & 1u)) >> 16);
}

float from_bfloat16(std::uint16_t half) {
  const std::uint32_t bits = static_cast<std::uint32_t>(half) << 16;
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

// Row `row` of a packed matrix.
void read_panel_row(const Packed& w, std::int64_t row, float* out) {
  const char* panel = static_cast<const char*>(w.data) + row / kPanel * panel_bytes(w.k, w.kind);
  const std::int64_t lane = row % kPanel;
  if (w.kind == Kind::kFloat32) {
    const auto* values = reinterpret_cast<const float*>(panel) + lane;
    for (std::int64_t i = 0; i < w.k; ++i) out[i] = values[i * kPanel];
  } else {
    const auto* values = reinterpret_cast<const std::uint16_t*>(panel) + 2 * lane;
    for (std::int64_t i = 0; i < w.k; ++i) out[i] = from_bfloat16(values[i / 2 * 2 * kPanel + i % 2]);
  }
}

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
  check_clusters(shape.outputs, "outputs");
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
    input_projections_.emplace_back();
    if (cluster.projected)
      input_projections_.back() = pack_rows(arrays.get(name + ".projection", {shape.hidden, cluster.width}),
                                            shape.hidden, cluster.width, matrices);
    else
      check(cluster.width == shape.hidden, "inputs", "a projection where the width is not hidden", name);
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

PackedBuffer Vocabulary::pack_rows(const float* w, std::int64_t n, std::int64_t k, Kind kind) {
  return pack(w, n, k, k, 1, kind, compute_.pool);
}

std::int64_t Vocabulary::size() const { return shape_.outputs.back().start + shape_.outputs.back().size; }

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
    output.projection = pack(stored, cluster.width, shape_.hidden, 1, cluster.width, matrices, compute_.pool);
  } else {
    check(cluster.width == shape_.hidden, "outputs", "a projection where the width is not hidden", name);
  }
  outputs_.push_back(std::move(output));
}

// The rows of an input cluster, cut where output clusters begin: those of a tied one are read from its panels.
void Vocabulary::add_pieces(std::int64_t input, const float* rows, Kind kind) {
  const Cluster& in = shape_.inputs[input];
  for (std::size_t c = 0; c < shape_.outputs.size(); ++c) {
    const Cluster& out = shape_.outputs[c];
    const std::int64_t start = std::max(in.start, out.start), stop = std::min(in.start + in.size, out.start + out.size);
    if (start >= stop) continue;
    Piece piece{start, stop - start, input, out.tied ? static_cast<std::int64_t>(c) : -1, {}, {}};
    const float* own = rows + (start - in.start) * in.width;
    const std::int64_t count = piece.size * in.width;
    if (out.tied) {
      check(out.width == in.width, "outputs", "the width of the embedding it is tied to", std::to_string(out.width));
    } else if (kind == Kind::kFloat32) {
      piece.rows.assign(own, own + count);
    } else {
      piece.halves.resize(count);
      std::transform(own, own + count, piece.halves.begin(), to_bfloat16);
    }
    pieces_.push_back(std::move(piece));
  }
}

void Vocabulary::read_row(std::int64_t id, float* out) const {
  const auto after = std::upper_bound(pieces_.begin(), pieces_.end(), id,
                                      [](std::int64_t x, const Piece& piece) { return x < piece.start; });
  const Piece& piece = *(after - 1);
  const std::int64_t width = shape_.inputs[piece.input].width, at = (id - piece.start) * width;
  if (piece.output >= 0)
    read_panel_row(outputs_[piece.output].rows.view(), id - shape_.outputs[piece.output].start, out);
  else if (!piece.rows.empty())
    std::copy_n(piece.rows.data() + at, width, out);
  else
    std::transform(piece.halves.data() + at, piece.halves.data() + at + width, out, from_bfloat16);
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
    compute_.pool.run((count + kRowsOfChunk - 1) / kRowsOfChunk, [&](std::int64_t chunk, int) {
      for (std::int64_t m = chunk * kRowsOfChunk; m < std::min(count, (chunk + 1) * kRowsOfChunk); ++m)
        read_row(ids[members_[m]], gathered + m * cluster.width);
    });
    const float* result = gathered;
    if (cluster.projected) {
      float* y = projected_.need(count * shape_.hidden);
      const Packed w = input_projections_[i].view();
      compute_.linear({gathered, cluster.width, count, &w, nullptr, nullptr, y, shape_.hidden, Activation::kNone});
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
