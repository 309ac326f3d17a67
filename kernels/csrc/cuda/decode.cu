// The decode step: every block works through its list of items.
#include <stdexcept>

#include "cuda/decode_attend.h"
#include "cuda/decode_rows.h"
#include "cuda/launch.h"

namespace cuda::decode {
namespace {

// What the block needs all the time: its items, the layers, where its sequences are, the hidden rows.
template <typename T, int D>
DEVICE void load(Block<T, D>& b) {
  const Parameters& p = b.p;
  const auto copy = [&](const void* target, const void* source, size_t bytes) {
    uint32_t* words = static_cast<uint32_t*>(const_cast<void*>(target));
    for (size_t i = b.thread; i < bytes / 4; i += threads) words[i] = static_cast<const uint32_t*>(source)[i];
  };
  const int begin = p.step.begins[blockIdx.x];
  b.count = p.step.begins[blockIdx.x + 1] - begin;
  copy(b.items, p.step.items + begin, b.count * sizeof(Item));
  copy(b.layers, p.step.layers, p.layers * sizeof(Layer));
  copy(b.slots, p.step.slots, p.rows * sizeof(int64_t));
  copy(b.positions, p.step.positions, p.rows * sizeof(int64_t));
  copy(b.residual, p.step.hidden, size_t(p.rows) * p.hidden * sizeof(float));
  if (b.thread == 0) {
    b.flags.failed = b.flags.stopped[0] = b.flags.stopped[1] = 0;
    for (int i = 0; i < p.stages; ++i) device::init(b.full[i], 1);
    device::publish_inits();
  }
}

template <typename T, int D>
__global__ void __launch_bounds__(threads, 1) decode_step(const __grid_constant__ Parameters p) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900  // older GPUs have neither clusters nor the ring
  Block<T, D> b(p);
  load(b);
  device::cluster_barrier();  // blocks of the cluster are there, and their flags
  for (int i = 0; b.warp == 0 && i < p.stages; ++i) b.issue();
  bool go_on = true;
  for (int i = 0; i < b.count; ++i) {
    const Item& item = b.items[i];
    const bool streams = b.streams(item);
    const unsigned char* stage = streams ? b.take(item) : nullptr;
    switch (item.kind) {
      case Kind::rows:
        go_on = begin_layer(b, item, stage);
        break;
      case Kind::project:
        project(b, item, stage);
        break;
      case Kind::share:
        go_on = share(b, item);
        break;
      case Kind::attend:
        attend(b, item, stage);
        break;
      case Kind::merge:
        go_on = merge(b, item);
        break;
      case Kind::output:
        project_output(b, item, stage);
        break;
    }
    if (!go_on) break;
    device::barrier();
    if (streams && b.warp == 0) b.issue();  // into the stage that all have now read
  }
  if (b.thread == 0 && (!go_on || b.flags.failed)) b.let_copies_land();
#endif
}

template <typename T>
auto kernel_of(int head_dim) {
  switch (head_dim) {
    case 32:
      return decode_step<T, 32>;
    case 64:
      return decode_step<T, 64>;
    case 128:
      return decode_step<T, 128>;
  }
  throw std::invalid_argument("the decode kernel runs heads of 32, 64 or 128 numbers");
}

}  // namespace

#ifdef __CUDACC__
Machine machine_of_the_device(int cluster) {
  int device = 0, major = 0, shared_bytes = 0, blocks = 0;
  check(cudaGetDevice(&device), "current GPU");
  check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device), "compute capability");
  check(cudaDeviceGetAttribute(&shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device), "shared memory");
  check(cudaDeviceGetAttribute(&blocks, cudaDevAttrMultiProcessorCount, device), "multiprocessors");
  if (major < 9) return {0, cluster, 0};
  const auto kernel = kernel_of<bf16>(64);
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes), "shared memory");
  if (cluster > 8)
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1), "cluster size");
  cudaLaunchAttribute attribute;
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim = {static_cast<unsigned>(cluster), 1, 1};
  cudaLaunchConfig_t config = {};
  config.gridDim = {static_cast<unsigned>(blocks / cluster * cluster), 1, 1};
  config.blockDim = {threads, 1, 1};
  config.dynamicSmemBytes = shared_bytes;
  config.attrs = &attribute;
  config.numAttrs = 1;
  int clusters = 0;
  check(cudaOccupancyMaxActiveClusters(&clusters, kernel, &config), "clusters at once");
  return {clusters, cluster, static_cast<size_t>(shared_bytes)};
}
#else
// A small GPU to play.
Machine machine_of_the_device(int cluster) { return {2, cluster, 227 << 10}; }
#endif

void run(const Shape& shape, const Schedule& schedule, const Step& step, Stream stream) {
  const Machine& machine = schedule.machine;
  Launch launch;
  launch.blocks_x = machine.clusters * machine.cluster;
  launch.threads = threads;
  launch.shared_bytes = schedule.shared.bytes;
  launch.cluster = machine.cluster;
  launch.together = true;
  const Parameters parameters = {step,
                                 schedule.shared,
                                 shape.hidden,
                                 static_cast<int>(shape.layers.size()),
                                 schedule.rows,
                                 schedule.stages,
                                 schedule.most_jobs,
                                 machine.cluster,
                                 schedule.stage_bytes};
  start(launch, stream,
        step.number == Number::bfloat16 ? kernel_of<bf16>(shape.head_dim) : kernel_of<fp16>(shape.head_dim),
        parameters);
}

}  // namespace cuda::decode
