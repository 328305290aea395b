"""The BLP loss and its gradient in plain PyTorch; formula in the reference of that name."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from blpseg_ops._saved_pixels import BLP_PLANES, new_saved_pixels
from blpseg_ops._targets import require_target_values
from blpseg_ops.fallback.resize import upsample_adjoint
from blpseg_ops.reference.blp_loss import GUARD
from blpseg_ops.reference.resize import upsample


def blp_loss_forward(
    seg_logits: Tensor,  # [N, K, h, w]
    annotation_logits: Tensor,  # [N, K + 1, h, w]
    target: Tensor,  # [N, H, W]
    gamma: float,
    ignore_index: int,
) -> tuple[Tensor, Tensor, Tensor]:  # loss [], weight_sum [N], saved_pixels
    """Return the loss, the sum of the weights per image, and saved_pixels (unused)."""
    pixels = _pixels(seg_logits, annotation_logits, target, gamma, ignore_index)
    weight_sum = pixels.weight.sum((1, 2))
    log_p_y = pixels.log_p.gather(1, pixels.label[:, None]).squeeze(1)
    losses = -(pixels.weight * log_p_y).sum((1, 2)) / (weight_sum + GUARD)
    saved_pixels = new_saved_pixels(seg_logits, target, BLP_PLANES)
    return losses.sum() / max(len(losses), 1), weight_sum, saved_pixels


def blp_loss_backward(
    grad_loss: Tensor,  # []
    seg_logits: Tensor,  # [N, K, h, w]
    annotation_logits: Tensor,  # [N, K + 1, h, w]
    target: Tensor,  # [N, H, W]
    weight_sum: Tensor,  # [N]
    saved_pixels: Tensor,  # unused: the fallback recomputes them
    gamma: float,
    ignore_index: int,
) -> Tensor:  # [N, K, h, w]
    """Return weight (p - onehot(y)) / (weight_sum + 1e-7) / N per pixel, resized back to h x w."""
    pixels = _pixels(seg_logits, annotation_logits, target, gamma, ignore_index)
    normalizer = (weight_sum + GUARD) * max(len(weight_sum), 1)
    grad_scale = (pixels.weight / normalizer[:, None, None] * grad_loss)[:, None]
    grad = grad_scale * pixels.log_p.exp()
    grad.scatter_add_(1, pixels.label[:, None], -grad_scale)
    return upsample_adjoint(grad, seg_logits)


class _Pixels(NamedTuple):
    log_p: Tensor  # [N, K, H, W]
    label: Tensor  # [N, H, W] int64, the class; 0 if there is none
    weight: Tensor  # [N, H, W], the BLP weight; 0 if there is no class


def _pixels(
    seg_logits: Tensor,  # [N, K, h, w]
    annotation_logits: Tensor,  # [N, K + 1, h, w]
    target: Tensor,  # [N, H, W]
    gamma: float,
    ignore_index: int,
) -> _Pixels:
    classes = seg_logits.shape[1]
    require_target_values("blp_loss", target, classes, ignore_index)
    label = target.long()
    labeled = (label >= 0) & (label < classes)
    label = label.where(labeled, 0)
    log_p = upsample(seg_logits, target.shape[1:]).log_softmax(1)
    log_q = upsample(annotation_logits, target.shape[1:]).log_softmax(1)
    y = label[:, None]
    q_p = (log_q.detach().gather(1, y) + log_p.detach().gather(1, y)).exp().squeeze(1)
    # Rounding may lift q_y p_y above 1 by an ulp, and a power of a negative number is NaN.
    weight = (1 - q_p).clamp(min=0).pow(gamma).where(labeled, 0)
    return _Pixels(log_p, label, weight)
