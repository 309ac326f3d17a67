// Who does what in a decode step, and where it lies in shared memory.
#include <algorithm>
#include <numeric>
#include <stdexcept>

#include "cuda/decode/decode.h"

namespace headcount::cuda::decode {
namespace {

constexpr uint32_t wanted_stage_bytes = 24 << 10;
constexpr int most_stages = 16;
constexpr int most_heads_of_a_layer = 64;

int rounded_up(int count, int size) { return (count + size - 1) / size; }

struct Range {
  int first, end;
};
// Part `part` of `parts` of what is counted; the first parts are never the smaller ones.
Range share_of(int count, int part, int parts) {
  return {rounded_up(count * part, parts), rounded_up(count * (part + 1), parts)};
}

uint32_t row_bytes(const Shape& shape) { return shape.head_dim * 2; }
uint32_t tile_bytes(const Shape& shape) { return row_bytes(shape) * tile_keys; }
uint32_t block_bytes(const Shape& shape) { return row_bytes(shape) * block_keys * 2; }
uint32_t project_bytes(const Shape& shape) { return shape.hidden * 16 + 32; }  // of a tile and its bias

// Of one tile of the context's keys in a stage.
uint32_t near_bytes(const Shape& shape, int rows) {
  return tile_bytes(shape) + 2 * rows * (tile_keys * row_bytes(shape) + padding);
}

uint32_t least_stage_bytes(const Shape& shape, int rows) {
  const uint32_t vectors = shape.hidden * 4 * 5;
  const uint32_t keys = std::max(near_bytes(shape, rows), block_bytes(shape)) + row_bytes(shape) * 4;
  return std::max({vectors, project_bytes(shape), keys, wanted_stage_bytes});
}

class Planner {
 public:
  Planner(const Shape& shape, const Machine& machine, int rows) : shape_(shape), places_(places_of(shape)) {
    made_.machine = machine;
    made_.rows = rows;
    made_.stage_bytes = least_stage_bytes(shape, rows);
    int buffer = 0;
    for (const LayerShape& layer : shape.layers) {
      made_.ways.push_back(ways(layer));
      made_.buffers.push_back(layer.heads ? buffer ^= 1 : buffer);
      made_.most_jobs = std::max(made_.most_jobs, layer.heads * made_.ways.back());
    }
  }

  Schedule plan() {
    const int clusters = made_.machine.clusters, cluster = made_.machine.cluster;
    for (int block = 0; block < clusters * cluster; ++block) {
      made_.begins.push_back(static_cast<int32_t>(made_.items.size()));
      list_block(block / cluster, block % cluster);
      const int count = static_cast<int>(made_.items.size()) - made_.begins.back();
      made_.most_items = std::max(made_.most_items, count);
    }
    made_.begins.push_back(static_cast<int32_t>(made_.items.size()));
    lay_out();
    return made_;
  }

 private:
  // Into how many clusters' jobs the keys of a head are cut: all clusters work, none without keys.
  int ways(const LayerShape& layer) const {
    if (layer.heads == 0) return 1;
    const int units = rounded_up(layer.persistent, block_keys) + rounded_up(layer.visibility.reach, tile_keys);
    return std::max(1, std::min(made_.machine.clusters / layer.heads, rounded_up(units, made_.machine.cluster)));
  }

  void list_block(int cluster, int rank) {
    const int layers = static_cast<int>(shape_.layers.size());
    for (int layer = 0; layer <= layers; ++layer) {
      const int jobs = layer < layers ? shape_.layers[layer].heads * made_.ways[layer] : 0;
      const int mine = (jobs - cluster + made_.machine.clusters - 1) / made_.machine.clusters;
      list_rows(layer, std::max(0, mine));
      for (int job = cluster; job < jobs; job += made_.machine.clusters) list_job(layer, job, rank);
    }
  }

  Item& add(Kind kind, int layer, int job) {
    Item item = {};
    item.kind = kind;
    item.layer = layer;
    item.job = job;
    item.head = job / made_.ways[std::min<size_t>(layer, made_.ways.size() - 1)];
    made_.items.push_back(item);
    return made_.items.back();
  }

