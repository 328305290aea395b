"""Find the module of a command by its name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import ModuleType

from blpseg.errors import UserError


def dispatch(
    program: str, summary: str | None, commands: Mapping[str, ModuleType], argv: Sequence[str]
) -> int:
    """Run the command that the first argument names.

    Args:
        program: The program, as it is typed.
        summary: What it does.
        commands: Name to module. The module's docstring is the command's summary; its `run` takes
            the other arguments and returns the exit code.
        argv: The arguments. No argument, -h or --help lists the commands.

    Returns:
        The exit code.

    Raises:
        UserError: There is no such command.
    """
    name, *rest = argv or ["--help"]
    if name in ("-h", "--help"):
        print(_overview(program, summary, commands))
        return 0
    if name not in commands:
        from blpseg.cli.parser import suggestion

        raise UserError(
            f"unknown command {name!r}; expected one of {', '.join(commands)}"
            f"{suggestion(name, commands)}"
        )
    return commands[name].run(rest)


def _overview(program: str, summary: str | None, commands: Mapping[str, ModuleType]) -> str:
    lines = [f"usage: {program} COMMAND ...", "", summary or "", ""]
    width = max(map(len, commands)) + 2
    lines += [f"  {name:<{width}}{command.__doc__}" for name, command in commands.items()]
    return "\n".join([*lines, "", f"{program} COMMAND --help shows the options of a command."])
