"""What a layout is: where a data set keeps its files, and what the numbers in them mean."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from blpseg.config import DataConfig
from blpseg.data.formats.scribblesup import read_scribblesup
from blpseg.data.labels import IGNORE, LabelFormat, LabelValues, numbered_classes, read_png
from blpseg.data.photos import IMAGE_SUFFIXES
from blpseg.data.shapes import UNLABELED, draw_drawing
from blpseg.errors import UserError, raise_problems

Labels = Literal["scribbles", "masks", "all"]

_LIST_CONTENT = "image names, one a line"
_SCRIBBLE_SUFFIXES = (".png", ".xml")


class Files(NamedTuple):
    """An image and its label files."""

    name: str
    image: Path
    scribbles: Path | None
    mask: Path | None


@dataclass(frozen=True)
class Numbering:
    """The numbers in label files, where classes are numbered in a row."""

    unlabeled_value: int = 255
    """Unlabelled pixels in scribble files."""

    first_class_value: int = 0
    """The first class in scribble files."""

    mask_void_value: int = 255
    """Void pixels in mask files."""

    mask_first_class_value: int | None = None
    """The first class in mask files; None: as in scribble files."""

    def changed(self, config: DataConfig) -> Numbering:
        """Replace the values that the configuration sets; its fields have the same names."""
        configured = {part.name: getattr(config, part.name) for part in fields(self)}
        return replace(self, **{name: v for name, v in configured.items() if v is not None})

    def scribble_values(self, num_classes: int) -> LabelValues:
        """Decode scribble files of K classes."""
        first, blank = self.first_class_value, self.unlabeled_value
        return numbered_classes(num_classes, first, blank, "unlabelled", num_classes)

    def mask_values(self, num_classes: int) -> LabelValues:
        """Decode mask files of K classes."""
        first = self.mask_first_class_value
        first = self.first_class_value if first is None else first
        return numbered_classes(num_classes, first, self.mask_void_value, "void", IGNORE)


class Layout(ABC):
    """Where a data set keeps its files, and what the numbers in them mean."""

    numbering = Numbering()
    train_split: str | None = "train"
    val_split: str = "val"

    @abstractmethod
    def classes(self, root: Path) -> list[str]:
        """Name the classes, in the order of their labels."""

    @abstractmethod
    def has_split(self, root: Path, split: str) -> bool:
        """Whether the data set has such a part."""

    @abstractmethod
    def has_masks(self, root: Path) -> bool:
        """Whether the data set has masks at all."""

    @abstractmethod
    def find(
        self, root: Path, split: str | None, labels: Labels, scribbles: Path | None
    ) -> list[Files]:
        """Find the files of a part.

        Args:
            root: The data set's folder.
            split: The part; None takes every image.
            labels: "scribbles" asks for scribbles per image and leaves masks alone; "masks" asks
                for a mask per image and takes scribbles where there are any; "all" asks for
                scribbles and takes masks where there are any.
            scribbles: Folder of the scribble files; None looks where they usually are.

        Raises:
            UserError: Where anything is missing; it names the files.
        """

    def default_splits(self, root: Path) -> tuple[str | None, str | None]:
        """Name the parts to train on and to validate on; None: every image, and none."""
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


@dataclass(frozen=True)
class ListedLayout(Layout):
    """A folder of photos, folders of label files, and lists of names, as PASCAL VOC has them."""

    class_names: tuple[str, ...]

    scribbles: tuple[str, ...]
    """Folders to look for scribbles in, from the root; the first that is there is taken."""

    masks: tuple[str, ...]
    """Folders to look for each mask in, from the root, in this order."""

    train_split: str = "train"
    val_split: str = "val"
    images: str = "JPEGImages"
    lists: str = "ImageSets/Segmentation"
    mask_suffixes: tuple[str, ...] = (".png",)

    def classes(self, root: Path) -> list[str]:
        """Name the classes; they are known."""
        return list(self.class_names)

    def has_split(self, root: Path, split: str) -> bool:
        """Whether there is such a list with a name in it."""
        return has_list(root / self.lists, split)

    def has_masks(self, root: Path) -> bool:
        """Whether one of the masks' folders is there."""
        return any((root / folder).is_dir() for folder in self.masks)

    def find(
        self, root: Path, split: str | None, labels: Labels, scribbles: Path | None
    ) -> list[Files]:
        """Look up the names of a list; see `Layout.find`."""
        images = require_folder(root / self.images)
        drawn = scribble_folder(root, self.scribbles, scribbles, labels)
        if split is None:
            names = sorted(p.stem for p in images.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES)
        else:
            names = read_list(root / self.lists, split)
        suffixes = _SCRIBBLE_SUFFIXES
        if drawn is not None and any(drawn.glob("*.xml")):
            suffixes = suffixes[::-1]
        masks = [root / folder for folder in self.masks]
        found = [
            Files(
                name,
                pick(images / f"{name}{suffix}" for suffix in (".jpg", *IMAGE_SUFFIXES)),
                drawn and pick(drawn / f"{name}{suffix}" for suffix in suffixes),
                pick(folder / f"{name}{end}" for folder in masks for end in self.mask_suffixes),
            )
            for name in names
        ]
        return require_files(root, found, labels)


