// The parts of the attention kernels' scratch whose size the kernels and the three size functions must agree on.
#pragma once

#include "cpu/kernels.h"

namespace headcount::cpu {

// Floats of a row of n numbers in whole panels. Static: a unit's copy must not serve another instruction set.
static constexpr std::int64_t lanes(std::int64_t n) { return panels(n) * panel_width; }

// Floats of a row of W numbers that may be read one panel early and one late.
static constexpr std::int64_t banded(std::int64_t reach) { return lanes(reach) + 2 * panel_width; }

}  // namespace headcount::cpu
