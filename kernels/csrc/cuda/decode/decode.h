// One token of up to 16 sequences through all layers by one launch (sm_90a). The grid is clusters of blocks; a job, one
// head of a layer and a part of its keys, is a cluster's, and each of its blocks has a share of the job's queries, keys
// and output columns. A schedule made on the host lists what each block does in order; weights are packed so that each
// item of the list finds its own in one piece, which a ring of buffers in shared memory streams ahead of it.
// docs/kernels.md, "decode_step", says why so.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "cuda/attention/attention.h"
#include "cuda/types.h"

namespace headcount::cuda::decode {

constexpr int most_rows = 16;     // rows of a matrix instruction
constexpr int warps = 8;          // of a block
constexpr int block_keys = 32;    // persistent vectors are packed by so many
constexpr int tile_keys = 8;      // and distances by so many
constexpr int item_tiles = 4;     // most tiles of 8 query, key or value columns an item has
constexpr int fewest_stages = 3;  // of the ring
constexpr int padding = 16;       // bytes between the rows of two sequences in a stage, against bank conflicts

// ---- what is computed

// A layer, by the names of engine_kernels/cuda_decode.py DecodeShape: the binding fills it through its each_field.
struct LayerShape {
  int heads = 0, persistent = 0;  // N
  int distance_tables = 0;        // heads, or 1 for all heads, or 0
  Visibility visibility = {};
  bool norm_first = true;
  float norm_eps = 1e-5f, span_ramp = 0;  // 0: no spans

