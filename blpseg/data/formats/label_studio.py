"""Label Studio's JSON: tasks[] of data and annotations[] with results of brushes and polygons.

A brush result holds an RLE (`blpseg.data.formats.brush_rle`); a polygon, points in percent of the
image. Every result repeats the image's size.
"""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np

from blpseg.data.formats.brush_rle import decode_brush
from blpseg.data.formats.json_fields import get_field, get_points, kind_of, read_json
from blpseg.data.formats.xml_elements import parse_size
from blpseg.data.images import IMAGE_SUFFIXES
from blpseg.data.shapes import Drawing, Shape, make_mask
from blpseg.errors import UserError

_BRUSH, _POLYGON, _POINT = "brushlabels", "polygonlabels", "keypointlabels"
_SHAPES = (_BRUSH, _POLYGON, _POINT)
# Results about the whole image or its regions, not pixels.
_NO_PIXELS = ("choices", "textarea", "rating", "number", "relation", "pairwise", "datetime")
_UPLOAD_PREFIX = re.compile(r"^[0-9a-f]{8}-")


def read_label_studio(path: Path) -> list[Drawing]:
    """Read a file; errors as in `parse_label_studio`."""
    return parse_label_studio(read_json(path), path)


def parse_label_studio(content: Any, path: Path) -> list[Drawing]:
    """Turn an export ("JSON", not "JSON-MIN") into drawings.

    All annotations of a task are drawn, in the order of the file, except skipped ones. Tasks
    without annotations are left out.

    Raises:
        UserError: The content is not Label Studio's, or a result is broken or of another type; the
            message names the task.
    """
    if not isinstance(content, list):
        raise UserError(f"{path}: expected a list of tasks, got {kind_of(content)}")
    drawings = []
    for number, task in enumerate(content):
        results = [
            result
            for annotation in get_field(task, "annotations", list, f"{path}: task {number}")
            for result in parse_annotation(annotation, f"{path}: task {number}")
        ]
        if results:
            drawings.append(draw_results(task, results, f"{path}: task {number}"))
    return drawings


def parse_annotation(annotation: Any, where: str) -> list[Any]:
    """Return the results of an annotation that are pixels; none if the annotation was skipped.

    Raises:
        UserError: The annotation has no list of results.
    """
    results = get_field(annotation, "result", list, where)
    if annotation.get("was_cancelled"):
        return []
    return [one for one in results if get_field(one, "type", str, where) not in _NO_PIXELS]


def draw_results(task: Any, results: list[Any], where: str) -> Drawing:
    """Turn a task's results, at least one, into a drawing.

    Raises:
        UserError: A result is broken, of another type, or for an image of another size.
    """
    sizes = {_size(result, where) for result in results}
    if len(sizes) > 1:
        listed = ", ".join(f"{width} x {height}" for width, height in sorted(sizes))
        raise UserError(f"{where}: expected results for one image size, got {listed}")
    (size,) = sizes
    shapes = [
        _shape(result, size, f"{where}, result {number}") for number, result in enumerate(results)
    ]
    return Drawing(image_name(get_field(task, "data", dict, where), where), size, shapes)


def image_name(data: dict[str, Any], where: str) -> str:
    """Return the name, without folder and suffix, of the image in a task's data.

    Label Studio prefixes uploaded files with 8 hexadecimal digits, which are removed.

    Raises:
        UserError: The data holds no address of an image.
    """
    file_name = image_path(image_address(data, where)).name
    return PurePosixPath(_UPLOAD_PREFIX.sub("", file_name)).stem


def image_address(data: dict[str, Any], where: str) -> str:
    """Return the address of the image in a task's data.

    Raises:
        UserError: The data holds no address of an image.
    """
    for value in data.values():
        if isinstance(value, str) and image_path(value).suffix.lower() in IMAGE_SUFFIXES:
            return value
    raise UserError(f"{where}: expected the address of an image in data, got {str(data)[:60]}")


def image_path(address: str) -> PurePosixPath:
    """Return the path within an address, without host."""
    parts = urlsplit(address)
    # Local files are named by a query: /data/local-files/?d=folder/name.png
    return PurePosixPath(parse_qs(parts.query).get("d", [unquote(parts.path)])[0])


def _size(result: Any, where: str) -> tuple[int, int]:
    width, height = (
        get_field(result, key, (int, float), where) for key in ("original_width", "original_height")
    )
    return parse_size(width, height, where)


def _shape(result: Any, size: tuple[int, int], where: str) -> Shape:
    kind = result["type"]
    if kind not in _SHAPES:
        raise UserError(f"{where}: expected a result of type {', '.join(_SHAPES)}, got {kind!r}")
    value = get_field(result, "value", dict, where)
    tags = get_field(value, kind, list, where)
    if len(tags) != 1 or not isinstance(tags[0], str):
        raise UserError(f"{where}: expected one label in {kind}, got {tags}")
    tag = tags[0].strip()
    if kind == _BRUSH:
        if value.get("format") != "rle":
            raise UserError(f"{where}: expected format 'rle', got {value.get('format')!r}")
        mask = decode_brush(get_field(value, "rle", list, where), *size, where)
        return make_mask(tag, mask, where)
    if kind == _POINT:
        points = [[get_field(value, axis, (int, float), where) for axis in "xy"]]
    else:
        points = value.get("points")
    pixels = np.array(get_points(points, where), float) * size / 100
    return Shape("polygon" if kind == _POLYGON else "points", tag, pixels, where)
