// Stands in for csrc/cuda/stream.h.
#pragma once

#include "cuda_runtime.h"
#include "tensor.h"

namespace blpseg {

struct LaunchOn {
  LaunchOn(const Tensor&, const char*) {}
  void check() const {}
  cudaStream_t stream = nullptr;
};

}  // namespace blpseg
