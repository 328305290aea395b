"""Label Studio's RLE of brush strokes: a bit stream of RGBA bytes, of which alpha is the mask.

The stream: 32 bits number of bytes N; 5 bits word size - 1; four times 4 bits run size - 1. Then
runs until N bytes are there: 1 bit "repeat", 2 bits choice of a run size, that many bits
length - 1, and one word (repeat) or as many words as the length says. Label Studio takes it from
https://github.com/thi-ng/umbrella, package rle-pack.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from blpseg.errors import UserError

_CHANNELS = 4
_OPAQUE_FROM = 128  # strokes may have soft edges
_NUMBER_BITS, _WORD_BITS, _SIZE_BITS, _CHOICE_BITS = 32, 5, 4, 2
_BYTE = 8
_RUN_SIZES = (3, 4, 8, 16)  # bits, as Label Studio's own encoder writes


class _BitReader:
    """Reads unsigned numbers of any number of bits, the highest bit first."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def read(self, bits: int) -> int:
        end = self._at + bits
        if end > _BYTE * len(self._data):
            raise EOFError
        number = int.from_bytes(self._data[self._at // _BYTE : -(-end // _BYTE)], "big")
        self._at = end
        return (number >> (-end % _BYTE)) & ((1 << bits) - 1)


def decode_brush(rle: Sequence[Any], width: int, height: int, where: str) -> np.ndarray:
    """Decode the mask of a brush result.

    Args:
        rle: The stream's bytes, as the JSON lists them.
        width: `original_width` of the result.
        height: `original_height` of the result.
        where: Begin of messages.

    Returns:
        [height, width] bool: alpha is at least 128.

    Raises:
        UserError: The stream is broken, or holds another number of pixels.
    """
    try:
        stream = _BitReader(bytes(rle))
        count = stream.read(_NUMBER_BITS)
        if count != _CHANNELS * width * height:
            raise UserError(
                f"{where}: expected an RLE of {width} x {height} pixels of 4 bytes, got {count} "
                "bytes"
            )
        word = stream.read(_WORD_BITS) + 1
        sizes = [stream.read(_SIZE_BITS) + 1 for _ in _RUN_SIZES]
        pixels = np.empty(count, np.uint8)
        at = 0
        while at < count:
            repeat = stream.read(1)
            end = at + 1 + stream.read(sizes[stream.read(_CHOICE_BITS)])
            if word != _BYTE or end > count:
                raise EOFError
            words = 1 if repeat else end - at
            values = stream.read(_BYTE * words).to_bytes(words, "big")
            pixels[at:end] = np.frombuffer(values, np.uint8)
            at = end
    except (EOFError, TypeError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"{where}: expected Label Studio's RLE as a list of bytes, but it is broken"
        ) from error
    return pixels.reshape(height, width, _CHANNELS)[..., -1] >= _OPAQUE_FROM


def encode_brush(mask: np.ndarray) -> list[int]:
    """Encode a mask [H, W] bool as Label Studio reads it; returns the stream's bytes."""
    flat = mask.ravel()
    starts = np.r_[0, np.flatnonzero(np.diff(flat)) + 1]
    lengths = np.diff(np.r_[starts, flat.size])
    longest = 1 << max(_RUN_SIZES)
    parts = [f"{_CHANNELS * flat.size:0{_NUMBER_BITS}b}", f"{_BYTE - 1:0{_WORD_BITS}b}"]
    parts += [f"{size - 1:0{_SIZE_BITS}b}" for size in _RUN_SIZES]
    for inside, pixels in zip(flat[starts].tolist(), lengths.tolist(), strict=True):
        left = _CHANNELS * pixels
        while left:
            length = min(left, longest)
            choice = next(i for i, size in enumerate(_RUN_SIZES) if length <= 1 << size)
            parts.append(f"1{choice:0{_CHOICE_BITS}b}{length - 1:0{_RUN_SIZES[choice]}b}")
            parts.append(f"{255 * inside:0{_BYTE}b}")
            left -= length
    bits = np.frombuffer("".join(parts).encode(), np.uint8) - ord("0")
    return np.packbits(bits).tolist()
