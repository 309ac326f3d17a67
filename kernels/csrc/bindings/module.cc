// The module _native: arrays become views. Only this folder includes pybind11.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <unistd.h>

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "bindings/argument.h"
#include "bindings/fields.h"
#include "bindings/kernel_error.h"
#include "common/checks.h"
#include "common/tensor_view.h"
#include "cpu/all_finite.h"
#include "cpu/embedding.h"
#include "cpu/head.h"
#include "cpu/isa.h"
#include "cpu/panel_store.h"
#include "cpu/stack.h"

namespace py = pybind11;
namespace cpu = headcount::cpu;

namespace {

using headcount::Argument;
using headcount::check;

headcount::TensorView as_view(const py::buffer_info& buffer, int dtype_code) {
  const auto dtype = static_cast<headcount::DType>(dtype_code);
  const auto bytes = static_cast<py::ssize_t>(headcount::element_size(dtype));
  const bool contiguous = buffer.ndim == 1 && (buffer.size < 2 || buffer.strides[0] == buffer.itemsize);
  check(bytes != 0, "dtype", "a code from 0 to 3", std::to_string(dtype_code));
  check(contiguous, "data", "a contiguous buffer of one dimension",
        std::to_string(buffer.ndim) + (buffer.ndim == 1 ? " dimension, strided" : " dimensions"));
  check(buffer.itemsize == bytes, "data", "elements of " + std::to_string(bytes) + " bytes",
        std::to_string(buffer.itemsize) + " bytes");
  return {buffer.ptr, static_cast<std::int64_t>(buffer.size), dtype};
}

bool all_finite(const py::buffer& data, int dtype) {
  const py::buffer_info buffer = data.request();
  const headcount::TensorView view = as_view(buffer, dtype);
  const py::gil_scoped_release release;
  return headcount::all_finite(view);
}

// Arrays of a dict with the buffers they stand in.
class NamedArguments {
 public:
  explicit NamedArguments(const py::dict& given) {
    for (const auto& [key, value] : given) {
      const auto name = py::cast<std::string>(key);
      buffers_.push_back(Argument<float>::of_any_shape(value.ptr(), name.c_str()));
      arrays.add(name, buffers_.back().data(), buffers_.back().shape());
    }
  }

  cpu::Arrays arrays;

 private:
  std::vector<Argument<float>> buffers_;
};

// Instruction set and operation → calls so far in this process; only those that were called.
std::map<std::string, std::int64_t> call_counts() {
  std::map<std::string, std::int64_t> counts;
  for (const cpu::CallCount& count : cpu::call_counts())
    if (count.calls > 0) counts[count.isa + "." + count.op] = count.calls;
  return counts;
}

// y = x · Wᵀ in float32, on the caller's thread alone.
void linear(const py::object& x, const py::object& w, const py::object& y) {
  const Argument<float> in(x.ptr(), "x", {-1, -1});
  const Argument<float> weights(w.ptr(), "w", {-1, in.size(1)});
  const Argument<float> out(y.ptr(), "y", {in.size(0), weights.size(0)}, true);
  const py::gil_scoped_release release;
  cpu::Compute compute(cpu::kernels(), 1);
  const std::int64_t n = weights.size(0), k = in.size(1);
  const cpu::PackedBuffer packed = cpu::pack(weights.data(), n, k, k, 1, cpu::Kind::float32, compute.pool);
  const cpu::Packed view = packed.view();
  compute.linear({in.data(), k, in.size(0), &view, nullptr, nullptr, out.data(), n, cpu::Activation::none});
}

// A model's weights and caches. Calls wait for one another; none holds the interpreter's lock while it computes.
class NativeModel {
 public:
  NativeModel(std::int64_t hidden, int dtype, bool int8, int threads)
      : hidden_(hidden),
        kind_(kind_of(hidden, dtype)),
        matrix_kind_(int8 ? cpu::Kind::int8 : kind_),
        compute_(cpu::kernels(), threads),
        stack_(hidden, matrix_kind_, compute_),
        process_(getpid()) {}

  void add_layer(const py::dict& shape, const py::dict& arrays) {
    const NamedArguments given(arrays);
    const auto layer = headcount::filled<cpu::LayerShape>(shape, "layer");
    run([&] { stack_.add_layer(layer, given.arrays); });
  }

  // Before the embedding, which reads what the two share from the head's panels.
  void set_head(const py::dict& shape, const py::dict& arrays) {
    const NamedArguments given(arrays);
    const auto head = headcount::filled<cpu::HeadShape>(shape, "head");
    check(embedding_ == nullptr, "model", "its head before its embedding", "one whose embedding is set");
    run([&] { head_ = std::make_unique<cpu::Head>(head, hidden_, kind_, matrix_kind_, given.arrays, compute_); });
  }

