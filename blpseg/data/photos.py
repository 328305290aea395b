"""Read photos of any common kind as 8-bit RGB, the way a viewer shows them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from blpseg.data.images import image_shape, read_image
from blpseg.errors import UserError

_16_BITS = 65535
_PHOTO_CHANNELS = (1, 3, 4)  # gray, RGB, and RGB with transparency or a fourth band


def read_photo(path: Path) -> Image.Image:
    """Read a photo as 8-bit RGB and apply its EXIF orientation.

    Gray, palette, CMYK and 16-bit photos are converted. Transparency is dropped, so hidden colors
    show; so is a fourth band of TIFFs.

    Raises:
        UserError: `read_image` refuses the file, or it has 2 or more than 4 channels.
    """
    pixels = read_image(path)
    try:
        _require_photo(1 if pixels.ndim == 2 else pixels.shape[2])
    except ValueError as error:
        raise UserError(f"{path}: cannot be read ({error})") from error
    return Image.fromarray(to_8_bits(pixels)).convert("RGB")


def photo_size(path: Path) -> tuple[int, int]:
    """Read the width and height after EXIF orientation from the header.

    Raises:
        OSError, SyntaxError, ValueError, ...: `read_photo` would refuse the file;
            `blpseg.data.images.UNREADABLE` lists these.
    """
    height, width, channels = image_shape(path)
    _require_photo(channels)
    return width, height


def to_8_bits(pixels: np.ndarray) -> np.ndarray:
    """Scale uint16 to uint8, so that 65535 becomes 255, and round; return uint8 as it is."""
    if pixels.dtype == np.uint8:
        return pixels
    return ((pixels.astype(np.uint32) * 255 + _16_BITS // 2) // _16_BITS).astype(np.uint8)


def _require_photo(channels: int) -> None:
    if channels not in _PHOTO_CHANNELS:
        raise ValueError(
            f"expected a gray or color image, got {channels} channels; blpseg.ScribbleSegmenter "
            "reads any number"
        )
