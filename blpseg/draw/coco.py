"""Label maps as COCO annotations with run-length encoding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np


def categories(classes: Sequence[str]) -> list[dict[str, Any]]:
    """Return COCO's list of categories: every class but 0, the background; ids are the labels."""
    return [{"id": label, "name": name} for label, name in enumerate(classes) if label > 0]


def annotations(labels: np.ndarray, image_id: int, first_id: int) -> list[dict[str, Any]]:
    """Return one annotation per class that a label map holds; class 0 gets none.

    Args:
        labels: [H, W] uint8.
        image_id: COCO's id of the image.
        first_id: Id of the first annotation.
    """
    found = []
    for label in np.unique(labels).tolist():
        if label == 0:
            continue
        mask = labels == label
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        left, top = int(columns[0]), int(rows[0])
        found.append(
            {
                "id": first_id + len(found),
                "image_id": image_id,
                "category_id": label,
                "segmentation": {"size": list(labels.shape), "counts": run_lengths(mask)},
                "area": int(mask.sum()),
                "bbox": [left, top, int(columns[-1]) - left + 1, int(rows[-1]) - top + 1],
                "iscrowd": 0,
            }
        )
    return found


def run_lengths(mask: np.ndarray) -> list[int]:
    """Return COCO's counts of a mask [H, W] bool.

    Pixels go down the columns. The counts alternate between 0 and 1 and begin with 0.
    """
    flat = mask.ravel(order="F")
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    counts = np.diff(np.concatenate(([0], changes, [flat.size]))).tolist()
    return [0, *counts] if flat[0] else counts
