"""Shape and dtype of what the losses' CUDA kernels save per pixel for backward."""

from __future__ import annotations

from torch import Tensor

from blpseg_ops._dtypes import accumulate_dtype

BLP_PLANES = 2  # log-sum-exp of seg_logits minus log(BLP weight); BLP weight
ANNOTATION_PLANES = 1  # log-sum-exp of annotation_logits minus log(class weight)


def new_saved_pixels(
    logits: Tensor,  # [N, C, h, w]
    target: Tensor,  # [N, H, W]
    planes: int,
) -> Tensor:  # [planes, N, H, W] on CUDA, else [0]
    """Return zeros for backward on CUDA, and nothing on other devices, which recompute it."""
    size = (planes, *target.shape) if logits.device.type == "cuda" else (0,)
    return logits.new_zeros(size, dtype=accumulate_dtype(logits.dtype))
