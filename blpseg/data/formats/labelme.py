"""LabelMe's JSON: shapes[] of shape_type line, linestrip, point, polygon or mask, and the size.

Shapes are drawn as LabelMe draws them: polygons filled, lines and points with the pen. A mask is a
PNG in base64 whose upper left pixel is the first of the shape's points.
"""

from __future__ import annotations

import base64
import binascii
import io
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image

from blpseg.data.formats.json_fields import (
    JsonObject,
    LineDecoder,
    get_field,
    get_points,
    kind_of,
    read_json,
)
from blpseg.data.formats.xml_elements import parse_size
from blpseg.data.images import UNREADABLE
from blpseg.data.shapes import Drawing, Shape, make_mask
from blpseg.errors import UserError

_KINDS = {"line": "line", "linestrip": "line", "point": "points", "polygon": "polygon"}
_MASK = "mask"


def read_labelme(path: Path) -> Drawing:
    """Read a file.

    Raises:
        UserError: The file is not LabelMe's, or holds shapes of other types; the message names
            the line.
    """
    content = read_json(path, LineDecoder)
    if not isinstance(content, JsonObject):
        raise UserError(f"{path}:1: expected a JSON object, got {kind_of(content)}")
    where = f"{path}:{content.line}"
    shapes = get_field(content, "shapes", list, where)
    width, height = (
        get_field(content, key, (int, float), where) for key in ("imageWidth", "imageHeight")
    )
    size = parse_size(width, height, where)
    image = content.get("imagePath") or path.name
    name = PurePosixPath(str(image).replace("\\", "/")).stem
    return Drawing(name, size, [_shape(shape, path, where, size) for shape in shapes])


def _shape(shape: Any, path: Path, where: str, size: tuple[int, int]) -> Shape:
    if not isinstance(shape, JsonObject):
        raise UserError(f"{where}: expected objects in shapes, got {kind_of(shape)}")
    where = f"{path}:{shape.line}"
    kind = get_field(shape, "shape_type", str, where)
    if kind not in _KINDS and kind != _MASK:
        raise UserError(f"{where}: expected shape_type {', '.join(_KINDS)}, mask, got {kind!r}")
    points = get_points(shape.get("points"), where)
    tag = get_field(shape, "label", str, where).strip()
    if kind != _MASK:
        return Shape(_KINDS[kind], tag, np.array(points, float), where)
    mask = _decode_mask(get_field(shape, "mask", str, where), where)
    left, top = (round(value) for value in points[0])
    height, width = mask.shape
    if not (0 <= left <= size[0] - width and 0 <= top <= size[1] - height):
        raise UserError(
            f"{where}: expected a mask inside the image of {size[0]} x {size[1]}, got "
            f"{width} x {height} at {left}, {top}"
        )
    return make_mask(tag, mask, where, left, top)


def _decode_mask(text: str, where: str) -> np.ndarray:  # [h, w] bool
    try:
        with Image.open(io.BytesIO(base64.b64decode(text, validate=True))) as image:
            mask = np.asarray(image)
    except (binascii.Error, *UNREADABLE) as error:
        raise UserError(f"{where}: expected mask to be a PNG in base64 ({error})") from error
    if mask.ndim != 2:
        raise UserError(f"{where}: expected a mask of one channel, got shape {mask.shape}")
    return mask != 0
