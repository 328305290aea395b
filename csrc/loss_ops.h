// The operators of the losses, shared by CPU and CUDA: their arguments, checks and results. Each
// device brings two functions, `forward` and `backward`, which serve all operators.
#pragma once

#include <optional>
#include <tuple>
#include <vector>

#include "tensor.h"

namespace blpseg {

constexpr double kGuard = 1e-7;  // as in the published program: an image without labels gives 0

// The arguments that the operators share, before the dtype of the logits is known. A null tensor:
// the operator has no such argument.
struct LossInputs {
  const char* op = nullptr;
  const Tensor* seg = nullptr;         // [N, K, h, w]
  const Tensor* annotation = nullptr;  // [N, K + 1, h, w]
  const Tensor* target = nullptr;      // [N, H, W]
  bool wants_blp = false, wants_annotation = false;
  int64_t ignore_index = 0;
  double gamma = 0, unlabeled_weight = 0;

  static LossInputs of_blp(const char* op, const Tensor& seg, const Tensor& annotation,
                           const Tensor& target, double gamma, int64_t ignore_index) {
    LossInputs inputs;
    inputs.op = op;
    inputs.seg = &seg;
    inputs.annotation = &annotation;
    inputs.target = &target;
    inputs.wants_blp = true;
    inputs.gamma = gamma;
    inputs.ignore_index = ignore_index;
    return inputs;
  }

  static LossInputs of_annotation(const char* op, const Tensor& annotation, const Tensor& target,
                                  double unlabeled_weight, int64_t ignore_index) {
    LossInputs inputs;
    inputs.op = op;
    inputs.annotation = &annotation;
    inputs.target = &target;
    inputs.wants_annotation = true;
    inputs.unlabeled_weight = unlabeled_weight;
    inputs.ignore_index = ignore_index;
    return inputs;
  }

  static LossInputs of_objective(const char* op, const Tensor& seg, const Tensor& annotation,
                                 const Tensor& target, double gamma, double unlabeled_weight,
                                 int64_t ignore_index) {
    LossInputs inputs = of_blp(op, seg, annotation, target, gamma, ignore_index);
    inputs.wants_annotation = true;
    inputs.unlabeled_weight = unlabeled_weight;
    return inputs;
  }

  static LossInputs of_pseudo_labels(const char* op, const Tensor& seg, const Tensor& target,
                                     int64_t ignore_index) {
    LossInputs inputs;
    inputs.op = op;
    inputs.seg = &seg;
    inputs.target = &target;
    inputs.ignore_index = ignore_index;
    return inputs;
  }

  const Tensor& any_logits() const { return seg ? *seg : *annotation; }
  const char* name_of_any_logits() const { return seg ? "seg_logits" : "annotation_logits"; }
  int64_t images() const { return target->size(0); }
  int64_t classes() const { return seg ? seg->size(1) : annotation->size(1) - 1; }
};

// Pseudo labels that forward makes.
struct PseudoLabels {
  const Tensor& present;  // [N, K] bool
  double threshold;
  Tensor labels;  // [N, H, W], to be written
};

// A loss and what its backward needs.
struct Loss {
  Tensor value;       // []
  Tensor weight_sum;  // [N] of the BLP loss, [] of the annotation loss
  Tensor pixels;      // what the CUDA kernels save per pixel; [0] on the CPU, which recomputes it
};

struct Losses {
  std::optional<Loss> blp, annotation;
};

// What backward gets: the gradient of a loss, and what forward returned beside it.
struct LossGrad {
  const Tensor* grad_loss = nullptr;
  const Tensor* weight_sum = nullptr;
  const Tensor* pixels = nullptr;
};

struct Gradients {
  std::optional<Tensor> seg, annotation;
};

// --- Checks: what the kernels need to stay inside their buffers ----------------------------------

// blpseg_ops/_checks.py has the full checks, in the user's words.

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
      op, ": expected annotation_logits of seg_logits' dtype and size, with one more channel");
}

