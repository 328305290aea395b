"""Downsized copies of large images and their scribbles, on which the segmentation is quick."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from blpseg.data.images import image_shape, read_image
from blpseg.data.labels import IGNORE

WORKING_SIDE = 1024  # pixels of the longer side


def working_size(height: int, width: int) -> tuple[int, int]:
    """Return the (height, width) of an image's working copy; small images keep theirs."""
    factor = min(1.0, WORKING_SIDE / max(width, height))
    return max(1, round(height * factor)), max(1, round(width * factor))


def working_image(path: Path) -> np.ndarray:
    """Read an image as [h, w] or [h, w, C], its longer side at most `WORKING_SIDE` pixels.

    Raises:
        UserError: The image cannot be read.
    """
    pixels = read_image(path, at_least=WORKING_SIDE)
    height, width, _ = image_shape(path)
    size = working_size(height, width)
    if pixels.shape[:2] == size:
        return pixels
    channels = [pixels] if pixels.ndim == 2 else np.moveaxis(pixels, 2, 0)
    shrunk = [_shrink(channel, size) for channel in channels]
    return shrunk[0] if pixels.ndim == 2 else np.stack(shrunk, axis=2)


def working_scribbles(labels: np.ndarray) -> np.ndarray:
    """Downsize scribbles [H, W] to the size of the working copy.

    A pixel gets a label if any of the pixels that it covers has one, so thin lines stay whole.
    """
    height, width = labels.shape
    h, w = working_size(height, width)
    if (h, w) == (height, width):
        return labels
    small = np.full((h, w), IGNORE, np.uint8)
    rows, columns = np.nonzero(labels != IGNORE)
    small[rows * h // height, columns * w // width] = labels[rows, columns]
    return small


def _shrink(channel: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Take the mean of the pixels that each pixel of a smaller image covers; keep the dtype."""
    picture = Image.fromarray(channel.astype(np.float32))
    resized = np.asarray(picture.resize(size[::-1], Image.Resampling.BOX))
    return np.rint(resized).astype(channel.dtype)
