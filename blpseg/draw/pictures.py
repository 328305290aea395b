"""What the page shows of an image: a thumbnail, a view, and full-resolution tiles of large ones."""

from __future__ import annotations

import io
import threading
from collections import OrderedDict

import numpy as np
from PIL import Image

from blpseg.data.images import read_image
from blpseg.data.photos import to_8_bits
from blpseg.draw.folder import DrawFolder

VIEW_SIDE = 2048  # pixels; larger images are shown downsized, and in tiles where one zooms in
TILE_SIDE = 1024
_THUMBNAIL = (224, 160)  # twice the size on the page, for dense screens
_DECODED_BYTES = 256 << 20
_THUMBNAILS = 4096
_OUTLIERS = 0.1  # percent of a 16-bit channel's pixels beyond each end of the scale
_LOSSLESS_PIXELS = 1 << 20  # small images are zoomed in, where JPEG shows


class Pictures:
    """Encode an image's pictures as JPEG or PNG, on request; safe to use from several threads.

    All methods raise `UserError` if the image cannot be read.
    """

    def __init__(self, folder: DrawFolder) -> None:
        self.folder = folder
        self._lock = threading.Lock()
        self._decoded: OrderedDict[int, Image.Image] = OrderedDict()
        self._thumbnails: OrderedDict[int, bytes] = OrderedDict()
        self._one_at_a_time = threading.Lock()  # decoding is what costs memory and time

    def thumbnail(self, index: int) -> bytes:
        """Return a small picture."""
        with self._lock:
            if index in self._thumbnails:
                return self._thumbnails[index]
            decoded = self._decoded.get(index)
        if decoded is None:
            picture = displayed(read_image(self.folder.images[index], at_least=2 * max(_THUMBNAIL)))
        else:
            picture = decoded.copy()
        picture.thumbnail(_THUMBNAIL, reducing_gap=2.0)
        encoded = _encode(picture, 80)
        with self._lock:
            self._thumbnails[index] = encoded
            while len(self._thumbnails) > _THUMBNAILS:
                self._thumbnails.popitem(last=False)
        return encoded

    def view(self, index: int) -> bytes:
        """Return the whole picture; its longer side is at most `VIEW_SIDE` pixels."""
        picture = self._decode(index)
        if max(picture.size) > VIEW_SIDE:
            picture = picture.copy()
            picture.thumbnail((VIEW_SIDE, VIEW_SIDE), Image.Resampling.BOX)
        return _encode(picture, 92, lossless=picture.width * picture.height <= _LOSSLESS_PIXELS)

    def tile(self, index: int, column: int, row: int) -> bytes:
        """Return a square of `TILE_SIDE` pixels in full resolution; at the borders, less.

        Raises:
            IndexError: The image has no such tile.
        """
        picture = self._decode(index)
        left, top = column * TILE_SIDE, row * TILE_SIDE
        if not (0 <= left < picture.width and 0 <= top < picture.height):
            raise IndexError(f"no tile {column}, {row}")
        right, bottom = min(left + TILE_SIDE, picture.width), min(top + TILE_SIDE, picture.height)
        return _encode(picture.crop((left, top, right, bottom)), 92)

    def _decode(self, index: int) -> Image.Image:
        with self._one_at_a_time:
            with self._lock:
                if index in self._decoded:
                    self._decoded.move_to_end(index)
                    return self._decoded[index]
            picture = displayed(read_image(self.folder.images[index]))
            with self._lock:
                self._decoded[index] = picture
                while len(self._decoded) > 1 and self._decoded_bytes() > _DECODED_BYTES:
                    self._decoded.popitem(last=False)
            return picture

    def _decoded_bytes(self) -> int:
        return sum(3 * picture.width * picture.height for picture in self._decoded.values())


def displayed(pixels: np.ndarray) -> Image.Image:
    """Make an RGB picture of an image of any number of channels.

    Of more than three channels, the first three are red, green and blue; of two, red and green.
    Each channel of 16 bits is stretched to its own range, without outliers.

    Args:
        pixels: [H, W] or [H, W, C], uint8 or uint16.
    """
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    pixels = pixels[..., :3]
    if pixels.dtype == np.uint16:
        sample = pixels[::4, ::4].reshape(-1, pixels.shape[2])
        low, high = np.percentile(sample, [_OUTLIERS, 100 - _OUTLIERS], axis=0)
        stretched = (pixels - low) * (65535 / np.maximum(high - low, 1))
        pixels = to_8_bits(np.clip(stretched, 0, 65535).astype(np.uint16))
    if pixels.shape[2] == 1:
        pixels = np.broadcast_to(pixels, (*pixels.shape[:2], 3))
    if pixels.shape[2] == 2:
        pixels = np.concatenate([pixels, np.zeros_like(pixels[..., :1])], axis=2)
    return Image.fromarray(np.ascontiguousarray(pixels))


def _encode(picture: Image.Image, quality: int, *, lossless: bool = False) -> bytes:
    buffer = io.BytesIO()
    if lossless:
        picture.save(buffer, "PNG", compress_level=1)
    else:
        picture.save(buffer, "JPEG", quality=quality, subsampling=0)
    return buffer.getvalue()
