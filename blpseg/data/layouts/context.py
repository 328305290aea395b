"""PASCAL-Context with ScribbleSup's scribbles, as the authors keep it.

VOCdevkit/Context/                       the root
  JPEGImages/NAME.jpg
  ImageSets/Segmentation/{train,val}.txt
  SegmentationClass/NAME.mat             LabelMap; or NAME.png
  SegmentationClass/labels.txt           "ID: NAME", the names of the 459 labels
  SegmentationClass/59_labels.txt        "ID: NAME", the names of the 59 classes
VOCdevkit/scribble_annotation/pascal_context/NAME.xml
VOCdevkit/scribble_annotation/pascal_context_label/NAME.png

The .mat files of the data set's page number 459 labels. With the two lists beside them, which the
same page has, they are matched with the 59 classes by name, and other labels become background.
Without the lists, and in .png files, 0 is background and 1 to 59 are the classes in the order of
59_labels.txt. That is not the alphabet's order, in which some programs write their .png files.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from blpseg.config import DataConfig
from blpseg.data.labels import LabelFormat, LabelValues, read_mat
from blpseg.data.layouts.listed import ListedLayout
from blpseg.data.layouts.lookup import read_lines
from blpseg.errors import UserError

_NAMES = (
    "background aeroplane bicycle bird boat bottle bus car cat chair cow table dog horse motorbike "
    "person pottedplant sheep sofa train tvmonitor bag bed bench book building cabinet ceiling "
    "cloth computer cup door fence floor flower food grass ground keyboard light mountain mouse "
    "curtain platform sign plate road rock shelves sidewalk sky snow bedclothes track tree truck "
    "wall water window wood"
)
CONTEXT_CLASSES = tuple(_NAMES.split())

# The two lists spell three classes in two ways.
_IN_59_LABELS = {"diningtable": "table", "bedcloth": "bedclothes", "clothes": "cloth"}
_LABELS, _LABELS_59 = "labels.txt", "59_labels.txt"


@dataclass(frozen=True)
class ContextLayout(ListedLayout):
    """The layout at the top of this file."""

    def mask_formats(self, classes: list[str], config: DataConfig) -> dict[str, LabelFormat]:
        """Read PNG label maps and .mat files."""
        formats = super().mask_formats(classes, config)
        mat = formats[".png"].values
        for folder in self.masks:
            if (config.root / folder / _LABELS).is_file():
                mat = values_by_name(config.root / folder, classes)
        return formats | {".mat": LabelFormat(mat, read_mat)}


def values_by_name(folder: Path, classes: list[str]) -> LabelValues:
    """Match the 459 labels with the 59 classes, by the lists in a folder.

    Raises:
        UserError: If a list cannot be read or lacks a class, or the classes' order is another.
    """
    classes_59 = {
        number: _IN_59_LABELS.get(name, name)
        for number, name in _read_names(folder / _LABELS_59).items()
    }
    if classes_59 != dict(enumerate(classes[1:], 1)):
        raise UserError(f"{folder / _LABELS_59}: expected 1: {classes[1]} to 59: {classes[-1]}")
    numbers = {name: number for number, name in _read_names(folder / _LABELS).items()}
    if lacking := [name for name in classes[1:] if name not in numbers]:
        raise UserError(f"{folder / _LABELS}: expected lines for {', '.join(lacking)}, found none")
    last = max(numbers.values())
    others = dict.fromkeys(range(last + 1), 0)
    matched = {numbers[name]: label for label, name in enumerate(classes[1:], 1)}
    return LabelValues(others | matched, f"0 to {last}, the labels of {_LABELS}")


def _read_names(path: Path) -> dict[int, str]:
    """Read lines "ID: NAME"."""
    names = {}
    for line, text in enumerate(read_lines(path, "lines ID: NAME"), 1):
        number, colon, name = text.partition(":")
        if not (colon and number.strip().isdigit() and name.strip()):
            raise UserError(f"{path}:{line}: expected ID: NAME, got {text!r}")
        names[int(number)] = name.replace(" ", "")
    return names


CONTEXT = ContextLayout(
    CONTEXT_CLASSES,
    scribbles=(
        "../scribble_annotation/pascal_context_label",
        "../scribble_annotation/pascal_context",
        "scribbles",
    ),
    masks=("SegmentationClass",),
    mask_suffixes=(".mat", ".png"),
)
