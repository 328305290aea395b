"""Read images of any common kind as arrays: 8 or 16 bits; gray, color or many channels.

Pillow reads the formats of viewers, tifffile the TIFFs of microscopes and satellites, which hold
more than 8 bits or other channels than red, green and blue. `blpseg.data.photos` makes 8-bit RGB
of the result, which is what a network of `blpseg train` reads.
"""

from __future__ import annotations

import struct
import zlib
from math import prod
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image, ImageOps

from blpseg.errors import UserError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")
UNREADABLE = (
    OSError,
    SyntaxError,
    ValueError,
    IndexError,
    KeyError,
    struct.error,
    zlib.error,
    tifffile.TiffFileError,
    Image.DecompressionBombError,
)
"""What the functions of this module and Pillow raise on files that are no images, or broken."""

_TIFF_SUFFIXES = (".tif", ".tiff")
MAX_PIXELS = 178_956_970  # Pillow refuses larger images as decompression bombs
_MAX_UNNAMED_PAGES = 16  # a longer stack is a volume or a film, not one image's channels

_BITS_PER_SAMPLE, _ORIENTATION, _EXTRA_SAMPLES = 258, 274, 338  # tags of TIFF; EXIF has the second
_ALPHA = (1, 2)  # values of _EXTRA_SAMPLES; others are channels
_SIDEWAYS = (5, 6, 7, 8)
_CHANNEL_AXES = "SC"  # tifffile's letters: samples of a pixel, channels
_UNNAMED_AXES = "QI"  # pages of which the file does not say what they are


def read_image(path: Path, *, at_least: int | None = None) -> np.ndarray:
    """Read an image and turn it as its EXIF orientation says.

    Palettes and CMYK become RGB, 1-bit images 0 and 255. Transparency is dropped, so hidden colors
    show. TIFFs keep every channel: samples of a pixel, planes, and pages that the file calls
    channels or, up to 16, calls nothing.

    Args:
        path: The file.
        at_least: A JPEG may be decoded downsized, to sides of at least so many pixels, which is
            several times as fast; None decodes every pixel.

    Returns:
        [H, W] if gray, else [H, W, C]; uint8, or uint16 if the file holds 16 bits per channel (of
        color PNGs, Pillow reads the upper 8).

    Raises:
        UserError: The file cannot be read, holds several pictures, or has values without a known
            range (floating point, signed, 32 bits).
    """
    try:
        if _needs_tifffile(path):
            return _read_tiff(path)
        with Image.open(path) as image:
            _require_picture(image)
            if at_least is not None:
                image.draft(image.mode, (at_least, at_least))
            image = ImageOps.exif_transpose(image)
            if image.mode[0] == "I":
                return np.asarray(image).astype(np.uint16)
            return np.array(image.convert("L" if image.mode in ("1", "L", "LA") else "RGB"))
    except UNREADABLE as error:
        raise UserError(f"{path}: cannot be read ({error})") from error


def image_shape(path: Path) -> tuple[int, int, int]:
    """Read the height, the width and the number of channels from the header, without the pixels.

    Height and width are those after EXIF orientation; a gray image has 1 channel.

    Raises:
        OSError, SyntaxError, ValueError, ...: `read_image` would refuse the file; `UNREADABLE`
            lists these.
    """
    if _needs_tifffile(path):
        with tifffile.TiffFile(path) as file:
            shape = dict(_named_shape(file))
            sideways = _orientation(file) in _SIDEWAYS
        height, width = shape.pop("Y"), shape.pop("X")
        channels = prod(shape.values())
    else:
        with Image.open(path) as image:
            _require_picture(image)
            sideways = image.getexif().get(_ORIENTATION) in _SIDEWAYS
            width, height = image.size
            channels = 1 if image.mode in ("1", "L", "LA") or image.mode[0] == "I" else 3
    return (width, height, channels) if sideways else (height, width, channels)


def images_in(folder: Path) -> list[Path]:
    """List the image files of a folder, without subfolders, sorted by name."""
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)


def _require_picture(image: Image.Image) -> None:
    # Phones write JPEGs of several pictures (MPO), of which the first is the photo.
    count = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
    if count > 1:
        raise ValueError(f"expected one picture, but the file holds {count}")
    # Pillow before 11 reads 16-bit PNGs as mode I.
    if image.mode == "F" or (image.mode == "I" and image.format != "PNG"):
        raise ValueError(f"expected 8 or 16 bits per channel, got mode {image.mode}")


def _needs_tifffile(path: Path) -> bool:
    """Return whether Pillow would refuse the file, or drop bits or channels of it."""
    if path.suffix.lower() not in _TIFF_SUFFIXES:
        return False
    try:
        with Image.open(path) as image:
            bits = image.tag_v2.get(_BITS_PER_SAMPLE, (1,))
            extra = image.tag_v2.get(_EXTRA_SAMPLES, ())
            reduced = max(bits) > 8 and len(bits) > 1
            return image.n_frames > 1 or reduced or not set(extra) <= set(_ALPHA)
    except Image.UnidentifiedImageError:
        return True


def _read_tiff(path: Path) -> np.ndarray:
    with tifffile.TiffFile(path) as file:
        shape = _named_shape(file)
        try:
            pixels = file.series[0].asarray().reshape([length for _, length in shape])
        except ValueError as error:
            if "imagecodecs" in str(error):  # tifffile decodes some compressions by that package
                raise ValueError(f"{error}; pip install 'blpseg[formats]' brings it") from error
            raise
        orientation = _orientation(file)
    names = [name for name, _ in shape]
    order = sorted(range(len(names)), key=lambda axis: {"Y": 0, "X": 1}.get(names[axis], 2))
    return np.ascontiguousarray(_turn(pixels.transpose(order), orientation))


def _named_shape(file: tifffile.TiffFile) -> list[tuple[str, int]]:
    """Return letter and length of each axis of a file's only image: Y, X and at most one more."""
    if len(file.series) != 1:
        raise ValueError(f"expected one picture, but the file holds {len(file.series)}")
    series = file.series[0]
    shape = [
        (name, length)
        for name, length in zip(series.get_axes(False), series.get_shape(False), strict=True)
        if length > 1 or name in "YX"
    ]
    size = dict(shape)
    channels = [name for name in size if name not in "YX"]
    if "Y" not in size or "X" not in size:
        raise ValueError(f"expected rows and columns, got axes {series.axes}")
    named = len(channels) < 2 and all(
        name in _CHANNEL_AXES or (name in _UNNAMED_AXES and size[name] <= _MAX_UNNAMED_PAGES)
        for name in channels
    )
    if not named:
        count = prod(size[name] for name in channels if name not in _CHANNEL_AXES)
        raise ValueError(
            f"expected one picture, but the file holds {count}: {_in_words(shape)} "
            "(axes in tifffile's letters)"
        )
    if series.dtype not in (np.uint8, np.uint16):
        raise ValueError(f"expected 8 or 16 bits per channel, got mode {series.dtype}")
    if size["Y"] * size["X"] > MAX_PIXELS:
        raise ValueError(f"expected at most {MAX_PIXELS} pixels, got {_in_words(shape)}")
    return shape


def _in_words(shape: list[tuple[str, int]]) -> str:
    return " x ".join(f"{name} {length}" for name, length in shape)


def _orientation(file: tifffile.TiffFile) -> int:
    tag = file.pages.first.tags.get(_ORIENTATION)
    return 1 if tag is None else int(tag.value)


def _turn(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Turn and mirror [H, W, ...] as TIFF's and EXIF's orientation 1 to 8 says."""
    if orientation in _SIDEWAYS:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels
