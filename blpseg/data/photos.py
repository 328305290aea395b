"""Read photos of any common kind as 8-bit RGB, the way a viewer shows them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from blpseg.errors import UserError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")
UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)

_EXIF_ORIENTATION = 0x0112
_EXIF_SIDEWAYS = (5, 6, 7, 8)
_16_BITS = 65535


def read_photo(path: Path) -> Image.Image:
    """Read a photo as 8-bit RGB and apply its EXIF orientation.

    Gray, palette, CMYK and 16-bit photos are converted. Transparency is dropped, so hidden colors
    show.

    Raises:
        UserError: The file cannot be read, holds several pictures, or has values without a known
            range (floating point, 32 bits).
    """
    try:
        with Image.open(path) as image:
            _require_photo(image)
            image = ImageOps.exif_transpose(image)
            return _to_8_bits(image).convert("RGB")
    except UNREADABLE as error:
        raise UserError(f"{path}: cannot be read ({error})") from error


def photo_size(path: Path) -> tuple[int, int]:
    """Read the width and height after EXIF orientation from the header.

    Raises:
        OSError, SyntaxError, ValueError, DecompressionBombError: `read_photo` would refuse the
            file; `UNREADABLE` lists these.
    """
    with Image.open(path) as image:
        _require_photo(image)
        sideways = image.getexif().get(_EXIF_ORIENTATION) in _EXIF_SIDEWAYS
        width, height = image.size
        return (height, width) if sideways else (width, height)


def images_in(folder: Path) -> list[Path]:
    """List the image files of a folder, without subfolders, sorted by name."""
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)


def _require_photo(image: Image.Image) -> None:
    # Phones write JPEGs of several pictures (MPO), of which the first is the photo.
    count = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
    if count > 1:
        raise ValueError(f"expected one picture, but the file holds {count}")
    if image.mode in ("F", "I") and not _is_16_bit_png(image):
        raise ValueError(f"expected 8 or 16 bits per channel, got mode {image.mode}")


def _to_8_bits(image: Image.Image) -> Image.Image:
    # Pillow reads 16-bit color as 8-bit by itself, but clips 16-bit gray.
    if image.mode[0] != "I":
        return image
    values = np.asarray(image).astype(np.uint32)
    return Image.fromarray(((values * 255 + _16_BITS // 2) // _16_BITS).astype(np.uint8))


def _is_16_bit_png(image: Image.Image) -> bool:
    # Pillow before 11 reads these as mode I.
    return image.mode == "I" and image.format == "PNG"
