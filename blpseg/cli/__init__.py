"""The command line: `blpseg COMMAND ...`.

The command NAME is the module `blpseg.cli.NAME`. Its docstring is the summary; its `run` parses the
arguments and calls the function NAME of the package (e.g. `blpseg.training.train`). Modules import
torch and timm, which take seconds, only when a command runs.
"""

from __future__ import annotations

import sys
from argparse import ArgumentError
from collections.abc import Sequence

from blpseg.cli import (
    ablate,
    demo,
    draw,
    evaluate,
    export,
    import_checkpoint,
    predict,
    scenes,
    scribbles,
    train,
)
from blpseg.cli.dispatch import dispatch
from blpseg.errors import TrainingStopped, UserError

OK, USER_ERROR, INTERRUPTED = 0, 2, 130
STOPPED = 128 + 15  # what shells report for SIGTERM

COMMANDS = {
    "demo": demo,
    "draw": draw,
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
        The exit code: 0; 1 if some of the inputs failed; 2 if the user has to correct something,
        which a message on stderr names; 130 after Ctrl-C; 143 after SIGTERM.
    """
    try:
        return dispatch(
            "blpseg",
            "Train semantic segmentation on scribbles.",
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
    except SystemExit as done:  # --help was printed
        return int(done.code or OK)
