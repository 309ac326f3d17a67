#include "cpu/rings.h"

#include <algorithm>
#include <cstring>

namespace headcount::cpu {
namespace {

// Where column `at` of panels [..][depth][16] starts.
float* column(float* panels, std::int64_t depth, std::int64_t at) {
  return panels + at / panel_width * panel_width * depth + at % panel_width;
}

// `count` columns from `from` of one set of panels to `to` of another, in runs that leave neither panel.
void copy_columns(const float* source, std::int64_t from, float* target, std::int64_t to, std::int64_t count,
                  std::int64_t depth) {
  while (count > 0) {
    const std::int64_t run = std::min({count, panel_width - from % panel_width, panel_width - to % panel_width});
    const float* in = column(const_cast<float*>(source), depth, from);
    float* out = column(target, depth, to);
    if (run == panel_width) {
      std::memcpy(out, in, static_cast<std::size_t>(panel_width * depth) * sizeof(float));
    } else {
      for (std::int64_t i = 0; i < depth; ++i)
        for (std::int64_t lane = 0; lane < run; ++lane) out[i * panel_width + lane] = in[i * panel_width + lane];
    }
    from += run;
    to += run;
    count -= run;
  }
}

}  // namespace

Rings::Rings(std::int64_t heads, std::int64_t head_dim, std::int64_t reach, const float* zero_key,
             const float* zero_value)
    : heads_(heads),
      head_dim_(head_dim),
      reach_(reach),
      key_floats_(panels(reach) * panel_width * head_dim),
      value_floats_(whole_lines(reach * head_dim)),
      zero_key_(heads * head_dim),
      zero_value_(heads * head_dim) {
  if (zero_key != nullptr) zero_key_.assign(zero_key, zero_key + heads * head_dim);
  if (zero_value != nullptr) zero_value_.assign(zero_value, zero_value + heads * head_dim);
}

void Rings::grow(std::int64_t slots) {
  while (this->slots() < slots) slots_.push_back(aligned_floats(heads_ * (key_floats_ + value_floats_)));
}

float* Rings::keys(std::int64_t slot, std::int64_t head) { return slots_[slot].get() + head * key_floats_; }

float* Rings::values(std::int64_t slot, std::int64_t head) {
  return slots_[slot].get() + heads_ * key_floats_ + head * value_floats_;
}

void Rings::restart(std::int64_t slot) {
  for (std::int64_t head = 0; head < heads_; ++head) {
    const float* key = zero_key_.data() + head * head_dim_;
    const float* value = zero_value_.data() + head * head_dim_;
    float* out = keys(slot, head);
    for (std::int64_t i = 0; i < key_floats_; ++i) out[i] = key[i / panel_width % head_dim_];
    out = values(slot, head);
    for (std::int64_t i = 0; i < value_floats_; ++i) out[i] = value[i % head_dim_];
  }
}

void Rings::write(std::int64_t slot, std::int64_t head, std::int64_t position, const float* key, const float* value) {
  const std::int64_t at = position % reach_;
  float* out = column(keys(slot, head), head_dim_, at);
  for (std::int64_t i = 0; i < head_dim_; ++i) out[i * panel_width] = key[i];
  std::copy(value, value + head_dim_, values(slot, head) + at * head_dim_);
}

void Rings::gather(std::int64_t slot, std::int64_t head, std::int64_t position, const float* new_keys,
                   const float* new_values, std::int64_t rows, std::int64_t ld, float* keys, float* values) {
  const std::int64_t oldest = reach_ > 0 ? position % reach_ : 0;
  const std::int64_t older = reach_ - oldest;  // slots oldest .. W - 1, then 0 .. oldest - 1
  copy_columns(this->keys(slot, head), oldest, keys, 0, older, head_dim_);
  copy_columns(this->keys(slot, head), 0, keys, older, oldest, head_dim_);
  const float* ring = this->values(slot, head);
  std::copy(ring + oldest * head_dim_, ring + reach_ * head_dim_, values);
  std::copy(ring, ring + oldest * head_dim_, values + older * head_dim_);
  for (std::int64_t row = 0; row < rows; ++row) {
    float* out = column(keys, head_dim_, reach_ + row);
    for (std::int64_t i = 0; i < head_dim_; ++i) out[i * panel_width] = new_keys[row * ld + i];
    std::copy(new_values + row * ld, new_values + row * ld + head_dim_, values + (reach_ + row) * head_dim_);
  }
  const std::int64_t end = reach_ + rows, whole = panels(end) * panel_width;
  for (std::int64_t at = end; at < whole; ++at) {  // lanes beyond the last key are read and masked: they must be finite
    float* out = column(keys, head_dim_, at);
    for (std::int64_t i = 0; i < head_dim_; ++i) out[i * panel_width] = 0.0f;
  }
}

}  // namespace headcount::cpu
