"""Find a data set's files: folders, lists of names, and the label files that belong to an image."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from blpseg.errors import UserError, raise_problems

Labels = Literal["scribbles", "masks", "all"]

_LIST_CONTENT = "image names, one per line"


class Files(NamedTuple):
    """An image and its label files."""

    name: str
    image: Path
    scribbles: Path | None
    mask: Path | None


def require_folder(folder: Path) -> Path:
    """Return the folder; raise `UserError` if it does not exist."""
    if not folder.is_dir():
        raise UserError(f"{folder}: expected a folder, but there is none")
    return folder


def scribble_folder(
    root: Path, usual: Sequence[str], given: Path | None, labels: Labels
) -> Path | None:
    """Return the folder of the scribbles: the given one, or the first usual one that exists.

    Raises:
        UserError: Scribbles are required and there is no such folder.
    """
    if given is not None:
        return require_folder(given)
    for folder in usual:
        if (root / folder).is_dir():
            return root / folder
    if labels == "masks":
        return None
    looked = ", ".join(usual)
    raise UserError(
        f"{root}: expected a folder of scribbles ({looked}), but there is none; data.scribbles "
        "names another"
    )


def pick(candidates: Iterable[Path]) -> Path:
    """Return the first candidate that exists, or the first candidate if none does."""
    candidates = list(candidates)
    return next((path for path in candidates if path.is_file()), candidates[0])


def require_files(root: Path, found: list[Files], labels: Labels) -> list[Files]:
    """Set missing label files to None; raise if a required file is missing.

    Raises:
        UserError: A required file is missing; the message names it.
    """
    needed = ("image", "mask") if labels == "masks" else ("image", "scribbles")
    there = [
        files._replace(
            scribbles=_if_there(files.scribbles),
            mask=None if labels == "scribbles" else _if_there(files.mask),
        )
        for files in found
    ]
    missing = [files.image for files in found if not files.image.is_file()]
    missing += [
        getattr(wanted, needed[1])
        for wanted, files in zip(found, there, strict=True)
        if getattr(files, needed[1]) is None
    ]
    raise_problems(str(root), [f"{path.parent.name}/{path.name}: missing" for path in missing])
    return there


def has_list(folder: Path, split: str) -> bool:
    """Return whether a folder has a list SPLIT.txt that names an image."""
    path = folder / f"{split}.txt"
    return path.is_file() and bool(_names(path))


def read_list(folder: Path, split: str) -> list[str]:
    """Read the names of a list SPLIT.txt; lines that begin with "# " are comments.

    Raises:
        UserError: The list is missing or empty, or names an image twice.
    """
    path = folder / f"{split}.txt"
    names = _names(path)
    if not names:
        raise UserError(f"{path}: expected {_LIST_CONTENT}, but it is empty")
    raise_problems(str(path), [f"{name!r} comes more than once" for name in repeated(names)])
    return names


def read_lines(path: Path, content: str) -> list[str]:
    """Read the non-empty lines of a text file.

    Args:
        path: The file.
        content: What the file should hold, for messages.

    Raises:
        UserError: The file is missing or unreadable.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise UserError(f"{path}: expected a file with {content}, but there is none") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from error
    return [line.strip() for line in text.splitlines() if line.strip()]


def repeated(names: list[str]) -> list[str]:
    """Return the names that occur more than once."""
    return [name for name, count in Counter(names).items() if count > 1]


def _names(path: Path) -> list[str]:
    return [line for line in read_lines(path, _LIST_CONTENT) if not line.startswith("# ")]


def _if_there(path: Path | None) -> Path | None:
    return path if path is not None and path.is_file() else None
