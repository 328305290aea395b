"""The dtypes that the ops compute in and return."""

from __future__ import annotations

import torch


def accumulate_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype to compute in: float64 for float64, float32 for everything narrower."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def label_dtype(classes: int, ignore: int = 0) -> torch.dtype:
    """Return the dtype of label maps: uint8 if K and ignore_index fit, else int32."""
    return torch.uint8 if classes <= 255 and 0 <= ignore <= 255 else torch.int32
