"""Both losses of a training step, and the pseudo labels on request, in plain PyTorch."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from blpseg_ops import _checks
from blpseg_ops.reference.annotation_loss import annotation_loss_backward, annotation_loss_forward
from blpseg_ops.reference.blp_loss import blp_loss_backward, blp_loss_forward
from blpseg_ops.reference.pseudo_labels import pseudo_labels


class BLPObjective(NamedTuple):
    """What :func:`blpseg_ops.blp_objective` returns.

    Attributes:
        blp_loss: Scalar, float64 for float64 logits, else float32.
        annotation_loss: Likewise.
        pseudo_labels: [N, H, W], the labels that the BLP loss learnt from, uint8 where K and
            ignore_index fit, else int32; None without class_present.
    """

    blp_loss: Tensor  # []
    annotation_loss: Tensor  # []
    pseudo_labels: Tensor | None  # [N, H, W], only with class_present


def blp_objective(
    seg_logits: Tensor,  # [N, K, h, w]
    annotation_logits: Tensor,  # [N, K + 1, h, w]
    target: Tensor,  # [N, H, W]
    *,
    gamma: float = 2.0,
    unlabeled_weight: float = 0.02,
    class_present: Tensor | None = None,  # [N, K] bool
    threshold: float = 0.9,
    ignore_index: int = 255,
) -> BLPObjective:
    """Twin of :func:`blpseg_ops.blp_objective`."""
    blp_loss, annotation_loss, _, _, labels = blp_objective_forward(
        seg_logits,
        annotation_logits,
        target,
        class_present,
        gamma,
        unlabeled_weight,
        threshold,
        ignore_index,
    )
    return BLPObjective(blp_loss, annotation_loss, None if class_present is None else labels)


def blp_objective_forward(
    seg_logits: Tensor,  # [N, K, h, w]
    annotation_logits: Tensor,  # [N, K + 1, h, w]
    target: Tensor,  # [N, H, W]
    class_present: Tensor | None,  # [N, K] bool
    gamma: float,
    unlabeled_weight: float,
    threshold: float,
    ignore_index: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Both losses [], their weight sums [N] and [], and the pseudo labels, [0] where not asked."""
    classes = seg_logits.shape[1]
    _checks.target_values("blp_objective", target, classes, ignore_index)
    if class_present is None:
        blp_target = target
        labels = target.new_empty(0, dtype=_checks.label_dtype(classes, ignore_index))
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
    return blp[0], annotation[0], blp[1], annotation[1], labels


def blp_objective_backward(
    grad_blp_loss: Tensor,  # []
    grad_annotation_loss: Tensor,  # []
    seg_logits: Tensor,  # [N, K, h, w]
    annotation_logits: Tensor,  # [N, K + 1, h, w]
    blp_target: Tensor,  # [N, H, W], the target or the pseudo labels
    target: Tensor,  # [N, H, W]
    blp_weight_sum: Tensor,  # [N]
    annotation_weight_sum: Tensor,  # []
    gamma: float,
    unlabeled_weight: float,
    ignore_index: int,
) -> tuple[Tensor, Tensor]:  # [N, K, h, w], [N, K + 1, h, w]
    """The gradients of both losses, each for the logits that it trains."""
    return blp_loss_backward(
        grad_blp_loss,
        seg_logits,
        annotation_logits,
        blp_target,
        blp_weight_sum,
        gamma,
        ignore_index,
    ), annotation_loss_backward(
        grad_annotation_loss,
        annotation_logits,
        target,
        annotation_weight_sum,
        unlabeled_weight,
        ignore_index,
    )
