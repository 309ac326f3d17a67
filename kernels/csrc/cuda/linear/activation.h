// Activations of a feed-forward; equations: engine_kernels/ops.py.
#pragma once

#include "cuda/device.h"
#include "cuda/types.h"

namespace headcount::cuda {

DEVICE float sigmoid(float x) { return 1.0f / (1.0f + device::exp2_fast(-1.4426950408889634f * x)); }

DEVICE float activate(Activation activation, float x) {
  switch (activation) {
    case Activation::none:
      return x;
    case Activation::relu:
      return x > 0 ? x : 0.0f;
    case Activation::gelu:
      return 0.5f * x * (1.0f + device::error_function(0.70710678118654752f * x));
    case Activation::gelu_tanh:  // (1 + tanh z) / 2 = sigmoid(2 z)
      return x * sigmoid(1.5957691216057308f * (x + 0.044715f * x * x * x));
    case Activation::quick_gelu:
      return x * sigmoid(1.702f * x);
    case Activation::silu:
      return x * sigmoid(x);
  }
  return x;
}

}  // namespace headcount::cuda
