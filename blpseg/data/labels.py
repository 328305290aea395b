"""Label maps in files: what their values mean, and how each kind of file is read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image

from blpseg.data.images import UNREADABLE
from blpseg.errors import UserError

IGNORE = 255
MAX_CLASSES = 254  # K is "unlabeled" and 255 is "ignore", and both have to fit in uint8

_TABLE_SIZE = 1 << 16  # files hold 8 or 16 bits per pixel
_MAT_VARIABLE = "LabelMap"  # PASCAL-Context's name for it


@dataclass(frozen=True)
class LabelValues:
    """What the values in one kind of label file mean."""

    labels: Mapping[int, int]
    """Value in the file -> label in memory: 0..K-1, K for unlabeled, 255 for void."""

    allowed: str
    """The values that a file may hold, in words, for messages."""

    @cached_property
    def _table(self) -> np.ndarray:
        table = np.full(_TABLE_SIZE, IGNORE, dtype=np.uint8)
        table[list(self.labels)] = list(self.labels.values())
        return table

    def decode(self, numbers: np.ndarray) -> np.ndarray:
        """Turn a file's values [H, W], uint8 or uint16, into labels [H, W] uint8."""
        return self._table[numbers]

    def unknown(self, numbers: np.ndarray) -> list[int]:
        """List the values that have no meaning, ascending."""
        found = np.flatnonzero(np.bincount(numbers.ravel()))
        return [number for number in found.tolist() if number not in self.labels]


def numbered_classes(
    num_classes: int, first_class: int, blank: int, blank_name: str, blank_label: int
) -> LabelValues:
    """Map consecutive values to the classes, and one value to pixels without a class.

    Args:
        num_classes: K.
        first_class: Value of class 0 in the file.
        blank: Value in the file of a pixel without a class.
        blank_name: The name of such a pixel in messages.
        blank_label: The label of such a pixel in memory.

    Raises:
        UserError: A value lies outside 0..255, or has two meanings.
    """
    last = first_class + num_classes - 1
    allowed = f"{first_class} to {last} ({num_classes} classes) or {blank} ({blank_name})"
    if not (first_class >= 0 and last <= 255 and 0 <= blank <= 255):
        raise UserError(f"label values must lie in 0 to 255, got {allowed}")
    if first_class <= blank <= last:
        raise UserError(
            f"the value {blank} cannot mean both {blank_name} and class "
            f"{blank - first_class}: classes are {first_class} to {last}"
        )
    numbers = {first_class + label: label for label in range(num_classes)}
    return LabelValues(numbers | {blank: blank_label}, allowed)


@dataclass(frozen=True)
class LabelFormat:
    """How label files of one suffix are read."""

    values: LabelValues
    """What the values mean."""

    read: Callable[[Path], np.ndarray]
    """Read a file's values [H, W], uint8 or uint16; raises UserError that names the file."""

    def load(self, path: Path) -> np.ndarray:
        """Read a file's labels [H, W] uint8."""
        return self.values.decode(self.read(path))

    def problems(self, path: Path, size: tuple[int, int]) -> list[str]:
        """List what is wrong with a file as the labels of an image of a (width, height)."""
        try:
            numbers = self.read(path)
        except UserError as error:
            return [str(error)]
        found = numbers.shape[::-1]
        if found != size:
            return [f"{path}: is {_times(found)}, but its image is {_times(size)}"]
        unknown = self.values.unknown(numbers)
        if not unknown:
            return []
        listed = ", ".join(map(str, unknown[:5])) + (", ..." if len(unknown) > 5 else "")
        return [f"{path}: holds the value {listed}; expected {self.values.allowed}"]


def read_png(path: Path) -> np.ndarray:  # [H, W] uint8
    """Read a label map from a picture of mode L or P, or RGB with three equal channels.

    Raises:
        UserError: The file cannot be read, or is a picture of another mode or in color.
    """
    try:
        with Image.open(path) as image:
            if image.mode not in ("L", "P", "RGB"):
                raise UserError(_mode_text(path, image.mode))
            numbers = np.asarray(image)
    except UserError:
        raise
    except UNREADABLE as error:
        raise UserError(f"{path}: cannot be read ({error})") from error
    if numbers.ndim == 3:  # OpenCV writes label maps like this
        if (numbers != numbers[..., :1]).any():
            raise UserError(_mode_text(path, "RGB with unequal channels"))
        numbers = numbers[..., 0]
    return numbers


def read_mat(path: Path) -> np.ndarray:  # [H, W] uint16
    """Read a label map from a MATLAB file (up to version 7.2) that holds it as `LabelMap`.

    Raises:
        UserError: The file cannot be read, or holds no such matrix.
    """
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    try:
        content = loadmat(path)
    except (OSError, ValueError, TypeError, NotImplementedError, MatReadError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from error
    if _MAT_VARIABLE not in content:
        names = ", ".join(name for name in content if not name.startswith("__"))
        raise UserError(f"{path}: expected a variable {_MAT_VARIABLE}, got {names or 'none'}")
    numbers = content[_MAT_VARIABLE]
    whole = numbers.astype(np.uint16) if numbers.ndim == 2 and numbers.dtype.kind in "uif" else None
    if whole is None or (whole != numbers).any():
        raise UserError(
            f"{path}: expected {_MAT_VARIABLE} to be a matrix of whole numbers 0 to 65535, got "
            f"shape {numbers.shape}, {numbers.dtype}"
        )
    return whole


def _mode_text(path: Path, mode: str) -> str:
    return f"{path}: expected a label map of mode L or P, got mode {mode}"


def _times(size: tuple[int, ...]) -> str:
    return f"{size[0]} x {size[1]}"
