"""CVAT for images 1.1: annotations/image*/{polyline,polygon,points,mask}*, many images per file.

A mask's RLE lists the lengths of alternating runs along the rows of its box, the first outside.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath

import numpy as np

from blpseg.data.formats.run_lengths import decode_runs
from blpseg.data.formats.xml_elements import Element, parse_number, parse_size, read_xml
from blpseg.data.shapes import Drawing, Shape, make_mask
from blpseg.errors import UserError

ROOT = "annotations"
_KINDS = {"polyline": "line", "polygon": "polygon", "points": "points"}
_MASK = "mask"


def read_cvat(path: Path) -> list[Drawing]:
    """Read a file.

    Raises:
        UserError: The file is not CVAT's, or holds shapes other than lines, polygons, points and
            masks; the message names the line.
    """
    return parse_cvat(read_xml(path))


def parse_cvat(annotations: Element) -> list[Drawing]:
    """Turn the file's outermost element into drawings; errors as in `read_cvat`."""
    if annotations.tag != ROOT:
        raise UserError(f"{annotations.where}: expected <{ROOT}>, got <{annotations.tag}>")
    return [_drawing(image) for image in annotations.all("image")]


def _drawing(image: Element) -> Drawing:
    width, height = (
        parse_number(image.attribute(side), side, image.where) for side in ("width", "height")
    )
    size = parse_size(width, height, image.where)
    # A <tag> describes the whole image, not pixels.
    shapes = [_shape(element, size) for element in image.children if element.tag != "tag"]
    # CVAT paints a higher z_order later, and equal ones in file order; sorting is stable.
    shapes.sort(key=lambda pair: pair[0])
    name = PurePosixPath(image.attribute("name").replace("\\", "/")).stem
    return Drawing(name, size, [shape for _, shape in shapes])


def _shape(element: Element, size: tuple[int, int]) -> tuple[float, Shape]:
    where = element.where
    if element.tag not in _KINDS and element.tag != _MASK:
        raise UserError(
            f"{where}: expected <polyline>, <polygon>, <points> or <mask>, got <{element.tag}>"
        )
    tag = element.attribute("label").strip()
    order = parse_number(element.attributes.get("z_order", "0"), "z_order", where)
    if element.tag == _MASK:
        return order, _mask(element, tag, size)
    pairs = [pair.split(",") for pair in element.attribute("points").split(";")]
    if any(len(pair) != 2 for pair in pairs):
        raise UserError(
            f"{element.where}: expected points as x,y;x,y;..., got "
            f"{element.attribute('points')[:40]!r}"
        )
    points = [[parse_number(text, "a coordinate", where) for text in pair] for pair in pairs]
    return order, Shape(_KINDS[element.tag], tag, np.array(points), where)


def _mask(element: Element, tag: str, size: tuple[int, int]) -> Shape:
    where = element.where
    left, top, width, height = (
        parse_number(element.attribute(side), side, where)
        for side in ("left", "top", "width", "height")
    )
    width, height = parse_size(width, height, where)
    inside = 0 <= left <= size[0] - width and 0 <= top <= size[1] - height
    if not inside or left % 1 or top % 1:
        raise UserError(
            f"{where}: expected a mask inside the image of {size[0]} x {size[1]}, got "
            f"{width} x {height} at {left:g}, {top:g}"
        )
    try:
        counts = [int(text) for text in element.attribute("rle").split(",")]
    except ValueError:
        raise UserError(
            f"{where}: expected rle as n, n, ..., got {element.attribute('rle')[:40]!r}"
        ) from None
    return make_mask(tag, decode_runs(counts, width, height, where), where, int(left), int(top))
