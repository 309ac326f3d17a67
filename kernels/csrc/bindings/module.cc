// The only file that includes pybind11: buffers become views, CheckError becomes engine_kernels.errors.KernelError.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <unistd.h>

#include <cstdint>
#include <exception>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "common/checks.h"
#include "common/tensor_view.h"
#include "cpu/all_finite.h"
#include "cpu/isa.h"
#include "cpu/stack.h"
#include "cpu/vocabulary.h"

namespace py = pybind11;
namespace cpu = headcount::cpu;

namespace {

using headcount::check;

void raise_kernel_error(std::exception_ptr thrown) {
  try {
    if (thrown) std::rethrow_exception(thrown);
  } catch (const headcount::CheckError& error) {
    const py::object type = py::module_::import("engine_kernels.errors").attr("KernelError");
    const py::object raised = type(error.argument, error.expected, error.got);
    PyErr_SetObject(type.ptr(), raised.ptr());
  }
}

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

std::string shape_text(const std::vector<py::ssize_t>& shape) {
  std::string text = "[";
  for (const py::ssize_t size : shape) text += (text.size() > 1 ? ", " : "") + (size < 0 ? "?" : std::to_string(size));
  return text + "]";
}

// Native byte order, with or without numpy's mark of it; which of the two 64-bit letters stands depends on the
// platform.
template <typename T>
bool holds(const py::buffer_info& buffer) {
  const std::string letter = buffer.format.substr(buffer.format.find_first_not_of("=@"));
  return buffer.itemsize == sizeof(T) && (sizeof(T) == 4 ? letter == "f" : letter == "l" || letter == "q");
}

// An argument of a call: C-contiguous T of a shape, where -1 stands for any size.
template <typename T>
class Argument {
 public:
  Argument(const py::buffer& buffer, const char* name, const std::vector<py::ssize_t>& shape, bool written = false)
      : info_(buffer.request()) {
    const char* dtype = sizeof(T) == 4 ? "float32" : "int64";
    check(holds<T>(info_), name, dtype, "elements of format " + info_.format);
    bool fits = info_.ndim == static_cast<py::ssize_t>(shape.size());
    for (std::size_t i = 0; fits && i < shape.size(); ++i) fits = shape[i] < 0 || shape[i] == info_.shape[i];
    check(fits, name, "shape " + shape_text(shape), shape_text(info_.shape));
    check_layout(name);
    check(!written || !info_.readonly, name, "an array that may be written", "a read-only one");
  }

  // Of any shape.
  Argument(const py::buffer& buffer, const char* name) : info_(buffer.request()) {
    check(holds<T>(info_), name, "float32", "elements of format " + info_.format);
    check_layout(name);
  }

  T* data() const { return static_cast<T*>(info_.ptr); }
  std::int64_t size(int axis) const { return info_.shape[axis]; }
  std::vector<std::int64_t> shape() const { return {info_.shape.begin(), info_.shape.end()}; }

 private:
  void check_layout(const char* name) const {
    py::ssize_t step = info_.itemsize;
    bool contiguous = true;
    for (py::ssize_t i = info_.ndim; i-- > 0; step *= info_.shape[i])
      contiguous = contiguous && (info_.shape[i] < 2 || info_.strides[i] == step);
    check(contiguous || info_.size == 0, name, "a contiguous array", "a strided one");
    check(info_.ptr != nullptr || info_.size == 0, name, "a pointer", "null");
    const bool aligned = reinterpret_cast<std::uintptr_t>(info_.ptr) % sizeof(T) == 0;
    check(aligned || info_.size == 0, name, "data aligned to its elements", "a misaligned one");
  }

