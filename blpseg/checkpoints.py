"""Checkpoints: written whole or not at all, read without running code from the file."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch

from blpseg.config import ModelConfig
from blpseg.errors import UserError
from blpseg.model import BLPSeg


class Trained(NamedTuple):
    """A model read from a checkpoint."""

    model: BLPSeg
    """The network, in evaluation mode."""

    classes: list[str]
    """Names of its K classes."""

    config: dict[str, Any]
    """The training run's configuration, as plain data."""

    iteration: int
    """Iterations trained."""


def build_model(config: ModelConfig, num_classes: int, *, pretrained: bool | None = None) -> BLPSeg:
    """Build the network that a configuration describes.

    Args:
        config: The network's part of the configuration.
        num_classes: K.
        pretrained: Overrides the configuration's choice.

    Raises:
        UserError: If there is no such network, or its pretrained weights cannot be had.
    """
    options = dict(vars(config))
    if pretrained is not None:
        options["pretrained"] = pretrained
    try:
        return BLPSeg(num_classes, **options)
    except OSError as error:
        raise UserError(
            f"model: cannot get the pretrained weights of {config.backbone!r} ({error}); "
            "--model.pretrained false starts from random ones"
        ) from error
    except (ValueError, RuntimeError) as error:
        raise UserError(f"model: cannot build {config.backbone!r}: {error}") from error


def save_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Write a checkpoint, whole or not at all.

    Args:
        path: The file; an older one is replaced.
        content: Tensors and plain data only, so that `torch.load(weights_only=True)` reads it.

    Raises:
        OSError: If it cannot be written; an older file is left as it was.
    """
    write_whole(path, lambda file: torch.save(content, file))


def aside_of(path: Path) -> Path:
    """Where `write_whole` writes what will be `path`; it stays there where that is killed."""
    return path.with_name(path.name + ".part")


def write_whole(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write a file aside and rename it, so that `path` is never half a file, whatever happens.

    Args:
        path: The file; an older one is replaced.
        write: Writes the content.

    Raises:
        OSError: If it cannot be written; an older file is left as it was.
    """
    aside = aside_of(path)
    try:
        with aside.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except (OSError, RuntimeError) as error:  # torch.save makes a RuntimeError of a full disk
        with suppress(OSError):
            aside.unlink(missing_ok=True)
        cause = error.__context__ if isinstance(error.__context__, OSError) else error
        raise OSError(
            f"{path}: could not be written, an older one is left as it was ({cause})"
        ) from error


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read what `save_checkpoint` wrote, onto the CPU.

    Raises:
        UserError: If the file is missing or is no checkpoint of a training run.
    """
    if not path.is_file():
        raise UserError(f"{path}: expected a checkpoint, but there is no such file")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError):
        content = None
    expected = {"model", "classes", "config", "iteration"}
    if not isinstance(content, dict) or not expected <= content.keys():
        raise UserError(f"{path}: expected a checkpoint that `blpseg train` wrote")
    return content


def load_model(path: Path) -> Trained:
    """Build the model of a checkpoint with its weights.

    Raises:
        UserError: If the file is missing or does not hold such a model.
    """
    content = load_checkpoint(path)
    config = ModelConfig(**content["config"]["model"])
    model = build_model(config, len(content["classes"]), pretrained=False)
    model.load_state_dict(content["model"])
    return Trained(model.eval(), content["classes"], content["config"], content["iteration"])
