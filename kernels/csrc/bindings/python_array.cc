#include "bindings/python_array.h"

#include <algorithm>
#include <memory>

namespace headcount {
namespace {

constexpr const char* handed_over = "a tensor that can be handed over by DLPack";

struct DropReference {
  void operator()(PyObject* object) const { Py_XDECREF(object); }
};
using Owned = std::unique_ptr<PyObject, DropReference>;

// The Python error that is set, cleared: "TypeError: the first line of its text".
std::string raised() {
  PyObject *type = nullptr, *value = nullptr, *trace = nullptr;
  PyErr_Fetch(&type, &value, &trace);
  PyErr_NormalizeException(&type, &value, &trace);
  const Owned owns[] = {Owned(type), Owned(value), Owned(trace)};
  const Owned text(value == nullptr ? nullptr : PyObject_Str(value));
  const char* said = text == nullptr ? nullptr : PyUnicode_AsUTF8(text.get());
  PyErr_Clear();
  std::string line = said == nullptr ? "" : std::string(": ") + said;
  line.resize(std::min(line.size(), line.find('\n')));
  return std::string(type == nullptr ? "an error" : reinterpret_cast<PyTypeObject*>(type)->tp_name) + line;
}

[[noreturn]] void refuse(const char* name, const char* expected) { throw CheckError(name, expected, raised()); }

void check_device(std::int64_t type, std::int32_t wanted, const char* name) {
  const char* expected = wanted == dlpack::cpu_device ? "a tensor on the CPU" : "a tensor on a GPU of NVIDIA";
  check(type == wanted, name, expected, "one on a device of DLPack type " + std::to_string(type));
}

void check_major(const dlpack::Version& version, const char* name) {
  check(version.major == dlpack::major_version, name, "DLPack version 1", "version " + std::to_string(version.major));
}

// The letter of struct's format, without the mark of native byte order; 0 for anything else.
char letter_of(const char* format) {
  if (format == nullptr) return 0;
  if (*format == '=' || *format == '@') ++format;
  return format[0] != '\0' && format[1] == '\0' ? *format : '\0';
}

}  // namespace

PythonArray::PythonArray(PyObject* object, const char* name, std::int32_t device_type) : device_type_(device_type) {
  if (from_buffer(object, name) || from_exchange(object, name) || from_capsule(object, name)) return;
  throw CheckError(name, "an array or a tensor", Py_TYPE(object)->tp_name);
}

bool PythonArray::from_buffer(PyObject* object, const char* name) {
  if (device_type_ != dlpack::cpu_device || !PyObject_CheckBuffer(object)) return false;
  auto view = std::make_unique<Py_buffer>();
  if (PyObject_GetBuffer(object, view.get(), PyBUF_RECORDS_RO) != 0) refuse(name, "an array whose memory can be read");
  buffer_.reset(view.release());
  data = buffer_->buf;
  shape.assign(buffer_->shape, buffer_->shape + buffer_->ndim);
  strides.assign(buffer_->strides, buffer_->strides + buffer_->ndim);
  dtype = "elements of format " + std::string(buffer_->format == nullptr ? "B" : buffer_->format);
  read_only = buffer_->readonly != 0;
  const char letter = letter_of(buffer_->format);
  bits_ = static_cast<int>(8 * buffer_->itemsize);
  if (letter == 'f') code_ = dlpack::float_code;
  if (letter == 'l' || letter == 'q') code_ = dlpack::int_code;  // which of them is 64 bits depends on the platform
  return true;
}

// Newer torch and others: a table of C functions on the type.
bool PythonArray::from_exchange(PyObject* object, const char* name) {
  const Owned capsule(
      PyObject_GetAttrString(reinterpret_cast<PyObject*>(Py_TYPE(object)), "__dlpack_c_exchange_api__"));
  if (capsule == nullptr) {
    PyErr_Clear();
    return false;
  }
  auto* api = static_cast<dlpack::ExchangeApi*>(PyCapsule_GetPointer(capsule.get(), "dlpack_exchange_api"));
  if (api == nullptr) refuse(name, "a capsule named dlpack_exchange_api");
  while (api != nullptr && api->version.major != dlpack::major_version) api = api->previous;
  if (api == nullptr) return false;  // __dlpack__ may still do
  dlpack::ManagedVersioned* managed = nullptr;
  if (api->from_object(object, &managed) != 0 || managed == nullptr) refuse(name, handed_over);
  versioned_.reset(managed);
  check_major(versioned_->version, name);
  read_only = (versioned_->flags & dlpack::read_only_flag) != 0;
  describe(versioned_->tensor, name);
  return true;
}

bool PythonArray::from_capsule(PyObject* object, const char* name) {
  if (!PyObject_HasAttrString(object, "__dlpack__") || !PyObject_HasAttrString(object, "__dlpack_device__"))
    return false;
  const Owned device(PyObject_CallMethod(object, "__dlpack_device__", nullptr));
  if (device == nullptr) refuse(name, "a tensor that says its device");
  check(PyTuple_Check(device.get()) && PyTuple_GET_SIZE(device.get()) == 2, name, "a tensor that says its device",
        "a __dlpack_device__ that gives no pair");
  const Owned number(PyNumber_Long(PyTuple_GET_ITEM(device.get(), 0)));
  const long type = number == nullptr ? -1 : PyLong_AsLong(number.get());
  if (PyErr_Occurred() != nullptr) refuse(name, "a tensor that says its device");
  check_device(type, device_type_, name);

  const Owned method(PyObject_GetAttrString(object, "__dlpack__")), none(PyTuple_New(0));
  const bool cpu = device_type_ == dlpack::cpu_device;
  const Owned newest(cpu ? Py_BuildValue("{s:(ii)}", "max_version", static_cast<int>(dlpack::major_version), 0)
                         : Py_BuildValue("{s:(ii),s:i}", "max_version", static_cast<int>(dlpack::major_version), 0,
                                         "stream", dlpack::no_wait));
  Owned capsule(method == nullptr || newest == nullptr ? nullptr
                                                       : PyObject_Call(method.get(), none.get(), newest.get()));
  if (capsule == nullptr && method != nullptr && PyErr_ExceptionMatches(PyExc_TypeError) != 0) {  // older than 1.0
    PyErr_Clear();
    const Owned unwaited(cpu ? nullptr : Py_BuildValue("{s:i}", "stream", dlpack::no_wait));
    capsule.reset(PyObject_Call(method.get(), none.get(), unwaited.get()));
  }
  if (capsule == nullptr) refuse(name, handed_over);
  if (PyCapsule_IsValid(capsule.get(), "dltensor_versioned") != 0) {
    auto* held = static_cast<dlpack::ManagedVersioned*>(PyCapsule_GetPointer(capsule.get(), "dltensor_versioned"));
    check_major(held->version, name);
    PyCapsule_SetName(capsule.get(), "used_dltensor_versioned");
    versioned_.reset(held);
    read_only = (held->flags & dlpack::read_only_flag) != 0;
    describe(held->tensor, name);
    return true;
  }
  if (PyCapsule_IsValid(capsule.get(), "dltensor") != 0) {
    managed_.reset(static_cast<dlpack::Managed*>(PyCapsule_GetPointer(capsule.get(), "dltensor")));
    PyCapsule_SetName(capsule.get(), "used_dltensor");
    describe(managed_->tensor, name);
    return true;
  }
  const char* found = PyCapsule_CheckExact(capsule.get()) ? PyCapsule_GetName(capsule.get()) : nullptr;
  const std::string used = found == nullptr ? "" : found;
  throw CheckError(name, "an unused capsule dltensor or dltensor_versioned",
                   PyCapsule_CheckExact(capsule.get()) ? "one named '" + used + "'" : Py_TYPE(capsule.get())->tp_name);
}

void PythonArray::describe(const dlpack::Tensor& tensor, const char* name) {
  check_device(tensor.device_type, device_type_, name);
  device_id = tensor.device_id;
  check(tensor.ndim >= 0 && (tensor.ndim == 0 || tensor.shape != nullptr), name, "a tensor with a shape", "none");
  code_ = tensor.type_lanes == 1 ? tensor.type_code : -1;
  bits_ = tensor.type_bits;
  dtype = "elements of DLPack type " + std::to_string(tensor.type_code) + " with " + std::to_string(bits_) + " bits";
  shape.assign(tensor.shape, tensor.shape + tensor.ndim);
  strides.resize(shape.size());
  std::int64_t step = bits_ / 8;
  for (std::size_t i = shape.size(); i-- > 0; step *= shape[i])
    strides[i] = tensor.strides == nullptr ? step : tensor.strides[i] * (bits_ / 8);
  data = tensor.data == nullptr ? nullptr : static_cast<char*>(tensor.data) + tensor.byte_offset;
}

}  // namespace headcount
