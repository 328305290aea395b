"""The BLP loss: its definition.

With p = softmax(up(seg_logits)), q = softmax(up(annotation_logits)) and y a pixel's class::

    weight = (1 - q_y p_y)^gamma                                 (a constant in backward)
    loss_n = sum(weight * -log p_y) / (sum(weight) + 1e-7)       over the labeled pixels of image n
    loss   = mean over the images
"""

from __future__ import annotations

from torch import Tensor

from blpseg_ops._targets import require_target_values
from blpseg_ops.reference.resize import upsample

GUARD = 1e-7  # of the published program: an image without labels gives 0, not NaN


def blp_loss(
    seg_logits: Tensor,  # [N, K, h, w]
    annotation_logits: Tensor,  # [N, K + 1, h, w]
    target: Tensor,  # [N, H, W]
    *,
    gamma: float = 2.0,
    ignore_index: int = 255,
) -> Tensor:  # []
    """Compute :func:`blpseg_ops.blp_loss` from its formula; holds [N, K, H, W]."""
    classes = seg_logits.shape[1]
    require_target_values("blp_loss", target, classes, ignore_index)
    label = target.long()
    labeled = (label >= 0) & (label < classes)
    y = label.where(labeled, 0)[:, None]
    log_p = upsample(seg_logits, target.shape[1:]).log_softmax(1)
    log_q = upsample(annotation_logits, target.shape[1:]).log_softmax(1)
    log_p_y, log_q_y = log_p.gather(1, y).squeeze(1), log_q.gather(1, y).squeeze(1)
    q_p = (log_q_y + log_p_y).detach().exp()
    # Rounding may lift q_y p_y above 1 by an ulp, and a power of a negative number is NaN.
    weight = (1 - q_p).clamp(min=0).pow(gamma).where(labeled, 0)
    losses = -(weight * log_p_y).sum((1, 2)) / (weight.sum((1, 2)) + GUARD)
    return losses.sum() / max(len(losses), 1)
