"""The annotation head's loss in plain PyTorch: a weighted cross entropy over K + 1 classes."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from blpseg_ops import _checks
from blpseg_ops.reference.resize import upsample, upsample_adjoint


def annotation_loss(
    annotation_logits: Tensor,  # [N, K + 1, h, w]
    target: Tensor,  # [N, H, W]
    *,
    unlabeled_weight: float = 0.02,
    ignore_index: int = 255,
) -> Tensor:  # []
    """Twin of :func:`blpseg_ops.annotation_loss`."""
    return annotation_loss_forward(annotation_logits, target, unlabeled_weight, ignore_index)[0]


def annotation_loss_forward(
    annotation_logits: Tensor,  # [N, K + 1, h, w]
    target: Tensor,  # [N, H, W]
    unlabeled_weight: float,
    ignore_index: int,
) -> tuple[Tensor, Tensor]:  # loss [], weight_sum []
    """The loss, and the sum of the weights that normalises it."""
    pixels = _pixels(annotation_logits, target, unlabeled_weight, ignore_index)
    weight_sum = pixels.weight.sum()
    picked = pixels.log_q.gather(1, pixels.label[:, None]).squeeze(1)
    total = -(pixels.weight * picked).sum()
    return total / weight_sum.where(weight_sum > 0, 1), weight_sum


def annotation_loss_backward(
    grad_loss: Tensor,  # []
    annotation_logits: Tensor,  # [N, K + 1, h, w]
    target: Tensor,  # [N, H, W]
    weight_sum: Tensor,  # []
    unlabeled_weight: float,
    ignore_index: int,
) -> Tensor:  # [N, K + 1, h, w]
    """The gradient, weight (q - onehot(y)) at every pixel that counts, brought to h x w."""
    pixels = _pixels(annotation_logits, target, unlabeled_weight, ignore_index)
    share = (pixels.weight * grad_loss / weight_sum.where(weight_sum > 0, 1))[:, None]
    grad = share * pixels.log_q.exp()
    grad.scatter_add_(1, pixels.label[:, None], -share)
    return upsample_adjoint(grad, annotation_logits)


class _Pixels(NamedTuple):
    log_q: Tensor  # [N, K + 1, H, W]
    label: Tensor  # [N, H, W] int64: a class, or K for unlabelled; 0 where ignored
    weight: Tensor  # [N, H, W]: 1, unlabeled_weight, or 0 where ignored


def _pixels(
    annotation_logits: Tensor,  # [N, K + 1, h, w]
    target: Tensor,  # [N, H, W]
    unlabeled_weight: float,
    ignore_index: int,
) -> _Pixels:
    classes = annotation_logits.shape[1] - 1
    _checks.target_values("annotation_loss", target, classes, ignore_index)
    label = target.long()
    counts = (label >= 0) & (label <= classes)
    log_q = upsample(annotation_logits, target.shape[1:]).log_softmax(1)
    weight = counts.to(log_q.dtype).where(label != classes, unlabeled_weight)
    return _Pixels(log_q, label.where(counts, 0), weight)
