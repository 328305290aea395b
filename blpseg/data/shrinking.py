"""Shrink large images and their scribbles, so that a segmentation takes no longer."""

from __future__ import annotations

import numpy as np
from PIL import Image

from blpseg.data.labels import IGNORE


def shrunk_size(height: int, width: int, max_side: int) -> tuple[int, int]:
    """Return (height, width) with a longer side of at most `max_side`; small images keep theirs."""
    factor = min(1.0, max_side / max(width, height))
    return max(1, round(height * factor)), max(1, round(width * factor))


def shrink_image(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Shrink [H, W] or [H, W, C] to (h, w): means of the pixels that a pixel covers, same dtype."""
    if pixels.shape[:2] == size:
        return pixels
    channels = [pixels] if pixels.ndim == 2 else np.moveaxis(pixels, 2, 0)
    shrunk = [_shrink(channel, size) for channel in channels]
    return shrunk[0] if pixels.ndim == 2 else np.stack(shrunk, axis=2)


def shrink_scribbles(labels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Shrink scribbles [H, W] uint8 to (h, w).

    A pixel gets a label if any of the pixels that it covers has one, so thin lines stay whole.
    """
    height, width = labels.shape
    h, w = size
    if (h, w) == (height, width):
        return labels
    small = np.full((h, w), IGNORE, np.uint8)
    rows, columns = np.nonzero(labels != IGNORE)
    small[rows * h // height, columns * w // width] = labels[rows, columns]
    return small


def _shrink(channel: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    picture = Image.fromarray(channel.astype(np.float32))
    resized = np.asarray(picture.resize(size[::-1], Image.Resampling.BOX))
    return np.rint(resized).astype(channel.dtype)
