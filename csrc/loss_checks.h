// What the CPU and CUDA kernels of the losses rely on to stay inside their buffers (the full
// checks, with the user's names, are blpseg_ops/_checks.py's), and the tensors that they write.
#pragma once

#include <vector>

#include "tensor.h"

namespace blpseg {

constexpr double kGuard = 1e-7;  // of the published program: an image without labels gives 0

inline void check_maps(const char* op, const char* name, const Tensor& logits,
                       int64_t least_classes) {
  STD_TORCH_CHECK(logits.dim() == 4 && logits.size(1) >= least_classes && logits.size(2) > 0 &&
                      logits.size(3) > 0,
                  op, ": expected ", name, " [N, channels, h, w] with channels >= ", least_classes,
                  " and h, w >= 1");
}

inline void check_both(const char* op, const Tensor& seg, const Tensor& annotation) {
  check_maps(op, "seg_logits", seg, {});
  check_maps(op, "annotation_logits", annotation, 2);
  STD_TORCH_CHECK(
      seg.scalar_type() == annotation.scalar_type() && seg.size(0) == annotation.size(0) &&
          seg.size(1) + 1 == annotation.size(1) && seg.size(2) == annotation.size(2) &&
          seg.size(3) == annotation.size(3),
      op, ": expected annotation_logits of seg_logits' dtype and size, and one more channel");
}

inline void check_present(const char* op, const Tensor& present, const Tensor& seg) {
  STD_TORCH_CHECK(present.scalar_type() == ScalarType::Bool && present.dim() == 2 &&
                      present.size(0) == seg.size(0) && present.size(1) == seg.size(1),
                  op, ": expected class_present [N, K] bool");
}

// Losses and their normalisers are float64 for float64 logits, else float32.
inline ScalarType wide_dtype(const Tensor& logits) {
  return logits.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

// Upstream gradients of the losses are numbers, weight sums numbers or [N].
inline void check_wide(const char* op, const char* name, const Tensor& tensor, const Tensor& logits,
                       const std::vector<int64_t>& size) {
  bool fits = tensor.scalar_type() == wide_dtype(logits) &&
              tensor.dim() == static_cast<int64_t>(size.size());
  for (size_t axis = 0; fits && axis < size.size(); ++axis) fits = tensor.size(axis) == size[axis];
  STD_TORCH_CHECK(fits, op, ": ", name, " has another shape or dtype than forward's");
}

inline void check_label_map(const char* op, const char* name, const Tensor& target,
                            const Tensor& logits) {
  const ScalarType dtype = target.scalar_type();
  STD_TORCH_CHECK(dtype == ScalarType::Byte || dtype == ScalarType::Short ||
                      dtype == ScalarType::Int || dtype == ScalarType::Long,
                  op, ": expected ", name, " of uint8, int16, int32 or int64, got ",
                  torch::headeronly::toString(dtype));
  STD_TORCH_CHECK(target.dim() == 3 && target.size(0) == logits.size(0) && target.size(1) > 0 &&
                      target.size(2) > 0,
                  op, ": expected ", name, " [N, H, W] for logits [N, K, h, w]");
}

// What blp_objective_backward is called with.
inline void check_objective(const char* op, const Tensor& grad_blp_loss,
                            const Tensor& grad_annotation_loss, const Tensor& seg,
                            const Tensor& annotation, const Tensor& blp_target,
                            const Tensor& target, const Tensor& blp_weight_sum,
                            const Tensor& annotation_weight_sum) {
  check_both(op, seg, annotation);
  check_label_map(op, "target", target, seg);
  check_label_map(op, "blp_target", blp_target, seg);
  STD_TORCH_CHECK(blp_target.size(1) == target.size(1) && blp_target.size(2) == target.size(2), op,
                  ": blp_target and target differ in size");
  check_wide(op, "grad_blp_loss", grad_blp_loss, seg, {});
  check_wide(op, "grad_annotation_loss", grad_annotation_loss, seg, {});
  check_wide(op, "blp_weight_sum", blp_weight_sum, seg, {seg.size(0)});
  check_wide(op, "annotation_weight_sum", annotation_weight_sum, seg, {});
}

inline Tensor new_labels(const Tensor& target, int64_t classes, int64_t ignore_index) {
  return torch::stable::new_empty(target, {target.size(0), target.size(1), target.size(2)},
                                  label_dtype(classes, ignore_index));
}

}  // namespace blpseg
