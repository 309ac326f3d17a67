// Where products go: two neighbouring columns of a row at a time, after what is common to the row.
#pragma once

#include <cstdint>

#include "cuda/device.h"
#include "cuda/linear/activation.h"

namespace headcount::cuda {

struct alignas(8) TwoFloats {
  float low, high;
};

// out = residual + activation(sums + bias), each part where asked for.
template <typename T>
struct PlainStore {
  const T* bias;
  Activation activation;
  const float* residual;
  float* out;      // one of these two
  T* rounded_out;  // [rows, columns]
  int columns;

  using Row = int64_t;  // where it starts
  DEVICE Row begin(int row) const { return static_cast<int64_t>(row) * columns; }

  DEVICE void operator()(Row row, int column, float low, float high) const {
    const bool both = column + 1 < columns, aligned = columns % 2 == 0;
    const int64_t at = row + column;
    if (bias != nullptr) {
      low += device::to_float(bias[column]);
      if (both) high += device::to_float(bias[column + 1]);
    }
    if (activation != Activation::none) {
      low = activate(activation, low);
      high = activate(activation, high);
    }
    if (residual != nullptr) {
      low += residual[at];
      if (both) high += residual[at + 1];
    }
    if (out != nullptr && aligned) {
      *reinterpret_cast<TwoFloats*>(out + at) = {low, high};
    } else if (out != nullptr) {
      out[at] = low;
      if (both) out[at + 1] = high;
    } else if (aligned) {
      *reinterpret_cast<uint32_t*>(rounded_out + at) = device::pack<T>(low, high);
    } else {
      rounded_out[at] = device::from_float<T>(low);
      if (both) rounded_out[at + 1] = device::from_float<T>(high);
    }
  }
};

// Columns [3, H, D]: queries packed, keys and values to their places in rings. D is even.
template <typename T>
struct HeadStore {
  const T* bias;  // [3, H, D]
  T *query, *keys, *values;
  const int64_t *slots, *positions;
  int heads, capacity, head_dim;

  struct Row {
    int64_t query, place;  // numbers before it in `query`; in the rings, of head 0
  };
  DEVICE Row begin(int row) const {
    const int64_t place = slots[row] * heads * capacity + positions[row] % capacity;
    return {static_cast<int64_t>(row) * heads * head_dim, place};
  }

  DEVICE void operator()(const Row& row, int column, float low, float high) const {
    if (bias != nullptr) {
      low += device::to_float(bias[column]);
      high += device::to_float(bias[column + 1]);
    }
    const int which = column / (heads * head_dim), rest = column - which * (heads * head_dim);
    T* target = query + row.query + rest;
    if (which > 0) {
      const int head = rest / head_dim;
      target =
          (which == 1 ? keys : values) + (row.place + int64_t{head} * capacity) * head_dim + (rest - head * head_dim);
    }
    *reinterpret_cast<uint32_t*>(target) = device::pack<T>(low, high);
  }
};

}  // namespace headcount::cuda
