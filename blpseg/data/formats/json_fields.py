"""Read untrusted JSON and check the types of its fields."""

from __future__ import annotations

import json
from json.decoder import JSONArray, JSONObject
from json.scanner import py_make_scanner
from pathlib import Path
from typing import Any

from blpseg.errors import UserError

_FIRST_LINE = 1
_NAMES = {dict: "an object", list: "a list", str: "text"}


class JsonObject(dict):
    """A JSON object that knows the line it begins on."""

    line: int = _FIRST_LINE


class LineDecoder(json.JSONDecoder):
    """Python's decoder in pure Python: unlike the C decoder, it reports where objects begin."""

    def __init__(self) -> None:
        super().__init__()
        self.parse_object = self._parse_object
        self.parse_array = JSONArray
        self.scan_once = py_make_scanner(self)

    @staticmethod
    def _parse_object(begin: tuple[str, int], *options: Any) -> tuple[JsonObject, int]:
        text, after_brace = begin
        content, end = JSONObject(begin, *options)
        found = JsonObject(content)
        found.line = text.count("\n", 0, after_brace) + _FIRST_LINE
        return found, end


def read_json(path: Path, decoder: type[json.JSONDecoder] = json.JSONDecoder) -> Any:
    """Read a file.

    Args:
        path: The file.
        decoder: `LineDecoder` makes every object a `JsonObject`, at a tenth of the speed.

    Raises:
        UserError: The file cannot be read or is not JSON; the message names the line.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"), cls=decoder)
    except json.JSONDecodeError as error:
        raise UserError(f"{path}:{error.lineno}: expected JSON ({error.msg})") from error
    except (OSError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from error


def get_field(content: Any, key: str, kind: Any, where: str) -> Any:
    """Return a field of a JSON object.

    Args:
        content: The object.
        key: Name of the field.
        kind: dict, list, str, int, or the types of a number.
        where: Begin of messages: the file, and what the object is.

    Raises:
        UserError: `content` is no object, or the field is missing or of another kind.
    """
    if not isinstance(content, dict):
        raise UserError(f"{where}: expected a JSON object, got {kind_of(content)}")
    value = content.get(key)
    if not isinstance(value, kind) or isinstance(value, bool):
        raise UserError(
            f"{where}: expected {key} to be {_NAMES.get(kind, 'a number')}, got {kind_of(value)}"
        )
    return value


def get_points(value: Any, where: str) -> list[list[float]]:
    """Return a non-empty list of [x, y].

    Raises:
        UserError: The value is none, or a coordinate is not finite.
    """
    if not (isinstance(value, list) and value and all(_is_point(pair) for pair in value)):
        raise UserError(f"{where}: expected points as [[x, y], ...], got {str(value)[:40]}")
    return value


def kind_of(value: Any) -> str:
    """Name a value's type for messages."""
    return "nothing" if value is None else type(value).__name__


def _is_point(pair: Any) -> bool:
    return (
        isinstance(pair, list)
        and len(pair) == 2
        and all(isinstance(n, int | float) and abs(n) < float("inf") for n in pair)
    )
