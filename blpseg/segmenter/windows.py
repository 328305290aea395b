"""Divide an image into windows that a backbone sees one at a time.

Every window has a core; the cores tile the image. The margin around a core gives its pixels the
context that they would have in the whole image.
"""

from __future__ import annotations

from itertools import product
from typing import NamedTuple

STRIDE = 4  # image pixels per cell of the features' grid, in each direction
_STEP = 32  # cores start at multiples of the coarsest level's stride


class Window(NamedTuple):
    """A part of an image; slices count pixels of the image."""

    rows: slice
    columns: slice
    core_rows: slice
    core_columns: slice

    @property
    def grid(self) -> tuple[int, int]:
        """Height and width of the window's grid of features, in cells."""
        return cells(self.rows), cells(self.columns)

    @property
    def core_in_window(self) -> tuple[slice, slice]:
        """The core's rows and columns, counted in pixels from the window's corner."""
        return _shifted(self.core_rows, self.rows), _shifted(self.core_columns, self.columns)


def windows(height: int, width: int, side: int, margin: int) -> list[Window]:
    """Divide an image of height x width pixels into windows.

    Args:
        height: Rows of the image.
        width: Columns of the image.
        side: Largest side of a window, in pixels, > 2 * margin.
        margin: Pixels around each core, less at the image's borders.

    Returns:
        One window if the image is not larger than `side`; else windows in reading order.
    """
    return [
        Window(rows, columns, core_rows, core_columns)
        for (rows, core_rows), (columns, core_columns) in product(
            _parts(height, side, margin), _parts(width, side, margin)
        )
    ]


def cells(pixels: slice) -> int:
    """Return the number of cells that a slice of pixels takes, the last one perhaps in part."""
    return -(-(pixels.stop - pixels.start) // STRIDE)


def _parts(length: int, side: int, margin: int) -> list[tuple[slice, slice]]:
    if length <= side:
        return [(slice(0, length), slice(0, length))]
    core = max(_STEP, (side - 2 * margin) // _STEP * _STEP)
    margin = margin // STRIDE * STRIDE
    return [
        (slice(max(0, start - margin), min(length, start + core + margin)), slice(start, stop))
        for start in range(0, length, core)
        for stop in [min(length, start + core)]
    ]


def _shifted(inner: slice, outer: slice) -> slice:
    return slice(inner.start - outer.start, inner.stop - outer.start)
