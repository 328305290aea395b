"""From a command's name to its module."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import ModuleType

from blpseg.errors import UserError


def dispatch(
    program: str, summary: str | None, commands: Mapping[str, ModuleType], argv: Sequence[str]
) -> int:
    """Run the command that the first argument names.

    Args:
        program: What the commands belong to, as it is typed.
        summary: What it is for.
        commands: Name to module: its docstring is the command's summary, its `run` takes the other
            arguments and returns the exit code.
        argv: The arguments; none, -h and --help list the commands.

    Returns:
        The exit code.

    Raises:
        UserError: If there is no such command.
    """
    name, *rest = argv or ["--help"]
    if name in ("-h", "--help"):
        print(_overview(program, summary, commands))
        return 0
    if name not in commands:
        raise UserError(f"unknown command {name!r}; expected one of {', '.join(commands)}")
    return commands[name].run(rest)


def _overview(program: str, summary: str | None, commands: Mapping[str, ModuleType]) -> str:
    lines = [f"usage: {program} COMMAND ...", "", summary or "", ""]
    width = max(map(len, commands)) + 2
    lines += [f"  {name:<{width}}{command.__doc__}" for name, command in commands.items()]
    return "\n".join([*lines, "", f"{program} COMMAND --help tells a command's options."])
