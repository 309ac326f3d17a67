// What the host functions of kernels/csrc/cuda take beside pointers and sizes.
#pragma once

namespace cuda {

// The two kinds of 16-bit numbers kernels are compiled for.
enum class Number { bfloat16, float16 };

}  // namespace cuda

// A cudaStream_t; on the host that plays a GPU, nothing.
using Stream = void*;
