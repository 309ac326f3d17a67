// The decode kernel as Python drives it: a plan for the layers, made and validated once per number of rows; weights
// packed on the host; and steps on tensors of the GPU.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <cstring>
#include <map>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "bindings/device_call.h"
#include "bindings/fields.h"
#include "cuda/decode/decode.h"

namespace headcount {

class CudaDecode {
 public:
  using object = pybind11::object;
  using Words = pybind11::array_t<std::int32_t>;

  // layers: a dict of the fields of cuda::decode::LayerShape for each. clusters: sizes to choose from, best first.
  // Starts a grid without work of each.
  CudaDecode(int hidden, int head_dim, const object& layers, const std::vector<int>& clusters)
      : machines_(cuda::decode::machines_of_the_device(clusters)) {
    shape_.hidden = hidden;
    shape_.head_dim = head_dim;
    fill_field(shape_.layers, layers, "layers");
  }

  // Blocks of a cluster, 1 to 16 → how many such clusters are resident at once, or why the GPU does not say.
  static pybind11::dict clusters_at_once() {
    pybind11::dict found;
    for (int cluster = 1; cluster <= 16; ++cluster) {
      try {
        found[pybind11::int_(cluster)] = cuda::decode::machine_of_the_device(cluster).clusters;
      } catch (const std::runtime_error& error) {
        found[pybind11::int_(cluster)] = error.what();
      }
    }
    return found;
  }

  // "" or why it does not run steps of this many rows.
  std::string refusal(int rows) const { return cuda::decode::refusal(shape_, machines_, rows); }

  // Clusters, and blocks of each, of a step of this many rows.
  std::tuple<int, int> grid(int rows) {
    const cuda::decode::Machine& machine = of(rows).machine;
    return {machine.clusters, machine.cluster};
  }

  // Weights of each layer by name, 16-bit numbers as uint16 → all of them packed, as int32.
  Words pack(const std::vector<pybind11::dict>& layers) const {
    check(layers.size() == shape_.layers.size(), "layers", std::to_string(shape_.layers.size()),
          std::to_string(layers.size()));
    std::vector<cuda::decode::LayerWeights> weights;
    for (std::size_t i = 0; i < layers.size(); ++i) weights.push_back(weights_of(layers[i], shape_.layers[i]));
    const cuda::decode::Places places = cuda::decode::places_of(shape_);
    Words packed(static_cast<pybind11::ssize_t>(places.bytes / 4));
    std::memset(packed.mutable_data(), 0, places.bytes);
    cuda::decode::pack(shape_, places, weights, reinterpret_cast<unsigned char*>(packed.mutable_data()));
    return packed;
  }

  // Items and where those of each block begin, validated; jobs of a layer at most.
  std::tuple<Words, Words, int> schedule(int rows) {
    const cuda::decode::Schedule& made = of(rows);
    return {words(made.items.data(), made.items.size() * sizeof(cuda::decode::Item)),
            words(made.begins.data(), made.begins.size() * 4), made.most_jobs};
  }

  // Layers as the device sees them; per layer ring keys and values [slots, H, capacity, D] and spans [H], or None.
  Words layers(int rows, const std::vector<std::tuple<object, object, object>>& rings) {
    std::vector<cuda::decode::Layer> made = cuda::decode::layers_of(shape_, of(rows));
    check(rings.size() == made.size(), "rings", std::to_string(made.size()), std::to_string(rings.size()));
    DeviceCall call;
    for (std::size_t i = 0; i < made.size(); ++i) {
      const auto& [keys, values, spans] = rings[i];
      if (made[i].heads == 0) continue;
      const std::vector<std::int64_t> shape{-1, made[i].heads, made[i].capacity, shape_.head_dim};
      const PythonArray& kept = call.take(keys.ptr(), "ring keys", shape, Holds::number, true);
      made[i].ring_keys = kept.data;
      made[i].ring_values = call.take(values.ptr(), "ring values", kept.shape, Holds::number, true).data;
      made[i].spans =
          static_cast<const float*>(call.take_pointer(spans.ptr(), "spans", {made[i].heads}, Holds::float32));
      check((made[i].span_ramp > 0) == (made[i].spans != nullptr), "spans", "where there is a ramp, and only there",
            spans.is_none() ? "none" : "spans");
    }
    return words(made.data(), made.size() * sizeof(cuda::decode::Layer));
  }

