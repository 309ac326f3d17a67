// Python-free test of a whole model, run under the sanitizers: the same rows whole, one by one and in ragged batches.
#include "cpu/stack.h"

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "common/checks.h"
#include "cpu/embedding.h"
#include "cpu/head.h"
#include "cpu/isa.h"

namespace cpu = headcount::cpu;
using std::int64_t;

namespace {

int failures = 0;

void expect(bool condition, const std::string& what) {
  if (condition) return;
  std::fprintf(stderr, "FAILED: %s\n", what.c_str());
  ++failures;
}

// Arrays of exactly their size on the heap, so that a read beyond one is caught.
class Weights {
 public:
  void add(const std::string& name, std::vector<int64_t> shape, float spread) {
    int64_t size = 1;
    for (const int64_t n : shape) size *= n;
    std::vector<float>& values = values_[name];
    for (int64_t i = 0; i < size; ++i) {
      state_ = state_ * 6364136223846793005ull + 1442695040888963407ull;
      values.push_back(spread * (static_cast<float>(state_ >> 40) / 8388608.0f - 1.0f));
    }
    arrays.add(name, values.data(), std::move(shape));
  }

  cpu::Arrays arrays;

 private:
  std::map<std::string, std::vector<float>> values_;
  std::uint64_t state_ = 1;
};

constexpr int64_t hidden_size = 11, depth = 5, vocab = 21;

void add_layer(cpu::Stack& stack, int64_t heads, int64_t persistent, int64_t window, int64_t width, bool norm_first) {
  std::optional<cpu::AttentionShape> attention;
  Weights w;
  w.add("attention_norm", {hidden_size}, 1.0f);
  w.add("attention_norm_bias", {hidden_size}, 1.0f);
  w.add("attention.output_bias", {hidden_size}, 1.0f);
  if (heads > 0) {
    for (const char* name : {"attention.query", "attention.key", "attention.value"})
      w.add(name, {heads * depth, hidden_size}, 0.6f);
    w.add("attention.output", {hidden_size, heads * depth}, 0.6f);
    w.add("attention.distances", {heads, window, depth}, 1.0f);
    w.add("attention.content_bias", {heads, depth}, 1.0f);
    w.add("attention.zero_key", {heads, depth}, 1.0f);
    w.add("attention.zero_value", {heads, depth}, 1.0f);
    if (persistent > 0) w.add("attention.persistent_keys", {heads, persistent, depth}, 1.0f);
    if (persistent > 0) w.add("attention.persistent_values", {heads, persistent, depth}, 1.0f);
    std::vector<float> spans;
    for (int64_t head = 0; head < heads; ++head) spans.push_back(0.3f * static_cast<float>(window * head));
    attention = {heads, depth, persistent, {window, 0, window, 0, true}, cpu::Relative::per_head, spans, 2.0f};
  }
  if (width > 0) {
    w.add("feed_forward_norm", {hidden_size}, 1.0f);
    w.add("feed_forward_norm_bias", {hidden_size}, 1.0f);
    w.add("feed_forward.up", {width, hidden_size}, 0.6f);
    w.add("feed_forward.down", {hidden_size, width}, 0.6f);
  }
  stack.add_layer({attention, width, cpu::Activation::relu, norm_first, 1e-5f}, w.arrays);
}

struct Model {
  // kind: of the rows that are looked up; matrices: of all that is only multiplied with.
  Model(cpu::Kind kind, cpu::Kind matrices, int threads)
      : compute(cpu::kernels(), threads), stack(hidden_size, matrices, compute) {
    add_layer(stack, 3, 17, 7, 0, true);
    add_layer(stack, 0, 0, 1, 5, true);
    add_layer(stack, 1, 530, 33, 0, false);
    stack.grow(3);
    for (int64_t slot = 0; slot < 3; ++slot) stack.restart(slot);
    Weights shared, rows;
    shared.add("head.0", {vocab - 8, hidden_size}, 1.0f);
    shared.add("head.1", {8, 3}, 1.0f);
    shared.add("head.1.projection", {hidden_size, 3}, 1.0f);
    shared.add("head.clusters", {1, hidden_size}, 1.0f);
    const cpu::ClusterShape plain{0, vocab - 8, hidden_size, false, 0, false, false};
    const cpu::HeadShape head_shape{{plain, {vocab - 8, 8, 3, true, vocab - 8, true, true}}, true, {}, {}, 0.0f, 0, {}};
    head = std::make_unique<cpu::Head>(head_shape, hidden_size, kind, matrices, shared.arrays, compute);
    rows.add("embedding.0", {vocab - 8, hidden_size}, 1.0f);
    rows.add("embedding.1", {8, 3}, 1.0f);
    rows.add("embedding.1.projection", {hidden_size, 3}, 1.0f);
    const cpu::EmbeddingShape shape{{plain, {vocab - 8, 8, 3, true, 0, false, false}}, 1.5f, 0, 0, {}};
    embedding = std::make_unique<cpu::Embedding>(shape, hidden_size, kind, matrices, rows.arrays, *head, compute);
  }

