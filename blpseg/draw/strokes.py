"""Edits of a label map: strokes of a round brush, and patches that undo and redo them.

`page/raster.js` paints the same pixels: both test pixel centers against the same expression in
double precision.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from blpseg.data.labels import IGNORE
from blpseg.errors import UserError

_MAX_POINTS = 20_000  # per stroke
_MAX_RADIUS = 4096.0
_MAX_COORDINATE = 1e6
_PIECE = 256.0  # pixels; longer lines are painted in pieces, so that memory stays bounded


@dataclass(frozen=True)
class Stroke:
    """A line that a round brush draws; a single point is a disc."""

    points: Sequence[tuple[float, float]]
    """(x, y) in pixels of the image; the center of the first pixel is (0.5, 0.5)."""

    radius: float
    """In pixels."""

    label: int
    """The class, or 255 to erase."""

    def apply(self, labels: np.ndarray) -> None:
        """Paint on a label map [H, W] uint8, in place."""
        first = self.points[0]
        _paint_line(labels, first, first, self.radius, self.label)
        for start, end in zip(self.points, self.points[1:], strict=False):
            _paint_line(labels, start, end, self.radius, self.label)

    def check(self, shape: tuple[int, ...], num_classes: int) -> None:
        """Raise `UserError` if the label is no class; points may lie outside the image."""
        _check_label(self.label, num_classes)


@dataclass(frozen=True)
class Patch:
    """New labels for a rectangle."""

    left: int
    top: int
    labels: np.ndarray
    """[h, w] uint8."""

    def apply(self, labels: np.ndarray) -> None:
        """Replace the rectangle's labels, in place."""
        height, width = self.labels.shape
        labels[self.top : self.top + height, self.left : self.left + width] = self.labels

    def check(self, shape: tuple[int, ...], num_classes: int) -> None:
        """Raise `UserError` if the rectangle leaves the image, or a label is no class."""
        height, width = self.labels.shape
        if self.left + width > shape[1] or self.top + height > shape[0]:
            raise UserError(
                f"box: expected a rectangle inside {shape[1]} x {shape[0]} pixels, got "
                f"{[self.left, self.top, width, height]}"
            )
        for label in np.unique(self.labels).tolist():
            _check_label(label, num_classes)


Edit = Stroke | Patch


def parse_edit(content: Any) -> Edit:
    """Read an edit from JSON.

    Args:
        content: ``{"kind": "stroke", "points": [[x, y], ...], "radius": r, "label": k}`` or
            ``{"kind": "patch", "box": [left, top, width, height], "runs": [label, count, ...]}``;
            runs go along the rows.

    Raises:
        UserError: The content is neither.
    """
    if not isinstance(content, Mapping):
        raise UserError(f"edits: expected objects, got {type(content).__name__}")
    if content.get("kind") == "stroke":
        return _parse_stroke(content)
    if content.get("kind") == "patch":
        return _parse_patch(content)
    raise UserError(f'kind: expected "stroke" or "patch", got {content.get("kind")!r}')


def _parse_stroke(content: Mapping[str, Any]) -> Stroke:
    points = content.get("points")
    if not isinstance(points, list) or not 0 < len(points) <= _MAX_POINTS:
        raise UserError(f"points: expected 1 to {_MAX_POINTS} points [x, y]")
    for point in points:
        if not (
            isinstance(point, list)
            and len(point) == 2
            and all(_is_number(part) and abs(part) <= _MAX_COORDINATE for part in point)
        ):
            raise UserError(f"points: expected [x, y] in pixels, got {point!r}")
    radius = content.get("radius")
    if not (_is_number(radius) and 0 < radius <= _MAX_RADIUS):
        raise UserError(f"radius: expected more than 0 and at most {_MAX_RADIUS}, got {radius!r}")
    pairs = [(float(x), float(y)) for x, y in points]
    return Stroke(pairs, float(radius), _whole("label", content.get("label"), 255))


def _parse_patch(content: Mapping[str, Any]) -> Patch:
    box = content.get("box")
    if not isinstance(box, list) or len(box) != 4:
        raise UserError(f"box: expected [left, top, width, height], got {box!r}")
    left, top, width, height = (_whole("box", part, 1 << 20) for part in box)
    runs = content.get("runs")
    if not isinstance(runs, list) or len(runs) % 2:
        raise UserError("runs: expected [label, count, label, count, ...]")
    labels = [_whole("runs", label, 255) for label in runs[::2]]
    counts = [_whole("runs", count, 1 << 40) for count in runs[1::2]]
    if sum(counts) != width * height or not width * height:
        raise UserError(f"runs: expected {width} x {height} pixels, got {sum(counts)}")
    values = np.repeat(np.array(labels, np.uint8), counts)
    return Patch(left, top, values.reshape(height, width))


def _paint_line(
    labels: np.ndarray,
    start: tuple[float, float],
    end: tuple[float, float],
    radius: float,
    label: int,
) -> None:
    """Paint all pixels whose center is within `radius` of the line."""
    (x0, y0), (x1, y1) = start, end
    length = math.sqrt((x1 - x0) * (x1 - x0) + (y1 - y0) * (y1 - y0))
    pieces = max(1, math.ceil(length / _PIECE))
    for piece in range(pieces):
        ax, ay = x0 + (x1 - x0) * piece / pieces, y0 + (y1 - y0) * piece / pieces
        bx, by = x0 + (x1 - x0) * (piece + 1) / pieces, y0 + (y1 - y0) * (piece + 1) / pieces
        _paint_piece(labels, ax, ay, bx, by, radius, label)


def _paint_piece(
    labels: np.ndarray, ax: float, ay: float, bx: float, by: float, radius: float, label: int
) -> None:
    height, width = labels.shape
    left, right = (max(0, math.floor(min(ax, bx) - radius)), math.ceil(max(ax, bx) + radius))
    top, bottom = (max(0, math.floor(min(ay, by) - radius)), math.ceil(max(ay, by) + radius))
    right, bottom = min(width, right), min(height, bottom)
    if left >= right or top >= bottom:
        return
    dx, dy = bx - ax, by - ay
    squared = dx * dx + dy * dy
    px = (np.arange(left, right) + 0.5 - ax)[None, :]
    py = (np.arange(top, bottom) + 0.5 - ay)[:, None]
    along = np.clip((px * dx + py * dy) / squared, 0.0, 1.0) if squared > 0 else 0.0
    ex, ey = px - along * dx, py - along * dy
    labels[top:bottom, left:right][ex * ex + ey * ey <= radius * radius] = label


def _check_label(label: int, num_classes: int) -> None:
    if label != IGNORE and label >= num_classes:
        raise UserError(
            f"label: expected a class 0 to {num_classes - 1}, or 255 to erase, got {label}"
        )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _whole(name: str, value: Any, largest: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= largest:
        raise UserError(f"{name}: expected whole numbers 0 to {largest}, got {value!r}")
    return value
