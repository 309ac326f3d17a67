// Keys and values of one layer: a ring of W = reach positions per slot, slot p mod W of a ring holding position p.
#pragma once

#include <cstdint>
#include <vector>

#include "cpu/floats.h"
#include "cpu/kernels.h"

namespace headcount::cpu {

class Rings {
 public:
  // zero_key, zero_value [heads, head_dim]: what the start of a stream holds where the source attends zeros; null =
  // zeros, never visible.
  Rings(std::int64_t heads, std::int64_t head_dim, std::int64_t reach, const float* zero_key, const float* zero_value);

  // Room for at least `slots` slots; those there stay where they are.
  void grow(std::int64_t slots);
  void restart(std::int64_t slot);

  float* keys(std::int64_t slot, std::int64_t head);       // float32 panels [panels(W)][D][16]
  float* values(std::int64_t slot, std::int64_t head);     // [W, D]
  std::int64_t key_floats() const { return key_floats_; }  // of one head
  std::int64_t value_floats() const { return value_floats_; }
  std::int64_t slots() const { return static_cast<std::int64_t>(slots_.size()); }

  // Put the key and value [D] of a position into their place.
  void write(std::int64_t slot, std::int64_t head, std::int64_t position, const float* key, const float* value);

  // The W positions before `position`, oldest first, then `rows` new ones (stride ld), as attend_rows wants them:
  // keys [panels(W + rows)][D][16], values [W + rows, D].
  void gather(std::int64_t slot, std::int64_t head, std::int64_t position, const float* new_keys,
              const float* new_values, std::int64_t rows, std::int64_t ld, float* keys, float* values);

 private:
  std::int64_t heads_, head_dim_, reach_, key_floats_, value_floats_;
  std::vector<float> zero_key_, zero_value_;
  std::vector<Floats> slots_;  // per slot: the keys of every head, then the values of every head
};

}  // namespace headcount::cpu
