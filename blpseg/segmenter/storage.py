"""Save and load a segmenter: one file with the backbone, the heads and the samples."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeGuard

import torch

from blpseg.errors import UserError
from blpseg.files import read_tensors, write_whole

FORMAT = "blpseg.ScribbleSegmenter 1"


def save(path: Path, content: dict[str, Any]) -> None:
    """Write a segmenter's state atomically: tensors and plain data only.

    Raises:
        OSError: The file cannot be written; an older one is kept.
    """
    write_whole(path, lambda file: torch.save({"format": FORMAT, **content}, file))


def load(path: Path) -> dict[str, Any]:
    """Read a file of `save` without running code from it.

    Raises:
        UserError: The file is missing, or is no saved segmenter.
    """
    if not path.is_file():
        raise UserError(f"{path}: expected a saved segmenter, but there is no such file")
    content = read_tensors(path)
    if not is_saved_segmenter(content):
        raise UserError(
            f"{path}: expected a file that ScribbleSegmenter.save wrote ({FORMAT}), got a file of "
            "another kind"
        )
    return content


def is_saved_segmenter(content: Any) -> TypeGuard[dict[str, Any]]:
    """Return whether this is the content of a file of `save`."""
    return isinstance(content, dict) and content.get("format") == FORMAT
