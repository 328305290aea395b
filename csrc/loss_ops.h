// The losses' operators, once for CPU and CUDA: what they take and give. Either device brings two
// functions, forward and backward of all losses at once; an operator asks them for its part.
#pragma once

#include <optional>
#include <tuple>
#include <vector>

#include "tensor.h"

namespace blpseg {

constexpr double kGuard = 1e-7;  // of the published program: an image without labels gives 0

// What an operator was called with, before the type of its logits is known. Null where an operator
// has no such tensor.
struct LossInputs {
  const char* op;
  const Tensor* seg;
  const Tensor* annotation;
  const Tensor& target;
  bool wants_blp, wants_annotation;
  int64_t ignore_index;
  double gamma = 0, unlabeled_weight = 0;

  const Tensor& any() const { return seg ? *seg : *annotation; }
  const char* name_of_any() const { return seg ? "seg_logits" : "annotation_logits"; }
  int64_t images() const { return target.size(0); }
  int64_t classes() const { return seg ? seg->size(1) : annotation->size(1) - 1; }
};

// Pseudo labels to be made on the way.
struct LabelsToMake {
  const Tensor& present;  // [N, K] bool
  double threshold;
  Tensor labels;
};

struct Losses {
  std::optional<Tensor> blp, blp_weight_sum, annotation, annotation_weight_sum;
};

// What comes back to an operator: an upstream gradient, and a normaliser that forward returned.
struct Upstream {
  const Tensor* grad_loss = nullptr;
  const Tensor* weight_sum = nullptr;
};

struct Gradients {
  std::optional<Tensor> seg, annotation;
};

// --- Checks: what kernels rely on to stay inside their buffers -----------------------------------

// The full checks, with the user's names, are blpseg_ops/_checks.py's.

inline void check_maps(const char* op, const char* name, const Tensor& logits,
                       int64_t least_classes) {
  STD_TORCH_CHECK(logits.dim() == 4 && logits.size(1) >= least_classes && logits.size(2) > 0 &&
                      logits.size(3) > 0,
                  op, ": expected ", name, " [N, channels, h, w] with channels >= ", least_classes,
                  " and h, w >= 1");
}

inline void check_both(const char* op, const Tensor& seg, const Tensor& annotation) {
  check_maps(op, "seg_logits", seg, 1);
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

// --- The operators -------------------------------------------------------------------------------

template <Losses (*forward)(const LossInputs&, LabelsToMake*),
          Gradients (*backward)(const LossInputs&, const Tensor& blp_target, const Upstream& of_blp,
                                const Upstream& of_annotation)>
struct LossOperators {
  static std::tuple<Tensor, Tensor> blp_loss(const Tensor& seg, const Tensor& annotation,
                                             const Tensor& target, double gamma,
                                             int64_t ignore_index) {
    const char* const op = "blp_loss";
    check_both(op, seg, annotation);
    check_label_map(op, "target", target, seg);
    const Losses losses =
        forward({op, &seg, &annotation, target, true, false, ignore_index, gamma}, nullptr);
    return {*losses.blp, *losses.blp_weight_sum};
  }

  static Tensor blp_loss_backward(const Tensor& grad_loss, const Tensor& seg,
                                  const Tensor& annotation, const Tensor& target,
                                  const Tensor& weight_sum, double gamma, int64_t ignore_index) {
    const char* const op = "blp_loss_backward";
    check_both(op, seg, annotation);
    check_label_map(op, "target", target, seg);
    check_wide(op, "grad_loss", grad_loss, seg, {});
    check_wide(op, "weight_sum", weight_sum, seg, {seg.size(0)});
    return *backward({op, &seg, &annotation, target, true, false, ignore_index, gamma}, target,
                     {&grad_loss, &weight_sum}, {})
                .seg;
  }

  static std::tuple<Tensor, Tensor> annotation_loss(const Tensor& annotation, const Tensor& target,
                                                    double unlabeled_weight, int64_t ignore_index) {
    const char* const op = "annotation_loss";
    check_maps(op, "annotation_logits", annotation, 2);
    check_label_map(op, "target", target, annotation);
    const Losses losses =
        forward({op, nullptr, &annotation, target, false, true, ignore_index, 0, unlabeled_weight},
                nullptr);
    return {*losses.annotation, *losses.annotation_weight_sum};
  }

  static Tensor annotation_loss_backward(const Tensor& grad_loss, const Tensor& annotation,
                                         const Tensor& target, const Tensor& weight_sum,
                                         double unlabeled_weight, int64_t ignore_index) {
    const char* const op = "annotation_loss_backward";
    check_maps(op, "annotation_logits", annotation, 2);
    check_label_map(op, "target", target, annotation);
    check_wide(op, "grad_loss", grad_loss, annotation, {});
    check_wide(op, "weight_sum", weight_sum, annotation, {});
    return *backward(
                {op, nullptr, &annotation, target, false, true, ignore_index, 0, unlabeled_weight},
                target, {}, {&grad_loss, &weight_sum})
                .annotation;
  }

  static Tensor pseudo_labels(const Tensor& seg, const Tensor& target, const Tensor& class_present,
                              double threshold, int64_t ignore_index) {
    const char* const op = "pseudo_labels";
    check_maps(op, "seg_logits", seg, 1);
    check_label_map(op, "target", target, seg);
    check_present(op, class_present, seg);
    LabelsToMake to_make = {class_present, threshold,
                            new_labels(target, seg.size(1), ignore_index)};
    forward({op, &seg, nullptr, target, false, false, ignore_index}, &to_make);
    return to_make.labels;
  }

  static std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> blp_objective(
      const Tensor& seg, const Tensor& annotation, const Tensor& target,
      std::optional<Tensor> class_present, double gamma, double unlabeled_weight, double threshold,
      int64_t ignore_index) {
    const char* const op = "blp_objective";
    check_both(op, seg, annotation);
    check_label_map(op, "target", target, seg);
    const LossInputs inputs = {op,   &seg,         &annotation, target,          true,
                               true, ignore_index, gamma,       unlabeled_weight};
    const int64_t classes = seg.size(1);
    if (!class_present) {
      const Losses losses = forward(inputs, nullptr);
      Tensor none = torch::stable::new_empty(target, {0}, label_dtype(classes, ignore_index));
      return {*losses.blp, *losses.annotation, *losses.blp_weight_sum,
              *losses.annotation_weight_sum, none};
    }
    check_present(op, *class_present, seg);
    LabelsToMake to_make = {*class_present, threshold, new_labels(target, classes, ignore_index)};
    const Losses losses = forward(inputs, &to_make);
    return {*losses.blp, *losses.annotation, *losses.blp_weight_sum, *losses.annotation_weight_sum,
            to_make.labels};
  }

  static std::tuple<Tensor, Tensor> blp_objective_backward(
      const Tensor& grad_blp_loss, const Tensor& grad_annotation_loss, const Tensor& seg,
      const Tensor& annotation, const Tensor& blp_target, const Tensor& target,
      const Tensor& blp_weight_sum, const Tensor& annotation_weight_sum, double gamma,
      double unlabeled_weight, int64_t ignore_index) {
    const char* const op = "blp_objective_backward";
    check_objective(op, grad_blp_loss, grad_annotation_loss, seg, annotation, blp_target, target,
                    blp_weight_sum, annotation_weight_sum);
    const Gradients grads =
        backward({op, &seg, &annotation, target, true, true, ignore_index, gamma, unlabeled_weight},
                 blp_target, {&grad_blp_loss, &blp_weight_sum},
                 {&grad_annotation_loss, &annotation_weight_sum});
    return {*grads.seg, *grads.annotation};
  }

  template <typename Library>
  static void attach_to(Library& library) {
    library.impl("blp_loss", TORCH_BOX(&blp_loss));
    library.impl("blp_loss_backward", TORCH_BOX(&blp_loss_backward));
    library.impl("annotation_loss", TORCH_BOX(&annotation_loss));
    library.impl("annotation_loss_backward", TORCH_BOX(&annotation_loss_backward));
    library.impl("pseudo_labels", TORCH_BOX(&pseudo_labels));
    library.impl("blp_objective", TORCH_BOX(&blp_objective));
    library.impl("blp_objective_backward", TORCH_BOX(&blp_objective_backward));
  }
};

}  // namespace blpseg
