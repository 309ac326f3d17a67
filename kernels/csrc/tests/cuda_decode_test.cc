// Python-free test of the decode kernel on the emulated GPU: tokens in a row against loops in double, for
// several patterns of heads, batches, grids and orders of threads; blocks that never come make the others give up.
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "cuda/decode/decode.h"
#include "cuda/launch.h"
#include "tests/cuda_decode_case.h"
#include "tests/expect.h"

using namespace headcount::test;
namespace cuda = headcount::cuda;
namespace decode = cuda::decode;

namespace {

// A model in the memory of the GPU, its sequences in slots of their own, with a spare slot between them.
template <typename T>
class Running {
 public:
  Running(ModelCase<T>& model, const decode::Machine& machine, int rows)
      : model_(model), schedule(decode::plan(model.shape, machine, rows)) {
    const decode::Places places = decode::places_of(model.shape);
    decode::validate(model.shape, places, schedule);
    packed_.reset(new (std::align_val_t{128}) unsigned char[places.bytes]);
    std::vector<decode::LayerWeights> weights;
    for (size_t i = 0; i < model.layers.size(); ++i) weights.push_back(model.weights(i));
    decode::pack(model.shape, places, weights, packed_.get());
    layers_ = decode::layers_of(model.shape, schedule);
    for (int row = 0; row < rows; ++row) {
      slots_.push_back(2 * (rows - row) - 1);
      positions_.push_back(row * 5 % 13);
      for (const bool rounds : {false, true}) loops_[rounds].emplace_back(model, rounds);
    }
    for (size_t i = 0; i < layers_.size(); ++i) add_rings(i);
    const size_t jobs = 2 * size_t(schedule.most_jobs) * rows;
    outputs_.assign(jobs * model.shape.hidden, not_a_number);
    peaks_.assign(jobs, not_a_number);
    totals_.assign(jobs, not_a_number);
  }

  // The next token of all sequences; the kernel's rows, [rows, hidden].
  std::vector<float> run(const std::vector<float>& hidden, uint64_t patience) {
    std::vector<float> out(hidden.size(), not_a_number);
    decode::Step step = {};
    step.number = std::is_same_v<T, bf16> ? cuda::Number::bfloat16 : cuda::Number::float16;
    step.packed = packed_.get();
    step.layers = layers_.data();
    step.items = schedule.items.data();
    step.begins = schedule.begins.data();
    step.hidden = hidden.data();
    step.out = out.data();
    step.slots = slots_.data();
    step.positions = positions_.data();
    step.outputs = outputs_.data();
    step.peaks = peaks_.data();
    step.totals = totals_.data();
    step.meeting = &meeting_;
    step.trouble = &trouble;
    step.patience = patience;
    decode::run(model_.shape, schedule, step, nullptr);
    return out;
  }

  // The same by loops, exactly or rounded; positions move on after the rounded ones.
  std::vector<double> expected(const std::vector<float>& hidden, bool rounds) {
    std::vector<double> rows;
    const int width = model_.shape.hidden;
    for (int row = 0; row < schedule.rows; ++row) {
      const Doubles x(hidden.begin() + row * width, hidden.begin() + (row + 1) * width);
      const Doubles y = loops_[rounds][row].step(x, static_cast<int>(positions_[row]));
      rows.insert(rows.end(), y.begin(), y.end());
      positions_[row] += rounds;
    }
    return rows;
  }

 private:
  struct Freed {
    void operator()(unsigned char* memory) const { operator delete[](memory, std::align_val_t{128}); }
  };