  static void give(Item& item, size_t at, size_t bytes) {
    if (bytes == 0) return;
    item.piece[item.pieces++] = {static_cast<uint32_t>(at / 16), static_cast<uint32_t>(bytes)};
    item.bytes += static_cast<uint32_t>(bytes);
  }

  void list_rows(int layer, int jobs) {
    Item& item = add(Kind::rows, layer, jobs);
    item.head = 0;
    const size_t vector = shape_.hidden * 4;
    if (layer > 0)
      give(item, places_.layers[layer - 1].vectors, shape_.layers[layer - 1].norm_first ? vector : 3 * vector);
    if (jobs > 0 && shape_.layers[layer].norm_first) give(item, places_.layers[layer].vectors + vector, 2 * vector);
  }

  void list_job(int layer, int job, int rank) {
    const LayerShape& l = shape_.layers[layer];
    const int ways = made_.ways[layer], way = job % ways, cluster = made_.machine.cluster;
    const HeadPlaces& head = places_.layers[layer].heads[job / ways];
    // Way 0 has the context's newest keys, so it alone needs the new key and value.
    const Range columns = share_of((way == 0 ? 3 : 1) * shape_.head_dim / 8, rank, cluster);
    const int most = std::min<int>(item_tiles, made_.stage_bytes / project_bytes(shape_));
    for (int first = columns.first; first < columns.end; first += most) {
      Item& item = add(Kind::project, layer, job);
      item.first = first;
      item.count = std::min(most, columns.end - first);
      give(item, head.project + size_t{16} * first * shape_.hidden, size_t{16} * item.count * shape_.hidden);
      give(item, head.bias + size_t{32} * first, size_t{32} * item.count);
    }
    add(Kind::share, layer, job);
    const int part = way * cluster + rank, parts = ways * cluster;
    const Range blocks = vectors_of(l, way, rank, ways);
    const Range tiles = share_of(rounded_up(l.visibility.reach, tile_keys), part, parts);
    list_keys(layer, job, head, blocks, tiles);
    add(Kind::merge, layer, job);
    const Range outputs = share_of(shape_.hidden / 8, rank, cluster);
    const int fits = static_cast<int>(made_.stage_bytes / tile_bytes(shape_));
    for (int first = outputs.first; first < outputs.end; first += fits) {
      Item& item = add(Kind::output, layer, job);
      item.first = first;
      item.count = std::min(fits, outputs.end - first);
      give(item, head.output + size_t{tile_bytes(shape_)} * first, size_t{tile_bytes(shape_)} * item.count);
    }
  }

  // Blocks of persistent vectors of one block of the grid. Way 0 also streams the weights of key and value, and so has
  // as many vectors fewer.
  Range vectors_of(const LayerShape& l, int way, int rank, int ways) const {
    const int blocks = rounded_up(l.persistent, block_keys), cluster = made_.machine.cluster;
    const int extra = static_cast<int>(2 * row_bytes(shape_) * shape_.hidden / block_bytes(shape_));
    const int first = std::max(0, std::min(blocks, (blocks + extra) / ways - extra));  // of way 0
    if (way == 0) return share_of(ways == 1 ? blocks : first, rank, cluster);
    const Range rest = share_of(blocks - first, (way - 1) * cluster + rank, (ways - 1) * cluster);
    return {first + rest.first, first + rest.end};
  }

