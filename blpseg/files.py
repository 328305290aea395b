"""Write files atomically: a file that exists is complete, whatever ends the process."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO


def temporary_path(path: Path) -> Path:
    """Return the file that `write_whole` writes before it renames it to `path`."""
    return path.with_name(path.name + ".part")


def write_whole(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write a temporary file and rename it, so that `path` is complete whenever it exists.

    A process that is killed in between leaves the temporary file.

    Args:
        path: The file; an older one is replaced.
        write: Writes the content.

    Raises:
        OSError: The file cannot be written; an older one is kept.
    """
    temporary = temporary_path(path)
    try:
        with temporary.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except (OSError, RuntimeError) as error:  # torch.save raises RuntimeError on a full disk
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        cause = error.__context__ if isinstance(error.__context__, OSError) else error
        raise OSError(
            f"{path}: could not be written ({cause}); an older file of this name is kept"
        ) from error


def write_json(path: Path, content: Any) -> None:
    """Write plain data as JSON, atomically.

    Raises:
        OSError: The file cannot be written; an older one is kept.
    """
    text = json.dumps(content, indent=2) + "\n"
    write_whole(path, lambda file: file.write(text.encode()))


def read_tensors(path: Path) -> Any:
    """Read a file of `torch.save` without running code from it, with its tensors on the CPU.

    Returns:
        The content; None if the file is of another kind.
    """
    import torch  # takes seconds, and other users of this module do without

    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError):
        return None