@dataclass(frozen=True)
class PartFolders(Layout):
    """Images and labels in trees of folders of the same form, the parts as the topmost folders."""

    images: str
    image_suffix: str
    scribbles: tuple[str, ...]
    masks: str
    label_suffix: str
    train_split: str = "train"
    val_split: str = "val"

    def has_split(self, root: Path, split: str) -> bool:
        """Whether there is such a folder of images."""
        return (root / self.images / split).is_dir()

    def has_masks(self, root: Path) -> bool:
        """Whether there are masks of the part to be scored on."""
        return (root / self.masks / self.val_split).is_dir()

    def find(
        self, root: Path, split: str | None, labels: Labels, scribbles: Path | None
    ) -> list[Files]:
        """Look up the images in a folder; see `Layout.find`."""
        top = root / self.images
        folder = require_folder(top / (split or ""))
        drawn = scribble_folder(root, self.scribbles, scribbles, labels)
        found = []
        for image in sorted(folder.rglob(f"*{self.image_suffix}")):
            place = image.relative_to(top).as_posix().removesuffix(self.image_suffix)
            labelled = place + self.label_suffix
            found.append(
                Files(
                    image.name.removesuffix(self.image_suffix),
                    image,
                    drawn and drawn / labelled,
                    root / self.masks / labelled,
                )
            )
        if not found:
            raise UserError(f"{folder}: expected images *{self.image_suffix}, found none")
        return require_files(root, found, labels)


def require_folder(folder: Path) -> Path:
    """Return the folder; raise `UserError` if there is none."""
    if not folder.is_dir():
        raise UserError(f"{folder}: expected a folder, but there is none")
    return folder


def scribble_folder(
    root: Path, usual: Sequence[str], given: Path | None, labels: Labels
) -> Path | None:
    """Find the folder of the scribbles: the one given, or the first of the usual ones.

    Raises:
        UserError: If scribbles are needed and there is no such folder.
    """
    if given is not None:
        return require_folder(given)
    for folder in usual:
        if (root / folder).is_dir():
            return root / folder
    if labels == "masks":
        return None
    looked = ", ".join(usual)
    raise UserError(
        f"{root}: expected a folder of scribbles ({looked}), but there is none; data.scribbles "
        "names another"
    )


def pick(candidates: Iterable[Path]) -> Path:
    """Choose the first file that is there; the first of all where none is."""
    candidates = list(candidates)
    return next((path for path in candidates if path.is_file()), candidates[0])


def require_files(root: Path, found: list[Files], labels: Labels) -> list[Files]:
    """Leave out the label files that are not there; refuse if they are needed.

    Raises:
        UserError: It names what is missing.
    """
    needed = ("image", "mask") if labels == "masks" else ("image", "scribbles")
    there = [
        files._replace(
            scribbles=_if_there(files.scribbles),
            mask=None if labels == "scribbles" else _if_there(files.mask),
        )
        for files in found
    ]
    missing = [files.image for files in found if not files.image.is_file()]
    missing += [
        getattr(wanted, needed[1])
        for wanted, files in zip(found, there, strict=True)
        if getattr(files, needed[1]) is None
    ]
    raise_problems(str(root), [f"{path.parent.name}/{path.name}: missing" for path in missing])
    return there


def has_list(folder: Path, split: str) -> bool:
    """Whether a folder has a list SPLIT.txt with a name in it."""
    path = folder / f"{split}.txt"
    return path.is_file() and bool(read_lines(path, _LIST_CONTENT))


def read_list(folder: Path, split: str) -> list[str]:
    """Read the names of a list SPLIT.txt.

    Raises:
        UserError: If it is missing, empty, or names an image twice.
    """
    path = folder / f"{split}.txt"
    names = read_lines(path, _LIST_CONTENT)
    if not names:
        raise UserError(f"{path}: expected {_LIST_CONTENT}, but it is empty")
    raise_problems(str(path), [f"{name!r} comes more than once" for name in repeated(names)])
    return names


def read_lines(path: Path, content: str) -> list[str]:
    """Read the lines of a text file that are not empty.

    Args:
        path: The file.
        content: What is expected in it, for messages.

    Raises:
        UserError: If the file is missing or unreadable.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise UserError(f"{path}: expected a file with {content}, but there is none") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from error
    return [line.strip() for line in text.splitlines() if line.strip()]


def repeated(names: list[str]) -> list[str]:
    """List the names that come more than once."""
    return [name for name, count in Counter(names).items() if count > 1]


def _draw_xml(path: Path, classes: list[str], width: int) -> np.ndarray:  # [H, W] uint8
    return draw_drawing(read_scribblesup(path), classes, width=width)


def _if_there(path: Path | None) -> Path | None:
    return path if path is not None and path.is_file() else None
