"""Both losses, the pseudo labels on request, and the gradients in plain PyTorch."""

from __future__ import annotations

from torch import Tensor

from blpseg_ops._dtypes import label_dtype
from blpseg_ops._targets import require_target_values
from blpseg_ops.fallback.annotation_loss import annotation_loss_backward, annotation_loss_forward
from blpseg_ops.fallback.blp_loss import blp_loss_backward, blp_loss_forward
from blpseg_ops.reference.pseudo_labels import pseudo_labels


def blp_objective_forward(
    seg_logits: Tensor,  # [N, K, h, w]
    annotation_logits: Tensor,  # [N, K + 1, h, w]
    target: Tensor,  # [N, H, W]
    class_present: Tensor | None,  # [N, K] bool
    gamma: float,
    unlabeled_weight: float,
    threshold: float,
    ignore_index: int,
) -> tuple[Tensor, ...]:
    """Return both losses [], their weight sums [N] and [], pseudo labels, and both saved_pixels.

    Without class_present there are no pseudo labels; an empty tensor [0] takes their place.
    """
    classes = seg_logits.shape[1]
    require_target_values("blp_objective", target, classes, ignore_index)
    if class_present is None:
        blp_target = target
        labels = target.new_empty(0, dtype=label_dtype(classes, ignore_index))
    else:
        blp_target = labels = pseudo_labels(
            seg_logits.detach(),
            target,
            class_present,
            threshold=threshold,
            ignore_index=ignore_index,
        )
    blp = blp_loss_forward(seg_logits, annotation_logits, blp_target, gamma, ignore_index)
    annotation = annotation_loss_forward(annotation_logits, target, unlabeled_weight, ignore_index)
    return blp[0], annotation[0], blp[1], annotation[1], labels, blp[2], annotation[2]


def blp_objective_backward(
    grad_blp_loss: Tensor,  # []
    grad_annotation_loss: Tensor,  # []
    seg_logits: Tensor,  # [N, K, h, w]
    annotation_logits: Tensor,  # [N, K + 1, h, w]
    blp_target: Tensor,  # [N, H, W], the target or the pseudo labels
    target: Tensor,  # [N, H, W]
    blp_weight_sum: Tensor,  # [N]
    annotation_weight_sum: Tensor,  # []
    blp_saved_pixels: Tensor,  # unused
    annotation_saved_pixels: Tensor,  # unused
    gamma: float,
    unlabeled_weight: float,
    ignore_index: int,
) -> tuple[Tensor, Tensor]:  # [N, K, h, w], [N, K + 1, h, w]
    """Return the gradient of each loss for the logits that it trains."""
    return blp_loss_backward(
        grad_blp_loss,
        seg_logits,
        annotation_logits,
        blp_target,
        blp_weight_sum,
        blp_saved_pixels,
        gamma,
        ignore_index,
    ), annotation_loss_backward(
        grad_annotation_loss,
        annotation_logits,
        target,
        annotation_weight_sum,
        annotation_saved_pixels,
        unlabeled_weight,
        ignore_index,
    )
