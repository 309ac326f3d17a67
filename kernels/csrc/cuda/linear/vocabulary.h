// The softmax over a vocabulary without its logits in memory.
#pragma once

#include <cstdint>

#include "cuda/types.h"

namespace headcount::cuda {

// Into how many parts the words are cut, so that few rows still fill a GPU.
int word_parts(int rows, int words);

struct Words {
  Number number;
  int rows, words, depth;
  const void *x, *weight;  // [rows, depth], [words, depth]
  const void* bias;        // [words], or nullptr
  const int64_t* targets;  // [rows]: a word, or -1
  // Of each part: running sums (peak, total), peaks in units of log2, and the target's logit where the part has it.
  float *peaks, *totals, *picked;  // [word_parts, rows]
  float *everything, *logit;       // [rows]: log Σ exp(logits), and the target's logit, 0 where it is -1
};

// logits = x · weightᵀ + bias
void score_words(const Words& words, Stream stream);

}  // namespace headcount::cuda
