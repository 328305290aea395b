"""The predicted label map, in plain PyTorch."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from blpseg_ops import _checks
from blpseg_ops.reference.resize import upsample


def upsample_argmax(
    logits: Tensor,  # [N, K, h, w]
    size: Sequence[int],  # (H, W)
) -> Tensor:  # [N, H, W], uint8 or int32
    """Twin of :func:`blpseg_ops.upsample_argmax`."""
    return upsample(logits, size).argmax(1).to(_checks.label_dtype(logits.shape[1]))
