// What launch.h uses of the CUDA runtime, for cuda_launch_test: launches are written down, and fail where it says so.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

enum cudaError_t { cudaSuccess, cudaErrorIllegalAddress };
enum cudaDeviceAttr { cudaDevAttrComputeCapabilityMajor };
enum cudaFuncAttribute {
  cudaFuncAttributeMaxDynamicSharedMemorySize,
  cudaFuncAttributeNonPortableClusterSizeAllowed,
};
enum cudaStreamCaptureStatus { cudaStreamCaptureStatusNone, cudaStreamCaptureStatusActive };
enum cudaLaunchAttributeID {
  cudaLaunchAttributeIgnore,
  cudaLaunchAttributeClusterDimension,
  cudaLaunchAttributeCooperative,
  cudaLaunchAttributeProgrammaticStreamSerialization,
};
using cudaStream_t = void*;
struct dim3 {
  unsigned x, y, z;
};
struct cudaLaunchAttribute {
  cudaLaunchAttributeID id;
  struct {
    dim3 clusterDim;
    int cooperative, programmaticStreamSerializationAllowed;
  } val;
};
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
  cudaLaunchAttribute* attrs;
  unsigned numAttrs;
};

namespace fake_cuda {
inline std::vector<cudaLaunchAttributeID> attributes;  // of the last launch
inline int waits = 0;                                  // for a stream
inline bool capturing = false;
inline cudaError_t of_launch = cudaSuccess, of_wait = cudaSuccess;
}  // namespace fake_cuda

inline const char* cudaGetErrorString(cudaError_t status) { return status ? "an illegal address" : "no error"; }
inline cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int) { return *value = 9, cudaSuccess; }
template <typename Kernel>
cudaError_t cudaFuncSetAttribute(Kernel, cudaFuncAttribute, int) {
  return cudaSuccess;
}
inline cudaError_t cudaStreamIsCapturing(cudaStream_t, cudaStreamCaptureStatus* status) {
  *status = fake_cuda::capturing ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
  return cudaSuccess;
}
inline cudaError_t cudaStreamSynchronize(cudaStream_t) { return ++fake_cuda::waits, fake_cuda::of_wait; }
template <typename... Parameters>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*)(Parameters...), Parameters...) {
  fake_cuda::attributes.clear();
  for (unsigned i = 0; i < config->numAttrs; ++i) fake_cuda::attributes.push_back(config->attrs[i].id);
  return fake_cuda::of_launch;
}