inline void check_present(const char* op, const Tensor& present, const Tensor& seg) {
  STD_TORCH_CHECK(present.scalar_type() == ScalarType::Bool && present.dim() == 2 &&
                      present.size(0) == seg.size(0) && present.size(1) == seg.size(1),
                  op, ": expected class_present [N, K] bool");
}

// Return the dtype of losses and their normalizers: float64 for float64 logits, else float32.
inline ScalarType wide_dtype(const Tensor& logits) {
  return logits.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

// Check a gradient of a loss, or what forward returned beside it.
inline void check_wide(const char* op, const char* name, const Tensor& tensor, const Tensor& logits,
                       const std::vector<int64_t>& size) {
  bool fits = tensor.scalar_type() == wide_dtype(logits) &&
              tensor.dim() == static_cast<int64_t>(size.size());
  for (size_t axis = 0; fits && axis < size.size(); ++axis) fits = tensor.size(axis) == size[axis];
  STD_TORCH_CHECK(fits, op, ": expected ", name, " with the shape and dtype that forward returned");
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

inline Tensor new_labels(const Tensor& target, int64_t classes, int64_t ignore_index) {
  return torch::stable::new_empty(target, {target.size(0), target.size(1), target.size(2)},
                                  label_dtype(classes, ignore_index));
}

inline Tensor no_labels(const Tensor& target, int64_t classes, int64_t ignore_index) {
  return torch::stable::new_empty(target, {0}, label_dtype(classes, ignore_index));
}

// --- The operators -------------------------------------------------------------------------------

template <Losses (*forward)(const LossInputs&, PseudoLabels*),
          Gradients (*backward)(const LossInputs&, const Tensor& blp_target, const LossGrad& blp,
                                const LossGrad& annotation)>
struct LossOperators {
  static std::tuple<Tensor, Tensor, Tensor> blp_loss(const Tensor& seg, const Tensor& annotation,
                                                     const Tensor& target, double gamma,
                                                     int64_t ignore_index) {
    const char* const op = "blp_loss";
    check_both(op, seg, annotation);
    check_label_map(op, "target", target, seg);
    const auto inputs = LossInputs::of_blp(op, seg, annotation, target, gamma, ignore_index);
    const Loss loss = *forward(inputs, nullptr).blp;
    return {loss.value, loss.weight_sum, loss.pixels};
  }

  static Tensor blp_loss_backward(const Tensor& grad_loss, const Tensor& seg,
                                  const Tensor& annotation, const Tensor& target,
                                  const Tensor& weight_sum, const Tensor& pixels, double gamma,
                                  int64_t ignore_index) {
    const char* const op = "blp_loss_backward";
    check_both(op, seg, annotation);
    check_label_map(op, "target", target, seg);
    check_wide(op, "grad_loss", grad_loss, seg, {});
    check_wide(op, "weight_sum", weight_sum, seg, {seg.size(0)});
    const auto inputs = LossInputs::of_blp(op, seg, annotation, target, gamma, ignore_index);
    return *backward(inputs, target, {&grad_loss, &weight_sum, &pixels}, {}).seg;
  }

  static std::tuple<Tensor, Tensor, Tensor> annotation_loss(const Tensor& annotation,
                                                            const Tensor& target,
                                                            double unlabeled_weight,
                                                            int64_t ignore_index) {
    const char* const op = "annotation_loss";
    check_maps(op, "annotation_logits", annotation, 2);
    check_label_map(op, "target", target, annotation);
    const auto inputs =
        LossInputs::of_annotation(op, annotation, target, unlabeled_weight, ignore_index);
    const Loss loss = *forward(inputs, nullptr).annotation;
    return {loss.value, loss.weight_sum, loss.pixels};
  }

  static Tensor annotation_loss_backward(const Tensor& grad_loss, const Tensor& annotation,
                                         const Tensor& target, const Tensor& weight_sum,
                                         const Tensor& pixels, double unlabeled_weight,
                                         int64_t ignore_index) {
    const char* const op = "annotation_loss_backward";
    check_maps(op, "annotation_logits", annotation, 2);
    check_label_map(op, "target", target, annotation);
    check_wide(op, "grad_loss", grad_loss, annotation, {});
    check_wide(op, "weight_sum", weight_sum, annotation, {});
    const auto inputs =
        LossInputs::of_annotation(op, annotation, target, unlabeled_weight, ignore_index);
    return *backward(inputs, target, {}, {&grad_loss, &weight_sum, &pixels}).annotation;
  }

  static Tensor pseudo_labels(const Tensor& seg, const Tensor& target, const Tensor& class_present,
                              double threshold, int64_t ignore_index) {
    const char* const op = "pseudo_labels";
    check_maps(op, "seg_logits", seg, 1);
    check_label_map(op, "target", target, seg);
    check_present(op, class_present, seg);
    PseudoLabels pseudo = {class_present, threshold, new_labels(target, seg.size(1), ignore_index)};
    forward(LossInputs::of_pseudo_labels(op, seg, target, ignore_index), &pseudo);
    return pseudo.labels;
  }

  static std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> blp_objective(
      const Tensor& seg, const Tensor& annotation, const Tensor& target,
      std::optional<Tensor> class_present, double gamma, double unlabeled_weight, double threshold,
      int64_t ignore_index) {
    const char* const op = "blp_objective";
    check_both(op, seg, annotation);
    check_label_map(op, "target", target, seg);
    const auto inputs = LossInputs::of_objective(op, seg, annotation, target, gamma,
                                                 unlabeled_weight, ignore_index);
    const int64_t classes = seg.size(1);
    Tensor labels;
    Losses losses;
    if (class_present) {
      check_present(op, *class_present, seg);
      PseudoLabels pseudo = {*class_present, threshold, new_labels(target, classes, ignore_index)};
      losses = forward(inputs, &pseudo);
      labels = pseudo.labels;
    } else {
      losses = forward(inputs, nullptr);
      labels = no_labels(target, classes, ignore_index);
    }
    const Loss &blp = *losses.blp, &annotated = *losses.annotation;
    return {blp.value, annotated.value, blp.weight_sum,  annotated.weight_sum,
            labels,    blp.pixels,      annotated.pixels};
  }

  static std::tuple<Tensor, Tensor> blp_objective_backward(
      const Tensor& grad_blp_loss, const Tensor& grad_annotation_loss, const Tensor& seg,
      const Tensor& annotation, const Tensor& blp_target, const Tensor& target,
      const Tensor& blp_weight_sum, const Tensor& annotation_weight_sum, const Tensor& blp_pixels,
      const Tensor& annotation_pixels, double gamma, double unlabeled_weight,
      int64_t ignore_index) {
    const char* const op = "blp_objective_backward";
    check_both(op, seg, annotation);
    check_label_map(op, "target", target, seg);
    check_label_map(op, "blp_target", blp_target, seg);
    STD_TORCH_CHECK(blp_target.size(1) == target.size(1) && blp_target.size(2) == target.size(2),
                    op, ": expected blp_target and target of one size");
    check_wide(op, "grad_blp_loss", grad_blp_loss, seg, {});
    check_wide(op, "grad_annotation_loss", grad_annotation_loss, seg, {});
    check_wide(op, "blp_weight_sum", blp_weight_sum, seg, {seg.size(0)});
    check_wide(op, "annotation_weight_sum", annotation_weight_sum, seg, {});
    const auto inputs = LossInputs::of_objective(op, seg, annotation, target, gamma,
                                                 unlabeled_weight, ignore_index);
    const Gradients grads =
        backward(inputs, blp_target, {&grad_blp_loss, &blp_weight_sum, &blp_pixels},
                 {&grad_annotation_loss, &annotation_weight_sum, &annotation_pixels});
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
