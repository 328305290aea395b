"""A folder of images and label files as a data set, checked as a whole before it is used.

root/images/NAME.jpg        png, jpg, jpeg, bmp, tif, tiff or webp
root/scribbles/NAME.png     label map of mode L or P
root/masks/NAME.png         optional: the full label map
root/classes.txt            one class name a line, in the order of their values
root/splits/LIST.txt        optional: one NAME a line
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.progress import track
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors

from blpseg.config import DataConfig
from blpseg.data.photos import IMAGE_SUFFIXES, UNREADABLE, images_in, photo_size, read_photo
from blpseg.errors import UserError, raise_problems

IGNORE = 255
MAX_CLASSES = 254  # K is "unlabelled" and 255 is "ignore", and both have to fit in uint8

_LIST_CONTENT = "image names, one a line"
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


@dataclass(frozen=True)
class LabelValues:
    """What the numbers in a kind of label file mean."""

    num_classes: int
    """K."""

    first_class: int
    """Value of class 0 in the file."""

    blank: int
    """Value in the file of a pixel without a class."""

    blank_name: str
    """What such a pixel is called in messages."""

    blank_label: int
    """What such a pixel becomes in memory."""

    def __post_init__(self) -> None:
        last = self.first_class + self.num_classes - 1
        if not (self.first_class >= 0 and last <= 255 and 0 <= self.blank <= 255):
            raise UserError(f"label values must lie in 0 to 255, got {self.allowed}")
        if self.first_class <= self.blank <= last:
            raise UserError(
                f"the value {self.blank} cannot mean both {self.blank_name} and class "
                f"{self.blank - self.first_class}: classes are {self.first_class} to {last}"
            )

    @property
    def allowed(self) -> str:
        """The values that a file may hold, in words."""
        last = self.first_class + self.num_classes - 1
        return (
            f"{self.first_class} to {last} ({self.num_classes} classes) "
            f"or {self.blank} ({self.blank_name})"
        )

    def table(self) -> np.ndarray:
        """List the label in memory for each of the 256 values of a file, [256] uint8."""
        table = np.full(256, IGNORE, dtype=np.uint8)
        table[self.first_class : self.first_class + self.num_classes] = range(self.num_classes)
        table[self.blank] = self.blank_label
        return table

    def unknown_values(self, image: Image.Image) -> list[int]:
        """List the values of a label image that have no meaning, ascending."""
        known = {*range(self.first_class, self.first_class + self.num_classes), self.blank}
        return [v for v, count in enumerate(image.histogram()) if count and v not in known]


class _Files(NamedTuple):
    name: str
    image: Path
    scribbles: Path | None
    mask: Path | None


class ScribbleFolder(Dataset[Sample]):
    """Images and scribbles of a folder, as `Sample`s; every file is checked on construction.

    Args:
        root: The folder; see the top of this file for what it holds.
        split: Name of a list splits/NAME.txt; None takes every image.
        labels: "scribbles" asks for a scribble file per image and leaves masks alone; "masks" asks
            for a mask per image and takes scribbles where there are any.
        unlabeled_value: Value of unlabelled pixels in scribble files.
        first_class_value: Value of the first class in scribble files.
        mask_void_value: Value of void pixels in mask files.
        mask_first_class_value: Value of the first class in mask files; None: as in scribble files.
        quiet: Show no progress bar, however long the check takes.

    Raises:
        UserError: Where anything is missing, unreadable or does not fit; it names the files.
    """

    def __init__(
        self,
        root: Path,
        split: str | None = None,
        *,
        labels: Literal["scribbles", "masks"] = "scribbles",
        unlabeled_value: int = 255,
        first_class_value: int = 0,
        mask_void_value: int = 255,
        mask_first_class_value: int | None = None,
        quiet: bool = False,
    ) -> None:
        self.root = Path(root)
        self.classes = read_classes(self.root / "classes.txt")
        k = len(self.classes)
        if mask_first_class_value is None:
            mask_first_class_value = first_class_value
        self._scribble_values = LabelValues(k, first_class_value, unlabeled_value, "unlabelled", k)
        self._mask_values = LabelValues(k, mask_first_class_value, mask_void_value, "void", IGNORE)
        self._scribble_table = self._scribble_values.table()
        self._mask_table = self._mask_values.table()
        self._files = _find_files(self.root, split, labels)
        self._check_contents(quiet)

    @property
    def names(self) -> list[str]:
        """The images' names, in order."""
        return [files.name for files in self._files]

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> Sample:
        files = self._files[index]
        photo = torch.from_numpy(np.array(read_photo(files.image))).permute(2, 0, 1)
        image = tv_tensors.Image(photo.contiguous())
        unlabeled = len(self.classes)
        if files.scribbles is None:
            target = torch.full(image.shape[1:], unlabeled, dtype=torch.uint8)
        else:
            target = _read_labels(files.scribbles, self._scribble_table)
        return Sample(
            files.name,
            image,
            tv_tensors.Mask(target),
            _classes_in(target, len(self.classes)),
            None
            if files.mask is None
            else tv_tensors.Mask(_read_labels(files.mask, self._mask_table)),
        )

    def _check_contents(self, quiet: bool) -> None:
        with ThreadPoolExecutor() as pool:
            found: Iterable[list[str]] = pool.map(self._problems_of, self._files)
            found = track(
                found,
                f"Checking {self.root}",
                total=len(self._files),
                console=Console(stderr=True),
                transient=True,
                disable=quiet or len(self._files) < _SLOW_FROM,
            )
            raise_problems(str(self.root), [problem for problems in found for problem in problems])

    def _problems_of(self, files: _Files) -> list[str]:
        try:
            size = photo_size(files.image)
        except UNREADABLE as error:
            return [f"{_short(files.image)}: cannot be read ({error})"]
        problems = []
        if files.scribbles is not None:
            problems += _label_problems(files.scribbles, size, self._scribble_values)
        if files.mask is not None:
            problems += _label_problems(files.mask, size, self._mask_values)
        return problems


