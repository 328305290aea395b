"""Images and label files on disk as a data set, checked as a whole before it is used.

Where the files lie is the layout's affair (`blpseg.data.layouts`); all layouts give the same
samples.
"""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors

from blpseg.config import DataConfig
from blpseg.data.layouts import LAYOUTS, Files, Labels
from blpseg.data.photos import UNREADABLE, photo_size, read_photo
from blpseg.errors import UserError, raise_problems

_SLOW_FROM = 500  # images; below this the check is over before a progress bar is read


class Sample(NamedTuple):
    """One image with its labels."""

    name: str
    """File name without suffix."""

    image: tv_tensors.Image
    """[3, H, W] uint8, RGB."""

    target: tv_tensors.Mask
    """[H, W] uint8: the scribbled class 0..K-1, K = unlabelled."""

    class_present: Tensor
    """[K] bool: the classes that the scribbles name, and class 0."""

    mask: tv_tensors.Mask | None
    """[H, W] uint8: class 0..K-1, 255 = void; None where no masks were asked for."""


class ScribbleFolder(Dataset[Sample]):
    """Images and scribbles of a folder, as `Sample`s; every file is checked on construction.

    Args:
        root: The folder.
        split: Name of a list or part; None takes every image.
        layout: Name of one of `blpseg.data.layouts.LAYOUTS`, which says what the folder holds.
        labels: "scribbles" asks for a scribble file per image and leaves masks alone; "masks" asks
            for a mask per image and takes scribbles where there are any; "all" asks for scribbles
            and takes masks where there are any.
        scribbles: Folder of the scribble files; None looks where the layout has them.
        scribble_width: Width in pixels to draw lines in that scribble files hold as points (XML).
        unlabeled_value: Value of unlabelled pixels in scribble files. This and the following: None
            is what the layout has.
        first_class_value: Value of the first class in scribble files.
        mask_void_value: Value of void pixels in mask files.
        mask_first_class_value: Value of the first class in mask files.
        quiet: Show no progress bar, however long the check takes.
        check: Check the files' contents; False leaves that to whoever calls `problems`.

    Raises:
        UserError: Where anything is missing, unreadable or does not fit; it names the files.
    """

    def __init__(
        self,
        root: Path,
        split: str | None = None,
        *,
        layout: str = "folder",
        labels: Labels = "scribbles",
        scribbles: Path | None = None,
        scribble_width: int = 1,
        unlabeled_value: int | None = None,
        first_class_value: int | None = None,
        mask_void_value: int | None = None,
        mask_first_class_value: int | None = None,
        quiet: bool = False,
        check: bool = True,
    ) -> None:
        self.root = Path(root)
        place = LAYOUTS[layout]
        self.classes = place.classes(self.root)
        numbers = {
            "unlabeled_value": unlabeled_value,
            "first_class_value": first_class_value,
            "mask_void_value": mask_void_value,
            "mask_first_class_value": mask_first_class_value,
        }
        self._scribble_formats = place.scribble_formats(self.classes, numbers, scribble_width)
        self._mask_formats = place.mask_formats(self.root, self.classes, numbers)
        self.files: list[Files] = place.find(self.root, split, labels, scribbles)
        if check:
            found = self.problems(quiet=quiet)
            raise_problems(str(self.root), [line for problems in found for line in problems])

    @property
    def names(self) -> list[str]:
        """The images' names, in order."""
        return [files.name for files in self.files]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Sample:
        files = self.files[index]
        photo = torch.from_numpy(np.array(read_photo(files.image))).permute(2, 0, 1)
        image = tv_tensors.Image(photo.contiguous())
        if files.scribbles is None:
            target = torch.full(image.shape[1:], len(self.classes), dtype=torch.uint8)
        else:
            formats = self._scribble_formats[files.scribbles.suffix.lower()]
            target = torch.from_numpy(formats.load(files.scribbles))
        mask = None
        if files.mask is not None:
            formats = self._mask_formats[files.mask.suffix.lower()]
            mask = tv_tensors.Mask(torch.from_numpy(formats.load(files.mask)))
        present = _classes_in(target, len(self.classes))
        return Sample(files.name, image, tv_tensors.Mask(target), present, mask)

    def problems(self, *, quiet: bool = False) -> list[list[str]]:
        """Check the contents of every file.

        Args:
            quiet: Show no progress bar, however long it takes.

        Returns:
            For each image, what keeps it or its label files from being used, one line each.
        """
        with ThreadPoolExecutor() as pool:
            found: Iterable[list[str]] = track(
                pool.map(self._problems_of, self.files),
                f"Checking {self.root}",
                total=len(self.files),
                console=Console(stderr=True),
                transient=True,
                disable=quiet or len(self.files) < _SLOW_FROM,
            )
            return list(found)

    def _problems_of(self, files: Files) -> list[str]:
        try:
            size = photo_size(files.image)
        except UNREADABLE as error:
            return [f"{files.image}: cannot be read ({error})"]
        problems = []
        if files.scribbles is not None:
            formats = self._scribble_formats[files.scribbles.suffix.lower()]
            problems += formats.problems(files.scribbles, size)
        if files.mask is not None:
            formats = self._mask_formats[files.mask.suffix.lower()]
            problems += formats.problems(files.mask, size)
        return problems


def open_folder(
    config: DataConfig,
    split: str | None,
    *,
    labels: Labels = "scribbles",
    quiet: bool = False,
    check: bool = True,
) -> ScribbleFolder:
    """Open the folder that a configuration describes; arguments and errors of `ScribbleFolder`."""
    return ScribbleFolder(
        config.root,
        split,
        layout=config.layout,
        labels=labels,
        scribbles=config.scribbles,
        scribble_width=config.scribble_width,
        unlabeled_value=config.unlabeled_value,
        first_class_value=config.first_class_value,
        mask_void_value=config.mask_void_value,
        mask_first_class_value=config.mask_first_class_value,
        quiet=quiet,
        check=check,
    )


def choose_splits(config: DataConfig) -> tuple[str | None, str | None]:
    """Name the parts of a data set to train on and to validate on.

    They are the configured ones, or else the layout's, where the data set has them.

    Returns:
        To train on, None for every image; to validate on, None for none.

    Raises:
        UserError: If every image would be trained on, those validated on among them.
    """
    train, val = LAYOUTS[config.layout].default_splits(config.root)
    train, val = config.train_split or train, config.val_split or val
    if train is None and val is not None:
        raise UserError(
            f"{config.root / 'splits'}: expected a list train.txt beside {val}.txt, so that "
            "its images are not trained on; data.train_split names another"
        )
    return train, val


def choose_evaluation_split(config: DataConfig) -> str | None:
    """Name the part to score on unless told otherwise: the layout's, or None, every image."""
    layout = LAYOUTS[config.layout]
    return layout.val_split if layout.has_split(config.root, layout.val_split) else None


def _classes_in(target: Tensor, num_classes: int) -> Tensor:
    counts = torch.bincount(target.flatten(), minlength=256)[:num_classes]
    counts[0] = 1
    return counts > 0
