// A block of the decode step: what all its items share. The ring streams weights and the context ahead; waits end, if
// not by what they wait for then by giving up.
#pragma once

#include "cuda/decode/decode.h"
#include "cuda/hopper/hopper.h"

namespace headcount::cuda::decode {

struct Parameters {
  Step step;
  Shared shared;
  int hidden, layers, rows, stages, most_jobs, cluster;
  uint32_t stage_bytes;
};

struct alignas(16) Words {
  uint32_t x[4];
};
template <typename T>
struct alignas(16) Eight {
  T x[8];
};
struct alignas(8) Two {
  float x, y;
};

constexpr int threads = warps * 32;
constexpr float log2_e = 1.4426950408889634f;

// Flags in the first bytes of shared memory. failed: a wait of this block was given up. stopped: some block of the
// cluster had failed before all met; two, as a block may come to the next meeting while another reads this one's.
struct Flags {
  volatile int failed, stopped[2];
};

template <typename T, int D>
struct Block {
  static constexpr int steps = D / 32;                               // of mma pairs over a head's numbers
  static constexpr int outs = (D / 8 + warps - 1) / warps;           // tiles of output columns of a warp
  static constexpr int query_pitch = D + 8, attended_pitch = D + 8;  // against bank conflicts

  const Parameters& p;
  unsigned char* const memory = device::shared_memory();
  Flags& flags = *reinterpret_cast<Flags*>(memory);
  float* const row_states = reinterpret_cast<float*>(memory + 128);  // peaks, totals, fades, [16] each
  const int64_t* const slots = reinterpret_cast<const int64_t*>(memory + p.shared.places);
  const int64_t* const positions = slots + most_rows;
  const Item* const items = reinterpret_cast<const Item*>(memory + p.shared.items);
  const Layer* const layers = reinterpret_cast<const Layer*>(memory + p.shared.layers);
  float* const residual = reinterpret_cast<float*>(memory + p.shared.residual);  // [rows, hidden]
  T* const normed = reinterpret_cast<T*>(memory + p.shared.normed);              // [16, hidden + 8]
  float* const query = reinterpret_cast<float*>(memory + p.shared.query);        // [16, D + 8]
  T* const fresh_keys = reinterpret_cast<T*>(memory + p.shared.fresh_keys);      // [rows, D]
  T* const fresh_values = reinterpret_cast<T*>(memory + p.shared.fresh_values);
  float* const scores = reinterpret_cast<float*>(memory + p.shared.scores);  // [16, pitch]; or partial sums
  float* const states = reinterpret_cast<float*>(memory + p.shared.states);  // [cluster, rows, D + 2]
  T* const attended = reinterpret_cast<T*>(memory + p.shared.attended);      // [16, D + 8]
  device::Mbarrier* const full = reinterpret_cast<device::Mbarrier*>(memory + p.shared.full);  // [stages]

  const int thread = threadIdx.x, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int rank = device::cluster_rank();
  int count = 0;                               // of items
  int issued_item = 0, issued = 0, taken = 0;  // streamed ahead, and waited for
  int meetings = 0;                            // of the cluster
  float out[outs][4];                          // attended, not yet divided; of rows lane / 4 and + 8

  DEVICE explicit Block(const Parameters& parameters) : p(parameters) {}

  // ---- waits

  template <typename Done>
  DEVICE void wait(Done done, int layer, int phase) {
    if (done()) return;
    const uint64_t start = device::nanoseconds();
    for (;;) {
      for (int polls = 0; polls < 32; ++polls) {
        if (done()) return;
      }
      if (flags.failed) return;
      if (device::load_acquire(&p.step.trouble->raised)) break;
      if (device::nanoseconds() - start < p.step.patience) continue;
      if (device::replace_zero(&p.step.trouble->raised, 1)) {
        p.step.trouble->block = blockIdx.x;
        p.step.trouble->layer = layer;
        p.step.trouble->phase = phase;
      }
      break;
    }
    flags.failed = 1;  // what was waited for is taken as it is, and all leave at the next meeting of the cluster
  }

  // All blocks; what they wrote before is seen after. Block 0 adds what makes the sum of all flip the highest bit, so
  // that no block has to set it back.
  DEVICE void meet_grid(int layer) {
    device::barrier();
    if (thread == 0) {
      const uint32_t mine = blockIdx.x == 0 ? 0x80000000u - (gridDim.x - 1) : 1u;
      const uint32_t before = device::add_release(p.step.meeting, mine);
      wait([&] { return (device::load_acquire(p.step.meeting) ^ before) >> 31 != 0; }, layer, 1);
    }
    device::barrier();
  }

  // All blocks of the cluster; whether to go on.
  DEVICE bool meet_cluster() {
    if (thread < p.cluster && flags.failed) device::in_block(&flags, thread)->stopped[meetings & 1] = 1;
    device::cluster_barrier();
    return !flags.stopped[meetings++ & 1];
  }

  // ---- the ring