  void set_embedding(const py::dict& shape, const py::dict& arrays) {
    const NamedArguments given(arrays);
    const auto embedding = headcount::filled<cpu::EmbeddingShape>(shape, "embedding");
    run([&] {
      embedding_ =
          std::make_unique<cpu::Embedding>(embedding, hidden_, kind_, matrix_kind_, given.arrays, head(), compute_);
    });
  }

  void grow(std::int64_t slots) {
    run([&] { stack_.grow(slots); });
  }

  void restart(std::int64_t slot) {
    run([&] { stack_.restart(slot); });
  }

  void embed(const py::object& ids, const py::object& hidden, const py::object& positions,
             const py::object& token_types) {
    const Argument<std::int64_t> in(ids.ptr(), "ids", {-1});
    const Argument<float> out(hidden.ptr(), "hidden", {in.size(0), hidden_}, true);
    std::optional<Argument<std::int64_t>> places, types;
    if (!positions.is_none()) places.emplace(positions.ptr(), "positions", std::vector<std::int64_t>{in.size(0)});
    if (!token_types.is_none()) types.emplace(token_types.ptr(), "token_types", std::vector<std::int64_t>{in.size(0)});
    run([&] {
      embedding().embed(in.data(), in.size(0), places ? places->data() : nullptr, types ? types->data() : nullptr,
                        out.data());
    });
  }

  void transform(const py::object& hidden) {
    const Argument<float> rows(hidden.ptr(), "hidden", {-1, hidden_}, true);
    run([&] { head().transform(rows.data(), rows.size(0)); });
  }

  void labels(const py::object& hidden, const py::object& out) {
    const Argument<float> rows(hidden.ptr(), "hidden", {-1, hidden_});
    const Argument<float> result(out.ptr(), "out", {rows.size(0), head().shape().labels}, true);
    run([&] { head().labels(rows.data(), rows.size(0), result.data()); });
  }

  void logits(const py::object& hidden, const py::object& out) {
    const Argument<float> rows(hidden.ptr(), "hidden", {-1, hidden_});
    const Argument<float> result(out.ptr(), "out", {rows.size(0), head().words()}, true);
    run([&] { head().logits(rows.data(), rows.size(0), result.data()); });
  }

  void step(const py::object& hidden, const py::object& slots, const py::object& starts, const py::object& lengths,
            const std::optional<py::object>& taps) {
    const Argument<float> rows(hidden.ptr(), "hidden", {-1, hidden_}, true);
    const Argument<std::int64_t> which(slots.ptr(), "slots", {-1});
    const Argument<std::int64_t> from(starts.ptr(), "starts", {which.size(0)});
    const Argument<std::int64_t> count(lengths.ptr(), "lengths", {which.size(0)});
    std::optional<Argument<float>> tapped;
    if (taps)
      tapped.emplace(taps->ptr(), "taps", std::vector<std::int64_t>{stack_.layers(), rows.size(0), hidden_}, true);
    run([&] {
      stack_.step(rows.data(), rows.size(0), {which.data(), from.data(), count.data(), which.size(0)},
                  tapped ? tapped->data() : nullptr);
    });
  }

  void final_norm(const py::object& hidden) {
    const Argument<float> rows(hidden.ptr(), "hidden", {-1, hidden_}, true);
    run([&] { head().final_norm(rows.data(), rows.size(0)); });
  }

  void head_log_probs(const py::object& hidden, const py::object& out) {
    const Argument<float> rows(hidden.ptr(), "hidden", {-1, hidden_});
    const Argument<float> result(out.ptr(), "out", {rows.size(0), head().head_width()}, true);
    run([&] { head().head_log_probs(rows.data(), rows.size(0), result.data()); });
  }

  void tail_log_probs(const py::object& hidden, std::int64_t cluster, const py::object& out) {
    const Argument<float> rows(hidden.ptr(), "hidden", {-1, hidden_});
    const Argument<float> result(out.ptr(), "out", {rows.size(0), head().tail_width(cluster)}, true);
    run([&] { head().tail_log_probs(rows.data(), rows.size(0), cluster, result.data()); });
  }

  void target_nll(const py::object& hidden, const py::object& targets, const py::object& out) {
    const Argument<float> rows(hidden.ptr(), "hidden", {-1, hidden_});
    const Argument<std::int64_t> wanted(targets.ptr(), "targets", {rows.size(0)});
    const Argument<float> result(out.ptr(), "out", {rows.size(0)}, true);
    run([&] { head().target_nll(rows.data(), rows.size(0), wanted.data(), result.data()); });
  }

  std::string instruction_set() const { return compute_.kernels.name; }
  int threads() const { return compute_.pool.threads(); }

