// What must be true of a schedule, said anew and without the planner: a wrong one would hang a GPU, or be wrong
// quietly.
#include <algorithm>
#include <stdexcept>
#include <utility>

#include "cuda/decode/decode.h"

namespace headcount::cuda::decode {
namespace {

class Validator {
 public:
  Validator(const Shape& shape, const Places& places, const Schedule& schedule)
      : shape_(shape), places_(places), s_(schedule) {}

  void run() {
    check_sizes();
    check_shared();
    for (const LayerShape& layer : shape_.layers) done_.push_back(nothing_done(layer));
    const int blocks = s_.machine.clusters * s_.machine.cluster;
    std::vector<std::vector<int>> jobs_of_first;  // of a cluster's first block, per layer
    for (block_ = 0; block_ < blocks; ++block_) {
      const std::vector<std::vector<int>> jobs = check_block();
      if (block_ % s_.machine.cluster == 0) jobs_of_first = jobs;
      at_ = s_.begins[block_];
      expect(jobs == jobs_of_first, "the jobs of the cluster's first block, in its order, so that all meet", "others");
    }
    check_everything_done();
  }

 private:
  // How often what must be done once was done.
  struct Done {
    std::vector<std::vector<int>> columns, outputs;  // [jobs][tiles]
    std::vector<std::vector<int>> vectors, near;     // [heads][blocks of persistent vectors; keys of the context]
    std::vector<int> clusters;                       // [jobs]: which one, -1 = none yet
  };

  void expect(bool condition, const std::string& expected, const std::string& found) const {
    if (condition) return;
    const int begin = s_.begins.size() > size_t(block_) ? s_.begins[block_] : 0;
    throw std::invalid_argument("schedule of a decode step: block " + std::to_string(block_) + ", item " +
                                std::to_string(at_ - begin) + ": expected " + expected + ", found " + found);
  }
  void expect(bool condition, const std::string& expected, int64_t found) const {
    expect(condition, expected, std::to_string(found));
  }

  static int rounded_up(int count, int size) { return (count + size - 1) / size; }

  void check_sizes() {
    const size_t layers = shape_.layers.size(), blocks = size_t(s_.machine.clusters) * s_.machine.cluster;
    expect(s_.rows >= 1 && s_.rows <= most_rows, "1 to 16 rows", s_.rows);
    expect(s_.ways.size() == layers && s_.buffers.size() == layers, "ways and a buffer for every layer",
           static_cast<int64_t>(s_.ways.size()));
    expect(s_.begins.size() == blocks + 1, std::to_string(blocks + 1) + " beginnings of lists",
           static_cast<int64_t>(s_.begins.size()));
    expect(s_.begins.front() == 0 && s_.begins.back() == static_cast<int32_t>(s_.items.size()),
           "lists that are all items", s_.begins.back());
    for (size_t i = 0; i < blocks; ++i) {
      const int count = s_.begins[i + 1] - s_.begins[i];
      expect(count > 0 && count <= s_.most_items, "lists of 1 to " + std::to_string(s_.most_items) + " items", count);
    }
    int last = -1;
    for (size_t i = 0; i < layers; ++i) {
      if (shape_.layers[i].heads == 0) continue;
      expect(s_.ways[i] >= 1, "at least one way", s_.ways[i]);
      expect(shape_.layers[i].heads * s_.ways[i] <= s_.most_jobs, "room for the jobs of every layer", s_.most_jobs);
      // Who is slow still reads the outputs of a layer when the next one's are written.
      expect((s_.buffers[i] == 0 || s_.buffers[i] == 1) && s_.buffers[i] != last,
             "another buffer than the layer with heads before layer " + std::to_string(i), s_.buffers[i]);
      last = s_.buffers[i];
    }
  }

  void check_shared() const {
    const Shared& at = s_.shared;
    const size_t rows = s_.rows, hidden = shape_.hidden, depth = shape_.head_dim;
    const size_t partial = warps * rows * item_tiles * 8 * 4;
    const std::pair<uint32_t, size_t> regions[] = {{0, 128 + 3 * most_rows * 4},
                                                   {at.places, 2 * most_rows * 8},
                                                   {at.full, s_.stages * 8},
                                                   {at.items, s_.most_items * sizeof(Item)},
                                                   {at.layers, shape_.layers.size() * sizeof(Layer)},
                                                   {at.residual, rows * hidden * 4},
                                                   {at.normed, most_rows * (hidden + 8) * 2},
                                                   {at.query, most_rows * (depth + 8) * 4},
                                                   {at.fresh_keys, rows * depth * 2},
                                                   {at.fresh_values, rows * depth * 2},
                                                   {at.scores, std::max<size_t>(most_rows * at.pitch * 4, partial)},
                                                   {at.states, s_.machine.cluster * rows * (depth + 2) * 4},
                                                   {at.attended, most_rows * (depth + 8) * 2},
                                                   {at.ring, size_t(s_.stages) * s_.stage_bytes},
                                                   {at.bytes, 0}};
    size_t end = 0;
    for (const auto& [begin, bytes] : regions) {
      expect(begin >= end && begin % 16 == 0,
             "regions of shared memory beside each other, this one from " + std::to_string(end) + " on", begin);
      end = begin + bytes;
    }
    expect(at.bytes <= s_.machine.shared_bytes,
           "at most " + std::to_string(s_.machine.shared_bytes) + " bytes of shared memory", at.bytes);
    expect(s_.stages >= fewest_stages, std::to_string(fewest_stages) + " stages or more", s_.stages);
    expect(s_.stage_bytes % 128 == 0, "stages that are multiples of 128 bytes", s_.stage_bytes);
    expect(at.pitch % 2 == 0, "rows of scores that begin with a pair", at.pitch);
  }

