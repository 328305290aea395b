"""The predicted label map: its definition."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from blpseg_ops._dtypes import label_dtype
from blpseg_ops.reference.resize import upsample


def upsample_argmax(
    logits: Tensor,  # [N, K, h, w]
    size: Sequence[int],  # (H, W)
) -> Tensor:  # [N, H, W], uint8 or int32
    """Compute :func:`blpseg_ops.upsample_argmax` by resizing all logits; holds [N, K, H, W]."""
    return upsample(logits, size).argmax(1).to(label_dtype(logits.shape[1]))
