"""Downsized copies of large images and their scribbles, on which the segmentation is quick."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from blpseg.data.images import image_shape, read_image
from blpseg.data.shrinking import shrink_image, shrink_scribbles, shrunk_size

WORKING_SIDE = 1024  # pixels of the longer side


def working_image(path: Path) -> np.ndarray:
    """Read an image as [h, w] or [h, w, C], its longer side at most `WORKING_SIDE` pixels.

    Raises:
        UserError: The image cannot be read.
    """
    pixels = read_image(path, at_least=WORKING_SIDE)
    height, width, _ = image_shape(path)
    return shrink_image(pixels, shrunk_size(height, width, WORKING_SIDE))


def working_scribbles(labels: np.ndarray) -> np.ndarray:
    """Downsize scribbles [H, W] to the size of the working copy."""
    return shrink_scribbles(labels, shrunk_size(*labels.shape, WORKING_SIDE))