  Done nothing_done(const LayerShape& l) const {
    const int ways = s_.ways[done_.size()], jobs = l.heads * ways, tiles = shape_.head_dim / 8;
    Done done;
    for (int job = 0; job < jobs; ++job) done.columns.emplace_back(job % ways == 0 ? 3 * tiles : tiles);
    done.outputs.assign(jobs, std::vector<int>(shape_.hidden / 8));
    done.vectors.assign(l.heads, std::vector<int>(rounded_up(l.persistent, block_keys)));
    done.near.assign(l.heads, std::vector<int>(l.visibility.reach));
    done.clusters.assign(jobs, -1);
    return done;
  }

  bool at_kind(Kind kind) const { return at_ < s_.begins[block_ + 1] && s_.items[at_].kind == kind; }
  const Item& next(Kind kind, const char* name, int layer) {
    expect(at_kind(kind), std::string(name) + " of layer " + std::to_string(layer), "something else, or the end");
    const Item& item = s_.items[at_];
    expect(item.layer == layer, std::string(name) + " of layer " + std::to_string(layer), item.layer);
    return item;
  }

  // A block's list: for every layer rows, then its jobs one after another. Returns the jobs of each layer.
  std::vector<std::vector<int>> check_block() {
    std::vector<std::vector<int>> jobs;
    at_ = s_.begins[block_];
    const int layers = static_cast<int>(shape_.layers.size());
    for (int layer = 0; layer <= layers; ++layer) {
      const Item& rows = next(Kind::rows, "rows", layer);
      jobs.emplace_back();
      ++at_;
      while (layer < layers && at_ < s_.begins[block_ + 1] && !at_kind(Kind::rows))
        jobs.back().push_back(check_job(layer));
      check_rows(rows, static_cast<int>(jobs.back().size()));
    }
    expect(at_ == s_.begins[block_ + 1], "no item after the last rows", "one");
    return jobs;
  }

  void check_rows(const Item& item, int jobs) {
    expect(item.job == jobs, "the number of its jobs, " + std::to_string(jobs), item.job);
    std::vector<std::pair<size_t, size_t>> pieces;
    const size_t vector = shape_.hidden * 4;
    if (item.layer > 0)
      pieces.emplace_back(places_.layers[item.layer - 1].vectors,
                          shape_.layers[item.layer - 1].norm_first ? vector : 3 * vector);
    if (jobs > 0 && shape_.layers[item.layer].norm_first)
      pieces.emplace_back(places_.layers[item.layer].vectors + vector, 2 * vector);
    expect(item.near == 0, "no context", item.near);
    check_pieces(item, pieces);
  }

  // What one block does of a job: all of project, then share, all of attend, merge, all of output.
  int check_job(int layer) {
    Done& done = done_[layer];
    const int job = s_.items[at_].job, ways = s_.ways[layer], cluster = block_ / s_.machine.cluster;
    expect(job >= 0 && job < static_cast<int>(done.clusters.size()), "a job of layer " + std::to_string(layer), job);
    const HeadPlaces& head = places_.layers[layer].heads[job / ways];
    expect(done.clusters[job] == -1 || done.clusters[job] == cluster, "job " + std::to_string(job) + " in one cluster",
           "another");
    done.clusters[job] = cluster;
    const size_t tile = shape_.head_dim * tile_keys * 2;
    for (; at_kind(Kind::project); ++at_) {
      const Item& item = own("project", layer, job);
      expect(item.count <= item_tiles, "at most 4 tiles", item.count);
      claim(done.columns[job], item.first, item.count);
      check_pieces(item,
                   {{head.project + size_t{16} * shape_.hidden * item.first, size_t{16} * shape_.hidden * item.count},
                    {head.bias + size_t{32} * item.first, size_t{32} * item.count}});
    }
    next(Kind::share, "share", layer);
    check_meeting(own("share", layer, job));
    for (++at_; at_kind(Kind::attend); ++at_) check_keys(own("attend", layer, job), layer, head);
    next(Kind::merge, "merge", layer);
    check_meeting(own("merge", layer, job));
    for (++at_; at_kind(Kind::output); ++at_) {
      const Item& item = own("output", layer, job);
      claim(done.outputs[job], item.first, item.count);
      check_pieces(item, {{head.output + tile * item.first, tile * item.count}});
    }
    return job;
  }

