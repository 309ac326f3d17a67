// The memory of a tensor that Python hands over: by the buffer protocol, DLPack's C exchange or __dlpack__.
#pragma once

#include <Python.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "common/checks.h"
#include "common/dlpack.h"

namespace headcount {

// Holds the tensor until it goes; to be made and let go with the interpreter's lock held.
class PythonArray {
 public:
  // Throws CheckError naming the argument for what is no tensor in the memory of a DLPack device type. Tensors of a GPU
  // come as they are: nothing waits for the streams that write them.
  PythonArray(PyObject* object, const char* name, std::int32_t device_type = dlpack::cpu_device);

  // Elements as native code reads them: float32 or int64 in native byte order.
  template <typename T>
  bool holds() const {
    return holds(sizeof(T) == 4 ? dlpack::float_code : dlpack::int_code, 8 * sizeof(T));
  }
  bool holds(int code, int bits) const { return code_ == code && bits_ == bits; }
  int element_bytes() const { return bits_ / 8; }

  void* data = nullptr;
  std::vector<std::int64_t> shape, strides;  // strides in bytes
  std::string dtype;                         // as its library calls it, for errors
  bool read_only = false;
  std::int32_t device_id = 0;

 private:
  bool from_buffer(PyObject* object, const char* name);
  bool from_exchange(PyObject* object, const char* name);
  bool from_capsule(PyObject* object, const char* name);
  void describe(const dlpack::Tensor& tensor, const char* name);

  struct Release {
    void operator()(Py_buffer* buffer) const {
      PyBuffer_Release(buffer);
      delete buffer;
    }
    template <typename Tensor>
    void operator()(Tensor* managed) const {
      if (managed->deleter != nullptr) managed->deleter(managed);
    }
  };

  const std::int32_t device_type_;
  int code_ = -1, bits_ = 0;
  std::unique_ptr<Py_buffer, Release> buffer_;  // one of these three
  std::unique_ptr<dlpack::Managed, Release> managed_;
  std::unique_ptr<dlpack::ManagedVersioned, Release> versioned_;
};

}  // namespace headcount
