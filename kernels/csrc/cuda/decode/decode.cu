// The decode step: every block works through its list of items.
#include <stdexcept>
#include <vector>

#include "cuda/decode/attend.h"
#include "cuda/decode/rows.h"
#include "cuda/launch.h"

namespace headcount::cuda::decode {
namespace {

static_assert(sizeof(Parameters) <= 4096, "all that a kernel is given");

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

Launch launch_of(const Machine& machine, size_t shared_bytes) {
  Launch launch;
  launch.name = "decode_step";
  launch.blocks_x = machine.clusters * machine.cluster;
  launch.threads = threads;
  launch.shared_bytes = shared_bytes;
  launch.cluster = machine.cluster;
  launch.together = true;
#ifdef HEADCOUNT_CUDA_EMULATED
  if (launch.blocks_x > static_cast<unsigned>(emulated_gpu.blocks))
    throw std::runtime_error("kernel launch: more blocks than the emulated GPU starts together");
#endif
  return launch;
}

#ifdef __CUDACC__
// Zeros in the memory of the GPU.
class Zeros {
 public:
  explicit Zeros(size_t count) {
    check(cudaMalloc(&data_, count * sizeof(int32_t)), "memory for a trial launch");
    check(cudaMemset(data_, 0, count * sizeof(int32_t)), "memory for a trial launch");
  }
  ~Zeros() { cudaFree(data_); }
  Zeros(const Zeros&) = delete;
  Zeros& operator=(const Zeros&) = delete;
  const int32_t* data() const { return static_cast<const int32_t*>(data_); }

 private:
  void* data_ = nullptr;
};
void wait_for_trial() { check(cudaStreamSynchronize(nullptr), "trial launch"); }
#else
using Zeros = std::vector<int32_t>;
void wait_for_trial() {}
#endif

// Starts the whole grid with the most shared memory, every list of items empty: throws whatever keeps a step from
// starting, and touches no memory of a model.
void try_to_start(const Machine& machine) {
  const Zeros begins(size_t(machine.clusters) * machine.cluster + 1);
  Parameters parameters = {};
  parameters.step.begins = begins.data();
  parameters.cluster = machine.cluster;
  start(launch_of(machine, machine.shared_bytes), nullptr, kernel_of<bf16>(64), parameters);
  wait_for_trial();
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
EmulatedGpu emulated_gpu;
Machine machine_of_the_device(int cluster) {
  const auto found = emulated_gpu.clusters.find(cluster);
  return {found == emulated_gpu.clusters.end() ? 0 : found->second, cluster, most_shared_bytes};
}
#endif

Machines machines_of_the_device(const std::vector<int>& clusters) {
  Machines machines;
  for (const int cluster : clusters) {
    std::string said = "none resident";
    try {
      const Machine machine = machine_of_the_device(cluster);
      if (machine.clusters > 0) {
        said = std::to_string(machine.clusters) + " not started";
        try_to_start(machine);
        machines.usable.push_back(machine);
        continue;
      }
    } catch (const std::runtime_error& error) {
      said += std::string(" (") + error.what() + ")";
    }
    machines.others +=
        (machines.others.empty() ? "" : ", ") + std::string("clusters of ") + std::to_string(cluster) + ": " + said;
  }
  return machines;
}

void run(const Shape& shape, const Schedule& schedule, const Step& step, Stream stream) {
  const Parameters parameters = {step,
                                 schedule.shared,
                                 shape.hidden,
                                 static_cast<int>(shape.layers.size()),
                                 schedule.rows,
                                 schedule.stages,
                                 schedule.most_jobs,
                                 schedule.machine.cluster,
                                 schedule.stage_bytes};
  start(launch_of(schedule.machine, schedule.shared.bytes), stream,
        step.number == Number::bfloat16 ? kernel_of<bf16>(shape.head_dim) : kernel_of<fp16>(shape.head_dim),
        parameters);
}

}  // namespace headcount::cuda::decode