  // Rings of a layer as the steps before would have left them; NaN where nothing was written.
  void add_rings(size_t index) {
    const LayerCase<T>& l = model_.layers[index];
    decode::Layer& layer = layers_[index];
    const size_t d = model_.shape.head_dim, heads = l.shape.heads, capacity = layer.capacity;
    for (auto* rings : {&ring_keys_, &ring_values_})
      rings->emplace_back(2 * schedule.rows * heads * capacity * d + 8, device::from_float<T>(not_a_number));
    const auto write = [&](std::vector<T>& ring, int row, int position, const std::vector<T>& numbers) {
      const size_t place = (position + 64 * capacity) % capacity;
      for (size_t h = 0; h < heads; ++h) {
        T* target = ring.data() + ((slots_[row] * heads + h) * capacity + place) * d;
        std::copy_n(numbers.data() + h * d, d, target);
      }
    };
    for (int row = 0; heads > 0 && row < schedule.rows; ++row) {
      for (int p = -static_cast<int>(capacity); p < 0 && l.shape.visibility.attended_zeros; ++p) {
        write(ring_keys_[index], row, p, l.zero_key);
        write(ring_values_[index], row, p, l.zero_value);
      }
      for (int p = 0; p < positions_[row]; ++p) {
        const std::vector<T> keys = model_.numbers(heads * d, 1), values = model_.numbers(heads * d, 1);
        for (auto& loops : loops_) loops[row].remember(index, keys, values);
        write(ring_keys_[index], row, p, keys);
        write(ring_values_[index], row, p, values);
      }
    }
    layer.ring_keys = ring_keys_[index].data();
    layer.ring_values = ring_values_[index].data();
    layer.spans = l.spans.data();
  }

  ModelCase<T>& model_;

 public:
  decode::Schedule schedule;
  decode::Trouble trouble = {};

