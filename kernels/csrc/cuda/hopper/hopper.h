// What sm_90 has beyond device.h: barriers in shared memory that count bytes, copies in bulk that arrive at them, and
// clusters of blocks that see each other's shared memory; and what a grid needs to meet without hanging.
// PTX ISA 9.7.13.15 (mbarrier), 9.7.9.25 (cp.async.bulk), 9.7.13.4 (barrier.cluster), 9.7.9.22 (mapa), 8 (memory
// model).
#pragma once

#include "cuda/device.h"

#ifndef __CUDACC__
#include "cuda/emulated/hopper.h"
#else

namespace device {

// A phase ends when `arrivals` threads have arrived and the bytes expected in it have come; then its parity flips.
// Phase 0 has parity 0.
struct alignas(8) Mbarrier {
  uint64_t state;
};

DEVICE void init(Mbarrier& barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(&barrier)), "r"(arrivals) : "memory");
}
// After all inits and before other threads, or the copy engine, use the barriers; a block or cluster barrier must
// follow.
DEVICE void publish_inits() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }

DEVICE void arrive(Mbarrier& barrier) {
  asm volatile("mbarrier.arrive.release.cta.shared::cta.b64 _, [%0];" ::"r"(shared_address(&barrier)) : "memory");
}
// Arrives, and adds to the bytes this phase waits for.
DEVICE void arrive_and_expect(Mbarrier& barrier, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.release.cta.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(&barrier)),
               "r"(bytes)
               : "memory");
}
// Whether the phase of this parity has ended; waits a little before it says no.
DEVICE bool has_ended(Mbarrier& barrier, int parity) {
  uint32_t ended;
  asm volatile(
      "{\n.reg .pred p;\nmbarrier.try_wait.parity.acquire.cta.shared::cta.b64 p, [%1], %2;\nselp.u32 %0, 1, 0, p;\n}"
      : "=r"(ended)
      : "r"(shared_address(&barrier)), "r"(parity)
      : "memory");
  return ended != 0;
}
DEVICE void wait(Mbarrier& barrier, int parity) {
#ifdef HEADCOUNT_CUDA_TRAP  // nanoseconds, after which the kernel faults: a build that finds what never ends
  // The loop in one piece: round a trap by itself ptxas keeps too few registers for products in a row (C7512).
  asm volatile(
      "{\n.reg .pred ended, late;\n.reg .b64 start, now;\nmov.u64 start, %globaltimer;\n"
      "again:\nmbarrier.try_wait.parity.acquire.cta.shared::cta.b64 ended, [%0], %1;\n@ended bra done;\n"
      "mov.u64 now, %globaltimer;\nsub.u64 now, now, start;\nsetp.gt.u64 late, now, %2;\n@late trap;\nbra again;\n"
      "done:\n}" ::"r"(shared_address(&barrier)),
      "r"(parity), "n"(HEADCOUNT_CUDA_TRAP)
      : "memory");
#else
  while (!has_ended(barrier, parity)) {
  }
#endif
}

// bytes of global memory into this block's shared memory, both aligned to 16 and a multiple of it; counted by the
// barrier.
DEVICE void copy_bulk(void* target, const void* source, uint32_t bytes, Mbarrier& barrier) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                   shared_address(target)),
               "l"(source), "r"(bytes), "r"(shared_address(&barrier))
               : "memory");
}

// Ordinary stores to shared memory before, the copy engine's or the matrix units' reads after; then a barrier.
DEVICE void fence_stores_for_async() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// ---- clusters

// This block's number in its cluster.
DEVICE int cluster_rank() {
  uint32_t rank;
  asm volatile("mov.u32 %0, %cluster_ctarank;" : "=r"(rank));
  return static_cast<int>(rank);
}
// All threads of the cluster's blocks; what was written before, also into each other's shared memory, is seen after.
DEVICE void cluster_barrier() {
  asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
}
// What stands at `pointer` of shared memory in block `rank` of the cluster.
template <typename T>
DEVICE T* in_block(T* pointer, int rank) {
  T* there;
  asm volatile("mapa.u64 %0, %1, %2;" : "=l"(there) : "l"(pointer), "r"(rank));
  return there;
}

// ---- the grid

// Adds; what this thread saw or wrote before is seen by who finds the sum with load_acquire. Returns what was there.
DEVICE uint32_t add_release(uint32_t* sum, uint32_t value) {
  uint32_t before;
  asm volatile("atom.add.release.gpu.global.u32 %0, [%1], %2;" : "=r"(before) : "l"(sum), "r"(value) : "memory");
  return before;
}
DEVICE uint32_t load_acquire(const uint32_t* sum) {
  uint32_t value;
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(sum) : "memory");
  return value;
}
// Puts `next` where 0 stands; whether it did.
DEVICE bool replace_zero(uint32_t* target, uint32_t next) { return atomicCAS(target, 0u, next) == 0; }
// Time that passes for all blocks.
DEVICE uint64_t nanoseconds() {
  uint64_t now;
  asm volatile("mov.u64 %0, %globaltimer;" : "=l"(now)::"memory");
  return now;
}

}  // namespace device
#endif

#include "cuda/hopper/matrices.h"
#include "cuda/hopper/tensors.h"
