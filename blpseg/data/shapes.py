"""Scribbles as lines, and how they become label maps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from blpseg.errors import UserError

UNLABELED = 255

# ScribbleSup's short names, and those that PASCAL-Context's lists spell in two ways.
_ALSO = {
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
    """One stroke, or what else an annotation program draws."""

    kind: Literal["line", "polygon", "points"]
    """line: open, of the pen's width; polygon: filled; points: dots of the pen's width."""

    tag: str
    """Name of the class."""

    points: np.ndarray
    """[P, 2] x, y in pixels, P >= 1; they may lie outside the image."""

    where: str
    """FILE:LINE, for messages."""


class Drawing(NamedTuple):
    """What was drawn on one image."""

    name: str
    """The image's file name without folder and suffix."""

    size: tuple[int, int]
    """Width and height of the image, in pixels."""

    shapes: list[Shape]


@dataclass(frozen=True)
class Reduction:
    """What is taken away from scribbles, for studies of shrunk and dropped ones.

    Raises:
        UserError: A share is out of range.
    """

    shrink: float = 0.0
    """Share of each line's length that is cut off, half of it at each end; 1 leaves a dot."""

    drop: float = 0.0
    """Probability that a shape is left out."""

    seed: int = 0
    """Decides which are left out; those of a smaller `drop` are among those of a larger one."""

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
    reduction: Reduction | None = None,
) -> np.ndarray:  # [H, W] uint8
    """Draw a label map; later shapes cover earlier ones.

    Points outside the image are moved to its edge first. Lines are Pillow's: 1 px wide ones are
    Bresenham's; wider ones have round ends.

    Args:
        drawing: The shapes.
        classes: Class names in the order of their labels, at most 254.
        width: Width of the pen in pixels; published scribbles are 1 (the authors') or 3 px wide.
        reduction: What to leave out; None draws all.

    Returns:
        [H, W] uint8: 0..K-1 where something is drawn, 255 elsewhere.

    Raises:
        UserError: If a tag is no class, naming its file and line, or the width is below 1.
    """
    if width < 1:
        raise UserError(f"width: expected at least 1 pixel, got {width}")
    reduction = reduction or Reduction()
    rng = np.random.default_rng([reduction.seed, *drawing.name.encode()])
    canvas = Image.new("L", drawing.size, UNLABELED)
    draw = ImageDraw.Draw(canvas)
    last_pixel = np.subtract(drawing.size, 1)
    for shape in drawing.shapes:
        label = label_of(shape, classes)
        if rng.random() < reduction.drop:
            continue
        points = np.clip(shape.points, 0, last_pixel)
        if shape.kind == "line":
            draw_stroke(draw, shrink_stroke(points, reduction.shrink), label, width)
        elif shape.kind == "polygon" and len(points) > 1:
            draw.polygon([tuple(point) for point in points.tolist()], fill=label)
        else:
            for point in points:
                draw_stroke(draw, point[None], label, width)
    return np.array(canvas)


def label_of(shape: Shape, classes: Sequence[str]) -> int:
    """Find the label of a shape's tag among the classes, by its name or another name it goes by.

    Raises:
        UserError: If it is no class; names the file and line.
    """
    for name in (shape.tag, _ALSO.get(shape.tag)):
        if name in classes:
            return classes.index(name)
    raise UserError(
        f"{shape.where}: {shape.tag!r} is no class; expected one of {', '.join(classes)}"
    )


def shrink_stroke(points: np.ndarray, share: float) -> np.ndarray:
    """Cut a share of a line's length off, half of it at each end.

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