 private:
  std::unique_ptr<unsigned char[], Freed> packed_;
  std::vector<decode::Layer> layers_;
  std::vector<std::vector<T>> ring_keys_, ring_values_;
  std::vector<int64_t> slots_, positions_;
  std::vector<Loops<T>> loops_[2];
  std::vector<float> outputs_, peaks_, totals_;
  uint32_t meeting_ = 0;
};

constexpr uint64_t long_enough = 2000000, short_enough = 20000;  // the emulated clock counts who asks it

// heads, persistent, tables, {window, segment, reach, first_distance, attended zeros}, norm first, eps, ramp
std::vector<decode::LayerShape> mixed() {
  return {{1, 17, 1, {5, 0, 5, 0, true}, true, 1e-5f, 0},
          {0, 0, 0, {}, true, 1e-5f, 0},
          {3, 64, 3, {9, 0, 9, 1, true}, true, 1e-3f, 3},
          {2, 0, 0, {11, 0, 11, 0, false}, true, 1e-5f, 0}};
}
std::vector<decode::LayerShape> after() {
  return {{2, 33, 2, {4, 3, 6, 0, true}, false, 1e-5f, 0},
          {0, 0, 0, {}, false, 1e-5f, 0},
          {0, 0, 0, {}, true, 1e-5f, 0},
          {1, 96, 1, {17, 0, 17, 1, true}, false, 1e-5f, 0},
          {5, 5, 5, {1, 0, 1, 0, false}, true, 1e-5f, 0},
          {0, 0, 0, {}, false, 1e-5f, 0}};
}

// The rows of all tokens, as bits.
template <typename T>
std::vector<float> follow(const std::string& name, const std::vector<decode::LayerShape>& layers, int hidden,
                          int head_dim, const decode::Machine& machine, int rows, int tokens) {
  ModelCase<T> model(hidden, head_dim, layers, static_cast<unsigned>(name.size() + rows));
  Running<T> running(model, machine, rows);
  const double eps = std::is_same_v<T, bf16> ? 1.0 / 128 : 1.0 / 1024;
  std::vector<float> all;
  for (int token = 0; token < tokens; ++token) {
    const std::vector<float> hidden_rows = model.floats(rows * hidden, 1);
    const std::vector<float> found = running.run(hidden_rows, long_enough);
    const std::vector<double> exact = running.expected(hidden_rows, false), plain = running.expected(hidden_rows, true);
    double worst = 0, allowed = 0, largest = 0;
    for (size_t i = 0; i < found.size(); ++i) {
      worst = std::isnan(found[i]) ? INFINITY : std::max(worst, std::fabs(found[i] - exact[i]));
      allowed = std::max(allowed, 2 * std::fabs(plain[i] - exact[i]));
      largest = std::max(largest, std::fabs(exact[i]));
    }
    allowed += 4 * eps * largest;  // the tolerance rule of engine_kernels/testing.py
    expect(worst <= allowed, name + ", " + std::to_string(rows) + " rows, token " + std::to_string(token) + ": " +
                                 std::to_string(worst) + " of " + std::to_string(allowed));
    expect(running.trouble.raised == 0, name + ": no block gives up");
    all.insert(all.end(), found.begin(), found.end());
  }
  return all;
}

// In two orders of threads, which must change no bit.
template <typename T>
void try_orders(const std::string& name, const std::vector<decode::LayerShape>& layers, int hidden, int head_dim,
                const decode::Machine& machine, int rows, int tokens) {
  emulated_order = 0;
  const std::vector<float> in_order = follow<T>(name, layers, hidden, head_dim, machine, rows, tokens);
  emulated_order = 7;
  const std::vector<float> shuffled = follow<T>(name, layers, hidden, head_dim, machine, rows, tokens);
  expect(std::memcmp(in_order.data(), shuffled.data(), in_order.size() * sizeof(float)) == 0,
         name + ": the order of threads changes a bit");
}

// A fault planted in a good schedule, and what the refusal must name.
void expect_refused(const std::string& fault, const std::string& named,
                    const std::function<void(decode::Schedule&)>& plant, const decode::Machine& machine = {4, 2}) {
  const decode::Shape shape{64, 32, mixed()};
  const decode::Places places = decode::places_of(shape);
  decode::Schedule schedule = decode::plan(shape, machine, 2);
  decode::validate(shape, places, schedule);
  plant(schedule);
  std::string said = "nothing";
  try {
    decode::validate(shape, places, schedule);
  } catch (const std::invalid_argument& error) {
    said = error.what();
  }
  expect(said.find(named) != std::string::npos, fault + ": " + said);
}

// The n-th item of a kind, in the order of blocks.
decode::Item& find(decode::Schedule& schedule, decode::Kind kind, int n = 0) {
  for (decode::Item& item : schedule.items) {
    if (item.kind == kind && n-- == 0) return item;
  }
  throw std::logic_error("no such item");
}

void erase(decode::Schedule& schedule, decode::Item& item) {
  const auto at = &item - schedule.items.data();
  schedule.items.erase(schedule.items.begin() + at);
  for (int32_t& begin : schedule.begins) begin -= begin > at;
}

void try_faults() {
  using decode::Kind;
  using decode::Schedule;
  expect_refused("an output missing", "all columns of the output",
                 [](Schedule& s) { erase(s, find(s, Kind::output)); });
  expect_refused("keys missing", "all persistent vectors", [](Schedule& s) { erase(s, find(s, Kind::attend)); });
  expect_refused("columns missing", "all columns of query", [](Schedule& s) { erase(s, find(s, Kind::project)); });
  expect_refused("a meeting missing", "share of layer 0", [](Schedule& s) { erase(s, find(s, Kind::share)); });
  expect_refused("another meeting missing", "merge of layer 2", [](Schedule& s) { erase(s, find(s, Kind::merge, 1)); });
  expect_refused("a grid meeting missing", "a job of layer 1", [](Schedule& s) { erase(s, find(s, Kind::rows, 2)); });
  expect_refused("rows twice", "rows of layer 1", [](Schedule& s) { find(s, Kind::rows, 1).layer = 0; });
  expect_refused("output twice", "each part once", [](Schedule& s) {
    for (decode::Item& item : s.items) {
      if (item.kind != Kind::output || item.first == 0) continue;
      item.first = 0;
      return;
    }
  });
  expect_refused("output before it is merged", "merge of layer 0",
                 [](Schedule& s) { std::swap(find(s, Kind::merge), find(s, Kind::output)); });
  expect_refused("keys before queries are there", "share of layer 0",
                 [](Schedule& s) { std::swap(find(s, Kind::share), find(s, Kind::attend)); });
  expect_refused("a job of two clusters", "in one cluster", [](Schedule& s) {
    for (decode::Item& item : s.items) {
      if (item.kind != Kind::rows && item.layer == 2 && item.job == 1) item.job = item.head = 0;
    }
  });
  expect_refused("bytes that no item consumes", "bytes streamed",
                 [](Schedule& s) { find(s, Kind::output).bytes += 16; });
  expect_refused("another piece", "bytes at", [](Schedule& s) { ++find(s, Kind::project).piece[0].at; });
  expect_refused("a piece too many", "pieces", [](Schedule& s) { find(s, Kind::share).pieces = 1; });
  expect_refused("a stage too small", "in a stage", [](Schedule& s) { s.stage_bytes = 4096; });
  expect_refused("two stages", "stages or more", [](Schedule& s) { s.stages = 2; });
  expect_refused("more shared memory than there is", "shared memory", [](Schedule& s) { s.shared.bytes = 240 << 10; });
  expect_refused("regions on each other", "beside each other", [](Schedule& s) { s.shared.query -= 128; });
  expect_refused("scores beyond their rows", "scores of a row", [](Schedule& s) { s.shared.pitch = 2; });
  expect_refused("one buffer for two layers", "another buffer", [](Schedule& s) { s.buffers[2] = s.buffers[0]; });
  expect_refused("no room for jobs", "room for the jobs", [](Schedule& s) { s.most_jobs = 1; });
  expect_refused("a list that ends early", "lists", [](Schedule& s) { s.begins[1] = s.begins[0]; });
  expect_refused("the row's own key in the ring", "way 0",
                 [](Schedule& s) {
                   decode::Item* ways[2];
                   for (decode::Item& item : s.items) {
                     if (item.kind == Kind::attend && item.layer == 3 && item.job < 2) ways[item.job] = &item;
                   }
                   std::swap(*ways[0], *ways[1]);
                   std::swap(ways[0]->job, ways[1]->job);
                 },
                 {8, 1});
}

// A block that has nothing to do does not come to the meeting: the others give up and say where, and the launch ends.
// They leave with stages issued and not taken: the emulator throws where a block ends before its copies have landed.
void try_missing() {
  emulated_order = 3;
  for (const decode::Machine& machine : {decode::Machine{3, 1}, decode::Machine{2, 2}}) {
    ModelCase<bf16> model(64, 32, mixed(), 5);
    Running<bf16> running(model, machine, 1);
    const int cluster = machine.cluster, blocks = machine.clusters * cluster;
    for (int block = blocks - cluster + 1; block <= blocks; ++block)
      running.schedule.begins[block] = running.schedule.begins[blocks - cluster];
    const std::vector<float> out = running.run(model.floats(64, 1), short_enough);
    const decode::Trouble& trouble = running.trouble;
    expect(trouble.raised == 1 && trouble.phase == 1 && trouble.layer == 1, "the meeting after layer 0 is given up");
    expect(trouble.block < static_cast<uint32_t>(blocks - cluster), "by a block that came");
    expect(std::isnan(out[0]), "and nothing is written");
  }
  // Bytes that never come.
  ModelCase<bf16> model(64, 32, mixed(), 5);
  Running<bf16> running(model, {1, 2}, 1);
  find(running.schedule, decode::Kind::project).bytes += 16;
  running.run(model.floats(64, 1), short_enough);
  expect(running.trouble.raised == 1 && running.trouble.phase == 2 && running.trouble.layer == 0 &&
             running.trouble.block == 0,
         "a stage that never fills is given up");
  // The same at the end of the last layer, which has no head: no meeting follows.
  ModelCase<bf16> bare(64, 32, {{0, 0, 0, {}, true, 1e-5f, 0}}, 5);
  Running<bf16> alone(bare, {1, 2}, 1);
  find(alone.schedule, decode::Kind::rows, 1).bytes += 16;
  alone.run(bare.floats(64, 1), short_enough);
  expect(alone.trouble.raised == 1 && alone.trouble.phase == 2 && alone.trouble.layer == 1, "nor does the last one");
}

// Which of two grids is taken for layers of the published geometry, all of `heads` heads.
void try_choice() {
  const auto cluster_of = [](int heads, int rows, int eights, int fours) {
    const decode::LayerShape layer = {heads, 2048, heads, {192, 0, 192, 0, true}, true, 1e-5f, 0};
    const decode::Shape shape{512, 64, {layer, layer}};
    const decode::Schedule made = decode::plan(shape, decode::Machines{{{eights, 8}, {fours, 4}}, ""}, rows);
    decode::validate(shape, decode::places_of(shape), made);
    return made.machine.cluster;
  };
  for (const int rows : {1, 16})
    expect(cluster_of(8, rows, 16, 33) == 8, "8 heads on 16 clusters of 8, " + std::to_string(rows) + " rows");
  expect(cluster_of(8, 1, 15, 33) == 4, "8 heads on 15 clusters of 8, half of which would have no job");
  expect(cluster_of(8, 16, 15, 33) == 8, "but not where four times the ways write outputs of 16 rows");
  expect(cluster_of(4, 1, 15, 33) == 8, "4 heads, three ways each");
  expect(cluster_of(8, 1, 3, 33) == 4, "few clusters of 8");
  // A machine with too little shared memory is passed over, and what no machine runs is refused by the first's reason.
  const decode::Shape shape{64, 32, mixed()};
  const decode::Machines both{{{4, 8, 20 << 10}, {4, 2}}, ""}, small{{{4, 8, 20 << 10}, {4, 2, 30 << 10}}, ""};
  expect(decode::plan(shape, both, 1).machine.cluster == 2, "the machine whose shared memory suffices");
  expect(decode::refusal(shape, small, 1).find("not " + std::to_string(20 << 10)) != std::string::npos, "neither");
}

// What the GPU says that it places, and what it then starts.
void try_machines() {
  const auto first_of = [](const decode::EmulatedGpu& gpu) {
    decode::emulated_gpu = gpu;
    const decode::Machines machines = decode::machines_of_the_device({8, 4});
    decode::emulated_gpu = {};
    if (!machines.usable.empty()) return std::to_string(machines.usable[0].cluster);
    return decode::refusal({64, 32, mixed()}, machines, 1);
  };
  expect(first_of({{{8, 3}, {4, 7}}, 99}) == "8", "the first of those that start");
  expect(first_of({{{8, 3}, {4, 2}}, 9}) == "4", "8 blocks where 24 do not start");
  const std::string why = first_of({{{4, 3}}, 9});
  for (const char* named : {"clusters of 8: none resident", "clusters of 4: 3 not started (kernel launch: more blocks"})
    expect(why.find(named) != std::string::npos, "a refusal in the launch's words: " + why);
}

void try_refusals() {
  const auto why = [](int hidden, int head_dim, int rows, decode::Machine machine) {
    return decode::refusal({hidden, head_dim, mixed()}, machine, rows);
  };
  expect(why(64, 32, 16, {4, 2}).empty(), "what it runs");
  expect(why(64, 32, 17, {4, 2}).find("16 rows") != std::string::npos, "17 rows");
  expect(why(64, 48, 1, {4, 2}).find("48") != std::string::npos, "heads of 48");
  expect(why(80, 32, 1, {4, 2}).find("80") != std::string::npos, "a hidden size of 80");
  expect(why(64, 32, 1, {0, 2}).find("clusters") != std::string::npos, "no cluster");
  expect(why(64, 32, 1, {4, 2, 64 << 10}).find("shared memory") != std::string::npos, "little shared memory");
}

}  // namespace

int main() {
  try_refusals();
  try_faults();
  try_missing();
  try_choice();
  try_machines();
  try_orders<bf16>("one block", mixed(), 64, 32, {1, 1}, 1, 8);
  try_orders<bf16>("three clusters", mixed(), 64, 32, {3, 1}, 2, 4);
  try_orders<fp16>("a cluster of three", after(), 64, 32, {1, 3}, 5, 3);
  try_orders<bf16>("four clusters of two", after(), 96, 32, {4, 2}, 16, 2);
  try_orders<fp16>("eight clusters", mixed(), 64, 32, {8, 1}, 1, 2);
  try_orders<bf16>("a cluster of eight", after(), 64, 32, {1, 8}, 2, 2);
  // Heads of 64 and 128 numbers, more keys than a stage holds, and more heads than clusters.
  try_orders<bf16>("wide", {{2, 300, 2, {70, 0, 70, 0, true}, true, 1e-5f, 0}}, 64, 64, {1, 1}, 5, 1);
  try_orders<fp16>("wider", {{16, 40, 1, {9, 0, 9, 1, true}, true, 1e-5f, 4}}, 64, 128, {2, 1}, 2, 1);
  return finish("cuda_decode");
}
