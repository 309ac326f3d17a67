// Attention of sequences of several rows on sm_90a, with heads of 64 numbers: attend_constants and attend_rows of
// attention.h in one kernel, without states and scores in memory. docs/kernels.md, hopper_attend.
#pragma once

#include "cuda/attention/attention.h"

namespace headcount::cuda {

// Rows of a tile, from which NewRows is made for hopper_attend.
constexpr int hopper_tile_rows = 128;

// Whether the GPU runs hopper_attend for heads of this size.
bool hopper_attend_runs(int head_dim);
// Whether it also pays: there are enough tiles of hopper_tile_rows rows that one block for each and head keeps the card
// busy; below that attend_constants, which cuts the persistent vectors in parts, is better.
bool hopper_attend_fits(const Attention& attention, int tiles);

// `attended` of the rows of `several`; of `attention` splits, states and scores are not used.
void hopper_attend(const Attention& attention, const Sequences& several, const NewRows& fresh, Stream stream);

}  // namespace headcount::cuda
