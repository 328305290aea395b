"""Load the authors' checkpoints: check them, and map their tensor names to ours.

The authors' program is at github.com/YudeWang/BLPSeg. Its layers have this package's names, except
for three prefixes.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from blpseg.checkpoints import build_model, model_content, save_checkpoint
from blpseg.config import DataConfig, ModelConfig, TrainConfig
from blpseg.data.layouts.voc import VOC_CLASSES
from blpseg.errors import UserError, raise_problems
from blpseg.model import BLPSeg

BACKBONE = "resnet101s"
EPS = 1e-7  # added to LAM's denominator in their program

_WRAPPER = "module."  # prefix that DataParallel adds
_UNUSED = (
    "distance_prob",  # LAM's Gaussian on a grid of 96 x 96
    "CELoss.weight",
    "backbone.layernorm.",  # no forward pass uses it
)
_PARTS = {
    "backbone.": "backbone.body.",
    "scribble_head.": "annotation_head.",
    "embed_proj.": "lam.",
}
_CLASS_BIAS = "seg_head.4.bias"  # [K]


def load_authors_checkpoint(path: Path | str) -> BLPSeg:
    """Build the network of an authors' checkpoint, with its weights and LAM's eps of 1e-7.

    The file is read with weights_only: it cannot run code.

    Args:
        path: A state dict that the authors published.

    Returns:
        The network, in evaluation mode, on the CPU. The file determines the number of classes.

    Raises:
        UserError: The file is missing or no state dict, or tensors are missing, unknown or of
            another shape; it names all of them.
    """
    path = Path(path)
    theirs = _read(path)
    head = theirs.get(_CLASS_BIAS)
    if head is None or head.ndim != 1 or len(head) < 2:
        raise UserError(
            f"{path}: expected a checkpoint of the authors' BLPSeg, with a tensor {_CLASS_BIAS} of "
            f"shape [K], K >= 2; got {'no such tensor' if head is None else list(head.shape)}"
        )
    model = build_model(_model_config(), len(head))
    expected = {authors_name(name): tensor.shape for name, tensor in model.state_dict().items()}
    problems = [f"{name}: missing" for name in expected if name not in theirs]
    problems += [f"{name}: unknown" for name in theirs if name not in expected]
    problems += [
        f"{name}: expected shape {list(expected[name])}, got {list(tensor.shape)}"
        for name, tensor in theirs.items()
        if name in expected and tensor.shape != expected[name]
    ]
    raise_problems(str(path), problems, shown=len(problems))
    model.load_state_dict({our_name(name): tensor for name, tensor in theirs.items()})
    return model.eval()


def import_checkpoint(path: Path, output: Path, *, overwrite: bool = False) -> list[str]:
    """Convert an authors' checkpoint to one of ours.

    Args:
        path: The authors' file.
        output: The file to write.
        overwrite: Replace the output if it exists.

    Returns:
        The class names in the checkpoint: VOC's if there are 21, else class_0, class_1, ...

    Raises:
        UserError: The output exists, or see `load_authors_checkpoint`.
    """
    if output.exists() and not overwrite:
        raise UserError(f"{output}: exists already; --overwrite replaces it")
    model = load_authors_checkpoint(path)
    count = model.num_classes
    classes = list(VOC_CLASSES) if count == len(VOC_CLASSES) else _numbered(count)
    config = TrainConfig(DataConfig(Path("data")), output.parent, _model_config())
    content = model_content(model, classes, config.as_plain_data(), iteration=0)
    output.parent.mkdir(parents=True, exist_ok=True)
    save_checkpoint(output, content)
    return classes


def our_name(name: str) -> str:
    """Map a tensor name of the authors' state dict to ours."""
    return _renamed(name, _PARTS)


def authors_name(name: str) -> str:
    """Map a tensor name of our state dict to the authors'."""
    return _renamed(name, {ours: theirs for theirs, ours in _PARTS.items()})


def _renamed(name: str, parts: dict[str, str]) -> str:
    for old, new in parts.items():
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name


def _numbered(count: int) -> list[str]:
    return [f"class_{index}" for index in range(count)]


def _model_config() -> ModelConfig:
    return ModelConfig(backbone=BACKBONE, pretrained=False, eps=EPS)


def _read(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a state dict, without those that the model does not use."""
    if not path.is_file():
        raise UserError(f"{path}: expected a checkpoint of the authors, found no such file")
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise UserError(
            f"{path}: expected a file of tensors that torch.save wrote, cannot read it: {error}"
        ) from error
    if not isinstance(content, dict) or not all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in content.items()
    ):
        raise UserError(f"{path}: expected a state dict, which maps names to tensors")
    named = {name.removeprefix(_WRAPPER): tensor for name, tensor in content.items()}
    return {name: tensor for name, tensor in named.items() if not name.startswith(_UNUSED)}