def open_folder(
    config: DataConfig,
    split: str | None,
    *,
    labels: Literal["scribbles", "masks"] = "scribbles",
    quiet: bool = False,
) -> ScribbleFolder:
    """Open the folder that a configuration describes; arguments and errors of `ScribbleFolder`."""
    return ScribbleFolder(
        config.root,
        split,
        labels=labels,
        unlabeled_value=config.unlabeled_value,
        first_class_value=config.first_class_value,
        mask_void_value=config.mask_void_value,
        mask_first_class_value=config.mask_first_class_value,
        quiet=quiet,
    )


def read_classes(path: Path) -> list[str]:
    """Read the class names, one a line; empty lines are skipped.

    Raises:
        UserError: If the file is missing, or names fewer than 2 or more than 254 classes, or one
            of them twice.
    """
    names = _read_lines(path, "the class names, one a line")
    if len(names) < 2:
        raise UserError(f"{path}: expected 2 class names or more, found {len(names)}")
    if len(names) > MAX_CLASSES:
        raise UserError(f"{path}: expected at most {MAX_CLASSES} class names, found {len(names)}")
    if twice := _repeated(names):
        raise UserError(f"{path}: class names must differ, but {twice[0]!r} comes more than once")
    return names


def has_split(root: Path, split: str) -> bool:
    """Whether the folder has a list splits/SPLIT.txt with a name in it."""
    path = _split_file(Path(root), split)
    return path.is_file() and bool(_read_lines(path, _LIST_CONTENT))


def _find_files(root: Path, split: str | None, labels: str) -> list[_Files]:
    """Pair the images, scribbles and masks of a split by name."""
    images = _by_name(root / "images", images_in)
    scribbles = _by_name(root / "scribbles", _png_files, optional=labels == "masks")
    masks = _by_name(root / "masks", _png_files) if labels == "masks" else {}
    needed = masks if labels == "masks" else scribbles
    if split is None:
        names = sorted(images)
        orphans = [
            f"{labels}/{name}.png: no image of this name" for name in sorted(needed.keys() - images)
        ]
    else:
        names, orphans = _read_split(root, split), []
    problems = [f"images/: no image named {name!r}" for name in names if name not in images]
    problems += [f"{labels}/{name}.png: missing" for name in names if name not in needed]
    raise_problems(str(root), problems + orphans)
    if not names:
        raise UserError(
            f"{root / 'images'}: expected images ({' '.join(IMAGE_SUFFIXES)}), found none"
        )
    return [_Files(name, images[name], scribbles.get(name), masks.get(name)) for name in names]


def _by_name(
    folder: Path, list_files: Callable[[Path], list[Path]], *, optional: bool = False
) -> dict[str, Path]:
    if not folder.is_dir():
        if optional:
            return {}
        raise UserError(f"{folder}: expected a folder, but there is none")
    paths = defaultdict(list)
    for path in list_files(folder):
        paths[path.stem].append(path)
    raise_problems(
        str(folder),
        [
            f"{', '.join(p.name for p in same)}: the same name"
            for same in paths.values()
            if len(same) > 1
        ],
    )
    return {name: same[0] for name, same in paths.items()}


def _png_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix.lower() == ".png")


def _split_file(root: Path, split: str) -> Path:
    return root / "splits" / f"{split}.txt"


def _read_split(root: Path, split: str) -> list[str]:
    path = _split_file(root, split)
    names = _read_lines(path, _LIST_CONTENT)
    if not names:
        raise UserError(f"{path}: expected {_LIST_CONTENT}, but it is empty")
    raise_problems(str(path), [f"{name!r} comes more than once" for name in _repeated(names)])
    return names


def _read_lines(path: Path, content: str) -> list[str]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise UserError(f"{path}: expected a file with {content}, but there is none") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from error
    return [line.strip() for line in text.splitlines() if line.strip()]


def _repeated(names: list[str]) -> list[str]:
    counts = defaultdict(int)
    for name in names:
        counts[name] += 1
    return [name for name, count in counts.items() if count > 1]


def _label_problems(path: Path, size: tuple[int, int], values: LabelValues) -> list[str]:
    try:
        with Image.open(path) as image:
            if image.mode not in ("L", "P"):
                return [
                    f"{_short(path)}: expected a label map of mode L or P, got mode {image.mode}"
                ]
            if image.size != size:
                return [f"{_short(path)}: is {_times(image.size)}, but its image is {_times(size)}"]
            unknown = values.unknown_values(image)
    except UNREADABLE as error:
        return [f"{_short(path)}: cannot be read ({error})"]
    if not unknown:
        return []
    found = ", ".join(map(str, unknown[:5])) + (", ..." if len(unknown) > 5 else "")
    return [f"{_short(path)}: holds the value {found}; expected {values.allowed}"]


def _read_labels(path: Path, table: np.ndarray) -> Tensor:
    try:
        with Image.open(path) as image:
            return torch.from_numpy(table[np.asarray(image)])
    except UNREADABLE as error:
        raise UserError(f"{path}: cannot be read ({error})") from error


def _classes_in(target: Tensor, num_classes: int) -> Tensor:
    counts = torch.bincount(target.flatten(), minlength=256)[:num_classes]
    counts[0] = 1
    return counts > 0


def _short(path: Path) -> str:
    return f"{path.parent.name}/{path.name}"


def _times(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"
