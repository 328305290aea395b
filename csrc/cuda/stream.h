// The device of a tensor and torch's current stream there, on which kernels are launched.
#pragma once

#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>

#include "tensor.h"

namespace blpseg {

class LaunchOn {
 public:
  LaunchOn(const Tensor& tensor, const char* op) : op_(op), guard_(tensor.get_device_index()) {
    const int32_t device = tensor.get_device_index();
    void* current = nullptr;
    STD_TORCH_CHECK(aoti_torch_get_current_cuda_stream(device, &current) == 0, op,
                    ": torch has no current CUDA stream on device ", device);
    stream = static_cast<cudaStream_t>(current);
  }

  // Throws if the last launch failed.
  void check() const {
    const cudaError_t launched = cudaGetLastError();
    STD_TORCH_CHECK(launched == cudaSuccess, op_, ": ", cudaGetErrorString(launched));
  }

  cudaStream_t stream;

 private:
  const char* op_;
  const torch::stable::accelerator::DeviceGuard guard_;
};

}  // namespace blpseg
