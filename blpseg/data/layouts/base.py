"""The interface of a layout: where a data set keeps its files, and what their values mean."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path

import numpy as np

from blpseg.config import DataConfig
from blpseg.data.formats.scribblesup import read_scribblesup
from blpseg.data.labels import IGNORE, LabelFormat, LabelValues, numbered_classes, read_png
from blpseg.data.layouts.lookup import Files, Labels
from blpseg.data.shapes import UNLABELED, draw_drawing


@dataclass(frozen=True)
class Numbering:
    """Values in label files whose classes have consecutive values."""

    unlabeled_value: int = 255
    """Value of unlabeled pixels in scribble files."""

    first_class_value: int = 0
    """Value of the first class in scribble files."""

    mask_void_value: int = 255
    """Value of void pixels in mask files."""

    mask_first_class_value: int | None = None
    """Value of the first class in mask files; None: as in scribble files."""

    def changed(self, config: DataConfig) -> Numbering:
        """Replace the values that the configuration sets; its fields have the same names."""
        configured = {part.name: getattr(config, part.name) for part in fields(self)}
        return replace(self, **{name: v for name, v in configured.items() if v is not None})

    def scribble_values(self, num_classes: int) -> LabelValues:
        """Return the meaning of values in scribble files of K classes."""
        first, blank = self.first_class_value, self.unlabeled_value
        return numbered_classes(num_classes, first, blank, "unlabeled", num_classes)

    def mask_values(self, num_classes: int) -> LabelValues:
        """Return the meaning of values in mask files of K classes."""
        first = self.mask_first_class_value
        first = self.first_class_value if first is None else first
        return numbered_classes(num_classes, first, self.mask_void_value, "void", IGNORE)


class Layout(ABC):
    """Where a data set keeps its files, and what their values mean."""

    numbering = Numbering()
    train_split: str | None = "train"
    val_split: str = "val"

    @abstractmethod
    def classes(self, root: Path) -> list[str]:
        """Return the class names in the order of their labels."""

    @abstractmethod
    def has_split(self, root: Path, split: str) -> bool:
        """Return whether the data set has this split."""

    @abstractmethod
    def has_masks(self, root: Path) -> bool:
        """Return whether the data set has masks."""

    @abstractmethod
    def find(
        self, root: Path, split: str | None, labels: Labels, scribbles: Path | None
    ) -> list[Files]:
        """Find the files of a split.

        Args:
            root: The data set's folder.
            split: The split; None takes every image.
            labels: "scribbles" requires scribbles for each image and ignores masks; "masks"
                requires a mask for each image and takes scribbles where they exist; "all" requires
                scribbles and takes masks where they exist.
            scribbles: Folder of the scribble files; None looks in the usual places.

        Raises:
            UserError: A file is missing; the message names it.
        """

    def default_splits(self, root: Path) -> tuple[str | None, str | None]:
        """Return the training split (None: every image) and the validation split (None: none)."""
        scored = self.has_split(root, self.val_split) and self.has_masks(root)
        return self.train_split, self.val_split if scored else None

    def scribble_formats(self, classes: list[str], config: DataConfig) -> dict[str, LabelFormat]:
        """Map each suffix of scribble files to the way they are read.

        Args:
            classes: The classes' names.
            config: The data options.

        Raises:
            UserError: The configured values contradict each other or the layout.
        """
        png = self.numbering.changed(config).scribble_values(len(classes))
        drawn = Numbering(unlabeled_value=UNLABELED).scribble_values(len(classes))
        draw = partial(_draw_xml, classes=classes, width=config.scribble_width)
        return {".png": LabelFormat(png, read_png), ".xml": LabelFormat(drawn, draw)}

    def mask_formats(self, classes: list[str], config: DataConfig) -> dict[str, LabelFormat]:
        """Map each suffix of mask files to the way they are read; see `scribble_formats`."""
        values = self.numbering.changed(config).mask_values(len(classes))
        return {".png": LabelFormat(values, read_png)}


def _draw_xml(path: Path, classes: list[str], width: int) -> np.ndarray:  # [H, W] uint8
    return draw_drawing(read_scribblesup(path), classes, width=width)
