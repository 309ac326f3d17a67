// What the host functions of kernels/csrc/cuda take beside pointers and sizes.
#pragma once

namespace headcount::cuda {

// The two kinds of 16-bit numbers kernels are compiled for.
enum class Number { bfloat16, float16 };

enum class Activation { none, relu, gelu, gelu_tanh, quick_gelu, silu };

}  // namespace headcount::cuda

// A cudaStream_t; on the emulator, nothing.
using Stream = void*;
