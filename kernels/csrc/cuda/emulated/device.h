// The names of device.h on the emulator: exact fragments, copies that arrive as late or as early as they
// may, threads that get on in any order. What it cannot show: memory another thread has written and this one sees too
// early, bank conflicts, time.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "cuda/emulated/fibers.h"

#define DEVICE inline
#define UNROLL
#define __global__
#define __device__
#define __host__
#define __restrict__ __restrict
#define __launch_bounds__(...)
#define __grid_constant__

using std::max;
using std::min;

#define threadIdx (emulated::current->thread)
#define blockIdx (emulated::current->block->index)
#define gridDim (emulated::current->grid->blocks)
#define blockDim (emulated::current->grid->threads)

struct bf16 {
  uint16_t bits;
};
struct fp16 {
  uint16_t bits;
};

namespace device {

inline int lane() { return emulated::current->number % 32; }
inline emulated::Group& warp() { return emulated::current->block->warps[emulated::current->number / 32]; }

inline unsigned char* shared_memory() { return emulated::current->block->shared; }

// Whether [pointer, pointer + bytes) is this block's shared memory, aligned.
inline void expect_shared(const void* pointer, size_t bytes, size_t alignment) {
  const unsigned char* at = static_cast<const unsigned char*>(pointer);
  const emulated::Block& block = *emulated::current->block;
  if (at < block.shared || at + bytes > block.shared + block.shared_bytes)
    emulated::fail("an address outside its shared memory");
  if (reinterpret_cast<uintptr_t>(at) % alignment) emulated::fail("a misaligned address in shared memory");
}

inline size_t piece_of_shared(const void* pointer) {
  return (static_cast<const unsigned char*>(pointer) - emulated::current->block->shared) / 16;
}

inline void barrier() { emulated::meet(emulated::current->block->all, emulated::current->number, nullptr, nullptr); }

inline emulated::Group& numbered_barrier(int number, int threads) {
  emulated::Group& group = emulated::current->block->named.at(number);
  if (group.arrived == 0) {
    group.size = threads;
    group.brought.resize(threads);
  }
  if (group.size != threads) emulated::fail("a barrier waited for by two numbers of threads");
  return group;
}
inline void barrier(int number, int threads) {
  emulated::Group& group = numbered_barrier(number, threads);
  emulated::meet(group, group.arrived, nullptr, nullptr);
}
inline void pass_barrier(int number, int threads) {
  emulated::Group& group = numbered_barrier(number, threads);
  if (group.arrived + 1 == threads) return emulated::meet(group, group.arrived, nullptr, nullptr);
  ++group.arrived;
}

inline void warp_barrier() { emulated::meet(warp(), lane(), nullptr, nullptr); }

template <typename T>
struct Shuffled {
  T value;
  int from;
  T result;
  static void compute(void** all, int count) {
    for (int i = 0; i < count; ++i) {
      Shuffled& mine = *static_cast<Shuffled*>(all[i]);
      mine.result = static_cast<Shuffled*>(all[mine.from & 31])->value;
    }
  }
};

template <typename T>
T shuffle(T value, int from) {
  Shuffled<T> mine{value, from, value};
  emulated::meet(warp(), lane(), &mine, Shuffled<T>::compute);
  return mine.result;
}
template <typename T>
T shuffle_xor(T value, int mask) {
  return shuffle(value, lane() ^ mask);
}

struct Voted {
  bool so;
  static void compute(void** all, int count) {
    bool any = false;
    for (int i = 0; i < count; ++i) any = any || static_cast<Voted*>(all[i])->so;
    for (int i = 0; i < count; ++i) static_cast<Voted*>(all[i])->so = any;
  }
};
inline bool any(bool so) {
  Voted mine{so};
  emulated::meet(warp(), lane(), &mine, Voted::compute);
  return mine.so;
}

inline float exp2_fast(float x) { return std::exp2(x); }
inline float error_function(float x) { return std::erf(x); }
inline float log2_fast(float x) { return std::log2(x); }
inline float inverse_root(float x) { return 1 / std::sqrt(x); }

inline float from_bits(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}
inline uint32_t to_bits(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return bits;
}

inline float to_float(bf16 x) { return from_bits(uint32_t{x.bits} << 16); }
inline float to_float(float x) { return x; }
inline float to_float(fp16 x) {
  const int exponent = x.bits >> 10 & 31, fraction = x.bits & 1023;
  float magnitude = exponent == 0    ? std::ldexp(float(fraction), -24)
                    : exponent == 31 ? (fraction ? NAN : INFINITY)
                                     : std::ldexp(float(fraction + 1024), exponent - 25);
  return x.bits >> 15 ? -magnitude : magnitude;
}

template <typename T>
T from_float(float x);
template <>
inline float from_float<float>(float x) {
  return x;
}
// To the nearest, ties to even.
template <>
inline bf16 from_float<bf16>(float x) {
  const uint32_t bits = to_bits(x);
  if (std::isnan(x)) return {static_cast<uint16_t>(bits >> 16 | 64)};
  return {static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}
template <>
inline fp16 from_float<fp16>(float x) {
  const uint16_t sign = std::signbit(x) ? 0x8000 : 0;
  const float magnitude = std::fabs(x);
  if (std::isnan(x)) return {0x7e00};
  if (magnitude == 0) return {sign};
  if (magnitude >= 65520.0f) return {static_cast<uint16_t>(sign | 0x7c00)};
  int exponent;
  std::frexp(magnitude, &exponent);
  const int place = std::max(exponent - 11, -24);  // of the last bit
  const int units = static_cast<int>(std::nearbyint(std::ldexp(magnitude, -place)));
  return {static_cast<uint16_t>(sign | (place == -24 ? units : (place + 24) * 1024 + units))};
}

template <typename T>
uint32_t pack(float low, float high) {
  return from_float<T>(low).bits | uint32_t{from_float<T>(high).bits} << 16;
}
template <typename T>
float unpack(uint32_t both, int half) {
  return to_float(T{static_cast<uint16_t>(both >> 16 * half)});
}

template <typename T>
struct Multiplied {
  float* d;
  const uint32_t* a;
  uint32_t b[2];
  static void compute(void** all, int) {
    float a[16][16], b[16][8];
    for (int lane = 0; lane < 32; ++lane) {
      const Multiplied& mine = *static_cast<Multiplied*>(all[lane]);
      const int row = lane / 4, column = lane % 4 * 2;
      for (int half = 0; half < 2; ++half) {
        for (int part = 0; part < 4; ++part) {
          a[row + part % 2 * 8][column + part / 2 * 8 + half] = unpack<T>(mine.a[part], half);
        }
        for (int part = 0; part < 2; ++part) b[column + part * 8 + half][row] = unpack<T>(mine.b[part], half);
      }
    }
    for (int lane = 0; lane < 32; ++lane) {
      float* d = static_cast<Multiplied*>(all[lane])->d;
      for (int i = 0; i < 4; ++i) {
        const int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
        float sum = 0;
        for (int k = 0; k < 16; ++k) sum += a[row][k] * b[k][column];
        d[i] += sum;
      }
    }
  }
};

template <typename T>
void mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  Multiplied<T> mine{d, a, {b0, b1}};
  emulated::meet(warp(), lane(), &mine, Multiplied<T>::compute);
}

template <bool transposed>
struct Loaded {
  uint32_t* r;
  const uint16_t* row;
  static void compute(void** all, int) {
    for (int lane = 0; lane < 32; ++lane) {
      for (int matrix = 0; matrix < 4; ++matrix) {
        uint32_t both = 0;
        for (int half = 0; half < 2; ++half) {
          const int row = transposed ? lane % 4 * 2 + half : lane / 4;
          const int column = transposed ? lane / 4 : lane % 4 * 2 + half;
          both |= uint32_t{static_cast<Loaded*>(all[matrix * 8 + row])->row[column]} << 16 * half;
        }
        static_cast<Loaded*>(all[lane])->r[matrix] = both;
      }
    }
  }
};

template <bool transposed>
void load(uint32_t (&r)[4], const void* row) {
  expect_shared(row, 16, 16);
  Loaded<transposed> mine{r, static_cast<const uint16_t*>(row)};
  emulated::meet(warp(), lane(), &mine, Loaded<transposed>::compute);
}
inline void load_matrices(uint32_t (&r)[4], const void* row) { load<false>(r, row); }
inline void load_matrices_transposed(uint32_t (&r)[4], const void* row) { load<true>(r, row); }

inline void arrive(const emulated::Copy& copy) {
  copy.source ? std::memcpy(copy.target, copy.source, copy.bytes) : std::memset(copy.target, 0, copy.bytes);
  emulated::current->unfenced.push_back(piece_of_shared(copy.target));
  emulated::current->block->unfenced[emulated::current->unfenced.back()] = true;
}

inline void copy_16(void* target, const void* source, bool there) {
  expect_shared(target, 16, 16);
  if (there && reinterpret_cast<uintptr_t>(source) % 16) emulated::fail("a misaligned source of a copy");
  const emulated::Copy copy = {target, there ? source : nullptr, 16, nullptr};
  if (emulated::copies_at_once) return arrive(copy);
  emulated::current->copies.back().push_back(copy);
}
inline void close_copies() { emulated::current->copies.emplace_back(); }
template <int open>
void wait_copies() {
  auto& groups = emulated::current->copies;
  while (groups.size() > size_t{open} + 1) {
    for (const emulated::Copy& copy : groups.front()) arrive(copy);
    groups.erase(groups.begin());
  }
}

inline void wait_for_earlier_kernels() {}
inline void let_next_kernel_start() {}

}  // namespace device
