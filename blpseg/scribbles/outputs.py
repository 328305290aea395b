"""Working through many files: what is written, and how far it has come."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TypeVar

from rich.console import Console
from rich.progress import track

from blpseg.errors import raise_problems

_T = TypeVar("_T")


def prepare_output(folder: Path, names: Iterable[str], overwrite: bool) -> None:
    """Make a folder for files of these names.

    Raises:
        UserError: If one of the files exists already and must not be replaced.
    """
    if not overwrite:
        raise_problems(
            f"{folder}; --overwrite replaces the files",
            [f"{name}: exists already" for name in names if (folder / name).exists()],
        )
    folder.mkdir(parents=True, exist_ok=True)


def watch(items: Iterable[_T], title: str, total: int, quiet: bool) -> Iterable[_T]:
    """Go through items with a progress bar on a terminal, which leaves nothing behind."""
    console = Console(stderr=True)
    hidden = quiet or not console.is_terminal
    return track(items, title, total, console=console, transient=True, disable=hidden)
