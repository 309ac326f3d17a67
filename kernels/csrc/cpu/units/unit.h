// What one unit defines: the functions of its table, in the namespace of its instruction set.
#pragma once

#include "cpu/kernels.h"

#ifndef HEADCOUNT_UNIT
#error "compile the units with -DHEADCOUNT_UNIT=generic, avx2, avx512, avx512_bf16, amx or emulated"
#endif

namespace headcount::cpu::HEADCOUNT_UNIT {

void narrow(const float* x, std::int64_t ldx, std::int64_t rows, std::int64_t k, Kind kind, float* to, float* scale);
void linear(const Linear& call, std::int64_t panel_begin, std::int64_t panel_end);
void layer_norm(const float* x, const float* gain, const float* bias, std::int64_t rows, std::int64_t width, float eps,
                float* y);
void attend_rows(const AttendRows& call);
void attend_persistent(const AttendPersistent& call);
void attend_ring(const AttendRing& call);
void log_sum_exp(const float* x, std::int64_t size, float* maximum, float* sum);
void add_constant(float* x, std::int64_t size, float c);

extern const Kernels table;

}  // namespace headcount::cpu::HEADCOUNT_UNIT
