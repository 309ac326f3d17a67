// Boxes of tables in global memory, copied into shared memory by the tensor memory unit. PTX ISA 9.7.9.27
// (cp.async.bulk.tensor). hopper.h includes this.
#pragma once

#include "cuda/launch.h"

#ifndef __CUDACC__
#include "cuda/emulated/hopper_tensors.h"
#else

#include <cuda.h>

// Tables [tables, rows, 64] of 16-bit numbers and the rows of a box.
using TensorMap = CUtensorMap;
static_assert(alignof(TensorMap) % 64 == 0, "where the tensor memory unit reads one");  // 64, since CUDA 13 128

// The driver's function is asked of the runtime, so that libcuda is not linked.
inline TensorMap describe_tables(const void* base, int64_t tables, int64_t rows, int box_rows) {
  using Encode = decltype(&cuTensorMapEncodeTiled);
  static const Encode encode = [] {
    void* found = nullptr;
    cudaDriverEntryPointQueryResult result = cudaDriverEntryPointSymbolNotFound;
#if CUDART_VERSION >= 12050
    check(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found, 12000, cudaEnableDefault, &result),
          "cuTensorMapEncodeTiled");
#else
    check(cudaGetDriverEntryPoint("cuTensorMapEncodeTiled", &found, cudaEnableDefault, &result),
          "cuTensorMapEncodeTiled");
#endif
    if (result != cudaDriverEntryPointSuccess)
      throw std::runtime_error(
          "cuTensorMapEncodeTiled: this driver has no tensor maps: install one of CUDA 12 or newer");
    return reinterpret_cast<Encode>(found);
  }();
  TensorMap map;
  const cuuint64_t sizes[3] = {64, static_cast<cuuint64_t>(rows), static_cast<cuuint64_t>(tables)};
  const cuuint64_t strides[2] = {128, 128 * static_cast<cuuint64_t>(rows)};  // bytes
  const cuuint32_t box[3] = {64, static_cast<cuuint32_t>(box_rows), 1}, every[3] = {1, 1, 1};
  const CUresult status = encode(&map, CU_TENSOR_MAP_DATA_TYPE_UINT16, 3, const_cast<void*>(base), sizes, strides, box,
                                 every, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                                 CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (status != CUDA_SUCCESS)
    throw std::runtime_error("cuTensorMapEncodeTiled: error " + std::to_string(static_cast<int>(status)));
  return map;
}

namespace device {

// Rows row .. row + box_rows - 1 of a table into shared memory at a multiple of 1024, in the 128-byte swizzle of
// matrices.h; rows the table lacks are zeros, and their bytes counted by the barrier too. Called by one thread.
DEVICE void copy_box(void* target, const TensorMap& map, int table, int row, Mbarrier& barrier) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3, %4}], "
      "[%5];" ::"r"(shared_address(target)),
      "l"(&map), "r"(0), "r"(row), "r"(table), "r"(shared_address(&barrier))
      : "memory");
}

}  // namespace device
#endif
