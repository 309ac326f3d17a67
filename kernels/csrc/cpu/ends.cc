#include "cpu/ends.h"

#include <algorithm>
#include <string>

namespace headcount::cpu {
namespace {

constexpr std::int64_t chunk_rows = 16;

void check_rows(const char* name, const std::int64_t* rows, std::int64_t count, std::int64_t table) {
  check((rows != nullptr) == (table > 0), name,
        table > 0 ? "a row for every token" : "none: the model has no such table", rows != nullptr ? "rows" : "none");
  for (std::int64_t i = 0; rows != nullptr && i < count; ++i)
    check(rows[i] >= 0 && rows[i] < table, name, "rows from 0 to " + std::to_string(table - 1),
          std::to_string(rows[i]));
}

}  // namespace

Ends::Ends(const EndsShape& shape, Kind kind, const Arrays& arrays, Compute& compute)
    : shape_(shape), compute_(compute) {
  const std::int64_t hidden = shape.hidden;
  if (shape.positions > 0)
    positions_ = copied(arrays.get("embedding.positions", {shape.positions, hidden}), shape.positions * hidden);
  if (shape.token_types > 0)
    token_types_ = copied(arrays.get("embedding.token_types", {shape.token_types, hidden}), shape.token_types * hidden);
  if (shape.embedding_norm_eps) {
    norm_ = copied(arrays.get("embedding.norm", {hidden}), hidden);
    norm_bias_ = copied(arrays.get("embedding.norm_bias", {hidden}), hidden);
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

Ends::Dense Ends::dense(const Arrays& arrays, const char* name, std::int64_t n, Kind kind) {
  const std::int64_t k = shape_.hidden;
  const float* w = arrays.get(name, {n, k});
  return {memory_.add(pack(w, n, k, k, 1, kind, compute_.pool)),
          copied(arrays.get(std::string(name) + "_bias", {n}), n)};
}

void Ends::apply(const Dense& dense, Activation activation, const float* x, std::int64_t rows, float* y) {
  compute_.linear({x, dense.w.k, rows, &dense.w, dense.bias.data(), nullptr, y, dense.w.n, activation});
}

void Ends::add(float* hidden, std::int64_t rows, const std::int64_t* positions, const std::int64_t* token_types) {
  check_rows("positions", positions, rows, shape_.positions);
  check_rows("token_types", token_types, rows, shape_.token_types);
  const std::int64_t width = shape_.hidden;
  compute_.pool.run((rows + chunk_rows - 1) / chunk_rows, [&](std::int64_t chunk, int) {
    for (std::int64_t row = chunk * chunk_rows; row < std::min(rows, (chunk + 1) * chunk_rows); ++row) {
      float* own = hidden + row * width;
      const float* place = positions == nullptr ? nullptr : &positions_[positions[row] * width];
      const float* type = token_types == nullptr ? nullptr : &token_types_[token_types[row] * width];
      for (std::int64_t i = 0; place != nullptr && i < width; ++i) own[i] += place[i];
      for (std::int64_t i = 0; type != nullptr && i < width; ++i) own[i] += type[i];
    }
  });
  if (shape_.embedding_norm_eps)
    compute_.layer_norm(hidden, norm_.data(), norm_bias_.data(), rows, width, *shape_.embedding_norm_eps, hidden);
}

void Ends::transform(float* hidden, std::int64_t rows) {
  check(shape_.transform.has_value(), "model", "one with a dense layer before its vocabulary", "one without");
  float* inner = inner_.need(rows * shape_.hidden);
  apply(transform_, *shape_.transform, hidden, rows, inner);
  compute_.layer_norm(inner, transform_norm_.data(), transform_norm_bias_.data(), rows, shape_.hidden,
                      shape_.transform_eps, hidden);
}

void Ends::labels(const float* hidden, std::int64_t rows, float* out) {
  check(shape_.labels > 0, "model", "one with a head of labels", "one without");
  if (shape_.pooler) {
    float* inner = inner_.need(rows * shape_.hidden);
    apply(pooler_, *shape_.pooler, hidden, rows, inner);
    hidden = inner;
  }
  apply(labels_, Activation::none, hidden, rows, out);
}

}  // namespace headcount::cpu