  py::buffer_info info_;
};

// Arrays of a dict with the buffers they stand in.
class NamedArguments {
 public:
  explicit NamedArguments(const py::dict& given) {
    for (const auto& [key, value] : given) {
      const auto name = py::cast<std::string>(key);
      check(py::isinstance<py::buffer>(value), name.c_str(), "an array", "something else");
      buffers_.emplace_back(py::reinterpret_borrow<py::buffer>(value), name.c_str());
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

// A model's weights and caches. Calls wait for one another; none holds the interpreter's lock while it computes.
class NativeModel {
 public:
  NativeModel(std::int64_t hidden, int dtype, bool int8, int threads)
      : hidden_(hidden),
        kind_(kind_of(hidden, dtype)),
        matrix_kind_(int8 ? cpu::Kind::kInt8 : kind_),
        compute_(cpu::kernels(), threads),
        stack_(hidden, matrix_kind_, compute_),
        process_(getpid()) {}

  void add_layer(std::int64_t heads, std::int64_t head_dim, std::int64_t persistent, std::int64_t window,
                 std::int64_t segment, std::int64_t reach, int first, bool attended_zeros, float ramp,
                 std::int64_t feed_forward, bool norm_first, float norm_eps, const py::dict& arrays) {
    const NamedArguments given(arrays);
    const cpu::Visibility see{window, segment, reach, first, attended_zeros, ramp};
    run([&] {
      stack_.add_layer({heads, head_dim, persistent, feed_forward, see, norm_first, norm_eps}, given.arrays);
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

  void embed(const py::buffer& ids, const py::buffer& hidden) {
    const Argument<std::int64_t> in(ids, "ids", {-1});
    const Argument<float> out(hidden, "hidden", {in.size(0), hidden_}, true);
    run([&] { vocabulary().embed(in.data(), in.size(0), out.data()); });
  }

  void step(const py::buffer& hidden, const py::buffer& slots, const py::buffer& starts, const py::buffer& lengths,
            const std::optional<py::buffer>& taps) {
    const Argument<float> rows(hidden, "hidden", {-1, hidden_}, true);
    const Argument<std::int64_t> which(slots, "slots", {-1});
    const Argument<std::int64_t> from(starts, "starts", {which.size(0)});
    const Argument<std::int64_t> count(lengths, "lengths", {which.size(0)});
    std::optional<Argument<float>> tapped;
    if (taps) tapped.emplace(*taps, "taps", std::vector<py::ssize_t>{stack_.layers(), rows.size(0), hidden_}, true);
    run([&] {
      stack_.step(rows.data(), rows.size(0), {which.data(), from.data(), count.data(), which.size(0)},
                  tapped ? tapped->data() : nullptr);
    });
  }

  void finish(const py::buffer& hidden) {
    const Argument<float> rows(hidden, "hidden", {-1, hidden_}, true);
    run([&] { vocabulary().finish(rows.data(), rows.size(0)); });
  }

  void head_log_probs(const py::buffer& hidden, const py::buffer& out) {
    const Argument<float> rows(hidden, "hidden", {-1, hidden_});
    const Argument<float> result(out, "out", {rows.size(0), vocabulary().head_width()}, true);
    run([&] { vocabulary().head_log_probs(rows.data(), rows.size(0), result.data()); });
  }

  void tail_log_probs(const py::buffer& hidden, std::int64_t cluster, const py::buffer& out) {
    const Argument<float> rows(hidden, "hidden", {-1, hidden_});
    const Argument<float> result(out, "out", {rows.size(0), vocabulary().tail_width(cluster)}, true);
    run([&] { vocabulary().tail_log_probs(rows.data(), rows.size(0), cluster, result.data()); });
  }

  void target_nll(const py::buffer& hidden, const py::buffer& targets, const py::buffer& out) {
    const Argument<float> rows(hidden, "hidden", {-1, hidden_});
    const Argument<std::int64_t> wanted(targets, "targets", {rows.size(0)});
    const Argument<float> result(out, "out", {rows.size(0)}, true);
    run([&] { vocabulary().target_nll(rows.data(), rows.size(0), wanted.data(), result.data()); });
  }

  std::string instruction_set() const { return compute_.kernels.name; }
  int threads() const { return compute_.pool.threads(); }

 private:
  static cpu::Kind kind_of(std::int64_t hidden, int dtype) {
    check(hidden >= 1, "hidden", "at least 1", std::to_string(hidden));
    check(dtype == 0 || dtype == 3, "dtype", "0 (float32) or 3 (bfloat16)", std::to_string(dtype));
    return dtype == 0 ? cpu::Kind::kFloat32 : cpu::Kind::kBFloat16;
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
  std::mutex mutex_;
  const pid_t process_;
};

}  // namespace

PYBIND11_MODULE(_native, module) {
  py::register_exception_translator(&raise_kernel_error);
  module.def("all_finite", &all_finite, py::arg("data"), py::arg("dtype"));
  module.def("instruction_set", [] { return std::string(cpu::kernels().name); });
  module.def("instruction_sets", &cpu::isa_names);
  module.def("call_counts", &call_counts);
  // The plain metaclass, so that the stub can say what the class is.
  py::class_<NativeModel>(module, "NativeModel", py::metaclass(reinterpret_cast<PyObject*>(&PyType_Type)))
      .def(py::init<std::int64_t, int, bool, int>(), py::arg("hidden"), py::arg("dtype"), py::arg("int8"),
           py::arg("threads"))
      .def("add_layer", &NativeModel::add_layer, py::kw_only(), py::arg("heads"), py::arg("head_dim"),
           py::arg("persistent"), py::arg("window"), py::arg("segment"), py::arg("reach"), py::arg("first"),
           py::arg("attended_zeros"), py::arg("ramp"), py::arg("feed_forward"), py::arg("norm_first"),
           py::arg("norm_eps"), py::arg("arrays"))
      .def("set_vocabulary", &NativeModel::set_vocabulary, py::kw_only(), py::arg("inputs"), py::arg("outputs"),
           py::arg("clusters_read_hidden"), py::arg("final_norm_eps"), py::arg("embedding_scale"), py::arg("arrays"))
      .def("grow", &NativeModel::grow, py::arg("slots"))
      .def("restart", &NativeModel::restart, py::arg("slot"))
      .def("embed", &NativeModel::embed, py::arg("ids"), py::arg("hidden"))
      .def("step", &NativeModel::step, py::arg("hidden"), py::arg("slots"), py::arg("starts"), py::arg("lengths"),
           py::arg("taps"))
      .def("finish", &NativeModel::finish, py::arg("hidden"))
      .def("head_log_probs", &NativeModel::head_log_probs, py::arg("hidden"), py::arg("out"))
      .def("tail_log_probs", &NativeModel::tail_log_probs, py::arg("hidden"), py::arg("cluster"), py::arg("out"))
      .def("target_nll", &NativeModel::target_nll, py::arg("hidden"), py::arg("targets"), py::arg("out"))
      .def_property_readonly("instruction_set", &NativeModel::instruction_set)
      .def_property_readonly("threads", &NativeModel::threads);
}
