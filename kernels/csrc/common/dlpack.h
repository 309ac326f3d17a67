// The structures of DLPack 1.x by which tensors cross between libraries (dmlc.github.io/dlpack, C API), as far as a
// reader needs them.
#pragma once

#include <cstdint>

namespace headcount::dlpack {

constexpr std::int32_t cpu_device = 1, cuda_device = 2;                // DLDeviceType
constexpr std::uint8_t int_code = 0, float_code = 2, bfloat_code = 4;  // DLDataTypeCode
constexpr int no_wait = -1;                  // __dlpack__'s stream: the producer waits for none
constexpr std::uint64_t read_only_flag = 1;  // flags
constexpr std::uint32_t major_version = 1;

struct Version {
  std::uint32_t major, minor;
};

struct Tensor {
  void* data;
  std::int32_t device_type, device_id;
  std::int32_t ndim;
  std::uint8_t type_code, type_bits;
  std::uint16_t type_lanes;
  std::int64_t* shape;
  std::int64_t* strides;  // in elements; null = contiguous
  std::uint64_t byte_offset;
};

struct Managed {  // capsule "dltensor"
  Tensor tensor;
  void* context;
  void (*deleter)(Managed*);
};

struct ManagedVersioned {  // capsule "dltensor_versioned"
  Version version;
  void* context;
  void (*deleter)(ManagedVersioned*);
  std::uint64_t flags;
  Tensor tensor;
};

// Capsule "dlpack_exchange_api" at type(tensor).__dlpack_c_exchange_api__; an older table may hang behind it.
struct ExchangeApi {
  Version version;
  ExchangeApi* previous;
  void* allocate;
  int (*from_object)(void* object, ManagedVersioned** out);  // 0, or -1 with a Python error set
};

}  // namespace headcount::dlpack
