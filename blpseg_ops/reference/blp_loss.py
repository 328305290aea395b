"""The BLP loss in plain PyTorch.

With p = softmax(up(seg_logits)), q = softmax(up(annotation_logits)) and y a pixel's class::

    weight = (1 - q_y p_y)^gamma                                 (a constant in backward)
    loss_n = sum(weight * -log p_y) / (sum(weight) + 1e-7)
    loss   = mean over the images
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from blpseg_ops import _checks
from blpseg_ops.reference.resize import upsample, upsample_adjoint

GUARD = 1e-7  # of the published program: an image without labels gives 0, not NaN


def blp_loss(
    seg_logits: Tensor,  # [N, K, h, w]
    annotation_logits: Tensor,  # [N, K + 1, h, w]
    target: Tensor,  # [N, H, W]
    *,
    gamma: float = 2.0,
    ignore_index: int = 255,
) -> Tensor:  # []
    """Twin of :func:`blpseg_ops.blp_loss`."""
    return blp_loss_forward(seg_logits, annotation_logits, target, gamma, ignore_index)[0]


def blp_loss_forward(
    seg_logits: Tensor,  # [N, K, h, w]
    annotation_logits: Tensor,  # [N, K + 1, h, w]
    target: Tensor,  # [N, H, W]
    gamma: float,
    ignore_index: int,
) -> tuple[Tensor, Tensor]:  # loss [], weight_sum [N]
    """The loss, and the sum of the weights of every image."""
    pixels = _pixels(seg_logits, annotation_logits, target, gamma, ignore_index)
    weight_sum = pixels.weight.sum((1, 2))
    picked = pixels.log_p.gather(1, pixels.label[:, None]).squeeze(1)
    losses = -(pixels.weight * picked).sum((1, 2)) / (weight_sum + GUARD)
    return losses.sum() / max(len(losses), 1), weight_sum


def blp_loss_backward(
    grad_loss: Tensor,  # []
    seg_logits: Tensor,  # [N, K, h, w]
    annotation_logits: Tensor,  # [N, K + 1, h, w]
    target: Tensor,  # [N, H, W]
    weight_sum: Tensor,  # [N]
    gamma: float,
    ignore_index: int,
) -> Tensor:  # [N, K, h, w]
    """The gradient for seg_logits, weight (p - onehot(y)) at labelled pixels, brought to h x w."""
    pixels = _pixels(seg_logits, annotation_logits, target, gamma, ignore_index)
    share = pixels.weight / ((weight_sum + GUARD) * max(len(weight_sum), 1))[:, None, None]
    share = (share * grad_loss)[:, None]
    grad = share * pixels.log_p.exp()
    grad.scatter_add_(1, pixels.label[:, None], -share)
    return upsample_adjoint(grad, seg_logits)


class _Pixels(NamedTuple):
    log_p: Tensor  # [N, K, H, W]
    label: Tensor  # [N, H, W] int64, the class; 0 where there is none
    weight: Tensor  # [N, H, W], the BLP weight; 0 where there is no class


def _pixels(
    seg_logits: Tensor,  # [N, K, h, w]
    annotation_logits: Tensor,  # [N, K + 1, h, w]
    target: Tensor,  # [N, H, W]
    gamma: float,
    ignore_index: int,
) -> _Pixels:
    classes = seg_logits.shape[1]
    _checks.target_values("blp_loss", target, classes, ignore_index)
    label = target.long()
    labelled = (label >= 0) & (label < classes)
    label = label.where(labelled, 0)
    log_p = upsample(seg_logits, target.shape[1:]).log_softmax(1)
    log_q = upsample(annotation_logits, target.shape[1:]).log_softmax(1)
    index = label[:, None]
    annotated = (log_q.detach().gather(1, index) + log_p.detach().gather(1, index)).exp().squeeze(1)
    # Rounding may lift q_y p_y above 1 by an ulp, and a power of a negative number is NaN.
    weight = (1 - annotated).clamp(min=0).pow(gamma).where(labelled, 0)
    return _Pixels(log_p, label, weight)
