// The table of CPU kernels: one source per operation, compiled once per instruction set, chosen once per process.
// Every kernel works on one unit of work a thread claims; none allocates, none knows a thread or another unit.
#pragma once

#include <cstdint>

namespace headcount::cpu {

constexpr std::int64_t panel_width = 16;  // rows of a packed matrix that stand side by side
constexpr std::int64_t query_rows = 32;   // query rows of one unit of prefill attention
constexpr std::int64_t key_block = 256;   // keys of one step of the online softmax

enum class Kind : int { float32 = 0, bfloat16 = 1, int8 = 2 };

// A constant matrix W [n, k], its rows in panels of 16; rows beyond n and columns beyond k are zero.
//   float32:  panel[k][16]            bfloat16: panel[k / 2][16][2]            int8: panel[k / 4][16][4], W =
//   scale[row] · int8
// One layout serves every instruction set: lanes are rows, so no horizontal sums; pairs and quads are what dot
// instructions eat.
struct Packed {
  const void* data;    // 64-byte aligned
  const float* scale;  // int8: [panels · 16]; null otherwise
  std::int64_t n;
  std::int64_t k;
  Kind kind;
};

constexpr std::int64_t panels(std::int64_t n) { return (n + panel_width - 1) / panel_width; }

// Columns a panel stores: k rounded up to whole pairs or quads.
constexpr std::int64_t padded_k(std::int64_t k, Kind kind) {
  return kind == Kind::float32 ? k : kind == Kind::bfloat16 ? (k + 1) / 2 * 2 : (k + 3) / 4 * 4;
}

constexpr std::int64_t panel_bytes(std::int64_t k, Kind kind) {
  return padded_k(k, kind) * panel_width * (kind == Kind::float32 ? 4 : kind == Kind::bfloat16 ? 2 : 1);
}

// What `narrow` makes of float32 rows for a kind whose dot instructions read less than float32: bfloat16 pairs, or
// sixteen-bit whole numbers x = scale · number, one scale per row, of which a product with int8 weights is exact in 32
// bits. A row takes narrowed_stride floats, an odd number of cache lines, so that rows do not fall on one another.
constexpr std::int64_t narrowed_stride(std::int64_t k) { return (k + 31) / 32 * 16 | 16; }

// The largest of those whole numbers: k products with 127 stay below 2^31.
constexpr std::int64_t narrowed_levels(std::int64_t k) {
  const std::int64_t fit = 2147483647 / (127 * (k + 4));
  return fit < 32767 ? fit : 32767;
}

// gelu: x · Φ(x); gelu_tanh: its approximation by tanh; quick_gelu: x · sigmoid(1.702 x); silu: x · sigmoid(x).
enum class Activation : int { none, relu, gelu, gelu_tanh, quick_gelu, silu, tanh };

// y[r, i] = residual[r, i] + activation(Σ_k x[r, k] · W[i, k] + bias[i]); x [rows, k] with row stride ldx, y and
// residual with row stride ldy.
struct Linear {
  const float* x;  // or narrowed rows, where the unit narrows the kind of w
  std::int64_t ldx;
  std::int64_t rows;
  const Packed* w;
  const float* bias;      // [n] or null
  const float* residual;  // or null
  float* y;
  std::int64_t ldy;
  Activation activation;
  const float* x_scale = nullptr;  // [rows] of narrowed rows against int8
};

// The constants of one head of a layer.
struct HeadTables {
  Packed persistent_keys;    // [N, D]
  Packed persistent_values;  // [D, N]: transposed, already × √N
  Packed distances;  // [W, D], FARTHEST FIRST: row c is distance first_distance + W - 1 - c; n = 0 where there is none
  const float* content_bias;   // [D] or null
  const float* position_bias;  // [D] or null
  float span, span_ramp;       // adaptive span in tokens; span_ramp 0 = none
};

// Which keys a row sees, as engine_kernels/ops.py Visibility. bidirectional: every key of its sequence, before and
// behind it (encoders); reach is 0 then, and there is no relative term.
struct Visibility {
  std::int64_t window, segment, reach;
  int first_distance;
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

// Prefill: `rows` ≤ query_rows consecutive rows of one sequence and one head, one softmax over their visible keys and
// the persistent vectors.
struct AttendRows {
  const float* query;  // [rows, D], row stride ldq; not yet scaled, no bias added
  std::int64_t ldq;
  std::int64_t rows;
  std::int64_t head_dim;
  const HeadTables* head;
  const Visibility* visibility;
  // The sequence's W + T keys in order of position, float32 panels [panels(W + T)][D][16]: key W + i is new row i.
  const float* keys;
  const float* values;    // [W + T, D], row stride D
  std::int64_t row;       // index of the first query row among the T new rows
  std::int64_t position;  // of that row in the stream
  float* out;             // [rows, D], row stride ldo
  std::int64_t ldo;
  float* scratch;          // attend_rows_scratch(head_dim, reach, persistent) floats, 64-byte aligned
  std::int64_t count = 0;  // T; read only where visibility->bidirectional
};

// Decode, shared part: all B rows of the batch for one head against persistent vectors [begin, end) (multiples of 16,
// end may be N). Leaves a partial softmax per row: maximum m (natural log scale), sum l of exp(score - m), acc [D] = Σ
// exp(score - m) · value.
struct AttendPersistent {
  const float* query;  // [batch, D], row stride ldq
  std::int64_t ldq;
  std::int64_t batch;
  std::int64_t head_dim;
  const HeadTables* head;
  std::int64_t begin, end;
  float* partial;               // [batch][2 + D]: m, l, acc
  std::int64_t partial_stride;  // floats between the partials of two rows
  float* scratch;               // attend_persistent_scratch(batch, head_dim) floats
};

// Decode, own part: one row against its ring, then merged with `splits` partials of the same row in index order.
struct AttendRing {
  const float* query;  // [D]
  std::int64_t head_dim;
  const HeadTables* head;
  const Visibility* visibility;
  const float* keys;    // ring, float32 panels [panels(W)][D][16]: slot p mod W holds position p
  const float* values;  // [W, D]
  std::int64_t position;
  const float* partials;  // [splits][2 + D], stride partial_stride; splits may be 0
  std::int64_t splits, partial_stride;
  float* out;      // [D]
  float* scratch;  // attend_ring_scratch(head_dim, reach) floats
};

struct Kernels {
  const char* name;
  bool narrows[3];  // by Kind: whether `linear` reads narrowed rows
  // Rows of x → to [rows, narrowed_stride(k)], scale [rows] for int8; a NaN or an infinity becomes a NaN of the result.
  void (*narrow)(const float* x, std::int64_t ldx, std::int64_t rows, std::int64_t k, Kind kind, float* to,
                 float* scale);
  void (*linear)(const Linear& call, std::int64_t panel_begin, std::int64_t panel_end);
  void (*layer_norm)(const float* x, const float* gain, const float* bias, std::int64_t rows, std::int64_t width,
                     float eps, float* y);
  void (*attend_rows)(const AttendRows& call);
  void (*attend_persistent)(const AttendPersistent& call);
  void (*attend_ring)(const AttendRing& call);
  // Partial log-sum-exp of a run of logits: maximum and Σ exp(x - maximum).
  void (*log_sum_exp)(const float* x, std::int64_t size, float* maximum, float* sum);
  // x[i] += c.
  void (*add_constant)(float* x, std::int64_t size, float c);
};

std::int64_t attend_rows_scratch(std::int64_t head_dim, std::int64_t reach, std::int64_t persistent);
std::int64_t attend_persistent_scratch(std::int64_t batch, std::int64_t head_dim);
std::int64_t attend_ring_scratch(std::int64_t head_dim, std::int64_t reach);

}  // namespace headcount::cpu
