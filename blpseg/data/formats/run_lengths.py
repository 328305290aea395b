"""Masks as run lengths: CVAT's by rows, COCO's by columns, plain or packed into text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from blpseg.errors import UserError

# COCO's text holds 5 bits per character, lowest first; bit 5 says that more follow.
_FIRST_CHARACTER = 48
_VALUE_BITS, _MORE, _SIGN = 0x1F, 0x20, 0x10


def decode_runs(
    counts: Sequence[Any], width: int, height: int, where: str, *, by_columns: bool = False
) -> np.ndarray:  # [height, width] bool
    """Decode the lengths of alternating runs, of which the first lies outside the mask.

    Args:
        counts: Whole numbers >= 0 that add up to width x height.
        width: Width of the mask.
        height: Height of the mask.
        where: Begin of messages.
        by_columns: Runs go down the columns (COCO) instead of along the rows (CVAT).

    Raises:
        UserError: A count is no such number, or they add up to something else.
    """
    for count in counts:
        if not isinstance(count, int) or isinstance(count, bool) or count < 0:
            raise UserError(f"{where}: expected run lengths >= 0 in the RLE, got {count!r}")
    if sum(counts) != width * height:
        raise UserError(
            f"{where}: expected an RLE of {width} x {height} = {width * height} pixels, got "
            f"{sum(counts)}"
        )
    inside = np.arange(len(counts)) % 2 == 1
    pixels = np.repeat(inside, np.array(counts, np.int64))
    return pixels.reshape(width, height).T if by_columns else pixels.reshape(height, width)


def unpack_counts(text: str, where: str) -> list[int]:
    """Unpack COCO's compressed run lengths.

    pycocotools reads the same text, but without bounds: a broken one makes it write outside its
    memory. From the fourth on, counts are stored minus the count two before.

    Raises:
        UserError: A character is out of range, or the text ends within a number.
    """
    counts: list[int] = []
    value = shift = 0
    for character in text:
        code = ord(character) - _FIRST_CHARACTER
        if not 0 <= code < 2 * _MORE:
            raise UserError(f"{where}: expected COCO's compressed RLE, got {character!r} in it")
        value |= (code & _VALUE_BITS) << shift
        shift += 5
        if code & _MORE:
            continue
        if code & _SIGN:
            value -= 1 << shift
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))
        value = shift = 0
    if shift:
        raise UserError(f"{where}: expected COCO's compressed RLE, but it ends within a number")
    return counts
