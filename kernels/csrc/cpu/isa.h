// Which compiled set of kernels this process uses. HEADCOUNT_CPU_ISA = generic, avx2, avx512, avx512_bf16 or amx
// forces one.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "cpu/kernels.h"

namespace headcount::cpu {

// Instruction sets that are compiled in and that this CPU has, the best last. Never empty.
std::vector<std::string> isa_names();

// Throws CheckError where the name is unknown, not compiled in, or beyond this CPU.
const Kernels& kernels_named(const std::string& name);

// The best this CPU has, or what HEADCOUNT_CPU_ISA names. The variable is read at each call: look the table up once.
// Throws CheckError as kernels_named does, and where the variable's old name, ENGINE_CPU_ISA, is set.
const Kernels& kernels();

// How often each kernel of each instruction set was called so far in this process: proof of what ran.
struct CallCount {
  std::string isa, op;
  std::int64_t calls;
};
std::vector<CallCount> call_counts();

}  // namespace headcount::cpu
