"""Both losses of a training step, and the pseudo labels on request: their definition."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from blpseg_ops._targets import require_target_values
from blpseg_ops.reference.annotation_loss import annotation_loss
from blpseg_ops.reference.blp_loss import blp_loss
from blpseg_ops.reference.pseudo_labels import pseudo_labels


class BLPObjective(NamedTuple):
    """What :func:`blpseg_ops.blp_objective` returns.

    Attributes:
        blp_loss: Scalar, float64 for float64 logits, else float32.
        annotation_loss: Scalar of the same dtype.
        pseudo_labels: [N, H, W], the target of the BLP loss, uint8 if K and ignore_index fit, else
            int32; None without class_present.
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
    """Compute :func:`blpseg_ops.blp_objective` from the three ops that it consists of."""
    require_target_values("blp_objective", target, seg_logits.shape[1], ignore_index)
    labels = None
    if class_present is not None:
        labels = pseudo_labels(
            seg_logits.detach(),
            target,
            class_present,
            threshold=threshold,
            ignore_index=ignore_index,
        )
    return BLPObjective(
        blp_loss(
            seg_logits,
            annotation_logits,
            target if labels is None else labels,
            gamma=gamma,
            ignore_index=ignore_index,
        ),
        annotation_loss(
            annotation_logits, target, unlabeled_weight=unlabeled_weight, ignore_index=ignore_index
        ),
        labels,
    )
