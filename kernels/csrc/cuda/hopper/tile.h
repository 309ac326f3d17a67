// The tile of rows a block of hopper_attend works on: its keys, its steps, and what of them stands where in a stage.
#pragma once

#include <cstdint>

#include "cuda/attention/visibility.h"
#include "cuda/hopper/attend.h"
#include "cuda/hopper/ring.h"

namespace headcount::cuda {

constexpr int hopper_width = 64;  // numbers of a head: rows of 128 bytes, as the swizzle wants them
constexpr int hopper_group_threads = 128;
constexpr int hopper_group_rows = 64;  // rows of a warpgroup that uses stages
constexpr int hopper_vectors = 128;    // persistent vectors of a step
constexpr int hopper_keys = 64;        // keys of the context of a step
// A stage: persistent keys and values [128, 64], or context keys, values and distances [64, 64].
constexpr int hopper_block_bytes = hopper_keys * 128;
using HopperRing = StageRing<6, 4 * hopper_block_bytes>;
static_assert(HopperRing::bytes <= 227 << 10, "what a block of sm_90 may ask for");

// Steps are those of the persistent vectors, then `lead` that bring distances only, then those of the context's keys.
// Keys are counted from the sequence's first new row; those below 0 are the ring's. A step of keys needs a band of
// hopper_tile_rows + hopper_keys distances, of which its own stage and the two before it hold 64 each: column x of the
// band of keys j .. j + 63 is the nearness farthest - (j - earliest) - x.
struct HopperTile {
  int head, start, length;   // start: its first row in the sequence
  int64_t position, packed;  // of row 0 of the sequence
  int64_t ring;              // row of [slots, H, capacity] where the ring begins
  int offset;
  int earliest, last;  // keys any row sees
  int farthest;        // nearness of the band's first column in the first step of keys
  int vector_steps, lead, key_steps;

  // Read before wait_for_earlier_kernels, like the persistent vectors: the kernel just before on the stream must have
  // written neither the tiles nor anything of `several`. docs/kernels.md, "What is read early".
  DEVICE HopperTile(const Attention& a, const Sequences& several, const NewRows& fresh) {
    head = blockIdx.y;
    const int sequence = fresh.tile_sequence[blockIdx.x];
    start = fresh.tile_row[blockIdx.x];
    length = static_cast<int>(several.lengths[sequence]);
    position = several.positions[sequence];
    packed = several.first_rows[sequence];
    ring = (several.slots[sequence] * a.heads + head) * a.capacity;
    offset = static_cast<int>(several.offsets[sequence] % a.capacity);
    earliest = oldest(a.visibility, start);
    last = min(start + hopper_tile_rows, length) - 1 - a.visibility.first_distance;
    farthest = start + hopper_tile_rows - 1 - a.visibility.first_distance - earliest;
    vector_steps = (a.persistent + hopper_vectors - 1) / hopper_vectors;
    key_steps = last < earliest ? 0 : (last - earliest) / hopper_keys + 1;
    lead = a.distance_tables > 0 && key_steps > 0 ? 2 : 0;
  }

  // The first key a row sees, never before that of the row before it.
  DEVICE int oldest(const Visibility& visibility, int time) const {
    return time - visibility.first_distance - keys_seen(visibility, position + time) + 1;
  }
  // In [rows, H, 64].
  DEVICE int64_t packed_row(const Attention& a, int time) const {
    return ((packed + time) * a.heads + head) * hopper_width;
  }
};

// The two warpgroups that hold rows start products in turn, so that the powers of one are formed while the matrix units
// work for the other. Every turn but the first is given by the other warpgroup.
struct Turns {
  int group, groups;

  DEVICE void begin() const {
    if (groups == 2 && group == 1) give();
  }
  DEVICE void take() const {
    if (groups == 2) device::barrier(1 + group, 2 * hopper_group_threads);
  }
  DEVICE void give() const {
    if (groups == 2) device::pass_barrier(2 - group, 2 * hopper_group_threads);
  }
};

// Piece p of row r of a block with rows of 128 bytes, as swizzled_matrix has it.
DEVICE unsigned char* piece_of(unsigned char* block, int row, int piece) {
  return block + row * 128 + ((piece ^ (row & 7)) << 4);
}

}  // namespace headcount::cuda