  template <typename Visit>
  void each_field(const Visit& visit) {
    visit("heads", heads);
    visit("persistent", persistent);
    visit("distance_tables", distance_tables);
    visit("visibility", visibility);
    visit("norm_first", norm_first);
    visit("norm_eps", norm_eps);
    visit("span_ramp", span_ramp);
  }
};

struct Shape {
  int hidden = 0, head_dim = 0;
  std::vector<LayerShape> layers;
};

// Weights of a layer in memory of the host; 16-bit numbers as they are, the rest float32; nullptr where it has none.
struct LayerWeights {
  const uint16_t *query, *key, *value;                  // [H · D, hidden]
  const float *query_bias, *key_bias, *value_bias;      // [H · D]
  const uint16_t* output;                               // [hidden, H · D]
  const float* output_bias;                             // [hidden]
  const float *gain, *shift;                            // [hidden], of the norm
  const uint16_t* distances;                            // [tables, reach, D]
  const float *content_bias, *position_bias;            // [H, D]
  const uint16_t *persistent_keys, *persistent_values;  // [H, N, D]
};

// ---- where packed weights stand, in bytes from the start, all multiples of 16

struct HeadPlaces {
  size_t project;     // [3 · D / 8] tiles of hidden · 16 bytes: queries, keys, values
  size_t bias;        // [3 · D] float32
  size_t biases;      // content and position bias, [2 · D] float32
  size_t persistent;  // [N / 32, rounded up] blocks of 128 · D bytes: keys, then values
  size_t distances;   // [reach / 8, rounded up] tiles of 16 · D bytes
  size_t output;      // [hidden / 8] tiles of 16 · D bytes
};
struct LayerPlaces {
  size_t vectors;  // output bias, gain, shift: [3, hidden] float32
  std::vector<HeadPlaces> heads;
};
struct Places {
  std::vector<LayerPlaces> layers;
  size_t bytes = 0;
};

Places places_of(const Shape& shape);
// All weights as the stages of the ring want them, [places.bytes]; tiles are fragments of a matrix instruction.
void pack(const Shape& shape, const Places& places, const std::vector<LayerWeights>& weights, unsigned char* packed);

// ---- who does what

// rows: what the layer before left is added up, shared and normed. project: columns of query, key, value. share: all
// blocks of the cluster have them. attend: keys. merge: states of all blocks. output: columns of the output.
enum class Kind : int32_t { rows, project, share, attend, merge, output };

struct Piece {
  uint32_t at, bytes;  // of the packed weights, `at` in units of 16 bytes
};

// What a block does next; all of a block wait for each other between two items.
struct alignas(16) Item {
  Kind kind;
  int32_t layer;          // rows: the layer that begins, or the number of layers at the end
  int32_t head, job;      // job = head · ways + way; rows: jobs of this cluster in the layer
  int32_t first, count;   // project, output: tiles of 8 columns; attend: blocks of 32 persistent vectors
  int32_t nearest, near;  // attend: the context's keys at distances first_distance + nearest ..
  uint32_t bytes;         // of all pieces
  int32_t pieces;
  Piece piece[3];
};

// A layer as the device sees it.
struct alignas(16) Layer {
  int32_t heads, ways, persistent, relative;
  int32_t window, segment, reach, first_distance, attended_zeros, capacity;
  int32_t norm_first, buffer;  // which of two buffers its outputs go to
  float norm_eps, span_ramp;
  void *ring_keys, *ring_values;  // [slots, H, capacity, D]
  const float* spans;             // [H]
};

// Bytes from the start of shared memory.
struct Shared {
  uint32_t items, layers, places, full, residual, normed, query, fresh_keys, fresh_values, scores, states, attended,
      ring, bytes;
  int32_t pitch;  // of the scores
};

constexpr size_t most_shared_bytes = 227 << 10;  // of a block on sm_90

struct Machine {
  int clusters = 1, cluster = 1;
  size_t shared_bytes = most_shared_bytes;  // of a block
};

// Grids to choose from, and why others that were asked for are not among them.
struct Machines {
  std::vector<Machine> usable;
  std::string others;
};

struct Schedule {
  Machine machine;
  int rows = 0, stages = 0, most_items = 0;
  uint32_t stage_bytes = 0;
  std::vector<int> ways, buffers;  // of each layer
  int most_jobs = 0;               // of a layer
  std::vector<Item> items;         // of block 0, of block 1, …
  std::vector<int32_t> begins;     // [blocks + 1]
  Shared shared = {};
};

// "" or why this kernel cannot run it.
std::string refusal(const Shape& shape, const Machine& machine, int rows);
// Throws std::invalid_argument with what refusal says.
Schedule plan(const Shape& shape, const Machine& machine, int rows);
// Bytes that the busiest block of each layer reads, added up over the layers.
size_t busiest_bytes(const Shape& shape, const Schedule& schedule);
// The same of the machines: "" where one of them runs it, and the plan with the fewest busiest_bytes.
std::string refusal(const Shape& shape, const Machines& machines, int rows);
Schedule plan(const Shape& shape, const Machines& machines, int rows);
// Throws std::invalid_argument where a schedule would compute something else than the layers or could read what is not
// there yet: every tile once, all blocks meeting equally often, pieces that are what their items consume, buffers large
// enough.
void validate(const Shape& shape, const Places& places, const Schedule& schedule);

// Bytes of an item's stage that come from the rings.
uint32_t context_bytes(const Shape& shape, const Item& item, int rows);

// ---- running it

// Where and in what a block gave up waiting; all zeros where none did. phase: 1 = the grid, 2 = the ring.
struct Trouble {
  uint32_t raised, block, layer, phase;
};

struct Step {
  Number number = Number::bfloat16;
  // All memory of the GPU.
  const unsigned char* packed;
  const Layer* layers;
  const Item* items;
  const int32_t* begins;
  const float* hidden;               // [rows, hidden]
  float* out;                        // the same after all layers
  const int64_t *slots, *positions;  // [rows]
  float* outputs;                    // [2, most_jobs, rows, hidden]
  float *peaks, *totals;             // [2, most_jobs, rows]
  uint32_t* meeting;                 // starts as 0, belongs to all launches that follow each other on a stream
  Trouble* trouble;                  // starts as zeros
  uint64_t patience;                 // nanoseconds a block waits
};

// Layers as the device sees them, but for pointers.
std::vector<Layer> layers_of(const Shape& shape, const Schedule& schedule);
// Clusters of this size that the current GPU keeps resident at once, none where it is older than sm_90.
Machine machine_of_the_device(int cluster);
// Those of these cluster sizes, best first, whose whole grid the current GPU has started in a trial with empty lists.
Machines machines_of_the_device(const std::vector<int>& clusters);
#ifdef HEADCOUNT_CUDA_EMULATED
// The emulated GPU: by the size of a cluster how many it says are resident at once, and how many blocks it then starts.
struct EmulatedGpu {
  std::map<int, int> clusters = {{2, 2}};
  int blocks = 1 << 16;
};
extern EmulatedGpu emulated_gpu;
#endif
void run(const Shape& shape, const Schedule& schedule, const Step& step, Stream stream);

}  // namespace headcount::cuda::decode
