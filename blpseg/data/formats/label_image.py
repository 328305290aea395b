"""Label images of ilastik, napari and others: one number per pixel, in PNG, TIFF, HDF5 or zarr."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from math import prod
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tifffile

from blpseg.data.images import MAX_PIXELS, UNREADABLE
from blpseg.data.labels import LabelValues, numbered_classes, read_png
from blpseg.data.shapes import UNLABELED, Drawing, make_mask
from blpseg.errors import UserError

LABEL_IMAGE_SUFFIXES = (".png", ".tif", ".tiff", ".h5", ".hdf5", ".zarr")

ValuesPreset = Literal["from-zero", "from-one"]
"""from-zero: classes from 0, 255 unlabeled. from-one: classes from 1, 0 unlabeled."""

_PRESETS = {"from-zero": (0, UNLABELED), "from-one": (1, 0)}  # first class, unlabeled
_ENDINGS = (".ome", "_Labels", "_Simple Segmentation")  # ilastik's names of its exports, OME-TIFF
_MAX_VALUE = 65535


@dataclass(frozen=True)
class LabelImages:
    """How label images are read.

    Raises:
        UserError: `values` is no preset, or the classes do not fit.
    """

    classes: Sequence[str]
    """Class names in the order of their values."""

    values: ValuesPreset = "from-zero"
    """What the values mean; see `ValuesPreset`."""

    dataset: str | None = None
    """Path of the array within HDF5 and zarr files; None: the only one."""

    def __post_init__(self) -> None:
        if self.values not in _PRESETS:
            raise UserError(f"values: expected {' or '.join(_PRESETS)}, got {self.values!r}")
        self.meaning  # noqa: B018, raises if the classes do not fit

    @property
    def meaning(self) -> LabelValues:
        """What each value means."""
        first, blank = _PRESETS[self.values]
        return numbered_classes(len(self.classes), first, blank, "unlabeled", UNLABELED)

    def read(self, path: Path) -> Drawing:
        """Read a file as one mask per class.

        Raises:
            UserError: The file cannot be read, is no single plane of whole numbers, or holds a
                value without a meaning.
        """
        numbers = read_label_image(path, self.dataset)
        if unknown := self.meaning.unknown(numbers):
            listed = ", ".join(map(str, unknown[:5])) + (", ..." if len(unknown) > 5 else "")
            hint = "" if self.values == "from-one" else "; --values=from-one: 0 is unlabeled"
            raise UserError(
                f"{path}: holds the value {listed}; expected {self.meaning.allowed}{hint}"
            )
        labels = self.meaning.decode(numbers)
        present = np.flatnonzero(np.bincount(labels.ravel(), minlength=256)[:UNLABELED])
        shapes = [make_mask(self.classes[label], labels == label, str(path)) for label in present]
        return Drawing(_name(path), labels.shape[::-1], shapes)


def read_label_image(path: Path, dataset: str | None = None) -> np.ndarray:  # [H, W] uint16
    """Read the numbers of a label image.

    Axes of length 1 are dropped. TIFF's axes and HDF5's `axistags` (ilastik) name the others.

    Args:
        path: A PNG, TIFF, HDF5 file or zarr folder.
        dataset: Path of the array within an HDF5 or zarr file; None: the only one, or the first
            scale of OME-Zarr.

    Raises:
        UserError: The file cannot be read, has several arrays and none is chosen, or holds
            something else than one plane of whole numbers 0 to 65535.
    """
    suffix = path.suffix.lower()
    if suffix == ".png":
        return read_png(path).astype(np.uint16)
    read = {".h5": _read_hdf5, ".hdf5": _read_hdf5, ".zarr": _read_zarr}.get(suffix, _read_tiff)
    try:
        numbers, axes = read(path, dataset)
    except UserError:
        raise
    except (*UNREADABLE, TypeError, RuntimeError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from error
    return _plane(numbers, axes, path)


def _plane(numbers: np.ndarray, axes: str, path: Path) -> np.ndarray:
    if numbers.dtype.kind not in "uib":
        raise UserError(f"{path}: expected whole numbers as labels, got {numbers.dtype}")
    if len(axes) != numbers.ndim:
        axes = "?" * numbers.ndim
    kept = [axis for axis, length in enumerate(numbers.shape) if length > 1 or axes[axis] in "yx"]
    if len(kept) < 2:  # a side of 1 pixel; the last two axes are rows and columns
        kept = list(range(numbers.ndim))[-2:]
    if len(kept) != 2:
        raise UserError(
            f"{path}: expected one plane of labels, rows and columns, got shape {numbers.shape}"
        )
    plane = numbers.reshape([numbers.shape[axis] for axis in kept])
    if [axes[axis] for axis in kept] == ["x", "y"]:
        plane = plane.T
    low, high = (int(plane.min()), int(plane.max())) if plane.size else (0, 0)
    if low < 0 or high > _MAX_VALUE:
        raise UserError(f"{path}: expected labels of 0 to {_MAX_VALUE}, got {low} to {high}")
    return plane.astype(np.uint16)


def _read_tiff(path: Path, dataset: str | None) -> tuple[np.ndarray, str]:
    with tifffile.TiffFile(path) as file:
        if len(file.series) != 1:
            raise ValueError(f"expected one picture, but the file holds {len(file.series)}")
        series = file.series[0]
        _require_small(series.shape)
        return series.asarray(), series.axes.lower()


def _read_hdf5(path: Path, dataset: str | None) -> tuple[np.ndarray, str]:
    h5py = _import("h5py", path)
    with h5py.File(path, "r") as file:
        found: list[str] = []
        file.visititems(
            lambda name, item: found.append(name) if isinstance(item, h5py.Dataset) else None
        )
        array = file[_choose(found, dataset, path)]
        _require_small(array.shape)
        return array[()], _axistags(array.attrs.get("axistags"))


def _read_zarr(path: Path, dataset: str | None) -> tuple[np.ndarray, str]:
    zarr = _import("zarr", path)
    top = zarr.open(str(path), mode="r")
    if isinstance(top, zarr.Array):
        array = top
    else:
        first_scale = _first_scale(dict(top.attrs))
        array = top[_choose(list(_arrays_in(top, zarr.Array)), dataset or first_scale, path)]
    _require_small(array.shape)
    return np.asarray(array[...]), ""


def _arrays_in(group: Any, kind: type, prefix: str = "") -> Iterator[str]:
    for name in sorted(group):
        item = group[name]
        if isinstance(item, kind):
            yield prefix + name
        else:
            yield from _arrays_in(item, kind, f"{prefix}{name}/")


def _first_scale(attributes: dict[str, Any]) -> str | None:
    """Return the path of the full resolution in OME-Zarr 0.4 or 0.5."""
    attributes = attributes.get("ome", attributes)
    try:
        return str(attributes["multiscales"][0]["datasets"][0]["path"])
    except (KeyError, IndexError, TypeError):
        return None


def _choose(found: list[str], dataset: str | None, path: Path) -> str:
    listed = ", ".join(found) or "none"
    if dataset is not None:
        if dataset.strip("/") not in found:
            raise UserError(f"{path}: expected an array {dataset!r}, but the file holds {listed}")
        return dataset.strip("/")
    if len(found) != 1:
        raise UserError(
            f"{path}: expected one array, but the file holds {listed}; --dataset=NAME chooses one"
        )
    return found[0]


def _axistags(text: Any) -> str:
    """Return the keys of vigra's axistags, e.g. "yxc"; "" if there are none."""
    try:
        return "".join(axis["key"] for axis in json.loads(text)["axes"])
    except (TypeError, ValueError, KeyError):
        return ""


def _require_small(shape: Sequence[int]) -> None:
    if prod(shape) > MAX_PIXELS:
        raise ValueError(f"expected at most {MAX_PIXELS} pixels, got shape {tuple(shape)}")


def _import(name: str, path: Path) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        raise UserError(
            f"{path}: reading it needs {name}; pip install 'blpseg[formats]' ({error})"
        ) from error


def _name(path: Path) -> str:
    name = path.stem
    for ending in _ENDINGS:
        name = name.removesuffix(ending)
    return name
