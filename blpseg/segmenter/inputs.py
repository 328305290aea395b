"""Check what a user hands to the segmenter: images and scribbles, as arrays or paths."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from blpseg.data.images import read_image
from blpseg.data.labels import read_png
from blpseg.errors import UserError

UNLABELED = 255
_OUTLIERS = 0.1  # percent of a 16-bit channel's pixels that may lie beyond each end of the scale


class Picture(NamedTuple):
    """An image whose type and shape are checked."""

    pixels: np.ndarray  # [H, W, C], uint8 or uint16
    key: str  # equal for equal pixels

    @property
    def size(self) -> tuple[int, int]:
        """Height and width, in pixels."""
        return self.pixels.shape[0], self.pixels.shape[1]

    @property
    def groups(self) -> int:
        """Number of three-channel images that the backbone sees: 1 for gray and RGB, else C."""
        channels = self.pixels.shape[2]
        return 1 if channels == 3 else channels

    def ranges(self) -> Tensor:  # [2, C]
        """Return the values of each channel that become 0 and 1.

        These are 0 and 255 for 8 bits. Sensors of 16 bits seldom use the whole range, so there the
        channel's own range counts, without its outliers.
        """
        if self.pixels.dtype == np.uint8:
            return torch.tensor([[0.0], [255.0]]).expand(2, self.pixels.shape[2])
        flat = self.pixels.reshape(-1, self.pixels.shape[2])
        sample = flat[:: max(1, len(flat) // 1_000_000)]
        low, high = np.percentile(sample, [_OUTLIERS, 100 - _OUTLIERS], axis=0)
        return torch.tensor(np.stack([low, np.maximum(high, low + 1)]), dtype=torch.float32)


def read_picture(image: Any, name: str) -> Picture:
    """Check an image, or read it from a path.

    Args:
        image: [H, W] or [H, W, C] array, uint8 or uint16, or the path of a file.
        name: The image's name in messages, e.g. "images[0]".

    Raises:
        UserError: The file cannot be read, or the array has another type or shape.
    """
    if isinstance(image, str | PathLike):
        path = Path(image)
        if not path.is_file():
            raise UserError(f"{name}: expected an array or an image file, there is no file {path}")
        image = read_image(path)
    pixels = np.asarray(image)
    if pixels.dtype not in (np.uint8, np.uint16):
        raise UserError(f"{name}: expected uint8 or uint16, got {pixels.dtype}")
    if pixels.ndim not in (2, 3) or 0 in pixels.shape:
        raise UserError(f"{name}: expected shape [H, W] or [H, W, C], got {list(pixels.shape)}")
    pixels = np.ascontiguousarray(pixels if pixels.ndim == 3 else pixels[..., None])
    digest = hashlib.blake2b(f"{pixels.shape} {pixels.dtype}".encode(), digest_size=16)
    digest.update(pixels.data)
    return Picture(pixels, digest.hexdigest())


def read_scribbles(
    scribbles: Any, picture: Picture, num_classes: int, name: str
) -> np.ndarray:  # [H, W] uint8
    """Check the scribbles of an image, or read them from the path of a PNG.

    Args:
        scribbles: [H, W] integer array, or the path of a PNG of mode L or P: classes 0..K-1, 255
            unlabeled.
        picture: The image.
        num_classes: K.
        name: The scribbles' name in messages, e.g. "scribbles[0]".

    Raises:
        UserError: The file cannot be read, the size differs from the image's, or a label is out of
            range.
    """
    if isinstance(scribbles, str | PathLike):
        path = Path(scribbles)
        if not path.is_file():
            raise UserError(f"{name}: expected an array or a PNG file, there is no file {path}")
        scribbles = read_png(path)
    labels = np.asarray(scribbles)
    if labels.dtype.kind not in "iu":
        raise UserError(f"{name}: expected integers, got {labels.dtype}")
    if labels.shape != picture.size:
        raise UserError(
            f"{name}: expected shape {list(picture.size)}, the height and width of its image, got "
            f"{list(labels.shape)}"
        )
    unknown = np.unique(labels[(labels != UNLABELED) & ((labels < 0) | (labels >= num_classes))])
    if unknown.size:
        listed = ", ".join(map(str, unknown[:5].tolist())) + (", ..." if unknown.size > 5 else "")
        raise UserError(
            f"{name}: expected 0 to {num_classes - 1} ({num_classes} classes) or {UNLABELED} "
            f"(unlabeled), got {listed}"
        )
    return labels.astype(np.uint8)


def require_pairs(images: Any, scribbles: Any) -> tuple[Sequence[Any], Sequence[Any]]:
    """Return both as lists of one length.

    Raises:
        UserError: One is no list, the lengths differ, or there is nothing in them.
    """
    for name, given in (("images", images), ("scribbles", scribbles)):
        if not isinstance(given, list | tuple):
            raise UserError(
                f"{name}: expected a list, one entry per image, got {type(given).__name__}"
            )
    if not images or len(images) != len(scribbles):
        raise UserError(
            f"expected one scribble map per image and at least one image, got {len(images)} images "
            f"and {len(scribbles)} scribble maps"
        )
    return images, scribbles
