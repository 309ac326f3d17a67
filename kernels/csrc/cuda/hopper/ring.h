// A ring of stages in shared memory, which a warpgroup fills and others use: step s of the kernel has stage
// s mod stages, full once its copies have come, empty once every user has released it.
#pragma once

#include "cuda/hopper/hopper.h"

namespace headcount::cuda {

template <int stages, int stage_bytes>
struct StageRing {
  static constexpr size_t bytes = size_t{stages} * (stage_bytes + 2 * sizeof(device::Mbarrier));
  unsigned char* memory;  // aligned to 1024

  DEVICE unsigned char* stage(int step) const { return memory + step % stages * stage_bytes; }
  DEVICE device::Mbarrier& full(int step) const { return barriers()[step % stages]; }
  DEVICE device::Mbarrier& empty(int step) const { return barriers()[stages + step % stages]; }

  // By one thread, before a barrier of the block.
  DEVICE void init(int filling_warps, int using_warps) const {
    for (int step = 0; step < stages; ++step) {
      device::init(full(step), filling_warps);
      device::init(empty(step), using_warps);
    }
    device::publish_inits();
  }
  DEVICE void wait_full(int step) const { device::wait(full(step), step / stages % 2); }
  DEVICE void wait_empty(int step) const {
    if (step >= stages) device::wait(empty(step), (step / stages - 1) % 2);
  }
  // By every warp that fills, and by every warp that uses; all its lanes have done what they had to.
  DEVICE void fill(int step) const { arrive(full(step)); }
  DEVICE void release(int step) const { arrive(empty(step)); }

 private:
  DEVICE device::Mbarrier* barriers() const {
    return reinterpret_cast<device::Mbarrier*>(memory + stages * stage_bytes);
  }
  DEVICE void arrive(device::Mbarrier& barrier) const {
    device::warp_barrier();
    if (threadIdx.x % 32 == 0) device::arrive(barrier);
  }
};

}  // namespace headcount::cuda
