"""Convert, simulate, preview and inspect scribbles."""

from __future__ import annotations

from collections.abc import Sequence

from blpseg.cli.dispatch import dispatch
from blpseg.cli.scribbles import convert, inspect, preview, simulate

COMMANDS = {"convert": convert, "simulate": simulate, "preview": preview, "inspect": inspect}


def run(argv: Sequence[str]) -> int:
    """Run the command that the first argument names; return its exit code."""
    return dispatch("blpseg scribbles", __doc__, COMMANDS, argv)
