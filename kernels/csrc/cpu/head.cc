#include "cpu/head.h"

#include <string>

namespace headcount::cpu {

Head::Head(const HeadShape& shape, std::int64_t hidden, Kind kind, Kind matrices, const Arrays& arrays,
           Compute& compute)
    : shape_(shape), hidden_(hidden), compute_(compute) {
  check_clusters(shape.clusters, "head");
  for (std::int64_t c = 0; c <= tails(); ++c) {
    const std::int64_t entry = shape.clusters[c].entry - shape.clusters[0].size;
    check(c == 0 || (entry >= 0 && entry < tails()), "head", "an entry behind the first cluster's words",
          std::to_string(shape.clusters[c].entry));
    add_cluster(c, kind, matrices, arrays);
  }
  if (tails() > 0) {
    const std::int64_t width = shape.clusters_read_hidden ? hidden : shape.clusters[0].width;
    entries_ = pack_rows(arrays.get("head.clusters", {tails(), width}), tails(), width, matrices);
    entries_bias_ = copied(arrays.find("head.clusters_bias", {tails()}), tails());
  }
  if (shape.final_norm_eps) {
    final_norm_ = copied(arrays.get("final_norm", {hidden}), hidden);
    final_norm_bias_ = copied(arrays.get("final_norm_bias", {hidden}), hidden);
  }
  if (shape.transform) {
    transform_ = dense(arrays, "head.transform", hidden, kind);
    transform_norm_ = copied(arrays.get("head.transform_norm", {hidden}), hidden);
    transform_norm_bias_ = copied(arrays.get("head.transform_norm_bias", {hidden}), hidden);
  }
  if (shape.pooler) pooler_ = dense(arrays, "head.pooler", hidden, kind);
  if (shape.labels > 0) labels_ = dense(arrays, "head.labels", shape.labels, kind);
  arrays.check_all_used();
}

Packed Head::pack_rows(const float* w, std::int64_t n, std::int64_t k, Kind kind) {
  return memory_.add(pack(w, n, k, k, 1, kind, compute_.pool));
}

void Head::add_cluster(std::int64_t c, Kind kind, Kind matrices, const Arrays& arrays) {
  const ClusterShape& shape = shape_.clusters[c];
  const std::string name = numbered("head.", c);
  Cluster cluster;
  cluster.rows =
      pack_rows(arrays.get(name, {shape.size, shape.width}), shape.size, shape.width, shape.tied ? kind : matrices);
  cluster.bias = copied(arrays.find(name + ".bias", {shape.size}), shape.size);
  if (shape.projected) {
    const float* stored = arrays.get(name + ".projection", {hidden_, shape.width});
    // [hidden, width], read as its transpose.
    cluster.projection = memory_.add(pack(stored, shape.width, hidden_, 1, shape.width, matrices, compute_.pool));
  } else {
    check(shape.width == hidden_, "head", "a projection where the width is not hidden", name);
  }
  clusters_.push_back(std::move(cluster));
}

Head::Dense Head::dense(const Arrays& arrays, const char* name, std::int64_t n, Kind kind) {
  return {pack_rows(arrays.get(name, {n, hidden_}), n, hidden_, kind),
          copied(arrays.get(std::string(name) + "_bias", {n}), n)};
}

void Head::apply(const Dense& dense, Activation activation, const float* x, std::int64_t rows, float* y) {
  compute_.linear({x, dense.w.k, rows, &dense.w, dense.bias.data(), nullptr, y, dense.w.n, activation});
}

std::int64_t Head::words() const {
  check(!shape_.clusters.empty(), "model", "one with an output vocabulary", "one without");
  return shape_.clusters[0].size;
}

std::int64_t Head::tail_width(std::int64_t cluster) const {
  check(cluster >= 1 && cluster <= tails(), "cluster", "a tail from 1 to " + std::to_string(tails()),
        std::to_string(cluster));
  return shape_.clusters[cluster].size;
}

void Head::final_norm(float* hidden, std::int64_t rows) {
  if (!shape_.final_norm_eps) return;
  compute_.layer_norm(hidden, final_norm_.data(), final_norm_bias_.data(), rows, hidden_, *shape_.final_norm_eps,
                      hidden);
}

void Head::transform(float* hidden, std::int64_t rows) {
  check(shape_.transform.has_value(), "model", "one with a dense layer before its vocabulary", "one without");
  float* inner = inner_.need(rows * hidden_);
  apply(transform_, *shape_.transform, hidden, rows, inner);
  compute_.layer_norm(inner, transform_norm_.data(), transform_norm_bias_.data(), rows, hidden_, shape_.transform_eps,
                      hidden);
}

void Head::labels(const float* hidden, std::int64_t rows, float* out) {
  check(shape_.labels > 0, "model", "one with a head of labels", "one without");
  if (shape_.pooler) {
    float* inner = inner_.need(rows * hidden_);
    apply(pooler_, *shape_.pooler, hidden, rows, inner);
    hidden = inner;
  }
  apply(labels_, Activation::none, hidden, rows, out);
}

}  // namespace headcount::cpu
