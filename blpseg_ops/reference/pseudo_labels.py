"""Pseudo labels for self-training: their definition."""

from __future__ import annotations

from torch import Tensor

from blpseg_ops._dtypes import label_dtype
from blpseg_ops._targets import require_target_values
from blpseg_ops.reference.resize import upsample


def pseudo_labels(
    seg_logits: Tensor,  # [N, K, h, w]
    target: Tensor,  # [N, H, W]
    class_present: Tensor,  # [N, K] bool
    *,
    threshold: float = 0.9,
    ignore_index: int = 255,
) -> Tensor:  # [N, H, W], uint8 or int32
    """Compute :func:`blpseg_ops.pseudo_labels` step by step; holds [N, K, H, W]."""
    classes = seg_logits.shape[1]
    require_target_values("pseudo_labels", target, classes, ignore_index)
    p = upsample(seg_logits, target.shape[1:]).softmax(1)
    p = p * class_present[:, :, None, None]
    label = p.argmax(1)
    confident = p.gather(1, label[:, None]).squeeze(1) >= threshold
    label = label.where(confident, ignore_index)
    given = target.long()
    label = label.where(given == classes, given)  # scribbled and ignored pixels stay as they are
    return label.to(label_dtype(classes, ignore_index))
