// Products of packed rows with weights, and what stands around them in a layer: LayerNorm before; bias, activation,
// residual, heads and rings after. Equations: engine_kernels/gpu_ops.py; how data moves: docs/kernels.md.
#pragma once

#include <cstdint>

#include "cuda/types.h"

namespace headcount::cuda {

// A LayerNorm of rows; gain nullptr: none.
struct Norm {
  const float *gain, *shift;  // [depth]
  float eps;
};

// norm(x) · weightᵀ + bias, summed in float32.
struct Product {
  Number number;  // of weight, bias and scratch, and of x unless it is float32
  int rows, columns, depth;
  const void* x;  // [rows, depth]
  bool x_is_float32;
  Norm norm;           // where x is float32
  const void* weight;  // [columns, depth]
  const void* bias;    // [columns], or nullptr
  void* scratch;       // [rows, depth], where rounds_first
};

// Whether rows in float32 are normalised and rounded once, by a kernel of their own, before they are multiplied: not
// when they are few, as in a decode step.
bool rounds_first(int rows);

struct Result {
  Activation activation;
  const float* residual;  // [rows, columns], or nullptr
  void* out;              // [rows, columns]
  bool out_is_float32;
};

// residual + activation(product)
void project(const Product& product, const Result& result, Stream stream);

// Keys and values kept, [slots, H, capacity, D]: those of position p stand in slot p mod capacity.
struct Rings {
  void *keys, *values;
  int heads, capacity, head_dim;
  const int64_t *slots, *positions;  // [rows]
};

// Columns [3, H, D]: queries to [rows, H, D], keys and values into rings.
void project_heads(const Product& product, void* query, const Rings& rings, Stream stream);

// Keys and values [rows, H, D] of source_rows [count] into rings.
void write_rings(const void* keys, const void* values, const int64_t* source_rows, int count, const Rings& rings,
                 Stream stream);

// LayerNorm of x [rows, depth] to float32.
void normalise(const float* x, int rows, int depth, const Norm& norm, float* out, Stream stream);

// The same to `number`; without a norm it only rounds.
void normalise_and_round(const float* x, int rows, int depth, const Norm& norm, Number number, void* out,
                         Stream stream);

}  // namespace headcount::cuda
