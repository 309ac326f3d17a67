// The names of hopper.h on the host.
#pragma once

#include <algorithm>
#include <utility>

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

// One copy in flight to the barrier arrives, so that nothing comes before a thread waits for it.
inline void let_a_copy_arrive(Mbarrier& barrier) {
  auto& flying = emulated::current->block->flying;
  const auto copy =
      std::find_if(flying.begin(), flying.end(), [&](const emulated::Copy& c) { return c.barrier == &barrier; });
  if (copy == flying.end()) return;
  copy->act ? copy->act() : void(std::memcpy(copy->target, copy->source, copy->bytes));
  barrier.bytes -= static_cast<int32_t>(copy->bytes);
  flying.erase(copy);
  end_phase_if_complete(barrier);
}
inline void start_copy(const emulated::Copy& copy, Mbarrier& barrier) {
  emulated::current->block->flying.push_back(copy);
  if (emulated::copies_at_once) let_a_copy_arrive(barrier);
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
  start_copy({target, source, bytes, &barrier}, barrier);
}

inline void fence_stores_for_async() {
  for (const size_t piece : emulated::current->unfenced) emulated::current->block->unfenced[piece] = false;
  emulated::current->unfenced.clear();
}

inline int cluster_rank() { return emulated::current->block->rank; }
inline void cluster_barrier() {
  const emulated::Block& block = *emulated::current->block;
  const int threads = block.all.size;
  emulated::meet(block.cluster->all, block.rank * threads + emulated::current->number, nullptr, nullptr);
}
template <typename T>
T* in_block(T* pointer, int rank) {
  expect_shared(pointer, sizeof(T), alignof(T));
  const emulated::Block& block = *emulated::current->block;
  const auto offset = reinterpret_cast<const unsigned char*>(pointer) - block.shared;
  return reinterpret_cast<T*>(block.cluster->blocks.at(rank)->shared + offset);
}

inline uint32_t add_release(uint32_t* sum, uint32_t value) { return std::exchange(*sum, *sum + value); }
inline uint32_t load_acquire(const uint32_t* sum) { return *sum; }
inline bool replace_zero(uint32_t* target, uint32_t next) { return *target == 0 && (*target = next, true); }
// A nanosecond passes whenever a thread asks, and the others get on.
inline uint64_t nanoseconds() {
  static uint64_t now = 0;
  emulated::clock_was_read = true;
  emulated::yield(false);
  return ++now;
}

}  // namespace device
