// The module _cuda, or _cuda_emulated: tensors of a GPU become pointers, work goes onto the caller's stream.
#include <pybind11/pybind11.h>

#include <cstdint>
#include <string>
#include <vector>

#include "bindings/cuda_attention.h"
#include "bindings/cuda_decode.h"
#include "bindings/device_call.h"
#include "bindings/kernel_error.h"
#include "cuda/linear/projections.h"
#include "cuda/linear/vocabulary.h"
#ifdef HEADCOUNT_CUDA_EMULATED
#include "cuda/launch.h"
#endif

namespace py = pybind11;
namespace cuda = headcount::cuda;

namespace {

using headcount::check;
using headcount::CudaAttention;
using headcount::CudaDecode;
using headcount::DeviceCall;
using headcount::Holds;
using headcount::PythonArray;

Stream stream_of(std::uintptr_t number) { return reinterpret_cast<Stream>(number); }

int size_of(const PythonArray& array, int axis) {
  check(array.shape[axis] < 1 << 30, "size", "less than 2^30", std::to_string(array.shape[axis]));
  return static_cast<int>(array.shape[axis]);
}

// x, norm, weight, bias and scratch of a product; weight_shape ends with the depth, its other sizes are columns.
cuda::Product product_of(DeviceCall& call, const py::object& x, const py::object& gain, const py::object& shift,
                         float eps, const py::object& weight, const std::vector<std::int64_t>& weight_shape,
                         const py::object& bias, const py::object& scratch) {
  const PythonArray& weights = call.take(weight.ptr(), "weight", weight_shape, Holds::number);
  cuda::Product product{};
  product.number = call.number();
  product.depth = size_of(weights, static_cast<int>(weight_shape.size()) - 1);
  std::vector<std::int64_t> columns(weights.shape.begin(), weights.shape.end() - 1);
  product.columns = 1;
  for (const std::int64_t size : columns) product.columns *= static_cast<int>(size);
  check(product.depth > 0, "weight", "a depth of 1 or more", "0");
  const PythonArray& rows = call.take(x.ptr(), "x", {-1, product.depth}, Holds::number_or_float32);
  product.x = rows.data;
  product.x_is_float32 = rows.element_bytes() == 4;
  product.rows = size_of(rows, 0);
  product.norm = {static_cast<const float*>(call.take_pointer(gain.ptr(), "gain", {product.depth}, Holds::float32)),
                  static_cast<const float*>(call.take_pointer(shift.ptr(), "shift", {product.depth}, Holds::float32)),
                  eps};
  check(gain.is_none() == shift.is_none(), "shift", "one where there is a gain, and else none", "the other");
  check(gain.is_none() || product.x_is_float32, "x", "float32 where it is normalised", rows.dtype);
  product.weight = weights.data;
  product.bias = call.take_pointer(bias.ptr(), "bias", columns, Holds::number);
  const bool rounded = product.x_is_float32 && cuda::rounds_first(product.rows);
  check(scratch.is_none() != rounded, "scratch", rounded ? "a tensor like x in 16 bits" : "none",
        scratch.is_none() ? "none" : "a tensor");
  product.scratch = call.take_pointer(scratch.ptr(), "scratch", {product.rows, product.depth}, Holds::number, true);
  return product;
}

cuda::Activation activation_of(const std::string& name) {
  const char* names[] = {"none", "relu", "gelu", "gelu_tanh", "quick_gelu", "silu"};
  for (int i = 0; i < 6; ++i) {
    if (name == names[i]) return static_cast<cuda::Activation>(i);
  }
  throw headcount::CheckError("activation", "none, relu, gelu, gelu_tanh, quick_gelu or silu", name);
}

void project(const py::object& x, const py::object& gain, const py::object& shift, float eps, const py::object& weight,
             const py::object& bias, const std::string& activation, const py::object& residual,
             const py::object& scratch, const py::object& out, std::uintptr_t stream) {
  DeviceCall call;
  const cuda::Product product = product_of(call, x, gain, shift, eps, weight, {-1, -1}, bias, scratch);
  const std::vector<std::int64_t> shape{product.rows, product.columns};
  const PythonArray& result = call.take(out.ptr(), "out", shape, Holds::number_or_float32, true);
  const void* added = call.take_pointer(residual.ptr(), "residual", shape, Holds::float32);
  cuda::project(product,
                {activation_of(activation), static_cast<const float*>(added), result.data, result.element_bytes() == 4},
                stream_of(stream));
}

// Rings [slots, H, capacity, D] and each row's slot and position.
cuda::Rings rings_of(DeviceCall& call, const py::object& keys, const py::object& values, std::int64_t heads,
                     std::int64_t head_dim, const py::object& slots, const py::object& positions, std::int64_t rows) {
  check(head_dim % 8 == 0, "head_dim", "a multiple of 8", std::to_string(head_dim));
  const std::vector<std::int64_t> any{-1, heads, -1, head_dim};
  const PythonArray& kept = call.take(keys.ptr(), "keys", any, Holds::number, true);
  cuda::Rings rings{};
  rings.keys = kept.data;
  rings.values = call.take(values.ptr(), "values", kept.shape, Holds::number, true).data;
  rings.heads = static_cast<int>(heads);
  rings.capacity = size_of(kept, 2);
  rings.head_dim = static_cast<int>(head_dim);
  rings.slots = static_cast<const int64_t*>(call.take(slots.ptr(), "slots", {rows}, Holds::int64).data);
  rings.positions = static_cast<const int64_t*>(call.take(positions.ptr(), "positions", {rows}, Holds::int64).data);
  check(rings.capacity > 0, "keys", "rings of 1 slot or more", "0");
  return rings;
}

void project_heads(const py::object& x, const py::object& gain, const py::object& shift, float eps,
                   const py::object& weight, const py::object& bias, const py::object& query, const py::object& keys,
                   const py::object& values, const py::object& slots, const py::object& positions,
                   const py::object& scratch, std::uintptr_t stream) {
  DeviceCall call;
  const cuda::Product product = product_of(call, x, gain, shift, eps, weight, {3, -1, -1, -1}, bias, scratch);
  check(product.x_is_float32, "x", "float32", "16 bits");
  const PythonArray& queries = call.take(query.ptr(), "query", {product.rows, -1, -1}, Holds::number, true);
  const std::int64_t heads = queries.shape[1], head_dim = queries.shape[2];
  call.take(weight.ptr(), "weight", {3, heads, head_dim, product.depth}, Holds::number);
  const cuda::Rings rings = rings_of(call, keys, values, heads, head_dim, slots, positions, product.rows);
  cuda::project_heads(product, queries.data, rings, stream_of(stream));
}

void write_rings(const py::object& new_keys, const py::object& new_values, const py::object& keys,
                 const py::object& values, const py::object& source_rows, const py::object& slots,
                 const py::object& positions, std::uintptr_t stream) {
  DeviceCall call;
  const PythonArray& fresh = call.take(new_keys.ptr(), "new keys", {-1, -1, 1, -1}, Holds::number, true);
  const void* fresh_values = call.take(new_values.ptr(), "new values", fresh.shape, Holds::number, true).data;
  const PythonArray& sources = call.take(source_rows.ptr(), "source_rows", {-1}, Holds::int64);
  const cuda::Rings rings =
      rings_of(call, keys, values, fresh.shape[1], fresh.shape[3], slots, positions, fresh.shape[0]);
  cuda::write_rings(fresh.data, fresh_values, static_cast<const int64_t*>(sources.data), size_of(sources, 0), rings,
                    stream_of(stream));
}

void normalise(const py::object& x, const py::object& gain, const py::object& shift, float eps, const py::object& out,
               std::uintptr_t stream) {
  DeviceCall call;
  const PythonArray& rows = call.take(x.ptr(), "x", {-1, -1}, Holds::float32);
  const int depth = size_of(rows, 1);
  const cuda::Norm norm{static_cast<const float*>(call.take(gain.ptr(), "gain", {depth}, Holds::float32).data),
                        static_cast<const float*>(call.take(shift.ptr(), "shift", {depth}, Holds::float32).data), eps};
  const PythonArray& result = call.take(out.ptr(), "out", rows.shape, Holds::float32);
  cuda::normalise(static_cast<const float*>(rows.data), size_of(rows, 0), depth, norm, static_cast<float*>(result.data),
                  stream_of(stream));
}

void score_words(const py::object& x, const py::object& weight, const py::object& bias, const py::object& targets,
                 const py::object& scratch, const py::object& parts, const py::object& everything,
                 const py::object& logit, std::uintptr_t stream) {
  DeviceCall call;
  const PythonArray& weights = call.take(weight.ptr(), "weight", {-1, -1}, Holds::number);
  const PythonArray& rows = call.take(x.ptr(), "x", {-1, weights.shape[1]}, Holds::number_or_float32);
  cuda::Words words{};
  words.number = call.number();
  words.rows = size_of(rows, 0);
  words.words = size_of(weights, 0);
  words.depth = size_of(weights, 1);
  check(words.words > 0 && words.depth > 0, "weight", "1 word and 1 column or more",
        headcount::shape_text(weights.shape));
  words.weight = weights.data;
  words.bias = call.take_pointer(bias.ptr(), "bias", {words.words}, Holds::number);
  words.targets = static_cast<const int64_t*>(call.take(targets.ptr(), "targets", {words.rows}, Holds::int64).data);
  const std::int64_t count = cuda::word_parts(words.rows, words.words);
  const PythonArray& states = call.take(parts.ptr(), "parts", {3, count, words.rows}, Holds::float32);
  words.peaks = static_cast<float*>(states.data);
  words.totals = words.peaks + count * words.rows;
  words.picked = words.totals + count * words.rows;
  words.everything = static_cast<float*>(call.take(everything.ptr(), "everything", {words.rows}, Holds::float32).data);
  words.logit = static_cast<float*>(call.take(logit.ptr(), "logit", {words.rows}, Holds::float32).data);
  const bool rounded = rows.element_bytes() == 4;
  check(scratch.is_none() != rounded, "scratch", rounded ? "a tensor like x in 16 bits" : "none",
        scratch.is_none() ? "none" : "a tensor");
  void* scratched = call.take_pointer(scratch.ptr(), "scratch", rows.shape, Holds::number, true);
  words.x = rounded ? scratched : rows.data;
  if (rounded)
    cuda::normalise_and_round(static_cast<const float*>(rows.data), words.rows, words.depth, {}, words.number,
                              scratched, stream_of(stream));
  cuda::score_words(words, stream_of(stream));
}

// Sequences of several rows, all [sequences]; query, new keys and values packed; tiles of tile_rows rows [tiles].
void attend_bidirectional(const py::object& query, const py::object& new_keys, const py::object& new_values,
                          const py::object& first_rows, const py::object& lengths, const py::object& tile_sequence,
                          const py::object& tile_row, int tile_rows, const py::object& out, std::uintptr_t stream) {
  DeviceCall call;
  const PythonArray& queries = call.take(query.ptr(), "query", {-1, -1, -1}, Holds::number, true);
  const std::int64_t rows = queries.shape[0], heads = queries.shape[1], head_dim = queries.shape[2];
  check(head_dim % 8 == 0 && head_dim > 0 && head_dim <= 128, "head_dim", "a multiple of 8 up to 128",
        std::to_string(head_dim));
  cuda::Attention attention{};
  attention.number = call.number();
  attention.rows = size_of(queries, 0);
  attention.heads = size_of(queries, 1);
  attention.head_dim = static_cast<int>(head_dim);
  attention.query = queries.data;
  attention.attended = call.take(out.ptr(), "out", queries.shape, Holds::number, true).data;
  cuda::NewRows fresh{};
  const std::vector<std::int64_t> packed{rows, heads, 1, head_dim};
  fresh.keys = call.take(new_keys.ptr(), "new keys", packed, Holds::number, true).data;
  fresh.values = call.take(new_values.ptr(), "new values", packed, Holds::number, true).data;
  const PythonArray& tiles = call.take(tile_sequence.ptr(), "tile_sequence", {-1}, Holds::int32);
  fresh.tile_sequence = static_cast<const int32_t*>(tiles.data);
  fresh.tile_row = static_cast<const int32_t*>(call.take(tile_row.ptr(), "tile_row", tiles.shape, Holds::int32).data);
  fresh.tiles = size_of(tiles, 0);
  fresh.tile_rows = tile_rows;
  const PythonArray& first = call.take(first_rows.ptr(), "first_rows", {-1}, Holds::int64);
  cuda::Sequences sequences{};
  sequences.count = size_of(first, 0);
  sequences.first_rows = static_cast<const int64_t*>(first.data);
  sequences.lengths = static_cast<const int64_t*>(call.take(lengths.ptr(), "lengths", first.shape, Holds::int64).data);
  cuda::attend_bidirectional(attention, sequences, fresh, stream_of(stream));
}

}  // namespace

