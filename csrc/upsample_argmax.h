// The entry of blpseg::upsample_argmax that its CPU and CUDA kernels share.
#pragma once

#include <vector>

#include "tensor.h"

namespace blpseg {

// Checks what the kernels rely on to stay inside their buffers (the full checks, with the user's
// names, are blpseg_ops/_checks.py's) and makes the label map to write. logits: [N, K, h, w]
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
