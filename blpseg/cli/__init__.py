"""The command line: `blpseg COMMAND ...`.

A command is a module: its docstring is the summary, `run` runs it, and imports what it needs then.
"""

from __future__ import annotations

import sys
from argparse import ArgumentError
from collections.abc import Sequence

from blpseg.cli import (
    ablate,
    demo,
    evaluate,
    export,
    import_checkpoint,
    predict,
    scenes,
    scribbles,
    train,
)
from blpseg.cli.dispatch import dispatch
from blpseg.errors import UserError
from blpseg.interruption import TrainingStopped

OK, USER_ERROR, INTERRUPTED = 0, 2, 130
STOPPED = 128 + 15  # as shells report SIGTERM

COMMANDS = {
    "demo": demo,
    "train": train,
    "evaluate": evaluate,
    "predict": predict,
    "export": export,
    "ablate": ablate,
    "import-checkpoint": import_checkpoint,
    "scenes": scenes,
    "scribbles": scribbles,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: The arguments; None takes the process's.

    Returns:
        The exit code: 0, or 1 where some of the inputs failed, or 2 where the user has to mend
        something, which one message on stderr names.
    """
    try:
        return dispatch(
            "blpseg",
            "Semantic segmentation learnt from scribbles.",
            COMMANDS,
            sys.argv[1:] if argv is None else argv,
        )
    except (UserError, ArgumentError, OSError) as error:
        print(f"blpseg: error: {error}", file=sys.stderr)
        return USER_ERROR
    except TrainingStopped as stopped:
        print(f"blpseg: {stopped}", file=sys.stderr)
        return STOPPED
    except KeyboardInterrupt:
        print("blpseg: interrupted", file=sys.stderr)
        return INTERRUPTED
    except SystemExit as done:  # a parser's --help
        return int(done.code or OK)