PYBIND11_MODULE(HEADCOUNT_CUDA_MODULE, module) {
  py::register_local_exception_translator(&headcount::raise_kernel_error);
  module.def("rounds_first", &cuda::rounds_first, py::arg("rows"));
  module.def("word_parts", &cuda::word_parts, py::arg("rows"), py::arg("words"));
  module.def("project", &project, py::arg("x"), py::arg("gain"), py::arg("shift"), py::arg("eps"), py::arg("weight"),
             py::arg("bias"), py::arg("activation"), py::arg("residual"), py::arg("scratch"), py::arg("out"),
             py::arg("stream"));
  module.def("project_heads", &project_heads, py::arg("x"), py::arg("gain"), py::arg("shift"), py::arg("eps"),
             py::arg("weight"), py::arg("bias"), py::arg("query"), py::arg("keys"), py::arg("values"), py::arg("slots"),
             py::arg("positions"), py::arg("scratch"), py::arg("stream"));
  module.def("write_rings", &write_rings, py::arg("new_keys"), py::arg("new_values"), py::arg("keys"),
             py::arg("values"), py::arg("source_rows"), py::arg("slots"), py::arg("positions"), py::arg("stream"));
  module.def("normalise", &normalise, py::arg("x"), py::arg("gain"), py::arg("shift"), py::arg("eps"), py::arg("out"),
             py::arg("stream"));
  module.def("score_words", &score_words, py::arg("x"), py::arg("weight"), py::arg("bias"), py::arg("targets"),
             py::arg("scratch"), py::arg("parts"), py::arg("everything"), py::arg("logit"), py::arg("stream"));
  module.def("attend_bidirectional", &attend_bidirectional, py::arg("query"), py::arg("new_keys"),
             py::arg("new_values"), py::arg("first_rows"), py::arg("lengths"), py::arg("tile_sequence"),
             py::arg("tile_row"), py::arg("tile_rows"), py::arg("out"), py::arg("stream"));
  module.def("rows_of_a_tile", &cuda::rows_of_a_tile, py::arg("longest"));
  module.def("splits_of", &cuda::splits_of, py::arg("rows"), py::arg("heads"), py::arg("persistent"));
  module.def("hopper_tile_rows", [] { return cuda::hopper_tile_rows; });
  module.def("hopper_runs", &cuda::hopper_attend_runs, py::arg("head_dim"));
  module.def("hopper_fits", &CudaAttention::hopper_fits, py::arg("head_dim"), py::arg("heads"), py::arg("tiles"));
  // The plain metaclass, so that the stub can say what the class is.
  py::class_<CudaAttention>(module, "Attention", py::metaclass(reinterpret_cast<PyObject*>(&PyType_Type)))
      .def(py::init<const py::object&, const py::object&, const py::object&, const py::object&, const py::object&,
                    const py::object&, const py::object&, const py::object&, const py::object&, float, int, int, int,
                    int, bool, const py::object&, const py::object&, const py::object&, const py::object&>(),
           py::arg("query"), py::arg("ring_keys"), py::arg("ring_values"), py::arg("distances"),
           py::arg("content_bias"), py::arg("position_bias"), py::arg("persistent_keys"), py::arg("persistent_values"),
           py::arg("spans"), py::arg("span_ramp"), py::arg("window"), py::arg("segment"), py::arg("reach"),
           py::arg("first_distance"), py::arg("attended_zeros"), py::arg("outs"), py::arg("states"), py::arg("scores"),
           py::arg("out"))
      .def("constants", &CudaAttention::constants, py::arg("stream"))
      .def("ring", &CudaAttention::ring, py::arg("first_rows"), py::arg("lengths"), py::arg("slots"),
           py::arg("offsets"), py::arg("positions"), py::arg("stream"))
      .def("rows", &CudaAttention::rows, py::arg("first_rows"), py::arg("lengths"), py::arg("slots"),
           py::arg("offsets"), py::arg("positions"), py::arg("new_keys"), py::arg("new_values"),
           py::arg("tile_sequence"), py::arg("tile_row"), py::arg("tile_rows"), py::arg("stream"));
  module.def("clusters_at_once", &CudaDecode::clusters_at_once);
  py::class_<CudaDecode>(module, "Decode", py::metaclass(reinterpret_cast<PyObject*>(&PyType_Type)))
      .def(py::init<int, int, const py::object&, const std::vector<int>&>(), py::arg("hidden"), py::arg("head_dim"),
           py::arg("layers"), py::arg("clusters"))
      .def("refusal", &CudaDecode::refusal, py::arg("rows"))
      .def("grid", &CudaDecode::grid, py::arg("rows"))
      .def("pack", &CudaDecode::pack, py::arg("layers"))
      .def("schedule", &CudaDecode::schedule, py::arg("rows"))
      .def("layers", &CudaDecode::layers, py::arg("rows"), py::arg("rings"))
      .def("run", &CudaDecode::run, py::arg("float16"), py::arg("packed"), py::arg("layers"), py::arg("items"),
           py::arg("begins"), py::arg("hidden"), py::arg("out"), py::arg("slots"), py::arg("positions"),
           py::arg("outputs"), py::arg("states"), py::arg("meeting"), py::arg("trouble"), py::arg("patience"),
           py::arg("stream"));
#ifdef HEADCOUNT_CUDA_EMULATED
  module.def("set_order", [](unsigned order) { emulated_order = order; }, py::arg("order"));
  module.def(
      "set_clusters",
      [](const std::map<int, int>& clusters, int blocks) { cuda::decode::emulated_gpu = {clusters, blocks}; },
      py::arg("clusters"), py::arg("blocks") = cuda::decode::EmulatedGpu().blocks);
  module.def("set_multiprocessors", [](int count) { emulated_multiprocessors = count; }, py::arg("count"));
#endif
}