  DEVICE unsigned char* stage(int number) const { return memory + p.shared.ring + number % p.stages * p.stage_bytes; }

  DEVICE static bool streams(const Item& item) { return item.bytes + item.near > 0; }
  DEVICE uint32_t row_pitch(const Item& item) const { return item.near * D * 2 + padding; }  // of a sequence's keys

  // Where the context's keys of row 0 begin in a stage; values follow the keys of all rows.
  DEVICE uint32_t context_begins(const Item& item) const { return item.bytes; }

  // Starts the copies of the next item that has any; all lanes of warp 0. The stage must be free.
  DEVICE void issue() {
    if (device::shuffle(int(flags.failed), 0)) return;  // who gave up has left a stage in the middle
    while (issued_item < count && !streams(items[issued_item])) ++issued_item;
    if (issued_item == count) return;
    const Item& item = items[issued_item++];
    unsigned char* target = stage(issued);
    device::Mbarrier& barrier = full[issued++ % p.stages];
    if (lane == 0) {
      device::arrive_and_expect(barrier, item.bytes + 2 * p.rows * item.near * D * 2);
      uint32_t at = 0;
      for (int i = 0; i < item.pieces; ++i) {
        device::copy_bulk(target + at, p.step.packed + size_t{item.piece[i].at} * 16, item.piece[i].bytes, barrier);
        at += item.piece[i].bytes;
      }
    }
    device::warp_barrier();
    if (item.near > 0 && lane < p.rows) issue_context(item, target + context_begins(item), barrier);
  }

  // Keys and values of the sequence of row `lane`, oldest first: in its ring at most in two runs.
  DEVICE void issue_context(const Item& item, unsigned char* target, device::Mbarrier& barrier) {
    const Layer& layer = layers[item.layer];
    const int64_t oldest = positions[lane] - layer.first_distance - item.nearest - item.near + 1;
    int place = static_cast<int>(oldest % layer.capacity);
    place += place < 0 ? layer.capacity : 0;
    const int run = item.near < layer.capacity - place ? item.near : layer.capacity - place;
    const size_t ring = (slots[lane] * layer.heads + item.head) * layer.capacity * D;
    target += lane * row_pitch(item);
    for (const void* source : {layer.ring_keys, layer.ring_values}) {
      const T* begin = static_cast<const T*>(source) + ring;
      device::copy_bulk(target, begin + place * D, run * D * 2, barrier);
      if (run < item.near) device::copy_bulk(target + run * D * 2, begin, (item.near - run) * D * 2, barrier);
      target += p.rows * row_pitch(item);
    }
  }

  // The stage of the next item that streams, when it is there.
  DEVICE const unsigned char* take(const Item& item) {
    const int number = taken++;
    wait([&] { return device::has_ended(full[number % p.stages], number / p.stages & 1); }, item.layer, 2);
    return stage(number);
  }

  // By one thread of warp 0 before the block leaves early: copies on their way would land in memory that is another's
  // by then. The phase last issued into each stage has ended when they are there; that may never be, so it waits no
  // longer than for anything else.
  DEVICE void let_copies_land() {
    const uint64_t start = device::nanoseconds();
    bool landed = false;
    while (!landed && device::nanoseconds() - start < p.step.patience) {
      landed = true;
      for (int number = issued > p.stages ? issued - p.stages : 0; number < issued; ++number)
        landed = device::has_ended(full[number % p.stages], number / p.stages & 1) && landed;
    }
  }

  // ---- matrices

  // Fragments of rows of 16-bit numbers in shared memory, columns [column, column + 16).
  DEVICE void load_rows(uint32_t (&a)[4], const T* rows, int pitch, int column) const {
    device::load_matrices(a, rows + lane % 16 * pitch + column + lane / 16 * 8);
  }
  // The same from float32, plus `bias` of the column.
  DEVICE void round_rows(uint32_t (&a)[4], const float* rows, int pitch, int column, const float* bias) const {
    for (int part = 0; part < 4; ++part) {
      const int c = column + part / 2 * 8 + lane % 4 * 2;
      const Two pair = *reinterpret_cast<const Two*>(rows + (lane / 4 + part % 2 * 8) * pitch + c);
      a[part] = device::pack<T>(pair.x + (bias ? bias[c] : 0.0f), pair.y + (bias ? bias[c + 1] : 0.0f));
    }
  }
  // sums [16, 8] += rows [16, 32] · tile [8, 32]ᵀ.
  DEVICE void multiply(float (&sums)[4], const uint32_t (&a)[2][4], const unsigned char* tile) const {
    const Words b = reinterpret_cast<const Words*>(tile)[lane];
    device::mma<T>(sums, a[0], b.x[0], b.x[1]);
    device::mma<T>(sums, a[1], b.x[2], b.x[3]);
  }

  DEVICE float warp_sum(float x) const {
    for (int mask = 16; mask; mask /= 2) x += device::shuffle_xor(x, mask);
    return x;
  }
};

}  // namespace headcount::cuda::decode
