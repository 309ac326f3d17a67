// Starting a kernel: on a stream of the GPU, or by emulated/fibers.h on the host.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <stdexcept>
#include <string>

#include "cuda/types.h"

#ifdef __CUDACC__
#include <cuda_runtime.h>
#else
#include "cuda/emulated/fibers.h"
#endif

struct Launch {
  const char* name = "a kernel";  // in errors
  unsigned blocks_x = 1, blocks_y = 1, blocks_z = 1;
  unsigned threads = 128;
  size_t shared_bytes = 0;
  unsigned cluster = 1;    // blocks of a cluster, along x
  bool together = false;   // all blocks resident at once, so that they may wait for each other
  bool dependent = false;  // may start before the kernel before it has ended, where the GPU is sm_90 or newer; it then
                           // calls wait_for_earlier_kernels
};

#ifdef __CUDACC__
// kernel: whose launch asks for it.
inline void check(cudaError_t status, const char* what, const char* kernel = nullptr) {
  if (status == cudaSuccess) return;
  const std::string where = kernel == nullptr ? what : std::string(kernel) + ", " + what;
  throw std::runtime_error(where + ": " + cudaGetErrorString(status));
}

// Whether the current GPU is sm_90 or newer.
inline bool starts_early(const char* kernel) {
  int device = 0, major = 0;
  check(cudaGetDevice(&device), "current GPU", kernel);
  check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device), "compute capability", kernel);
  return major >= 9;
}

// HEADCOUNT_CUDA_PLAIN=1, asked for once: no kernel starts before the one before it has ended, and the host waits for
// each, so that a fault is reported as its kernel's.
inline bool launches_plainly() {
  static const bool plainly = [] {
    const char* set = std::getenv("HEADCOUNT_CUDA_PLAIN");
    const std::string word = set == nullptr ? "0" : set;
    if (word != "0" && word != "1")
      throw std::runtime_error("HEADCOUNT_CUDA_PLAIN: expected 1 or 0, found '" + word + "'");
    return word == "1";
  }();
  return plainly;
}

// Until `kernel` has ended; not while its stream records a graph, where nothing runs.
inline void wait_for(const char* kernel, cudaStream_t stream) {
  cudaStreamCaptureStatus capture = cudaStreamCaptureStatusNone;
  check(cudaStreamIsCapturing(stream, &capture), "whether its stream is capturing", kernel);
  if (capture == cudaStreamCaptureStatusNone) check(cudaStreamSynchronize(stream), "running", kernel);
}

template <typename... Parameters, typename... Arguments>
void start(const Launch& launch, Stream stream, void (*kernel)(Parameters...), Arguments... arguments) {
  const bool plainly = launches_plainly();
  if (launch.shared_bytes > 48 << 10) {
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               static_cast<int>(launch.shared_bytes)),
          "shared memory", launch.name);
  }
  if (launch.cluster > 8)
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1), "cluster size", launch.name);
  cudaLaunchAttribute attributes[3] = {};
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
  if (launch.dependent && !plainly && starts_early(launch.name)) {
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
  check(cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...),
        plainly ? "launch" : "launch, or a kernel before it (HEADCOUNT_CUDA_PLAIN=1 says which)", launch.name);
  if (plainly) wait_for(launch.name, config.stream);
}
#else
// Which order of threads the next launches run in; results may not depend on it.
extern unsigned emulated_order;
// Multiprocessors the emulated GPU says it has.
extern int emulated_multiprocessors;

template <typename... Parameters, typename... Arguments>
void start(const Launch& launch, Stream, void (*kernel)(Parameters...), Arguments... arguments) {
  emulated::Grid grid;
  grid.blocks = {launch.blocks_x, launch.blocks_y, launch.blocks_z};
  grid.threads = {launch.threads, 1, 1};
  grid.shared_bytes = launch.shared_bytes;
  grid.cluster = static_cast<int>(launch.cluster);
  grid.together = launch.together;
  try {
    emulated::run(grid, [&] { kernel(static_cast<Parameters>(arguments)...); }, emulated_order);
  } catch (const std::runtime_error& error) {
    throw std::runtime_error(std::string(launch.name) + ": " + error.what());
  }
}
#endif
