// The names of hopper.h on the host.
#pragma once

#include <algorithm>

#include "cuda/emulated/device.h"

namespace device {

struct alignas(8) Mbarrier {
  uint16_t arrivals;  // of a phase
  uint16_t left;      // arrivals this phase waits for; the high bit is the phase's parity
  int32_t bytes;      // this phase waits for
};
static_assert(sizeof(Mbarrier) == 8, "an mbarrier is one 64-bit word");

inline void init(Mbarrier& barrier, int arrivals) {
  expect_shared(&barrier, 8, 8);
  barrier = {static_cast<uint16_t>(arrivals), static_cast<uint16_t>(arrivals), 0};
}
inline void publish_inits() {}

inline void end_phase_if_complete(Mbarrier& barrier) {
  if ((barrier.left & 0x7fff) == 0 && barrier.bytes == 0)
    barrier.left = barrier.arrivals | ((barrier.left & 0x8000) ^ 0x8000);
}
inline void arrive_and_expect(Mbarrier& barrier, uint32_t bytes) {
  if ((barrier.left & 0x7fff) == 0) emulated::fail("more arrivals at an mbarrier than it waits for");
  barrier.bytes += static_cast<int32_t>(bytes);
  --barrier.left;
  end_phase_if_complete(barrier);
}
inline void arrive(Mbarrier& barrier) { arrive_and_expect(barrier, 0); }

// One copy in flight to the barrier arrives, so that nothing comes before somebody waits for it.
inline void let_a_copy_arrive(Mbarrier& barrier) {
  auto& flying = emulated::current->block->flying;
  const auto copy =
      std::find_if(flying.begin(), flying.end(), [&](const emulated::Copy& c) { return c.barrier == &barrier; });
  if (copy == flying.end()) return;
  std::memcpy(copy->target, copy->source, copy->bytes);
  barrier.bytes -= static_cast<int32_t>(copy->bytes);
  flying.erase(copy);
  end_phase_if_complete(barrier);
}
inline bool has_ended(Mbarrier& barrier, int parity) {
  const auto ended = [&] { return (barrier.left >> 15) != (parity & 1); };
  if (!ended()) let_a_copy_arrive(barrier);
  return ended();
}
inline void wait(Mbarrier& barrier, int parity) {
  for (bool first = true; !has_ended(barrier, parity); first = false) emulated::yield(first);
}

inline void copy_bulk(void* target, const void* source, uint32_t bytes, Mbarrier& barrier) {
  expect_shared(target, bytes, 16);
  if (bytes % 16 || reinterpret_cast<uintptr_t>(source) % 16)
    emulated::fail("a bulk copy of what is not aligned to 16 bytes");
  emulated::current->block->flying.push_back({target, source, bytes, &barrier});
}

inline void fence_stores_for_async() {}

}  // namespace device
