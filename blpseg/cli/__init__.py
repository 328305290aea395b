"""The command line: `blpseg COMMAND ...`.

A command is a module: its docstring is the summary, `run` runs it, and imports what it needs then.
"""

from __future__ import annotations

import sys
from argparse import ArgumentError
from collections.abc import Sequence

from blpseg.cli import ablate, demo, evaluate, export, predict, scenes, train
from blpseg.errors import UserError

OK, USER_ERROR, INTERRUPTED = 0, 2, 130

COMMANDS = {
    "demo": demo,
    "train": train,
    "evaluate": evaluate,
    "predict": predict,
    "export": export,
    "ablate": ablate,
    "scenes": scenes,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: The arguments; None takes the process's.

    Returns:
        The exit code: 0, or 1 where some of the inputs failed, or 2 where the user has to mend
        something, which one message on stderr names.
    """
    name, *rest = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if name in ("-h", "--help"):
        print(_overview())
        return OK
    try:
        if name not in COMMANDS:
            raise UserError(f"unknown command {name!r}; expected one of {', '.join(COMMANDS)}")
        return COMMANDS[name].run(rest)
    except (UserError, ArgumentError, OSError) as error:
        print(f"blpseg: error: {error}", file=sys.stderr)
        return USER_ERROR
    except KeyboardInterrupt:
        print("blpseg: interrupted", file=sys.stderr)
        return INTERRUPTED
    except SystemExit as done:  # a parser's --help
        return int(done.code or OK)


def _overview() -> str:
    lines = ["usage: blpseg COMMAND ...", "", "Semantic segmentation learnt from scribbles.", ""]
    width = max(map(len, COMMANDS)) + 2
    lines += [f"  {name:<{width}}{command.__doc__}" for name, command in COMMANDS.items()]
    return "\n".join([*lines, "", "blpseg COMMAND --help tells a command's options."])
