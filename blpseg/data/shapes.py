"""Scribbles as lines and masks, and their drawing into label maps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from blpseg.errors import UserError

UNLABELED = 255

# ScribbleSup's short names, and the two spellings in PASCAL-Context's lists.
_SYNONYMS = {
    "plane": "aeroplane",
    "bike": "bicycle",
    "table": "diningtable",
    "plant": "pottedplant",
    "monitor": "tvmonitor",
    "diningtable": "table",
    "bedcloth": "bedclothes",
    "clothes": "cloth",
}


class Shape(NamedTuple):
    """A stroke, polygon, set of points or mask from an annotation program."""

    kind: Literal["line", "polygon", "points", "mask"]
    """line: open, as wide as the pen; polygon: filled; points: dots as wide as the pen; mask: what
    a brush painted."""

    tag: str
    """Name of the class."""

    points: np.ndarray
    """[P, 2] x, y in pixels, P >= 1; they may lie outside the image. A mask has one point: its
    upper left pixel."""

    where: str
    """FILE:LINE, or the file and what is in it, for messages."""

    mask: np.ndarray | None = None
    """[h, w] bool, the pixels of a mask; None in other kinds."""


class Drawing(NamedTuple):
    """All shapes of one image."""

    name: str
    """The image's file name without folder and suffix."""

    size: tuple[int, int]
    """Width and height of the image, in pixels."""

    shapes: list[Shape]


def make_mask(tag: str, mask: np.ndarray, where: str, left: int = 0, top: int = 0) -> Shape:
    """Make a shape of a mask [h, w] bool with upper left pixel (left, top); crop its borders."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if rows.size:
        mask = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].copy()
        left, top = left + int(columns[0]), top + int(rows[0])
    else:
        mask = mask[:0, :0]
    return Shape("mask", tag, np.array([[left, top]]), where, mask)


@dataclass(frozen=True)
class ScribbleThinning:
    """How much of the scribbles to remove, for studies of shorter and fewer scribbles.

    Raises:
        UserError: A setting is out of range.
    """

    shrink: float = 0.0
    """Share of each line's length that is cut off, half of it at each end; 1 leaves a dot."""

    drop: float = 0.0
    """Probability that a shape is left out."""

    seed: int = 0
    """Chooses the shapes left out; a larger `drop` leaves out the same shapes and more."""

    def __post_init__(self) -> None:
        for name in ("shrink", "drop"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise UserError(f"{name}: expected 0 to 1, got {value}")
        if self.seed < 0:
            raise UserError(f"seed: expected at least 0, got {self.seed}")


def draw_drawing(
    drawing: Drawing,
    classes: Sequence[str],
    *,
    width: int = 1,
    thinning: ScribbleThinning | None = None,
) -> np.ndarray:  # [H, W] uint8
    """Draw a label map; later shapes cover earlier ones.

    Points outside the image are first clamped to its edge; masks are cut there. Pillow draws the
    lines: 1 px wide ones by Bresenham's algorithm, wider ones with round ends.

    Args:
        drawing: The shapes.
        classes: Class names in the order of their labels, at most 254.
        width: Width of the pen in pixels; published scribbles are 1 (the authors') or 3 px wide.
        thinning: What to leave out; None draws everything.

    Returns:
        [H, W] uint8: 0..K-1 where something is drawn, 255 elsewhere.

    Raises:
        UserError: A tag is no class (the message names file and line), or the width is below 1.
    """
    if width < 1:
        raise UserError(f"width: expected at least 1 pixel, got {width}")
    thinning = thinning or ScribbleThinning()
    rng = np.random.default_rng([thinning.seed, *drawing.name.encode()])
    canvas = Image.new("L", drawing.size, UNLABELED)
    draw = ImageDraw.Draw(canvas)
    last_pixel = np.subtract(drawing.size, 1)
    for shape in drawing.shapes:
        label = label_of(shape, classes)
        if rng.random() < thinning.drop:
            continue
        points = np.clip(shape.points, 0, last_pixel)
        if shape.mask is not None:
            left, top = shape.points[0].tolist()
            if shape.mask.size:
                canvas.paste(label, (left, top), Image.fromarray(shape.mask))
        elif shape.kind == "line":
            draw_stroke(draw, shrink_stroke(points, thinning.shrink), label, width)
        elif shape.kind == "polygon" and len(points) > 1:
            draw.polygon([tuple(point) for point in points.tolist()], fill=label)
        else:
            for point in points:
                draw_stroke(draw, point[None], label, width)
    return np.array(canvas)


def label_of(shape: Shape, classes: Sequence[str]) -> int:
    """Find the label of a shape's tag among the classes, by its name or a known synonym.

    Raises:
        UserError: The tag is no class; the message names file and line.
    """
    for name in (shape.tag, _SYNONYMS.get(shape.tag)):
        if name in classes:
            return classes.index(name)
    raise UserError(
        f"{shape.where}: {shape.tag!r} is no class; expected one of {', '.join(classes)}"
    )


def shrink_stroke(points: np.ndarray, share: float) -> np.ndarray:
    """Remove a share of a line's length, half of it at each end.

    Args:
        points: [P, 2] x, y.
        share: 0 leaves the line as it is; 1 leaves the middle of it.

    Returns:
        [Q, 2], Q >= 1.
    """
    if share == 0 or len(points) < 2:
        return points
    way = np.r_[0, np.cumsum(np.hypot(*np.diff(points, axis=0).T))]
    start, end = way[-1] * share / 2, way[-1] * (1 - share / 2)
    inner = points[(way > start) & (way < end)]
    ends = [[np.interp(at, way, points[:, axis]) for axis in (0, 1)] for at in (start, end)]
    return np.concatenate([ends[:1], inner, ends[1:]])


def draw_stroke(
    draw: ImageDraw.ImageDraw,
    points: np.ndarray,  # [P, 2] x, y
    label: int,
    width: int,
) -> None:
    """Draw a line with round ends."""
    stroke = [(float(x), float(y)) for x, y in points]
    radius = (width - 1) / 2
    for x, y in (stroke[0], stroke[-1]):
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=label)
        draw.point((x, y), fill=label)  # Pillow's ellipse of no extent is empty
    draw.line(stroke, fill=label, width=width, joint="curve")
