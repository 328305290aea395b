"""The annotation loss and its gradient in plain PyTorch; formula in the reference of that name."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from blpseg_ops._saved_pixels import ANNOTATION_PLANES, new_saved_pixels
from blpseg_ops._targets import require_target_values
from blpseg_ops.fallback.resize import upsample_adjoint
from blpseg_ops.reference.resize import upsample


def annotation_loss_forward(
    annotation_logits: Tensor,  # [N, K + 1, h, w]
    target: Tensor,  # [N, H, W]
    unlabeled_weight: float,
    ignore_index: int,
) -> tuple[Tensor, Tensor, Tensor]:  # loss [], weight_sum [], saved_pixels
    """Return the loss, the sum of the weights (its normalizer), and saved_pixels (unused)."""
    pixels = _pixels(annotation_logits, target, unlabeled_weight, ignore_index)
    weight_sum = pixels.weight.sum()
    log_q_y = pixels.log_q.gather(1, pixels.label[:, None]).squeeze(1)
    total = -(pixels.weight * log_q_y).sum()
    saved_pixels = new_saved_pixels(annotation_logits, target, ANNOTATION_PLANES)
    return total / weight_sum.where(weight_sum > 0, 1), weight_sum, saved_pixels


def annotation_loss_backward(
    grad_loss: Tensor,  # []
    annotation_logits: Tensor,  # [N, K + 1, h, w]
    target: Tensor,  # [N, H, W]
    weight_sum: Tensor,  # []
    saved_pixels: Tensor,  # unused: the fallback recomputes them
    unlabeled_weight: float,
    ignore_index: int,
) -> Tensor:  # [N, K + 1, h, w]
    """Return weight (q - onehot(y)) / weight_sum per pixel, resized back to h x w."""
    pixels = _pixels(annotation_logits, target, unlabeled_weight, ignore_index)
    grad_scale = (pixels.weight * grad_loss / weight_sum.where(weight_sum > 0, 1))[:, None]
    grad = grad_scale * pixels.log_q.exp()
    grad.scatter_add_(1, pixels.label[:, None], -grad_scale)
    return upsample_adjoint(grad, annotation_logits)


class _Pixels(NamedTuple):
    log_q: Tensor  # [N, K + 1, H, W]
    label: Tensor  # [N, H, W] int64: a class, or K for unlabeled; 0 if ignored
    weight: Tensor  # [N, H, W]: 1, unlabeled_weight, or 0 if ignored


def _pixels(
    annotation_logits: Tensor,  # [N, K + 1, h, w]
    target: Tensor,  # [N, H, W]
    unlabeled_weight: float,
    ignore_index: int,
) -> _Pixels:
    classes = annotation_logits.shape[1] - 1
    require_target_values("annotation_loss", target, classes, ignore_index)
    label = target.long()
    counts = (label >= 0) & (label <= classes)
    log_q = upsample(annotation_logits, target.shape[1:]).log_softmax(1)
    weight = counts.to(log_q.dtype).where(label != classes, unlabeled_weight)
    return _Pixels(log_q, label.where(counts, 0), weight)
