"""Bilinear resizing of logits, as the method defines it."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from blpseg_ops._dtypes import accumulate_dtype


def upsample(
    logits: Tensor,  # [N, K, h, w]
    size: Sequence[int],  # (H, W)
) -> Tensor:  # [N, K, H, W], float32 or float64
    """Resize logits bilinearly with half-pixel centers, by any factor, up or down."""
    wide = logits.to(accumulate_dtype(logits.dtype))
    if wide.shape[0] == 0:  # torch refuses to resize an empty batch
        return wide.sum((2, 3), keepdim=True).expand(-1, -1, *size)
    return F.interpolate(wide, size=tuple(size), mode="bilinear", align_corners=False)