  // Of the packed weights: all this model reads, and how many of these another one reads too.
  std::pair<std::int64_t, std::int64_t> weight_bytes() {
    cpu::PanelBytes bytes{0, 0};
    run([&] {
      std::vector<const cpu::Panels*> parts;
      stack_.list_panels(parts);
      if (head_ != nullptr) parts.push_back(&head_->memory());
      if (embedding_ != nullptr) parts.push_back(&embedding_->memory());
      bytes = cpu::count_bytes(parts);
    });
    return {bytes.held, bytes.shared};
  }

 private:
  static cpu::Kind kind_of(std::int64_t hidden, int dtype) {
    check(hidden >= 1, "hidden", "at least 1", std::to_string(hidden));
    check(dtype == 0 || dtype == 3, "dtype", "0 (float32) or 3 (bfloat16)", std::to_string(dtype));
    return dtype == 0 ? cpu::Kind::float32 : cpu::Kind::bfloat16;
  }

  cpu::Embedding& embedding() const {
    check(embedding_ != nullptr, "model", "one whose embedding is set", "one without");
    return *embedding_;
  }

  cpu::Head& head() const {
    check(head_ != nullptr, "model", "one whose head is set", "one without");
    return *head_;
  }

  // A forked child has neither the pool's threads nor, perhaps, a lock that is free.
  template <typename Work>
  void run(const Work& work) {
    check(getpid() == process_, "process", "the one that loaded the model", "a child forked from it");
    const py::gil_scoped_release release;
    const std::lock_guard<std::mutex> lock(mutex_);
    work();
  }

  const std::int64_t hidden_;
  const cpu::Kind kind_, matrix_kind_;  // of rows that are looked up; of what is only multiplied with
  cpu::Compute compute_;
  cpu::Stack stack_;
  std::unique_ptr<cpu::Head> head_;
  std::unique_ptr<cpu::Embedding> embedding_;  // reads the head's panels
  std::mutex mutex_;
  const pid_t process_;
};

}  // namespace

PYBIND11_MODULE(_native, module) {
  py::register_exception_translator(&headcount::raise_kernel_error);
  module.def("all_finite", &all_finite, py::arg("data"), py::arg("dtype"));
  module.def("instruction_set", [] { return std::string(cpu::kernels().name); });
  module.def("instruction_sets", &cpu::isa_names);
  module.def("call_counts", &call_counts);
  module.def("linear", &linear, py::arg("x"), py::arg("w"), py::arg("y"));
  module.def("stored_bytes", &cpu::stored_bytes);
  module.def("without_cuda", [] { return std::string(HEADCOUNT_WITHOUT_CUDA); });
  // The plain metaclass, so that the stub can say what the class is.
  py::class_<NativeModel>(module, "NativeModel", py::metaclass(reinterpret_cast<PyObject*>(&PyType_Type)))
      .def(py::init<std::int64_t, int, bool, int>(), py::arg("hidden"), py::arg("dtype"), py::arg("int8"),
           py::arg("threads"))
      .def("add_layer", &NativeModel::add_layer, py::arg("shape"), py::arg("arrays"))
      .def("set_head", &NativeModel::set_head, py::arg("shape"), py::arg("arrays"))
      .def("set_embedding", &NativeModel::set_embedding, py::arg("shape"), py::arg("arrays"))
      .def("grow", &NativeModel::grow, py::arg("slots"))
      .def("restart", &NativeModel::restart, py::arg("slot"))
      .def("embed", &NativeModel::embed, py::arg("ids"), py::arg("hidden"), py::arg("positions"),
           py::arg("token_types"))
      .def("transform", &NativeModel::transform, py::arg("hidden"))
      .def("labels", &NativeModel::labels, py::arg("hidden"), py::arg("out"))
      .def("logits", &NativeModel::logits, py::arg("hidden"), py::arg("out"))
      .def("step", &NativeModel::step, py::arg("hidden"), py::arg("slots"), py::arg("starts"), py::arg("lengths"),
           py::arg("taps"))
      .def("final_norm", &NativeModel::final_norm, py::arg("hidden"))
      .def("head_log_probs", &NativeModel::head_log_probs, py::arg("hidden"), py::arg("out"))
      .def("tail_log_probs", &NativeModel::tail_log_probs, py::arg("hidden"), py::arg("cluster"), py::arg("out"))
      .def("target_nll", &NativeModel::target_nll, py::arg("hidden"), py::arg("targets"), py::arg("out"))
      .def_property_readonly("instruction_set", &NativeModel::instruction_set)
      .def_property_readonly("threads", &NativeModel::threads)
      .def("weight_bytes", &NativeModel::weight_bytes);
}
