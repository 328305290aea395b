"""Images and label files on disk as a data set; every file is checked before the first is used.

`blpseg.data.layouts` finds the files. All layouts give the same samples.
"""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors

from blpseg.config import DataConfig
from blpseg.data.images import UNREADABLE
from blpseg.data.layouts import LAYOUTS, Files, Labels
from blpseg.data.photos import photo_size, read_photo
from blpseg.errors import UserError, raise_problems

_SLOW_FROM = 500  # images; below this the check is over before a progress bar is read


class Sample(NamedTuple):
    """One image with its labels."""

    name: str
    """File name without suffix."""

    image: tv_tensors.Image
    """[3, H, W] uint8, RGB."""

    target: tv_tensors.Mask
    """[H, W] uint8: the scribbled class 0..K-1, K = unlabeled."""

    class_present: Tensor
    """[K] bool: the classes in the scribbles, and class 0."""

    mask: tv_tensors.Mask | None
    """[H, W] uint8: class 0..K-1, 255 = void; None if masks were not requested."""


class ScribbleFolder(Dataset[Sample]):
    """Images and labels of a folder as `Sample`s; the constructor checks every file.

    Args:
        config: The folder, and the meaning of the values in its label files.
        split: Name of a part of the data set; None takes every image.
        labels: "scribbles": a scribble file per image is required, masks are not read. "masks": a
            mask per image is required, scribbles are optional. "all": a scribble file per image is
            required, masks are optional.
        quiet: Show no progress bar.
        check: Check the files' contents; False leaves that to the caller of `problems`.

    Raises:
        UserError: Files are missing, unreadable or have wrong content; it names them.
    """

    def __init__(
        self,
        config: DataConfig,
        split: str | None = None,
        *,
        labels: Labels = "scribbles",
        quiet: bool = False,
        check: bool = True,
    ) -> None:
        self.root = config.root
        self.labels = labels
        layout = LAYOUTS[config.layout]
        self.classes = layout.classes(self.root)
        self._scribble_formats = layout.scribble_formats(self.classes, config)
        self._mask_formats = layout.mask_formats(self.classes, config)
        self.files: list[Files] = layout.find(self.root, split, labels, config.scribbles)
        if check:
            problems = self.problems(quiet=quiet)
            raise_problems(str(self.root), [line for lines in problems for line in lines])

    @property
    def names(self) -> list[str]:
        """Names of the images, in order."""
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
        present = classes_in(target, len(self.classes))
        return Sample(files.name, image, tv_tensors.Mask(target), present, mask)

    def problems(self, *, quiet: bool = False) -> list[list[str]]:
        """Check the contents of every file.

        Args:
            quiet: Show no progress bar.

        Returns:
            For each image, the problems of its files, one line each; no lines if it can be used.
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


def choose_splits(config: DataConfig) -> tuple[str | None, str | None]:
    """Choose the parts of a data set to train on and to validate on.

    The configured parts come first, then those of the layout that the data set has.

    Returns:
        The part to train on, None for every image; the part to validate on, None for none.

    Raises:
        UserError: There is a part to validate on, but none to train on: every image would be used
            for training, the validation images too.
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
    """Choose the default part to score on: the layout's validation part; None: every image."""
    layout = LAYOUTS[config.layout]
    return layout.val_split if layout.has_split(config.root, layout.val_split) else None


def classes_in(target: Tensor, num_classes: int) -> Tensor:
    """Return which classes [K] bool are among the labels [H, W], and class 0."""
    counts = torch.bincount(target.flatten(), minlength=256)[:num_classes]
    counts[0] = 1
    return counts > 0
