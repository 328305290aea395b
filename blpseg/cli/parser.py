"""Parse the options of a command: jsonargparse, with messages in the words of the command line."""

from __future__ import annotations

import difflib
import re
from argparse import SUPPRESS, Action, ArgumentError
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from jsonargparse import ArgumentParser, DefaultHelpFormatter, Namespace, set_parsing_settings

from blpseg.errors import UserError

_WIDTH = 24  # columns of the option names in the help
_BOOLS = ("true", "false")
_NAMES = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
    Path: "a path",
    NoneType: "null",
}


class CommandParser(ArgumentParser):
    """Parse the arguments of one command.

    Options have the form `--name=value` or `--name value`. A boolean option without a value is
    true. `None` means null. Names cannot be abbreviated.

    Args:
        command: The command, as it is typed after `blpseg`.
        usage: Its arguments, for the first line of the help.
        description: What it does; paragraphs are kept.
    """

    def __init__(self, command: str, usage: str, description: str) -> None:
        set_parsing_settings(docstring_parse_attribute_docstrings=True)
        super().__init__(
            prog=f"blpseg {command}",
            usage=f"blpseg {command} {usage}",
            description=description,
            exit_on_error=False,
            allow_abbrev=False,
            formatter_class=_HelpFormatter,
        )

    def parse(self, argv: Sequence[str], settings: Mapping[str, Any] | None = None) -> Namespace:
        """Parse the arguments.

        Args:
            argv: The arguments, without the command.
            settings: Values that the options in `argv` replace, by the options' names.

        Raises:
            UserError: An option is unknown or missing, or a value has the wrong type.
            SystemExit: The help was requested and printed.
        """
        given = [f"--{name}={_as_text(value)}" for name, value in (settings or {}).items()]
        tokens = self.normalize([*given, *argv])
        try:
            return self.instantiate(self.parse_args(tokens))
        except ArgumentError as error:
            raise UserError(self._explain(str(error), tokens)) from error

    def normalize(self, argv: Sequence[str]) -> list[str]:
        """Bring every option into the form `--name=value`; other arguments stay as they are.

        Raises:
            UserError: An option is unknown, or lacks its value.
        """
        tokens, normal = list(argv), []
        while tokens:
            token = tokens.pop(0)
            if not token.startswith("--"):
                normal.append(token)
                continue
            name, equals, value = token.partition("=")
            action = self.find_option(name)
            if action.nargs == 0:  # --help
                normal.append(token)
                continue
            typehint = _type_of(action)
            if not equals:
                if typehint is bool:
                    value = tokens.pop(0) if tokens and tokens[0] in _BOOLS else "true"
                elif tokens:
                    value = tokens.pop(0)
                else:
                    raise UserError(f"{name}: expected {describe_type(typehint)}, got nothing")
            if value == "None" and NoneType in _parts(typehint):
                value = "null"
            normal.append(f"{name}={value}")
        return normal

    def find_option(self, name: str) -> Action:
        """Find an option by its name, with its dashes.

        Raises:
            UserError: There is no such option; the message names the nearest one.
        """
        options = self.options()
        if name not in options:
            raise UserError(f"{name}: there is no such option{suggestion(name, options)}")
        return options[name]

    def options(self) -> dict[str, Action]:
        """Map the names of all options, with their dashes, to their actions."""
        return {
            name: action
            for name, action in self._option_string_actions.items()
            if name.startswith("--") and not _is_section(action)
        }

    def add_class_arguments(self, *args: Any, **kwargs: Any) -> list[str]:
        """Add an option per field of a class; see jsonargparse."""
        added = super().add_class_arguments(*args, **kwargs)
        for action in self._actions:
            if _is_section(action):  # jsonargparse lets --optim name a file; one way is enough
                action.help = SUPPRESS
        return added

    def _explain(self, message: str, tokens: Sequence[str]) -> str:
        """Say in the words of the command line what jsonargparse found wrong."""
        if missing := re.search(r"arguments are required: (.*)", message):
            names = [
                f"--{name}" if f"--{name}" in self.options() else name.upper()
                for name in missing[1].split(", ")
            ]
            return f"expected {' and '.join(names)}; {self.prog} --help explains the arguments"
        if unknown := re.search(r"unrecognized arguments: (.*)", message):
            return f"expected no more arguments, got {unknown[1]!r}; {self.prog} --help lists them"
        if (key := re.search(r'Parser key "([^"]+)"', message)) and (
            action := self.options().get(f"--{key[1]}")
        ):
            values = [
                token.partition("=")[2] for token in tokens if token.startswith(f"--{key[1]}=")
            ]
            got = repr(values[-1]) if values else "another value"
            return f"--{key[1]}: expected {describe_type(_type_of(action))}, got {got}"
        return message


