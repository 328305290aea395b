"""Save and load a segmenter: one file with the backbone, the heads and the samples."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch

from blpseg.errors import UserError
from blpseg.files import write_whole

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
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError):
        content = None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise UserError(
            f"{path}: expected a file that ScribbleSegmenter.save wrote ({FORMAT}), got a file of "
            "another kind"
        )
    return content
