"""CVAT for images 1.1: annotations/image*/{polyline,polygon,points}*, many images per file."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

import numpy as np

from blpseg.data.formats.xml_elements import Element, parse_number, parse_size, read_xml
from blpseg.data.shapes import Drawing, Shape
from blpseg.errors import UserError

ROOT = "annotations"
_KINDS = {"polyline": "line", "polygon": "polygon", "points": "points"}


def read_cvat(path: Path) -> list[Drawing]:
    """Read a file.

    Raises:
        UserError: The file is not CVAT's, or holds shapes other than lines, polygons and points;
            the message names the line.
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
    # A <tag> describes the whole image, not pixels.
    shapes = [_shape(element) for element in image.children if element.tag != "tag"]
    # CVAT paints a higher z_order later, and equal ones in file order; sorting is stable.
    shapes.sort(key=lambda pair: pair[0])
    name = PurePosixPath(image.attribute("name").replace("\\", "/")).stem
    return Drawing(name, parse_size(width, height, image.where), [shape for _, shape in shapes])


def _shape(element: Element) -> tuple[float, Shape]:
    if element.tag not in _KINDS:
        raise UserError(
            f"{element.where}: expected <polyline>, <polygon> or <points>, got <{element.tag}>"
        )
    pairs = [pair.split(",") for pair in element.attribute("points").split(";")]
    if any(len(pair) != 2 for pair in pairs):
        raise UserError(
            f"{element.where}: expected points as x,y;x,y;..., got "
            f"{element.attribute('points')[:40]!r}"
        )
    where = element.where
    points = [[parse_number(text, "a coordinate", where) for text in pair] for pair in pairs]
    order = parse_number(element.attributes.get("z_order", "0"), "z_order", where)
    tag = element.attribute("label").strip()
    return order, Shape(_KINDS[element.tag], tag, np.array(points), where)
