// Starting a kernel: on a stream of the GPU, or by emulated/fibers.h on the host.
#pragma once

#include <cstddef>
#include <stdexcept>
#include <string>

#include "cuda/types.h"

#ifdef __CUDACC__
#include <cuda_runtime.h>
#else
#include "cuda/emulated/fibers.h"
#endif

struct Launch {
  unsigned blocks_x = 1, blocks_y = 1, blocks_z = 1;
  unsigned threads = 128;
  size_t shared_bytes = 0;
  unsigned cluster = 1;    // blocks of a cluster, along x
  bool together = false;   // all blocks resident at once, so that they may wait for each other
  bool dependent = false;  // may start before the kernel before it has ended, where the GPU is sm_90 or newer; it then
                           // calls wait_for_earlier_kernels
};

#ifdef __CUDACC__
inline void check(cudaError_t status, const char* what) {
  if (status != cudaSuccess) throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(status));
}

// Whether the current GPU is sm_90 or newer.
inline bool starts_early() {
  int device = 0, major = 0;
  check(cudaGetDevice(&device), "current GPU");
  check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device), "compute capability");
  return major >= 9;
}

template <typename... Parameters, typename... Arguments>
void start(const Launch& launch, Stream stream, void (*kernel)(Parameters...), Arguments... arguments) {
  if (launch.shared_bytes > 48 << 10) {
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               static_cast<int>(launch.shared_bytes)),
          "shared memory");
  }
  if (launch.cluster > 8)
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1), "cluster size");
  cudaLaunchAttribute attributes[3];
  unsigned count = 0;
  if (launch.cluster > 1) {
    attributes[count].id = cudaLaunchAttributeClusterDimension;
    attributes[count].val.clusterDim = {launch.cluster, 1, 1};
    ++count;
  }
  if (launch.together) {
    attributes[count].id = cudaLaunchAttributeCooperative;
    attributes[count].val.cooperative = 1;
    ++count;
  }
  if (launch.dependent && starts_early()) {
    attributes[count].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[count].val.programmaticStreamSerializationAllowed = 1;
    ++count;
  }
  cudaLaunchConfig_t config = {};
  config.gridDim = {launch.blocks_x, launch.blocks_y, launch.blocks_z};
  config.blockDim = {launch.threads, 1, 1};
  config.dynamicSmemBytes = launch.shared_bytes;
  config.stream = static_cast<cudaStream_t>(stream);
  config.attrs = attributes;
  config.numAttrs = count;
  check(cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...), "kernel launch");
}
#else
// Which order of threads the next launches run in; results may not depend on it.
extern unsigned emulated_order;

template <typename... Parameters, typename... Arguments>
void start(const Launch& launch, Stream, void (*kernel)(Parameters...), Arguments... arguments) {
  emulated::Grid grid;
  grid.blocks = {launch.blocks_x, launch.blocks_y, launch.blocks_z};
  grid.threads = {launch.threads, 1, 1};
  grid.shared_bytes = launch.shared_bytes;
  grid.cluster = static_cast<int>(launch.cluster);
  grid.together = launch.together;
  emulated::run(grid, [&] { kernel(static_cast<Parameters>(arguments)...); }, emulated_order);
}
#endif
