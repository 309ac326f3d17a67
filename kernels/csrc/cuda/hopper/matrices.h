// Products of matrices by the four warps of a warpgroup (wgmma): operands in shared memory and registers, results in
// registers, all of it behind the threads' backs. PTX ISA 9.7.15. hopper.h includes this.
//
// A warp's 16 of the 64 rows are its fragments of mma.m16n8k16, one for each block of 8 columns.
#pragma once

#include "cuda/device.h"

namespace device {

// What a product is told of a matrix in shared memory with rows of 128 bytes, groups of eight rows 1024 bytes apart, in
// the 128-byte swizzle: 16-byte piece p of row r at piece p ^ (r % 8). The matrix begins at a multiple of 1024 and
// `address` there or some 16-byte pieces further along the row, or some groups. Bits: PTX ISA 9.7.15.5.1.
DEVICE uint64_t swizzled_at(uint32_t address) {
  constexpr uint64_t swizzle_128 = 1, group_stride = 1024 >> 4, unused_stride = 1;
  return swizzle_128 << 62 | group_stride << 32 | unused_stride << 16 | (address & 0x3ffff) >> 4;
}

}  // namespace device

#ifndef __CUDACC__
#include "cuda/emulated/hopper_matrices.h"
#else

#include <type_traits>

namespace device {

DEVICE uint64_t swizzled_matrix(const void* start) { return swizzled_at(shared_address(start)); }

// Before the first product and after the threads have written registers that products read or add to.
DEVICE void begin_products() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
DEVICE void close_products() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// Until at most `open` closed groups are under way. `d` was written by one that is not: it may be read from here on.
template <int open, int blocks>
DEVICE void wait_products(float (&d)[blocks][4]) {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(open) : "memory");
  UNROLL
  for (int i = 0; i < blocks; ++i) {
    UNROLL
    for (int e = 0; e < 4; ++e) asm volatile("" : "+f"(d[i][e])::"memory");
  }
}

#define HEADCOUNT_D8(i)                                                                                                \
  "+f"(d[i][0]), "+f"(d[i][1]), "+f"(d[i][2]), "+f"(d[i][3]), "+f"(d[i + 1][0]), "+f"(d[i + 1][1]), "+f"(d[i + 1][2]), \
      "+f"(d[i + 1][3])
#define HEADCOUNT_WGMMA_64(type)                                                                               \
  asm volatile(                                                                                                \
      "{\n.reg .pred p;\nsetp.ne.b32 p, %37, 0;\n"                                                             \
      "wgmma.mma_async.sync.aligned.m64n64k16.f32." type "." type                                              \
      " {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, " \
      "%22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, {%32, %33, %34, %35}, %36, p, 1, 1, %38;\n}"         \
      : HEADCOUNT_D8(0), HEADCOUNT_D8(2), HEADCOUNT_D8(4), HEADCOUNT_D8(6)                                     \
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(static_cast<int>(add)), "n"(transposed ? 1 : 0))
#define HEADCOUNT_WGMMA_128(type)                                                                                \
  asm volatile(                                                                                                  \
      "{\n.reg .pred p;\nsetp.ne.b32 p, %69, 0;\n"                                                               \
      "wgmma.mma_async.sync.aligned.m64n128k16.f32." type "." type                                               \
      " {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, "   \
      "%22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42," \
      " %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, "    \
      "%63}, {%64, %65, %66, %67}, %68, p, 1, 1, %70;\n}"                                                        \
      : HEADCOUNT_D8(0), HEADCOUNT_D8(2), HEADCOUNT_D8(4), HEADCOUNT_D8(6), HEADCOUNT_D8(8), HEADCOUNT_D8(10),   \
        HEADCOUNT_D8(12), HEADCOUNT_D8(14)                                                                       \
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(static_cast<int>(add)), "n"(transposed ? 1 : 0))

template <typename T, bool transposed>
DEVICE void start_product(float (&d)[8][4], const uint32_t (&a)[4], uint64_t b, bool add) {
  if constexpr (std::is_same_v<T, bf16>) {
    HEADCOUNT_WGMMA_64("bf16");
  } else {
    HEADCOUNT_WGMMA_64("f16");
  }
}
template <typename T, bool transposed>
DEVICE void start_product(float (&d)[16][4], const uint32_t (&a)[4], uint64_t b, bool add) {
  if constexpr (std::is_same_v<T, bf16>) {
    HEADCOUNT_WGMMA_128("bf16");
  } else {
    HEADCOUNT_WGMMA_128("f16");
  }
}
#undef HEADCOUNT_WGMMA_128
#undef HEADCOUNT_WGMMA_64
#undef HEADCOUNT_D8

// d = a · bᵀ, or += where `add`: a [64, 16], d [64, 8 · blocks]; b is 16 numbers of each of 8 · blocks rows of a
// swizzled matrix.
template <typename T, int blocks>
DEVICE void multiply_rows(float (&d)[blocks][4], const uint32_t (&a)[4], uint64_t b, bool add) {
  start_product<T, false>(d, a, b, add);
}
// d = a · b, or += where `add`; b is 16 whole rows of a swizzled matrix.
template <typename T>
DEVICE void multiply_columns(float (&d)[8][4], const uint32_t (&a)[4], uint64_t b, bool add) {
  start_product<T, true>(d, a, b, add);
}

// Registers of each thread of the warpgroup from here on, a multiple of 8: what it gives back, and what it waits for.
template <int count>
DEVICE void give_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(count));
}
template <int count>
DEVICE void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(count));
}

}  // namespace device
#endif
