"""The order in memory of what ops return."""

from __future__ import annotations

import torch
from torch import Tensor


def laid_out_as(
    result: Tensor,  # of any order in memory
    like: Tensor,  # of the same shape
) -> Tensor:
    """The result in the strides of ``torch.empty_like(like)``, as torch's own pointwise ops do it.

    Those are the strides of ``like`` where it fills its memory, channels_last for instance.
    """
    strides = torch.empty_like(like, device="meta").stride()
    order = sorted(range(like.dim()), key=lambda axis: -strides[axis])
    back = sorted(range(like.dim()), key=lambda axis: order[axis])
    return result.permute(order).contiguous().permute(back)
