"""Output folders and progress bars of commands that write many files."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TypeVar

from rich.console import Console
from rich.progress import track

from blpseg.errors import raise_problems

_T = TypeVar("_T")


def prepare_output(folder: Path, names: Iterable[str], overwrite: bool) -> None:
    """Create a folder for files of these names.

    Raises:
        UserError: A file exists already and `overwrite` is false.
    """
    if not overwrite:
        raise_problems(
            f"{folder}; --overwrite replaces the files",
            [f"{name}: exists already" for name in names if (folder / name).exists()],
        )
    folder.mkdir(parents=True, exist_ok=True)


def progress(items: Iterable[_T], title: str, total: int, quiet: bool) -> Iterable[_T]:
    """Iterate over items; show a progress bar on a terminal, and remove it at the end."""
    console = Console(stderr=True)
    hidden = quiet or not console.is_terminal
    return track(items, title, total, console=console, transient=True, disable=hidden)
