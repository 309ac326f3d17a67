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
#include <tuple>
#include <utility>
#include <vector>

#include "bindings/argument.h"
#include "bindings/kernel_error.h"
#include "common/checks.h"
#include "common/tensor_view.h"
#include "cpu/all_finite.h"
#include "cpu/ends.h"
#include "cpu/isa.h"
#include "cpu/panel_store.h"
#include "cpu/stack.h"
#include "cpu/vocabulary.h"

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

using ClusterTuple = std::tuple<std::int64_t, std::int64_t, std::int64_t, std::int64_t, bool, bool>;

std::vector<cpu::Cluster> clusters_of(const std::vector<ClusterTuple>& tuples) {
  std::vector<cpu::Cluster> clusters;
  for (const auto& [start, size, width, entry, projected, tied] : tuples)
    clusters.push_back({start, size, width, entry, projected, tied});
  return clusters;
}

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

  void add_layer(std::int64_t heads, std::int64_t head_dim, std::int64_t persistent, std::int64_t window,
                 std::int64_t segment, std::int64_t reach, int first, bool attended_zeros, float ramp, bool both,
                 std::int64_t feed_forward, int activation, bool norm_first, float norm_eps, const py::dict& arrays) {
    const NamedArguments given(arrays);
    const cpu::Visibility see{window, segment, reach, first, attended_zeros, ramp, both};
    run([&] {
      stack_.add_layer({heads, head_dim, persistent, feed_forward, static_cast<cpu::Activation>(activation), see,
                        norm_first, norm_eps},
                       given.arrays);
    });
  }

  void set_vocabulary(const std::vector<ClusterTuple>& inputs, const std::vector<ClusterTuple>& outputs,
                      bool clusters_read_hidden, std::optional<float> final_norm_eps, float embedding_scale,
                      const py::dict& arrays) {
    const NamedArguments given(arrays);
    const cpu::VocabularyShape shape{hidden_,
                                     clusters_of(inputs),
                                     clusters_of(outputs),
                                     clusters_read_hidden,
                                     final_norm_eps.has_value(),
                                     final_norm_eps.value_or(0.0f),
                                     embedding_scale};
    run([&] { vocabulary_ = std::make_unique<cpu::Vocabulary>(shape, kind_, matrix_kind_, given.arrays, compute_); });
  }

  void grow(std::int64_t slots) {
    run([&] { stack_.grow(slots); });
  }

  void restart(std::int64_t slot) {
    run([&] { stack_.restart(slot); });
  }

  void set_ends(std::int64_t positions, std::int64_t token_types, std::optional<float> embedding_norm_eps,
                std::optional<int> transform, float transform_eps, std::int64_t labels, std::optional<int> pooler,
                const py::dict& arrays) {
    const NamedArguments given(arrays);
    const cpu::EndsShape shape{
        hidden_,       positions, token_types,          embedding_norm_eps, activation_of(transform),
        transform_eps, labels,    activation_of(pooler)};
    run([&] { ends_ = std::make_unique<cpu::Ends>(shape, kind_, given.arrays, compute_); });
  }

  void embed(const py::object& ids, const py::object& hidden, const py::object& positions,
             const py::object& token_types) {
    const Argument<std::int64_t> in(ids.ptr(), "ids", {-1});
    const Argument<float> out(hidden.ptr(), "hidden", {in.size(0), hidden_}, true);
    std::optional<Argument<std::int64_t>> places, types;
    if (!positions.is_none()) places.emplace(positions.ptr(), "positions", std::vector<std::int64_t>{in.size(0)});
    if (!token_types.is_none()) types.emplace(token_types.ptr(), "token_types", std::vector<std::int64_t>{in.size(0)});
    run([&] {
      vocabulary().embed(in.data(), in.size(0), out.data());
      if (ends_ != nullptr)
        ends_->add(out.data(), in.size(0), places ? places->data() : nullptr, types ? types->data() : nullptr);
    });
  }

  void transform(const py::object& hidden) {
    const Argument<float> rows(hidden.ptr(), "hidden", {-1, hidden_}, true);
    run([&] { ends().transform(rows.data(), rows.size(0)); });
  }

  void labels(const py::object& hidden, const py::object& out) {
    const Argument<float> rows(hidden.ptr(), "hidden", {-1, hidden_});
    const Argument<float> result(out.ptr(), "out", {rows.size(0), ends().shape().labels}, true);
    run([&] { ends().labels(rows.data(), rows.size(0), result.data()); });
  }

  void logits(const py::object& hidden, const py::object& out) {
    const Argument<float> rows(hidden.ptr(), "hidden", {-1, hidden_});
    const Argument<float> result(out.ptr(), "out", {rows.size(0), vocabulary().words()}, true);
    run([&] { vocabulary().logits(rows.data(), rows.size(0), result.data()); });
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

  void finish(const py::object& hidden) {
    const Argument<float> rows(hidden.ptr(), "hidden", {-1, hidden_}, true);
    run([&] { vocabulary().finish(rows.data(), rows.size(0)); });
  }

  void head_log_probs(const py::object& hidden, const py::object& out) {
    const Argument<float> rows(hidden.ptr(), "hidden", {-1, hidden_});
    const Argument<float> result(out.ptr(), "out", {rows.size(0), vocabulary().head_width()}, true);
    run([&] { vocabulary().head_log_probs(rows.data(), rows.size(0), result.data()); });
  }

  void tail_log_probs(const py::object& hidden, std::int64_t cluster, const py::object& out) {
    const Argument<float> rows(hidden.ptr(), "hidden", {-1, hidden_});
    const Argument<float> result(out.ptr(), "out", {rows.size(0), vocabulary().tail_width(cluster)}, true);
    run([&] { vocabulary().tail_log_probs(rows.data(), rows.size(0), cluster, result.data()); });
  }

  void target_nll(const py::object& hidden, const py::object& targets, const py::object& out) {
    const Argument<float> rows(hidden.ptr(), "hidden", {-1, hidden_});
    const Argument<std::int64_t> wanted(targets.ptr(), "targets", {rows.size(0)});
    const Argument<float> result(out.ptr(), "out", {rows.size(0)}, true);
    run([&] { vocabulary().target_nll(rows.data(), rows.size(0), wanted.data(), result.data()); });
  }

  std::string instruction_set() const { return compute_.kernels.name; }
  int threads() const { return compute_.pool.threads(); }

  // Of the packed weights: all this model reads, and how many of these another one reads too.
  std::pair<std::int64_t, std::int64_t> weight_bytes() {
    cpu::PanelBytes bytes{0, 0};
    run([&] {
      std::vector<const cpu::Panels*> parts;
      stack_.list_panels(parts);
      if (vocabulary_ != nullptr) parts.push_back(&vocabulary_->memory());
      if (ends_ != nullptr) parts.push_back(&ends_->memory());
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

  static std::optional<cpu::Activation> activation_of(std::optional<int> code) {
    if (!code) return std::nullopt;
    check(*code >= 0 && *code < static_cast<int>(cpu::Activation::count), "activation", "the code of one",
          std::to_string(*code));
    return static_cast<cpu::Activation>(*code);
  }

  cpu::Ends& ends() const {
    check(ends_ != nullptr, "model", "one whose ends are set", "one without");
    return *ends_;
  }

  cpu::Vocabulary& vocabulary() const {
    check(vocabulary_ != nullptr, "model", "one whose vocabulary is set", "one without");
    return *vocabulary_;
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
  std::unique_ptr<cpu::Vocabulary> vocabulary_;
  std::unique_ptr<cpu::Ends> ends_;
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
      .def("add_layer", &NativeModel::add_layer, py::kw_only(), py::arg("heads"), py::arg("head_dim"),
           py::arg("persistent"), py::arg("window"), py::arg("segment"), py::arg("reach"), py::arg("first"),
           py::arg("attended_zeros"), py::arg("ramp"), py::arg("both"), py::arg("feed_forward"), py::arg("activation"),
           py::arg("norm_first"), py::arg("norm_eps"), py::arg("arrays"))
      .def("set_vocabulary", &NativeModel::set_vocabulary, py::kw_only(), py::arg("inputs"), py::arg("outputs"),
           py::arg("clusters_read_hidden"), py::arg("final_norm_eps"), py::arg("embedding_scale"), py::arg("arrays"))
      .def("grow", &NativeModel::grow, py::arg("slots"))
      .def("restart", &NativeModel::restart, py::arg("slot"))
      .def("embed", &NativeModel::embed, py::arg("ids"), py::arg("hidden"), py::arg("positions"),
           py::arg("token_types"))
      .def("set_ends", &NativeModel::set_ends, py::kw_only(), py::arg("positions"), py::arg("token_types"),
           py::arg("embedding_norm_eps"), py::arg("transform"), py::arg("transform_eps"), py::arg("labels"),
           py::arg("pooler"), py::arg("arrays"))
      .def("transform", &NativeModel::transform, py::arg("hidden"))
      .def("labels", &NativeModel::labels, py::arg("hidden"), py::arg("out"))
      .def("logits", &NativeModel::logits, py::arg("hidden"), py::arg("out"))
      .def("step", &NativeModel::step, py::arg("hidden"), py::arg("slots"), py::arg("starts"), py::arg("lengths"),
           py::arg("taps"))
      .def("finish", &NativeModel::finish, py::arg("hidden"))
      .def("head_log_probs", &NativeModel::head_log_probs, py::arg("hidden"), py::arg("out"))
      .def("tail_log_probs", &NativeModel::tail_log_probs, py::arg("hidden"), py::arg("cluster"), py::arg("out"))
      .def("target_nll", &NativeModel::target_nll, py::arg("hidden"), py::arg("targets"), py::arg("out"))
      .def_property_readonly("instruction_set", &NativeModel::instruction_set)
      .def_property_readonly("threads", &NativeModel::threads)
      .def("weight_bytes", &NativeModel::weight_bytes);
}
