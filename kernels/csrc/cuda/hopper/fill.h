// What hopper_attend's filling warpgroup does: persistent vectors by the tensor memory unit, then keys, values and
// distances row by row, wherever in the ring or among the new rows each stands.
#pragma once

#include "cuda/hopper/tile.h"

namespace headcount::cuda {

DEVICE void fill_vectors(const TensorMap& keys, const TensorMap& values, const HopperTile& tile,
                         const HopperRing& ring) {
  for (int step = 0; step < tile.vector_steps; ++step) {
    ring.wait_empty(step);
    if (threadIdx.x == 0) {
      constexpr int bytes = 2 * hopper_block_bytes;  // of [128, 64]
      device::Mbarrier& full = ring.full(step);
      device::arrive_and_expect(full, 2 * bytes);
      device::copy_box(ring.stage(step), keys, tile.head, step * hopper_vectors, full);
      device::copy_box(ring.stage(step) + bytes, values, tile.head, step * hopper_vectors, full);
    }
    if (threadIdx.x >= 32) {
      ring.fill(step);
    } else {
      device::warp_barrier();  // no lane gets ahead of the thread that starts the copies
    }
  }
}

template <typename T>
DEVICE void fill_context(const Attention& a, const NewRows& fresh, const HopperTile& tile, const HopperRing& ring) {
  constexpr int behind = 2;  // steps whose copies are under way while those of the next start
  const int piece = threadIdx.x % 8, first_row = threadIdx.x / 8;
  const T* table = static_cast<const T*>(a.distances) +
                   int64_t{min(tile.head, a.distance_tables - 1)} * a.visibility.reach * hopper_width;
  const int steps = tile.key_steps + tile.lead;
  for (int i = 0; i < steps; ++i) {
    const int step = tile.vector_steps + i;
    ring.wait_empty(step);
    unsigned char* keys = ring.stage(step);
    unsigned char* values = keys + hopper_block_bytes;
    unsigned char* distances = values + hopper_block_bytes;
    UNROLL
    for (int row = first_row; row < hopper_keys; row += 16) {
      if (i >= tile.lead) {
        const int j = tile.earliest + (i - tile.lead) * hopper_keys + row;
        const int slot = tile.offset + j < 0 ? tile.offset + j + a.capacity : tile.offset + j;
        // What no row sees may be anything, and zero times NaN is NaN: zeros take its place.
        const bool there = j <= tile.last;
        const int64_t at = (j < 0 ? (tile.ring + slot) * hopper_width : there ? tile.packed_row(a, j) : 0) + piece * 8;
        const void* from_keys = j < 0 ? a.ring_keys : fresh.keys;
        const void* from_values = j < 0 ? a.ring_values : fresh.values;
        device::copy_16(piece_of(keys, row, piece), static_cast<const T*>(from_keys) + at, there);
        device::copy_16(piece_of(values, row, piece), static_cast<const T*>(from_values) + at, there);
      }
      if (tile.lead > 0) {
        const int near = tile.farthest - i * hopper_keys - row;
        const bool there = near >= 0 && near < a.visibility.reach;
        device::copy_16(piece_of(distances, row, piece), table + (there ? near : 0) * hopper_width + piece * 8, there);
      }
    }
    device::close_copies();
    if (i < behind) continue;
    device::wait_copies<behind>();
    device::fence_stores_for_async();
    ring.fill(step - behind);
  }
  device::wait_copies<0>();
  device::fence_stores_for_async();
  for (int i = max(steps - behind, 0); i < steps; ++i) ring.fill(tile.vector_steps + i);
}

}  // namespace headcount::cuda
