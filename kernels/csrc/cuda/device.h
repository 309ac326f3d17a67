// What kernels say to the machine: one name per instruction, written for NVIDIA GPUs here and for a host that plays one
// in emulated/device.h. A kernel includes nothing else and uses no other intrinsic, so that the same source runs in
// both. Numbers of instructions and fragment layouts: PTX ISA, sections 9.7.9 (barriers, mbarrier), 9.7.9.25
// (copies), 9.7.14 (mma).
#pragma once

#include <cstdint>

#ifndef __CUDACC__
#include "cuda/emulated/device.h"
#else

#include <cuda_bf16.h>
#include <cuda_fp16.h>

using bf16 = __nv_bfloat16;
using fp16 = __half;

#define DEVICE __device__ __forceinline__
// Before a loop over registers.
#define UNROLL _Pragma("unroll")

namespace device {

// ---- shared memory

DEVICE unsigned char* shared_memory() {
  extern __shared__ __align__(1024) unsigned char dynamic_shared[];
  return dynamic_shared;
}

DEVICE uint32_t shared_address(const void* pointer) { return static_cast<uint32_t>(__cvta_generic_to_shared(pointer)); }

// ---- threads together

// All threads of the block.
DEVICE void barrier() { __syncthreads(); }
// `threads` of the block, whole warps, by one of the barriers 1 .. 15.
DEVICE void barrier(int number, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(number), "r"(threads) : "memory");
}
// Counts among the `threads` of barrier(number, threads), whole warps, and goes on.
DEVICE void pass_barrier(int number, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(number), "r"(threads) : "memory");
}
DEVICE void warp_barrier() { __syncwarp(); }

template <typename T>
DEVICE T shuffle(T value, int lane) {
  return __shfl_sync(0xffffffffu, value, lane);
}
template <typename T>
DEVICE T shuffle_xor(T value, int mask) {
  return __shfl_xor_sync(0xffffffffu, value, mask);
}
// Whether it is so for any thread of the warp.
DEVICE bool any(bool so) { return __any_sync(0xffffffffu, so); }

// ---- numbers

// 2^x to about 2 ulp; 0 for -inf.
DEVICE float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
DEVICE float from_bits(uint32_t bits) { return __uint_as_float(bits); }
DEVICE uint32_t to_bits(float x) { return __float_as_uint(x); }
DEVICE float log2_fast(float x) { return __log2f(x); }
// 1 / √x to 2 ulp.
DEVICE float inverse_root(float x) { return rsqrtf(x); }
DEVICE float error_function(float x) { return erff(x); }
DEVICE float to_float(bf16 x) { return __bfloat162float(x); }
DEVICE float to_float(fp16 x) { return __half2float(x); }
DEVICE float to_float(float x) { return x; }
template <typename T>
DEVICE T from_float(float x);
template <>
DEVICE bf16 from_float<bf16>(float x) {
  return __float2bfloat16_rn(x);
}
template <>
DEVICE fp16 from_float<fp16>(float x) {
  return __float2half_rn(x);
}
template <>
DEVICE float from_float<float>(float x) {
  return x;
}
// Two numbers in one register, `low` in the low half.
template <typename T>
DEVICE uint32_t pack(float low, float high);
template <>
DEVICE uint32_t pack<bf16>(float low, float high) {
  const __nv_bfloat162 both = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&both);
}
template <>
DEVICE uint32_t pack<fp16>(float low, float high) {
  const __half2 both = __floats2half2_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&both);
}
// The low or the high one of two numbers in one register; half: 0 or 1.
template <typename T>
DEVICE float unpack(uint32_t both, int half);
template <>
DEVICE float unpack<bf16>(uint32_t both, int half) {
  return __uint_as_float(half ? both & 0xffff0000u : both << 16);
}
template <>
DEVICE float unpack<fp16>(uint32_t both, int half) {
  return __half2float(__ushort_as_half(static_cast<unsigned short>(both >> 16 * half)));
}

// ---- matrices of a warp: fragments as in PTX ISA, mma.m16n8k16

// d += a · b: a [16, 16] by rows, b [16, 8] by columns, d [16, 8] float32.
template <typename T>
DEVICE void mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);
template <>
DEVICE void mma<bf16>(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
template <>
DEVICE void mma<fp16>(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Four 8 × 8 matrices of 16-bit numbers; lane l gives the row of 16 bytes at `row`: row l % 8 of matrix l / 8.
DEVICE void load_matrices(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}
// The same, each matrix transposed.
DEVICE void load_matrices_transposed(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}

// ---- copies of a thread into shared memory

// 16 bytes, aligned; zeros where not `there`.
DEVICE void copy_16(void* target, const void* source, bool there) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(target)), "l"(source),
               "r"(there ? 16 : 0)
               : "memory");
}
DEVICE void close_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Until at most `open` closed groups of this thread's copies have yet to arrive.
template <int open>
DEVICE void wait_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(open) : "memory");
}

// ---- kernels one after another on a stream, each starting before the last has ended (programmatic dependent launch)

// Before anything an earlier kernel wrote is read.
DEVICE void wait_for_earlier_kernels() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
// From here on the next kernel may start what does not read this one's results.
DEVICE void let_next_kernel_start() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

}  // namespace device
#endif
