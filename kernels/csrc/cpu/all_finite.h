#pragma once

#include "common/tensor_view.h"

namespace headcount {

// Whether no element is infinite or NaN; true for no elements. Throws CheckError.
bool all_finite(const TensorView& data);

}  // namespace headcount
