"""The memory layout of what the ops return."""

from __future__ import annotations

import torch
from torch import Tensor


def laid_out_as(
    result: Tensor,  # in any memory layout
    like: Tensor,  # of the same shape
) -> Tensor:
    """Return the result with the strides of ``torch.empty_like(like)``, as pointwise ops do.

    Those are the strides of ``like`` itself if it is dense in memory, for instance channels_last.
    """
    strides = torch.empty_like(like, device="meta").stride()
    order = sorted(range(like.dim()), key=lambda axis: -strides[axis])
    inverse = sorted(range(like.dim()), key=lambda axis: order[axis])
    return result.permute(order).contiguous().permute(inverse)
