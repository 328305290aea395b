"""The adjoint of bilinear resizing."""

from __future__ import annotations

import torch
from torch import Tensor

from blpseg_ops.fallback.layout import laid_out_as


def upsample_adjoint(
    grad: Tensor,  # [N, K, H, W]
    logits: Tensor,  # [N, K, h, w]
) -> Tensor:  # [N, K, h, w], the dtype and layout of logits
    """Turn the gradient of resized logits into the gradient of the logits."""
    if grad.shape[0] == 0:
        return torch.zeros_like(logits)
    summed: Tensor = torch.ops.aten.upsample_bilinear2d_backward(
        grad, grad.shape[2:], logits.shape, align_corners=False
    )
    return laid_out_as(summed.to(logits.dtype), logits)
