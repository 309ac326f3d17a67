// Attention of packed rows: what its kernels are told. Equations: engine_kernels/ops.py; how data moves:
// docs/kernels.md. Pointers are memory of the GPU; numbers without a type are of `number`. Head counts are grid sizes,
// never constants of a kernel.
#pragma once

#include <cstdint>

#include "cuda/types.h"

namespace headcount::cuda {

// Which keys a row sees, as engine_kernels/ops.py's Visibility. No kernel reads `bidirectional`: such layers are run by
// attend_bidirectional alone, and the decode kernel's plan refuses them.
struct Visibility {
  int window, segment, reach, first_distance;
  bool attended_zeros;
  bool bidirectional = false;

  template <typename Visit>
  void each_field(const Visit& visit) {
    visit("window", window);
    visit("segment", segment);
    visit("reach", reach);
    visit("first_distance", first_distance);
    visit("attended_zeros", attended_zeros);
    visit("bidirectional", bidirectional);
  }
};

struct Attention {
  Number number;
  int rows, heads, head_dim;  // head_dim a multiple of 8, at most 128
  const void* query;          // [rows, H, D]
  // Tables of the layer; nullptr where it has none.
  const void* distances;                            // [tables, reach, D]: row i is distance first_distance + i
  int distance_tables;                              // H, or 1 for all heads, or 0
  const float *content_bias, *position_bias;        // [H, D]
  const void *persistent_keys, *persistent_values;  // [H, N, D]
  int persistent;                                   // N
  const float* spans;                               // [H]
  float span_ramp;
  Visibility visibility;
  // Keys and values kept: [slots, H, capacity, D].
  const void *ring_keys, *ring_values;
  int capacity;
  // Written by attend_constants, read by the others. States (peak, total, out) have peaks in units of log2.
  float* outs;            // [splits, H, rows, D]
  float *peaks, *totals;  // [splits, H, rows]
  int splits;
  void* scores;    // [H, rows, pitch]: (q + position_bias) · distances, column c nearness reach - 1 - c
  int pitch;       // a multiple of 16
  void* attended;  // [rows, H, D]
};

// Sequences of packed rows, all [count]; the key of row j < 0 stands in slot (offset + j) mod capacity of its ring.
struct Sequences {
  int count;
  const int64_t *first_rows, *lengths, *slots, *offsets, *positions;
};

// New keys and values [rows, H, D], and the tiles of rows, none of two sequences: each one's sequence and its first row
// there.
struct NewRows {
  const void *keys, *values;
  const int32_t *tile_sequence, *tile_row;
  int tiles, tile_rows;  // tile_rows as rows_of_a_tile said
};

// Rows of a tile of attend_rows, from which NewRows is made.
int rows_of_a_tile(int longest);
// Into how many parts the persistent vectors are cut: by shapes only.
int splits_of(int rows, int heads, int persistent);

// States of the persistent vectors, and scores by distance unless `scores` is nullptr, of all rows. Only attend_ring
// reads the scores; attend_rows forms its own.
void attend_constants(const Attention& attention, Stream stream);
// Sequences of one row, whose rings hold every key they see.
void attend_ring(const Attention& attention, const Sequences& single, Stream stream);
// Sequences of several rows, which see their rings as they stood before and the new keys and values.
void attend_rows(const Attention& attention, const Sequences& several, const NewRows& fresh, Stream stream);
// Whole sequences whose rows see all rows of their own, as an encoder's do. Nothing else of a layer counts: of
// `attention` it reads number, rows, heads, head_dim, query and attended, of `sequences` first_rows and lengths.
void attend_bidirectional(const Attention& attention, const Sequences& sequences, const NewRows& fresh, Stream stream);

}  // namespace headcount::cuda
