"""Bilinear resizing as the method uses it, and its adjoint."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from blpseg_ops.reference.layout import laid_out_as


def accumulate_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype to compute in: float64 stays, everything narrower is widened to float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def upsample(
    logits: Tensor,  # [N, K, h, w]
    size: Sequence[int],  # (H, W)
) -> Tensor:  # [N, K, H, W], float32 or float64
    """Resize logits bilinearly with half-pixel centres, by any factor, up or down."""
    wide = logits.to(accumulate_dtype(logits.dtype))
    if wide.shape[0] == 0:  # torch's own resizing refuses an empty batch
        return wide.sum((2, 3), keepdim=True).expand(-1, -1, *size)
    return F.interpolate(wide, size=tuple(size), mode="bilinear", align_corners=False)


def upsample_adjoint(
    grad: Tensor,  # [N, K, H, W]
    logits: Tensor,  # [N, K, h, w]
) -> Tensor:  # [N, K, h, w], the dtype and layout of logits
    """Bring a gradient at full resolution back to the logits it was resized from."""
    if grad.shape[0] == 0:
        return torch.zeros_like(logits)
    summed: Tensor = torch.ops.aten.upsample_bilinear2d_backward(
        grad, grad.shape[2:], logits.shape, align_corners=False
    )
    return laid_out_as(summed.to(logits.dtype), logits)
