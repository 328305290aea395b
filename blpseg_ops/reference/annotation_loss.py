"""The annotation loss: its definition.

With q = softmax(up(annotation_logits)) and y the label of a pixel, a class or K for unlabeled::

    weight = 1 if y is a class, unlabeled_weight if y = K, 0 if the pixel is ignored
    loss   = sum(weight * -log q_y) / sum(weight)            over the batch; 0 if all are ignored
"""

from __future__ import annotations

import torch
from torch import Tensor

from blpseg_ops._targets import require_target_values
from blpseg_ops.reference.resize import upsample


def annotation_loss(
    annotation_logits: Tensor,  # [N, K + 1, h, w]
    target: Tensor,  # [N, H, W]
    *,
    unlabeled_weight: float = 0.02,
    ignore_index: int = 255,
) -> Tensor:  # []
    """Compute :func:`blpseg_ops.annotation_loss` from its formula; holds [N, K + 1, H, W]."""
    classes = annotation_logits.shape[1] - 1
    require_target_values("annotation_loss", target, classes, ignore_index)
    label = target.long()
    counts = (label >= 0) & (label <= classes)
    log_q = upsample(annotation_logits, target.shape[1:]).log_softmax(1)
    log_q_y = log_q.gather(1, label.where(counts, 0)[:, None]).squeeze(1)
    weight = torch.ones_like(log_q_y).where(label != classes, unlabeled_weight).where(counts, 0)
    total = weight.sum()
    return -(weight * log_q_y).sum() / total.where(total > 0, 1)