class _HelpFormatter(DefaultHelpFormatter):
    """Help without Python's type names: what an option does, and its default."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs | {"max_help_position": _WIDTH})

    def _get_help_string(self, action: Action) -> str:
        text = action.help or ""
        if not action.option_strings or action.nargs == 0:
            return text
        if action.required:
            return f"{text} (required)"
        if action.default is False or "Default:" in text:
            return text
        return f"{text} (default: {_as_text(action.default)})"

    def _format_action_invocation(self, action: Action) -> str:
        flag = _type_of(action) is bool and action.default is False
        if flag or (action.option_strings and action.nargs == 0):
            return ", ".join(action.option_strings)
        text = super()._format_action_invocation(action)
        return text.partition(", --")[0]  # jsonargparse adds --NAME+ to lists; one way is enough

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        paragraphs = (
            super(_HelpFormatter, self)._fill_text(p, width, indent) for p in text.split("\n\n")
        )
        return "\n\n".join(paragraphs)


def suggestion(name: str, known: Iterable[str]) -> str:
    """Return "; did you mean ...?" with the nearest known name, or "" if none is near."""
    near = nearest(name, known)
    return f"; did you mean {near}?" if near else ""


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Find the name that a wrong one most likely means.

    Names are compared by their last part, as people remember `lr` and forget `optim.`: the same
    letters, the same initials, the same beginning, then similar spelling. Names of the same section
    come first.

    Args:
        name: The wrong name, e.g. `--optim.lr`.
        known: The right names.
    """
    section, last = _split(name)
    ordered = sorted(known, key=lambda other: _split(other)[0] != section)
    tests = (
        lambda other: _letters(other) == _letters(last),
        lambda other: "".join(word[0] for word in other.split("_") if word) == last,
        lambda other: len(last) > 2 and _letters(other).startswith(_letters(last)),
    )
    for test in tests:
        for other in ordered:
            if test(_split(other)[1]):
                return other
    by_last: dict[str, str] = {}
    for other in ordered:
        by_last.setdefault(_split(other)[1], other)
    close = difflib.get_close_matches(last, by_last, n=1, cutoff=0.65)
    return by_last[close[0]] if close else None


def describe_type(typehint: Any) -> str:
    """Say in words which values an option takes."""
    origin, args = get_origin(typehint), get_args(typehint)
    if origin in (Union, UnionType):
        parts = [part for part in args if part is not int or float not in args]
        return " or ".join(describe_type(part) for part in parts)
    if origin is Literal:
        return f"one of {', '.join(map(str, args))}"
    if origin is list:
        return f"a list of values, each {describe_type(args[0])}, e.g. [1,2]"
    if origin is tuple:
        return f"a list of {len(args)} values, each {describe_type(args[0])}, e.g. [1,2]"
    return _NAMES.get(typehint, "another value")


def _type_of(action: Action) -> Any:
    return getattr(action, "_typehint", None) or action.type or str


def _parts(typehint: Any) -> tuple[Any, ...]:
    return get_args(typehint) if get_origin(typehint) in (Union, UnionType) else (typehint,)


def _is_section(action: Action) -> bool:
    return type(action).__name__ == "_ActionConfigLoad"


def _split(name: str) -> tuple[str, str]:
    """Split `--optim.lr` into `optim` and `lr`, and `--val-count` into nothing and `val_count`."""
    section, _, last = name.lstrip("-").replace("-", "_").lower().rpartition(".")
    return section, last


def _letters(name: str) -> str:
    return name.replace("_", "")


def _as_text(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return str(list(value) if isinstance(value, tuple) else value)