  // The context first: as many tiles as fit a stage, and persistent vectors in what they leave.
  void list_keys(int layer, int job, const HeadPlaces& head, Range blocks, Range tiles) {
    const LayerShape& l = shape_.layers[layer];
    const uint32_t space = made_.stage_bytes - row_bytes(shape_) * 4;
    const uint32_t near = near_bytes(shape_, made_.rows);
    while (tiles.first < tiles.end || blocks.first < blocks.end) {
      Item& item = add(Kind::attend, layer, job);
      const int context = std::min<int>(tiles.end - tiles.first, space / near);
      item.count = std::min<int>(blocks.end - blocks.first, (space - context * near) / block_bytes(shape_));
      item.first = item.count ? blocks.first : 0;
      item.nearest = context ? tiles.first * tile_keys : 0;
      item.near = context ? std::min(l.visibility.reach, (tiles.first + context) * tile_keys) - item.nearest : 0;
      give(item, head.persistent + size_t{block_bytes(shape_)} * item.first, size_t{block_bytes(shape_)} * item.count);
      if (l.distance_tables)
        give(item, head.distances + size_t{tile_bytes(shape_)} * tiles.first, size_t{tile_bytes(shape_)} * context);
      if (context) give(item, head.biases, row_bytes(shape_) * 4);
      made_.shared.pitch = std::max(made_.shared.pitch, item.count * block_keys + context * tile_keys);
      blocks.first += item.count;
      tiles.first += context;
    }
  }

  void lay_out() {
    Shared& shared = made_.shared;
    const uint32_t rows = made_.rows, hidden = shape_.hidden, depth = shape_.head_dim;
    shared.pitch = (shared.pitch + 31) / 32 * 32 + 8;  // eight rows of float32 pairs in different banks
    uint32_t at = 0;
    const auto take = [&](size_t bytes) {
      const uint32_t place = at;
      at += static_cast<uint32_t>((bytes + 127) / 128 * 128);
      return place;
    };
    take(128);  // what is wrong, softmax states
    take(3 * most_rows * 4);
    shared.places = take(2 * most_rows * 8);
    shared.full = take(most_stages * 8);
    shared.items = take(made_.most_items * sizeof(Item));
    shared.layers = take(shape_.layers.size() * sizeof(Layer));
    shared.residual = take(rows * hidden * 4);
    shared.normed = take(most_rows * (hidden + 8) * 2);
    shared.query = take(most_rows * (depth + 8) * 4);
    shared.fresh_keys = take(rows * depth * 2);
    shared.fresh_values = take(rows * depth * 2);
    shared.scores = take(std::max(most_rows * shared.pitch * 4, warps * int(rows) * item_tiles * 8 * 4));
    shared.states = take(made_.machine.cluster * rows * (depth + 2) * 4);
    shared.attended = take(most_rows * (depth + 8) * 2);
    shared.ring = at;
    const size_t left = made_.machine.shared_bytes > at ? made_.machine.shared_bytes - at : 0;
    made_.stage_bytes = (made_.stage_bytes + 127) / 128 * 128;
    made_.stages = static_cast<int>(std::min<size_t>(most_stages, left / made_.stage_bytes));
    shared.bytes = at + made_.stages * made_.stage_bytes;
  }

