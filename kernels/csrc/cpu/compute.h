// The kernels on whole matrices: work cut into chunks by shape alone, the chunks claimed by the pool's threads.
#pragma once

#include <cstdint>
#include <vector>

#include "cpu/floats.h"
#include "cpu/kernels.h"
#include "cpu/pool.h"

namespace headcount::cpu {

class Compute {
 public:
  Compute(const Kernels& kernels, int threads) : kernels(kernels), pool(threads) {}

  void linear(const Linear& call);
  // The same for a matrix in pieces of equally many rows, one below the other; call.w is not read.
  void linear(const Linear& call, const std::vector<Packed>& pieces);
  // The call as the kernel wants it: x narrowed where the unit narrows the kind of w. Valid until the next one.
  Linear narrowed(const Linear& call);
  // Rows [rows, width] without gaps; y may be x.
  void layer_norm(const float* x, const float* gain, const float* bias, std::int64_t rows, std::int64_t width,
                  float eps, float* y);
  // x -= log Σ exp(x) over rows of `width`.
  void log_softmax(float* x, std::int64_t rows, std::int64_t width);
  // `floats` of memory for every thread; returns the first's, the next one's follows at thread_stride.
  float* for_threads(std::int64_t floats);
  std::int64_t thread_stride = 0;

  const Kernels& kernels;
  Pool pool;

 private:
  Scratch threads_;
  Scratch partials_, narrowed_;
};

// Rows 16 · panel .. of a packed matrix, as a matrix of their own.
Packed panel_range(const Packed& w, std::int64_t begin, std::int64_t end);

// The log of a sum of exponentials kept as maximum m and Σ exp(x - m), joined with another.
void join(float& maximum, float& sum, float other_maximum, float other_sum);

}  // namespace headcount::cpu
