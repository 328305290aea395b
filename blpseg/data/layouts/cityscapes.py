"""Cityscapes with Scribbles4All's scribbles (s4Cityscapes).

cityscapes/                              the root
  leftImg8bit/{train,val}/CITY/NAME_leftImg8bit.png
  gtFine/{train,val}/CITY/NAME_gtFine_labelIds.png
  scribbles/gtFine/train/CITY/NAME_gtFine_labelIds.png

The files hold Cityscapes' labelIds, 0 to 33; the 19 of them that are trained on, and scored, become
classes (trainIds) on loading. The others become unlabeled in scribbles and void in masks.
"""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

from blpseg.config import DataConfig
from blpseg.data.labels import IGNORE, LabelFormat, LabelValues, read_png
from blpseg.data.layouts.base import Numbering
from blpseg.data.layouts.parts import PartFolders
from blpseg.errors import UserError

_LABEL_IDS = {
    "road": 7,
    "sidewalk": 8,
    "building": 11,
    "wall": 12,
    "fence": 13,
    "pole": 17,
    "traffic light": 19,
    "traffic sign": 20,
    "vegetation": 21,
    "terrain": 22,
    "sky": 23,
    "person": 24,
    "rider": 25,
    "car": 26,
    "truck": 27,
    "bus": 28,
    "train": 31,
    "motorcycle": 32,
    "bicycle": 33,
}  # in the order of the trainIds
_ALL_IDS = (*range(34), 255)  # 255: the license plate's -1 in 8 bits


class CityscapesLayout(PartFolders):
    """The layout at the top of this file."""

    def classes(self, root: Path) -> list[str]:
        """Name the 19 classes; they are known."""
        return list(_LABEL_IDS)

    def scribble_formats(self, classes: list[str], config: DataConfig) -> dict[str, LabelFormat]:
        """Read PNG label maps of labelIds."""
        _refuse_values(config)
        return {".png": LabelFormat(_values(len(classes)), read_png)}

    def mask_formats(self, classes: list[str], config: DataConfig) -> dict[str, LabelFormat]:
        """Read PNG label maps of labelIds."""
        _refuse_values(config)
        return {".png": LabelFormat(_values(IGNORE), read_png)}


def _values(blank_label: int) -> LabelValues:
    train_ids = {number: label for label, number in enumerate(_LABEL_IDS.values())}
    return LabelValues(dict.fromkeys(_ALL_IDS, blank_label) | train_ids, "labelIds, 0 to 33 or 255")


def _refuse_values(config: DataConfig) -> None:
    for name in (part.name for part in fields(Numbering)):
        value = getattr(config, name)
        if value is not None:
            raise UserError(
                f"data.{name}: expected no value, as Cityscapes' labelIds are fixed; got {value}"
            )


S4CITYSCAPES = CityscapesLayout(
    images="leftImg8bit",
    image_suffix="_leftImg8bit.png",
    scribbles=("scribbles/gtFine", "../s4Cityscapes/scribbles/gtFine"),
    masks="gtFine",
    label_suffix="_gtFine_labelIds.png",
)
