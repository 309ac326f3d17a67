// What sm_90 has beyond device.h: barriers in shared memory that count bytes, and copies in bulk that arrive at them.
// PTX ISA 9.7.13.15 (mbarrier), 9.7.9.25 (cp.async.bulk).
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
  while (!has_ended(barrier, parity)) {
  }
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

}  // namespace device
#endif
