"""Writing many files without overwriting any."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from blpseg.errors import raise_problems


def prepare_output(folder: Path, names: Iterable[str], overwrite: bool) -> None:
    """Make a folder for files of these names.

    Raises:
        UserError: If one of the files exists already and must not be replaced.
    """
    if not overwrite:
        raise_problems(
            f"{folder}; --overwrite true replaces the files",
            [f"{name}: exists already" for name in names if (folder / name).exists()],
        )
    folder.mkdir(parents=True, exist_ok=True)
