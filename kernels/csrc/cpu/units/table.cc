#include "cpu/units/narrow.h"
#include "cpu/units/unit.h"

#define HEADCOUNT_NAME_OF(unit) #unit
#define HEADCOUNT_NAME(unit) HEADCOUNT_NAME_OF(unit)

namespace headcount::cpu::HEADCOUNT_UNIT {

const Kernels table = {HEADCOUNT_NAME(HEADCOUNT_UNIT),
                       {false, dots_bfloat16, true},
                       narrow,
                       linear,
                       layer_norm,
                       attend_rows,
                       attend_persistent,
                       attend_ring,
                       log_sum_exp,
                       add_constant};

}  // namespace headcount::cpu::HEADCOUNT_UNIT
