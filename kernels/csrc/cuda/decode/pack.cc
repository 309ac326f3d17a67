// Weights in the order a decode step streams them: tiles of 8 × 32 numbers as the second operand of mma.m16n8k16, so
// that a lane's 16 bytes are its fragments of two instructions.
#include <cstring>

#include "cuda/decode/decode.h"

namespace headcount::cuda::decode {
namespace {

int tiles_of(int count, int size) { return (count + size - 1) / size; }

// number(n, k) for n < 8, k < 32 → 256 numbers: lane 4n + k % 8 / 2 holds pairs from k's four octets.
template <typename At>
void pack_tile(uint16_t*& packed, At number) {
  for (int lane = 0; lane < 32; ++lane) {
    for (int octet = 0; octet < 4; ++octet) {
      for (int half = 0; half < 2; ++half) *packed++ = number(lane / 4, octet * 8 + lane % 4 * 2 + half);
    }
  }
}

// Rows [from, from + 8) of a matrix [rows, depth], rows beyond it as zeros.
void pack_rows(uint16_t*& packed, const uint16_t* matrix, int from, int rows, int64_t pitch, int depth) {
  for (int step = 0; step < depth / 32; ++step) {
    pack_tile(packed, [&](int n, int k) -> uint16_t {
      return from + n < rows ? matrix[(from + n) * pitch + step * 32 + k] : 0;
    });
  }
}

void pack_floats(unsigned char* target, const float* source, int count) {
  source ? std::memcpy(target, source, count * 4) : std::memset(target, 0, count * 4);
}

void pack_head(const Shape& shape, const LayerShape& layer, const HeadPlaces& places, const LayerWeights& w, int head,
               unsigned char* packed) {
  const int depth = shape.head_dim, hidden = shape.hidden;
  const auto words = [&](size_t place) { return reinterpret_cast<uint16_t*>(packed + place); };
  uint16_t* at = words(places.project);
  unsigned char* bias = packed + places.bias;
  const uint16_t* matrices[] = {w.query, w.key, w.value};
  const float* matrix_biases[] = {w.query_bias, w.key_bias, w.value_bias};
  for (int m = 0; m < 3; ++m) {
    const uint16_t* matrix = matrices[m] + int64_t{head} * depth * hidden;
    for (int row = 0; row < depth; row += 8) pack_rows(at, matrix, row, depth, hidden, hidden);
    pack_floats(bias + m * depth * 4, matrix_biases[m] ? matrix_biases[m] + head * depth : nullptr, depth);
  }
  pack_floats(packed + places.biases, w.content_bias ? w.content_bias + head * depth : nullptr, depth);
  pack_floats(packed + places.biases + depth * 4, w.position_bias ? w.position_bias + head * depth : nullptr, depth);

  at = words(places.persistent);
  const int n = layer.persistent;
  for (int block = 0; block < tiles_of(n, block_keys); ++block) {
    const uint16_t* keys = w.persistent_keys + int64_t{head} * n * depth;
    const uint16_t* values = w.persistent_values + int64_t{head} * n * depth;
    const int from = block * block_keys;
    for (int tile = 0; tile < block_keys; tile += 8) pack_rows(at, keys, from + tile, n, depth, depth);
    for (int column = 0; column < depth; column += 8) {
      pack_tile(at, [&](int c, int key) -> uint16_t {
        return from + key < n ? values[(from + key) * depth + column + c] : 0;
      });
    }
  }
  if (layer.distance_tables) {
    const int reach = layer.visibility.reach;
    const uint16_t* table = w.distances + (layer.distance_tables == 1 ? 0 : int64_t{head} * reach * depth);
    at = words(places.distances);
    for (int row = 0; row < reach; row += tile_keys) pack_rows(at, table, row, reach, depth, depth);
  }
  at = words(places.output);
  const int64_t pitch = int64_t{layer.heads} * depth;
  for (int row = 0; row < hidden; row += 8) pack_rows(at, w.output + head * depth, row, hidden, pitch, depth);
}

}  // namespace

Places places_of(const Shape& shape) {
  Places places;
  const auto take = [&](size_t bytes) {
    const size_t at = places.bytes;
    places.bytes += (bytes + 127) / 128 * 128;
    return at;
  };
  const size_t depth = shape.head_dim, hidden = shape.hidden;
  for (const LayerShape& layer : shape.layers) {
    LayerPlaces& here = places.layers.emplace_back();
    here.vectors = take(3 * hidden * 4);
    const size_t table_bytes = tiles_of(layer.visibility.reach, tile_keys) * depth * tile_keys * 2;
    for (int head = 0; head < layer.heads; ++head) {
      HeadPlaces& mine = here.heads.emplace_back();
      mine.project = take(3 * depth * hidden * 2);
      mine.bias = take(3 * depth * 4);
      mine.biases = take(2 * depth * 4);
      mine.persistent = take(tiles_of(layer.persistent, block_keys) * depth * block_keys * 4);
      const bool shared = layer.distance_tables == 1 && head > 0;
      mine.distances = shared ? here.heads[0].distances : layer.distance_tables ? take(table_bytes) : 0;
      mine.output = take(hidden * depth * 2);
    }
  }
  return places;
}

void pack(const Shape& shape, const Places& places, const std::vector<LayerWeights>& weights, unsigned char* packed) {
  for (size_t i = 0; i < shape.layers.size(); ++i) {
    unsigned char* vectors = packed + places.layers[i].vectors;
    pack_floats(vectors, weights[i].output_bias, shape.hidden);
    pack_floats(vectors + shape.hidden * 4, weights[i].gain, shape.hidden);
    pack_floats(vectors + shape.hidden * 8, weights[i].shift, shape.hidden);
    for (int head = 0; head < shape.layers[i].heads; ++head)
      pack_head(shape, shape.layers[i], places.layers[i].heads[head], weights[i], head, packed);
  }
}

}  // namespace headcount::cuda::decode