  // -log p of `targets` for rows that continue the slots; `lengths` add up to the rows.
  std::vector<float> run(const std::vector<int64_t>& ids, const std::vector<int64_t>& slots,
                         const std::vector<int64_t>& starts, const std::vector<int64_t>& lengths) {
    const auto rows = static_cast<int64_t>(ids.size());
    std::vector<float> hidden(rows * hidden_size), nll(rows);
    std::vector<int64_t> targets;
    for (const int64_t id : ids) targets.push_back((id * 7 + 3) % (vocab + 1) - 1);
    embedding->embed(ids.data(), rows, nullptr, nullptr, hidden.data());
    stack.step(hidden.data(), rows, {slots.data(), starts.data(), lengths.data(), static_cast<int64_t>(slots.size())},
               nullptr);
    head->target_nll(hidden.data(), rows, targets.data(), nll.data());
    for (int64_t row = 0; row < rows; ++row) expect(std::isnan(nll[row]) == (targets[row] < 0), "NaN where no target");
    for (float& value : nll) value = std::isnan(value) ? 0.0f : value;
    return nll;
  }

  cpu::Compute compute;
  cpu::Stack stack;
  std::unique_ptr<cpu::Head> head;
  std::unique_ptr<cpu::Embedding> embedding;
};

// Where a unit narrows rows, one row and many are rounded in different places.
bool near(const std::vector<float>& found, const std::vector<float>& expected, float within = 1e-3f) {
  bool all = found.size() == expected.size();
  for (std::size_t i = 0; all && i < found.size(); ++i) all = std::abs(found[i] - expected[i]) < within;
  return all;
}

void try_kind(cpu::Kind kind, cpu::Kind matrices, float within, const std::string& name) {
  std::vector<int64_t> ids;
  for (int64_t t = 0; t < 300; ++t) ids.push_back(t * t % vocab);
  Model model(kind, matrices, 1), threaded(kind, matrices, 3);
  const std::vector<float> whole = model.run(ids, {1}, {0}, {300});
  expect(threaded.run(ids, {1}, {0}, {300}) == whole, name + ": 3 threads give the same bits");

  model.stack.restart(1);
  std::vector<float> single;
  for (int64_t t = 0; t < 70; ++t) single.push_back(model.run({ids[t]}, {1}, {t}, {1})[0]);
  expect(near(single, {whole.begin(), whole.begin() + 70}, within), name + ": one by one");

  // Slot 1 goes on with 2 rows, slots 0 and 2 start with one and with 40.
  std::vector<int64_t> rows{ids[70], ids[71], ids[0]};
  rows.insert(rows.end(), ids.begin(), ids.begin() + 40);
  std::vector<float> expected{whole[70], whole[71], whole[0]};
  expected.insert(expected.end(), whole.begin(), whole.begin() + 40);
  expect(near(model.run(rows, {1, 0, 2}, {70, 0, 0}, {2, 1, 40}), expected, within), name + ": ragged");
}

void try_refusals() {
  Model model(cpu::Kind::float32, cpu::Kind::float32, 1);
  for (const std::vector<int64_t>& slots : {std::vector<int64_t>{3}, {-1}}) {
    bool refused = false;
    try {
      model.run({0}, slots, {0}, {1});
    } catch (const headcount::CheckError& error) {
      refused = error.argument == "slots";
    }
    expect(refused, "a slot that was not opened is refused");
  }
}

// Bidirectional layers: sequences side by side as each alone, longer than a part of a causal stack; none in
// pieces.
void try_bidirectional(const std::string& isa) {
  cpu::Compute compute(cpu::kernels(), 2);
  cpu::Stack stack(hidden_size, cpu::Kind::float32, compute);
  for (const bool norm_first : {false, true}) {
    Weights w;
    for (const char* norm : {"attention_norm", "feed_forward_norm"}) {
      w.add(norm, {hidden_size}, 1.0f);
      w.add(std::string(norm) + "_bias", {hidden_size}, 1.0f);
    }
    for (const char* name : {"attention.query", "attention.key", "attention.value"})
      w.add(name, {3 * depth, hidden_size}, 0.6f);
    w.add("attention.output", {hidden_size, 3 * depth}, 0.6f);
    w.add("feed_forward.up", {9, hidden_size}, 0.6f);
    w.add("feed_forward.down", {hidden_size, 9}, 0.6f);
    const cpu::AttentionShape attention{3, depth, 0, {0, 0, 0, 0, false, true}, cpu::Relative::none, {}, 0.0f};
    stack.add_layer({attention, 9, cpu::Activation::gelu, norm_first, 1e-5f}, w.arrays);
  }
  stack.grow(3);
  const std::vector<int64_t> slots{2, 0, 1}, starts{0, 0, 0}, lengths{300, 1, 40};
  std::vector<float> batch(341 * hidden_size);
  for (std::size_t i = 0; i < batch.size(); ++i) batch[i] = std::sin(static_cast<float>(i * i % 1009));
  std::vector<float> alone = batch, changed(batch.begin(), batch.begin() + 300 * hidden_size);
  stack.step(batch.data(), 341, {slots.data(), starts.data(), lengths.data(), 3}, nullptr);
  int64_t row = 0;
  for (int64_t s = 0; s < 3; row += lengths[s++])
    stack.step(&alone[row * hidden_size], lengths[s], {&slots[s], &starts[s], &lengths[s], 1}, nullptr);
  expect(near(batch, alone), isa + ": bidirectional, side by side");
  changed[299 * hidden_size] += 1.0f;
  stack.step(changed.data(), 300, {slots.data(), starts.data(), lengths.data(), 1}, nullptr);
  expect(std::abs(changed[0] - batch[0]) > 1e-6f, isa + ": the first row sees the last");
  bool refused = false;
  const int64_t later = 1;
  try {
    stack.step(changed.data(), 1, {&slots[0], &later, &later, 1}, nullptr);
  } catch (const headcount::CheckError& error) {
    refused = error.argument == "starts";
  }
  expect(refused, isa + ": bidirectional, but not from the start");
}

}  // namespace

int main() {
  using cpu::Kind;
  for (const std::string& isa : cpu::isa_names()) {
    setenv("HEADCOUNT_CPU_ISA", isa.c_str(), 1);
    const float bfloat16 = cpu::kernels().narrows[static_cast<int>(Kind::bfloat16)] ? 0.1f : 1e-3f;
    try_kind(Kind::float32, Kind::float32, 1e-3f, isa + ", float32");
    try_kind(Kind::bfloat16, Kind::bfloat16, bfloat16, isa + ", bfloat16");
    // A sum in another order may move a row's whole number by a step.
    try_kind(Kind::float32, Kind::int8, 5e-2f, isa + ", int8, rest float32");
    try_kind(Kind::bfloat16, Kind::int8, bfloat16, isa + ", int8, rest bfloat16");
    try_bidirectional(isa);
  }
  try_refusals();
  std::printf("stack: %s\n", failures == 0 ? "passed" : "failed");
  return failures == 0 ? 0 : 1;
}
