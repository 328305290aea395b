"""Write files inside one folder only, whatever links lie there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from blpseg.errors import UserError
from blpseg.files import temporary_path, write_whole


def write_inside(root: Path, path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write a file atomically; see `blpseg.files.write_whole`.

    Args:
        root: The folder, resolved.
        path: A file below it; missing folders are made.
        write: Writes the content.

    Raises:
        UserError: The file lies outside `root`, or it or one of its folders is a link.
        OSError: The file cannot be written; an older one is kept.
    """
    require_inside(root, path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary_path(path).unlink(missing_ok=True)  # open() would follow a link of this name
    write_whole(path, write)


def require_inside(root: Path, path: Path) -> None:
    """Raise `UserError` unless `path` lies in `root` and no part of it below `root` is a link."""
    if ".." in path.parts or not path.is_relative_to(root):
        raise UserError(f"{path}: expected a file inside {root}")
    for part in (path, *path.parents):
        if part == root:
            return
        if part.is_symlink():
            raise UserError(
                f"{part}: is a link; blpseg draw writes into {root} only, never through links"
            )
