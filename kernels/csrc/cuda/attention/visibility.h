// Which keys a row sees.
#pragma once

#include <cstdint>

#include "cuda/attention/attention.h"
#include "cuda/device.h"

namespace headcount::cuda {

// How many keys, at distances first_distance, first_distance + 1, …, the row at a position sees. The farthest of them
// never lies before the farthest of the row before.
DEVICE int keys_seen(const Visibility& visibility, int64_t position) {
  const int limit =
      visibility.segment > 0 ? visibility.window + static_cast<int>(position % visibility.segment) : visibility.reach;
  const int64_t existing = position - visibility.first_distance + 1;  // keys at positions from 0 on
  return visibility.attended_zeros || existing > limit ? limit : static_cast<int>(existing);
}

// What a key at this distance counts under an adaptive span.
DEVICE float ramp_of(float distance, float span, float ramp) {
  return fminf(fmaxf((1.0f - distance + span) / ramp + 1.0f, 0.0f), 1.0f);
}

// What weights are divided by: their sum, under a span their sum after the ramp.
DEVICE float share_of(const Attention& attention, float total, float kept) {
  return attention.spans != nullptr ? kept + 1e-8f * total : total;
}

}  // namespace headcount::cuda
