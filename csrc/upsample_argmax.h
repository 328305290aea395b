// The checks and the result of blpseg::upsample_argmax, shared by its CPU and CUDA kernels.
#pragma once

#include <vector>

#include "tensor.h"

namespace blpseg {

// Check what the kernels need to stay inside their buffers, and allocate the label map to write.
// blpseg_ops/_checks.py has the full checks, in the user's words. logits: [N, K, h, w]
inline Tensor new_label_map(const Tensor& logits, const std::vector<int64_t>& size) {
  STD_TORCH_CHECK(logits.dim() == 4, "upsample_argmax: expected logits [N, K, h, w], got ",
                  logits.dim(), " dimensions");
  STD_TORCH_CHECK(logits.size(1) > 0 && logits.size(2) > 0 && logits.size(3) > 0,
                  "upsample_argmax: expected logits [N, K, h, w] with K, h, w >= 1");
  STD_TORCH_CHECK(size.size() == 2 && size[0] > 0 && size[1] > 0,
                  "upsample_argmax: expected size (H, W) with H, W >= 1");
  return torch::stable::new_empty(logits, {logits.size(0), size[0], size[1]},
                                  label_dtype(logits.size(1)));
}

}  // namespace blpseg