  const Shape& shape_;
  const Places places_;
  Schedule made_;
};

}  // namespace

uint32_t context_bytes(const Shape& shape, const Item& item, int rows) {
  return item.kind == Kind::attend ? 2 * rows * item.near * row_bytes(shape) : 0;
}

std::string refusal(const Shape& shape, const Machine& machine, int rows) {
  if (rows < 1 || rows > most_rows) return "steps of 1 to 16 rows, not " + std::to_string(rows);
  if (shape.layers.empty()) return "at least one layer";
  if (shape.head_dim != 32 && shape.head_dim != 64 && shape.head_dim != 128)
    return "heads of 32, 64 or 128 numbers, not " + std::to_string(shape.head_dim);
  if (shape.hidden < 32 || shape.hidden % 32)
    return "a hidden size that is a multiple of 32, not " + std::to_string(shape.hidden);
  if (machine.clusters < 1 || machine.cluster < 1 || machine.cluster > 16)
    return "clusters of 1 to 16 blocks, at least one of them";
  for (const LayerShape& layer : shape.layers) {
    if (layer.heads < 0 || layer.heads > most_heads_of_a_layer)
      return "at most 64 heads in a layer, not " + std::to_string(layer.heads);
    if (layer.visibility.bidirectional) return "layers of streams, not bidirectional ones";
    if (layer.heads && layer.visibility.reach < 1) return "layers that see at least one key";
  }
  if (places_of(shape).bytes / 16 > UINT32_MAX) return "at most 64 GiB of weights";
  const Schedule made = Planner(shape, machine, rows).plan();
  if (made.stages < fewest_stages)
    return "shared memory of " + std::to_string(made.shared.ring + fewest_stages * made.stage_bytes) +
           " bytes in a block, not " + std::to_string(machine.shared_bytes);
  return "";
}

Schedule plan(const Shape& shape, const Machine& machine, int rows) {
  const std::string why = refusal(shape, machine, rows);
  if (!why.empty()) throw std::invalid_argument("the decode kernel runs " + why);
  return Planner(shape, machine, rows).plan();
}

// A layer ends for all blocks when its busiest one has read what it needs: its stream, and what the jobs of the layer
// before wrote. So clusters without a job count, and so does what ways and jobs read again.
size_t busiest_bytes(const Shape& shape, const Schedule& schedule) {
  std::vector<size_t> most(shape.layers.size() + 1);
  for (size_t block = 0; block + 1 < schedule.begins.size(); ++block) {
    std::vector<size_t> read(most.size());
    for (int32_t i = schedule.begins[block]; i < schedule.begins[block + 1]; ++i) {
      const Item& item = schedule.items[i];
      read[item.layer] += item.bytes + context_bytes(shape, item, schedule.rows);
      if (item.kind != Kind::rows || item.layer == 0) continue;
      const size_t jobs = size_t(shape.layers[item.layer - 1].heads) * schedule.ways[item.layer - 1];
      read[item.layer] += jobs * schedule.rows * rounded_up(shape.hidden, schedule.machine.cluster) * 4;
    }
    for (size_t layer = 0; layer < most.size(); ++layer) most[layer] = std::max(most[layer], read[layer]);
  }
  return std::accumulate(most.begin(), most.end(), size_t{0});
}

std::string refusal(const Shape& shape, const Machines& machines, int rows) {
  std::string first = machines.usable.empty() ? "on a GPU that starts its grid, not one with " + machines.others : "";
  for (const Machine& machine : machines.usable) {
    const std::string why = refusal(shape, machine, rows);
    if (why.empty()) return "";
    if (first.empty()) first = why;
  }
  return first;
}

Schedule plan(const Shape& shape, const Machines& machines, int rows) {
  const std::string why = refusal(shape, machines, rows);
  if (!why.empty()) throw std::invalid_argument("the decode kernel runs " + why);
  Schedule best;
  size_t fewest = SIZE_MAX;
  for (const Machine& machine : machines.usable) {
    if (!refusal(shape, machine, rows).empty()) continue;
    const Schedule made = plan(shape, machine, rows);
    const size_t bytes = busiest_bytes(shape, made);
    if (bytes < fewest) best = made;
    fewest = std::min(fewest, bytes);
  }
  return best;
}

std::vector<Layer> layers_of(const Shape& shape, const Schedule& schedule) {
  std::vector<Layer> layers;
  for (size_t i = 0; i < shape.layers.size(); ++i) {
    const LayerShape& l = shape.layers[i];
    Layer layer = {};
    layer.heads = l.heads;
    layer.ways = schedule.ways[i];
    layer.persistent = l.persistent;
    layer.relative = l.distance_tables > 0;
    layer.window = l.visibility.window;
    layer.segment = l.visibility.segment;
    layer.reach = l.visibility.reach;
    layer.first_distance = l.visibility.first_distance;
    layer.attended_zeros = l.visibility.attended_zeros;
    layer.capacity = l.visibility.reach + l.visibility.first_distance;  // a row's own key never displaces one it sees
    layer.norm_first = l.norm_first;
    layer.buffer = schedule.buffers[i];
    layer.norm_eps = l.norm_eps;
    layer.span_ramp = l.span_ramp;
    layers.push_back(layer);
  }
  return layers;
}

}  // namespace headcount::cuda::decode
