"""Pseudo labels for self-training, in plain PyTorch."""

from __future__ import annotations

from torch import Tensor

from blpseg_ops import _checks
from blpseg_ops.reference.resize import upsample


def pseudo_labels(
    seg_logits: Tensor,  # [N, K, h, w]
    target: Tensor,  # [N, H, W]
    class_present: Tensor,  # [N, K] bool
    *,
    threshold: float = 0.9,
    ignore_index: int = 255,
) -> Tensor:  # [N, H, W], uint8 or int32
    """Twin of :func:`blpseg_ops.pseudo_labels`."""
    classes = seg_logits.shape[1]
    _checks.target_values("pseudo_labels", target, classes, ignore_index)
    p = upsample(seg_logits, target.shape[1:]).softmax(1)
    p = p * class_present[:, :, None, None]
    label = p.argmax(1)
    confident = p.gather(1, label[:, None]).squeeze(1) >= threshold
    label = label.where(confident, ignore_index)
    given = target.long()
    label = label.where(given == classes, given)  # scribbled or ignored: as given
    return label.to(_checks.label_dtype(classes, ignore_index))