  // float16: whether numbers are that and not bfloat16. hidden, out [rows, hidden] float32; slots, positions [rows];
  // outputs [2, most jobs, rows, hidden] and states [2, 2, most jobs, rows] float32 are room; meeting [1] and trouble
  // [4] int32 zeros that stay; patience in nanoseconds.
  void run(bool float16, const object& packed, const object& layers, const object& items, const object& begins,
           const object& hidden, const object& out, const object& slots, const object& positions, const object& outputs,
           const object& states, const object& meeting, const object& trouble, std::uint64_t patience,
           std::uintptr_t stream) {
    DeviceCall call;
    const PythonArray& x = call.take(hidden.ptr(), "hidden", {-1, shape_.hidden}, Holds::float32);
    const std::int64_t rows = x.shape[0];
    const cuda::decode::Schedule& made = of(static_cast<int>(rows));
    const auto integers = [&](const object& tensor, const char* name, std::size_t bytes) {
      return call.take(tensor.ptr(), name, {static_cast<std::int64_t>(bytes / 4)}, Holds::int32, true).data;
    };
    const auto floats = [&](const object& tensor, const char* name, const std::vector<std::int64_t>& shape) {
      return static_cast<float*>(call.take(tensor.ptr(), name, shape, Holds::float32).data);
    };
    const auto numbers = [&](const object& tensor, const char* name) {
      return static_cast<const std::int64_t*>(call.take(tensor.ptr(), name, {rows}, Holds::int64).data);
    };
    cuda::decode::Step step = {};
    step.number = float16 ? cuda::Number::float16 : cuda::Number::bfloat16;
    step.packed = static_cast<const unsigned char*>(integers(packed, "packed", cuda::decode::places_of(shape_).bytes));
    step.layers = static_cast<const cuda::decode::Layer*>(
        integers(layers, "layers", shape_.layers.size() * sizeof(cuda::decode::Layer)));
    step.items = static_cast<const cuda::decode::Item*>(
        integers(items, "items", made.items.size() * sizeof(cuda::decode::Item)));
    step.begins = static_cast<const std::int32_t*>(integers(begins, "begins", made.begins.size() * 4));
    step.hidden = static_cast<const float*>(x.data);
    step.out = floats(out, "out", x.shape);
    step.slots = numbers(slots, "slots");
    step.positions = numbers(positions, "positions");
    step.outputs = floats(outputs, "outputs", {2, made.most_jobs, rows, shape_.hidden});
    step.peaks = floats(states, "states", {2, 2, made.most_jobs, rows});
    step.totals = step.peaks + 2 * made.most_jobs * rows;
    step.meeting = static_cast<std::uint32_t*>(integers(meeting, "meeting", 4));
    step.trouble = static_cast<cuda::decode::Trouble*>(integers(trouble, "trouble", sizeof(cuda::decode::Trouble)));
    step.patience = patience;
    cuda::decode::run(shape_, made, step, reinterpret_cast<Stream>(stream));
  }

 private:
  const cuda::decode::Schedule& of(int rows) {
    const auto found = schedules_.find(rows);
    if (found != schedules_.end()) return found->second;
    const std::string why = refusal(rows);
    check(why.empty(), "decode", why, "these layers on this GPU");
    const cuda::decode::Schedule made = cuda::decode::plan(shape_, machines_, rows);
    cuda::decode::validate(shape_, cuda::decode::places_of(shape_), made);
    return schedules_.emplace(rows, made).first->second;
  }

  static Words words(const void* data, std::size_t bytes) {
    Words result(static_cast<pybind11::ssize_t>(bytes / 4));
    std::memcpy(result.mutable_data(), data, bytes);
    return result;
  }

  template <typename T>
  static const T* array(const pybind11::dict& weights, const char* name, std::size_t size) {
    if (!weights.contains(name)) return nullptr;
    const auto found = pybind11::array_t<T, pybind11::array::c_style>::ensure(weights[name]);
    check(found && pybind11::isinstance<pybind11::array_t<T>>(weights[name]) &&
              static_cast<std::size_t>(found.size()) == size,
          name, "a contiguous array of " + std::to_string(size) + " numbers", "another");
    return found.data();
  }

  cuda::decode::LayerWeights weights_of(const pybind11::dict& w, const cuda::decode::LayerShape& l) const {
    const std::size_t n = std::size_t(l.heads) * shape_.head_dim, matrix = n * shape_.hidden;
    const std::size_t tables = std::size_t(l.distance_tables) * l.visibility.reach * shape_.head_dim;
    cuda::decode::LayerWeights made = {};
    made.output_bias = array<float>(w, "output_bias", shape_.hidden);
    made.gain = array<float>(w, "gain", shape_.hidden);
    made.shift = array<float>(w, "shift", shape_.hidden);
    if (l.heads == 0) return made;
    made.query = array<std::uint16_t>(w, "query", matrix);
    made.key = array<std::uint16_t>(w, "key", matrix);
    made.value = array<std::uint16_t>(w, "value", matrix);
    made.query_bias = array<float>(w, "query_bias", n);
    made.key_bias = array<float>(w, "key_bias", n);
    made.value_bias = array<float>(w, "value_bias", n);
    made.output = array<std::uint16_t>(w, "output", matrix);
    made.distances = array<std::uint16_t>(w, "distances", tables);
    made.content_bias = array<float>(w, "content_bias", n);
    made.position_bias = array<float>(w, "position_bias", n);
    made.persistent_keys = array<std::uint16_t>(w, "persistent_keys", n * l.persistent);
    made.persistent_values = array<std::uint16_t>(w, "persistent_values", n * l.persistent);
    const bool whole = made.query && made.key && made.value && made.output;
    check(whole, "weights", "query, key, value and output", "one missing");
    check(!l.persistent || (made.persistent_keys && made.persistent_values), "weights", "persistent vectors", "none");
    check(!l.distance_tables || made.distances, "weights", "distances", "none");
    return made;
  }

  cuda::decode::Shape shape_;
  cuda::decode::Machines machines_;
  std::map<int, cuda::decode::Schedule> schedules_;
};

}  // namespace headcount
