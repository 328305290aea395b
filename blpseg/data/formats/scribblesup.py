"""ScribbleSup's XML: annotation/{filename, size/{width,height}, polygon*/{tag, point*/{X,Y}}}.

A `polygon` is an open line. The file's own name matches its image; `filename` does not always.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from blpseg.data.formats.xml_elements import Element, parse_size, read_xml
from blpseg.data.shapes import Drawing, Shape
from blpseg.errors import UserError

ROOT = "annotation"


def read_scribblesup(path: Path) -> Drawing:
    """Read a file.

    Raises:
        UserError: The file is not ScribbleSup's; the message names the line.
    """
    return parse_scribblesup(read_xml(path))


def parse_scribblesup(annotation: Element) -> Drawing:
    """Turn the file's outermost element into a drawing; errors as in `read_scribblesup`."""
    if annotation.tag != ROOT:
        raise UserError(f"{annotation.where}: expected <{ROOT}>, got <{annotation.tag}>")
    size = annotation.first("size")
    width, height = (size.first(side).number() for side in ("width", "height"))
    return Drawing(
        annotation.file.stem,
        parse_size(width, height, size.where),
        [_line(polygon) for polygon in annotation.all("polygon")],
    )


def _line(polygon: Element) -> Shape:
    points = [[point.first(axis).number() for axis in ("X", "Y")] for point in polygon.all("point")]
    if not points:
        raise UserError(f"{polygon.where}: expected <point> in <polygon>, found none")
    tag = polygon.first("tag").text.strip()
    return Shape("line", tag, np.array(points), polygon.where)
