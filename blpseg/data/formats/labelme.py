"""LabelMe's JSON: shapes[] of shape_type line, linestrip, point or polygon, and the image's size.

Shapes are drawn as LabelMe draws them: polygons filled, lines and points with the pen.
"""

from __future__ import annotations

import json
from json.decoder import JSONArray, JSONObject
from json.scanner import py_make_scanner
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from blpseg.data.formats.xml_elements import parse_size
from blpseg.data.shapes import Drawing, Shape
from blpseg.errors import UserError

_KINDS = {"line": "line", "linestrip": "line", "point": "points", "polygon": "polygon"}
_FIRST_LINE = 1


class _Object(dict):
    """A JSON object that knows the line it begins on."""

    line: int = _FIRST_LINE


class _LineDecoder(json.JSONDecoder):
    """Python's decoder in pure Python: unlike the C decoder, it reports where objects begin."""

    def __init__(self) -> None:
        super().__init__()
        self.parse_object = self._parse_object
        self.parse_array = JSONArray
        self.scan_once = py_make_scanner(self)

    @staticmethod
    def _parse_object(begin: tuple[str, int], *options: Any) -> tuple[_Object, int]:
        text, after_brace = begin
        content, end = JSONObject(begin, *options)
        found = _Object(content)
        found.line = text.count("\n", 0, after_brace) + _FIRST_LINE
        return found, end


def read_labelme(path: Path) -> Drawing:
    """Read a file.

    Raises:
        UserError: The file is not LabelMe's, or holds shapes of other types; the message names
            the line.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"), cls=_LineDecoder)
    except json.JSONDecodeError as error:
        raise UserError(f"{path}:{error.lineno}: expected JSON ({error.msg})") from error
    except (OSError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from error
    if not isinstance(content, _Object):
        raise UserError(f"{path}:1: expected a JSON object, got {_kind(content)}")
    where = f"{path}:{content.line}"
    shapes = _get(content, "shapes", list, where)
    width, height = (
        _get(content, key, (int, float), where) for key in ("imageWidth", "imageHeight")
    )
    image = content.get("imagePath") or path.name
    return Drawing(
        PurePosixPath(str(image).replace("\\", "/")).stem,
        parse_size(width, height, where),
        [_shape(shape, path, where) for shape in shapes],
    )


def _shape(shape: Any, path: Path, where: str) -> Shape:
    if not isinstance(shape, _Object):
        raise UserError(f"{where}: expected objects in shapes, got {_kind(shape)}")
    where = f"{path}:{shape.line}"
    kind = _get(shape, "shape_type", str, where)
    if kind not in _KINDS:
        raise UserError(f"{where}: expected shape_type {', '.join(_KINDS)}, got {kind!r}")
    pairs = _get(shape, "points", list, where)
    if not (pairs and all(_is_point(pair) for pair in pairs)):
        raise UserError(f"{where}: expected points as [[x, y], ...], got {str(pairs)[:40]}")
    tag = _get(shape, "label", str, where).strip()
    return Shape(_KINDS[kind], tag, np.array(pairs, float), where)


def _is_point(pair: Any) -> bool:
    return (
        isinstance(pair, list)
        and len(pair) == 2
        and all(isinstance(n, int | float) and abs(n) < float("inf") for n in pair)
    )


def _get(content: _Object, key: str, kind: Any, where: str) -> Any:
    value = content.get(key)
    if not isinstance(value, kind) or isinstance(value, bool):
        names = {list: "a list", str: "text"}
        raise UserError(
            f"{where}: expected {key} to be {names.get(kind, 'a number')}, got {_kind(value)}"
        )
    return value


def _kind(value: Any) -> str:
    return "nothing" if value is None else type(value).__name__
