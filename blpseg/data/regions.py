"""Regions of label maps: check a map's form, and measure distances to a region's border."""

from __future__ import annotations

import numpy as np
from scipy import ndimage


def check_label_map(name: str, labels: np.ndarray) -> None:
    """Raise ValueError unless `labels` is a non-empty [H, W] array of integers."""
    if labels.ndim != 2 or labels.size == 0 or labels.dtype.kind not in "ui":
        raise ValueError(
            f"{name} must be an [H, W] array of integers, got shape {labels.shape}, {labels.dtype}"
        )


def distance_to_border(region: np.ndarray) -> np.ndarray:  # [h, w] bool -> [h, w] pixels
    """Return each region pixel's distance to the nearest pixel outside it; 0 outside the region."""
    return ndimage.distance_transform_edt(np.pad(region, 1))[1:-1, 1:-1]
