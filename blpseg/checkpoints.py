"""Checkpoints: write them atomically, read them without running code from the file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from blpseg.config import ModelConfig
from blpseg.errors import UserError, raise_problems
from blpseg.files import read_tensors, write_whole
from blpseg.hub import weights_cache
from blpseg.model import BLPSeg
from blpseg.pretrained import IMAGENET, PYPI, Normalization
from blpseg.segmenter.network import start_from_segmenter
from blpseg.segmenter.storage import is_saved_segmenter


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
        pretrained: False replaces the configuration's weights by random ones; None keeps them.

    Raises:
        UserError: There is no such network, or its pretrained weights cannot be loaded.
    """
    options = dict(vars(config))
    if pretrained is not None:
        options["pretrained"] = pretrained
    try:
        model = BLPSeg(num_classes, **options)
    except OSError as error:
        raise UserError(
            f"model.pretrained: cannot load the weights of {config.backbone!r}: {error}; start "
            f"from a Python package's weights (--model.pretrained={PYPI}) or from random ones "
            "(--model.pretrained=false), or run the command once on a machine with a network "
            f"connection and copy its cache folder to {weights_cache()}"
        ) from error
    except UserError:
        raise
    except (ValueError, RuntimeError) as error:
        raise UserError(f"model: cannot build {config.backbone!r}: {error}") from error
    # Convolutions are faster in this order, on CPUs and with tensor cores.
    return model.to(memory_format=torch.channels_last)


def model_content(
    model: BLPSeg, classes: Sequence[str], config: dict[str, Any], iteration: int
) -> dict[str, Any]:
    """Collect what a checkpoint needs for `load_model`, as tensors and plain data.

    Args:
        model: The network.
        classes: Names of its K classes.
        config: The configuration of the run, as `TrainConfig.as_plain_data` gives it; only its part
            `model`, the arguments of `BLPSeg`, is needed to load the model.
        iteration: Iterations that the model was trained for.
    """
    return {
        "model": model.state_dict(),
        "normalization": {
            name: list(values) for name, values in model.backbone.normalization._asdict().items()
        },
        "classes": list(classes),
        "config": config,
        "iteration": iteration,
    }


def normalization_in(content: dict[str, Any]) -> Normalization:
    """Return the scaling of images that a checkpoint's model was trained with.

    Checkpoints from before it was recorded were trained with ImageNet's, whatever the backbone.
    """
    saved = content.get("normalization")
    if saved is None:
        return IMAGENET
    return Normalization(tuple(saved["mean"]), tuple(saved["std"]))


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
    content = read_tensors(path)
    expected = {"model", "classes", "config", "iteration"}
    if not isinstance(content, dict) or not expected <= content.keys():
        raise UserError(
            f"{path}: expected a checkpoint that `blpseg train` wrote, got a file of another kind"
        )
    return content


def start_from(path: Path, model: BLPSeg, classes: Sequence[str]) -> str:
    """Load a checkpoint's weights, or a saved segmenter's, into the model of a new run.

    Of a file of `ScribbleSegmenter.save`, :func:`blpseg.segmenter.network.start_from_segmenter`
    takes the backbone and the head. Of a checkpoint everything is taken, with two exceptions. Where
    the classes differ, the last layers of both heads keep the new model's fresh weights. So does
    LAM's embedding if the checkpoint's model has no LAM.

    Args:
        path: A checkpoint of a run, an imported one, another file of `model_content`, or a saved
            segmenter.
        model: The new model; it gets the checkpoint's weights and its scaling of images.
        classes: Names of its K classes.

    Returns:
        A sentence that says what was loaded.

    Raises:
        UserError: The file is of another kind, or its model or segmenter has other layers.
    """
    content = read_tensors(path) if path.is_file() else None
    if is_saved_segmenter(content):
        return start_from_segmenter(path, content, model, classes)
    content = load_checkpoint(path)
    ours, theirs = model.state_dict(), dict(content["model"])
    same = list(classes) == list(content["classes"])
    fresh = () if same else tuple(f"{head}.4." for head in ("seg_head", "annotation_head"))
    if not any(name.startswith("lam.") for name in theirs):
        fresh += ("lam.",)
    loaded = {name for name in ours if not name.startswith(fresh)}
    problems = [
        f"{name}: {'no such tensor' if name not in theirs else list(theirs[name].shape)} in the "
        f"checkpoint, {list(ours[name].shape)} in this run"
        for name in sorted(loaded)
        if name not in theirs or theirs[name].shape != ours[name].shape
    ]
    if problems:
        saved = content["config"].get("model", {})
        layers = ("backbone", "width", "embedding_dim", "lam")
        options = " ".join(f"--model.{name}={saved[name]}" for name in layers if name in saved)
        raise_problems(
            f"{path}, as the start of a run with other layers (its own are {options})", problems
        )
    model.load_state_dict(ours | {name: theirs[name] for name in loaded})
    model.backbone.set_normalization(normalization_in(content))
    parts = {
        "seg_head.4.": f"the last layers, for {len(classes)} classes in place of "
        f"{len(content['classes'])}",
        "lam.": "LAM's embedding",
    }
    new = [text for prefix, text in parts.items() if prefix in fresh and _has(ours, prefix)]
    return f"Starts from {path}" + (f"; fresh: {' and '.join(new)}." if new else ".")


def _has(state: dict[str, Any], prefix: str) -> bool:
    return any(name.startswith(prefix) for name in state)


def load_model(path: Path, query_stride: int | None = None) -> Trained:
    """Build the model of a checkpoint and load its weights.

    Args:
        path: The checkpoint.
        query_stride: Replaces the training run's query stride, see :class:`blpseg.model.BLPSeg`;
            None keeps it. The weights fit every stride.

    Raises:
        UserError: The file is missing or contains no such model, or the model has no LAM, which a
            query stride needs.
    """
    content = load_checkpoint(path)
    config = ModelConfig(**content["config"]["model"])
    if query_stride is not None:
        if not config.lam:
            raise UserError(
                f"query_stride: expected a model with LAM, which upsamples the logits; {path} was "
                "trained with model.lam=false"
            )
        config = replace(config, query_stride=query_stride)
    model = build_model(config, len(content["classes"]), pretrained=False)
    model.load_state_dict(content["model"])
    model.backbone.set_normalization(normalization_in(content))
    return Trained(model.eval(), content["classes"], content["config"], content["iteration"])
