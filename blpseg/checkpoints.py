"""Checkpoints: write them atomically, read them without running code from the file."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any, NamedTuple

import torch

from blpseg.config import ModelConfig
from blpseg.errors import UserError
from blpseg.files import write_whole
from blpseg.model import BLPSeg
from blpseg.pretrained import weights_cache


class Trained(NamedTuple):
    """A model that was read from a checkpoint."""

    model: BLPSeg
    """The network, in evaluation mode."""

    classes: list[str]
    """Names of its K classes."""

    config: dict[str, Any]
    """The training run's configuration, as plain data."""

    iteration: int
    """Iterations that the model was trained for."""


def build_model(config: ModelConfig, num_classes: int, *, pretrained: bool | None = None) -> BLPSeg:
    """Build the network that a configuration describes.

    Args:
        config: The network's part of the configuration.
        num_classes: K.
        pretrained: Replaces the configuration's choice; None keeps it.

    Raises:
        UserError: There is no such network, or its pretrained weights cannot be loaded.
    """
    options = dict(vars(config))
    if pretrained is not None:
        options["pretrained"] = pretrained
    try:
        return BLPSeg(num_classes, **options)
    except OSError as error:
        raise UserError(
            f"model.pretrained: cannot load the weights of {config.backbone!r}: {error}; start "
            "from random weights (--model.pretrained=false), or run the command once on a machine "
            f"with a network connection and copy its cache folder to {weights_cache()}"
        ) from error
    except (ValueError, RuntimeError) as error:
        raise UserError(f"model: cannot build {config.backbone!r}: {error}") from error


def save_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Write a checkpoint atomically.

    Args:
        path: The file; an older one is replaced.
        content: Tensors and plain data only, so that `torch.load(weights_only=True)` reads it.

    Raises:
        OSError: The file cannot be written; an older one is kept.
    """
    write_whole(path, lambda file: torch.save(content, file))


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a file of `save_checkpoint`, with its tensors on the CPU.

    Raises:
        UserError: The file is missing, or is no checkpoint of a training run.
    """
    if not path.is_file():
        raise UserError(f"{path}: expected a checkpoint, but there is no such file")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError):
        content = None
    expected = {"model", "classes", "config", "iteration"}
    if not isinstance(content, dict) or not expected <= content.keys():
        raise UserError(
            f"{path}: expected a checkpoint that `blpseg train` wrote, got a file of another kind"
        )
    return content


def load_model(path: Path) -> Trained:
    """Build the model of a checkpoint and load its weights.

    Raises:
        UserError: The file is missing, or contains no such model.
    """
    content = load_checkpoint(path)
    config = ModelConfig(**content["config"]["model"])
    model = build_model(config, len(content["classes"]), pretrained=False)
    model.load_state_dict(content["model"])
    return Trained(model.eval(), content["classes"], content["config"], content["iteration"])
