"""ADE20K (the scene parsing challenge's 150 classes) with Scribbles4All's scribbles (s4ADE20K).

ADEChallengeData2016/                    the root
  images/{training,validation}/NAME.jpg
  annotations/{training,validation}/NAME.png
  objectInfo150.txt                      the classes' names, as the data set brings it
  scribbles/training/NAME.png

In both kinds of label files 1 to 150 are the classes; 0 is unlabeled in scribbles, void in masks.
"""

from __future__ import annotations

import re
from pathlib import Path

from blpseg.data.layouts.base import Numbering
from blpseg.data.layouts.lookup import read_lines, repeated
from blpseg.data.layouts.parts import PartFolders
from blpseg.errors import UserError

_CLASSES = 150


class ADE20KLayout(PartFolders):
    """The layout at the top of this file."""

    numbering = Numbering(unlabeled_value=0, first_class_value=1, mask_void_value=0)

    def classes(self, root: Path) -> list[str]:
        """Read the first of each class's names in objectInfo150.txt.

        Raises:
            UserError: If the file is missing or is no such table.
        """
        path = root / "objectInfo150.txt"
        _, *rows = read_lines(path, "the table of the classes that comes with the data set") or [""]
        cells = [row.split("\t") for row in rows]
        if [row[0].strip() for row in cells] != [str(i + 1) for i in range(_CLASSES)]:
            raise UserError(f"{path}: expected a heading and rows 1 to {_CLASSES}, tabs between")
        names = [re.split("[,;]", row[-1])[0].strip() for row in cells]
        if twice := repeated(names):
            raise UserError(f"{path}: class names must differ, but {twice[0]!r} comes twice")
        return names


S4ADE20K = ADE20KLayout(
    images="images",
    image_suffix=".jpg",
    scribbles=("scribbles", "../s4ADE20K/scribbles"),
    masks="annotations",
    label_suffix=".png",
    train_split="training",
    val_split="validation",
)