  const Item& own(const char* name, int layer, int job) const {
    const Item& item = s_.items[at_];
    const std::string what = std::string(name) + " of layer " + std::to_string(layer) + ", job " + std::to_string(job);
    expect(item.layer == layer && item.job == job, what,
           "layer " + std::to_string(item.layer) + ", job " + std::to_string(item.job));
    expect(item.head == job / s_.ways[layer], "head " + std::to_string(job / s_.ways[layer]), item.head);
    expect(item.kind == Kind::attend || item.near == 0, "no context", item.near);
    return item;
  }

  void check_meeting(const Item& item) const { check_pieces(item, {}); }

  void check_keys(const Item& item, int layer, const HeadPlaces& head) {
    const LayerShape& l = shape_.layers[layer];
    const int depth = shape_.head_dim, tiles = rounded_up(item.near, tile_keys);
    claim(done_[layer].vectors[item.head], item.first, item.count);
    expect(item.nearest % tile_keys == 0, "a context that begins with a tile of distances", item.nearest);
    claim(done_[layer].near[item.head], item.nearest, item.near);
    // The row's own key is in the ring only after this launch; it is had from the project items of way 0.
    const bool own_key = l.visibility.first_distance == 0 && item.near > 0 && item.nearest == 0;
    expect(!own_key || item.job % s_.ways[layer] == 0, "the row's own key where it is projected, in way 0",
           "another way");
    const size_t tile = depth * tile_keys * 2, block = depth * block_keys * 4;
    std::vector<std::pair<size_t, size_t>> pieces = {{head.persistent + block * item.first, block * item.count}};
    if (l.distance_tables > 0) pieces.emplace_back(head.distances + tile * (item.nearest / tile_keys), tile * tiles);
    if (tiles > 0) pieces.emplace_back(head.biases, depth * 8);
    check_pieces(item, pieces);
    const int columns = item.count * block_keys + tiles * tile_keys;
    expect(columns <= s_.shared.pitch, "at most " + std::to_string(s_.shared.pitch) + " scores of a row", columns);
  }

  void claim(std::vector<int>& done, int first, int count) const {
    const int size = static_cast<int>(done.size());
    expect(first >= 0 && count >= 0 && count <= size && first <= size - count, "a part of 0 .. " + std::to_string(size),
           std::to_string(first) + " .. " + std::to_string(first + count));
    for (int i = first; i < first + count; ++i)
      expect(done[i]++ == 0, "each part once", "part " + std::to_string(i) + " again");
  }

  // An item streams what it consumes and nothing else, and a stage holds it.
  void check_pieces(const Item& item, const std::vector<std::pair<size_t, size_t>>& wanted) const {
    int count = 0;
    size_t sum = 0;
    for (const auto& [at, bytes] : wanted) {
      if (bytes == 0) continue;
      expect(count < item.pieces, "a piece of " + std::to_string(bytes) + " bytes at " + std::to_string(at), "none");
      const Piece& piece = item.piece[count++];
      expect(piece.at == at / 16 && piece.bytes == bytes, std::to_string(bytes) + " bytes at " + std::to_string(at),
             std::to_string(piece.bytes) + " at " + std::to_string(size_t{piece.at} * 16));
      expect(at + bytes <= places_.bytes, "a piece of the weights", static_cast<int64_t>(at));
      sum += bytes;
    }
    expect(item.pieces == count, std::to_string(count) + " pieces", item.pieces);
    expect(item.bytes == sum, std::to_string(sum) + " bytes streamed", item.bytes);
    const size_t padded = sum + context_bytes(shape_, item, s_.rows) + (item.near ? 2 * s_.rows * padding : 0);
    expect(padded <= s_.stage_bytes, "at most " + std::to_string(s_.stage_bytes) + " bytes in a stage",
           static_cast<int64_t>(padded));
  }

  void check_everything_done() const {
    const auto once = [](const std::vector<std::vector<int>>& all) {
      return std::all_of(all.begin(), all.end(), [](const std::vector<int>& part) {
        return std::all_of(part.begin(), part.end(), [](int times) { return times == 1; });
      });
    };
    for (size_t layer = 0; layer < done_.size(); ++layer) {
      const std::string where = " of layer " + std::to_string(layer);
      const Done& done = done_[layer];
      const bool all = std::count(done.clusters.begin(), done.clusters.end(), -1) == 0;
      expect(all, "every job" + where, "some in no cluster");
      expect(once(done.columns), "all columns of query, key and value" + where, "some missing");
      expect(once(done.vectors), "all persistent vectors" + where, "some missing");
      expect(once(done.near), "all keys of the context" + where, "some missing");
      expect(once(done.outputs), "all columns of the output" + where, "some missing");
    }
  }

  const Shape& shape_;
  const Places& places_;
  const Schedule& s_;
  std::vector<Done> done_;
  int block_ = 0, at_ = 0;
};

}  // namespace

void validate(const Shape& shape, const Places& places, const Schedule& schedule) {
  Validator(shape, places, schedule).run();
}

}  // namespace headcount::cuda::decode
