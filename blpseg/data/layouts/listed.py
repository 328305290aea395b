"""A folder of photos, folders of label files, and lists of names, as PASCAL VOC has them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from blpseg.data.images import IMAGE_SUFFIXES
from blpseg.data.layouts.base import Layout
from blpseg.data.layouts.lookup import (
    Files,
    Labels,
    has_list,
    pick,
    read_list,
    require_files,
    require_folder,
    scribble_folder,
)

_SCRIBBLE_SUFFIXES = (".png", ".xml")


@dataclass(frozen=True)
class ListedLayout(Layout):
    """A folder of photos, folders of label files, and lists of names, as PASCAL VOC has them."""

    class_names: tuple[str, ...]

    scribbles: tuple[str, ...]
    """Folders that may hold scribbles, relative to the root; the first that exists is taken."""

    masks: tuple[str, ...]
    """Folders that may hold a mask, relative to the root, searched in this order."""

    train_split: str = "train"
    val_split: str = "val"
    images: str = "JPEGImages"
    lists: str = "ImageSets/Segmentation"
    mask_suffixes: tuple[str, ...] = (".png",)

    def classes(self, root: Path) -> list[str]:
        """Return the class names, which the layout knows."""
        return list(self.class_names)

    def has_split(self, root: Path, split: str) -> bool:
        """Return whether there is a non-empty list of this split."""
        return has_list(root / self.lists, split)

    def has_masks(self, root: Path) -> bool:
        """Return whether one of the mask folders exists."""
        return any((root / folder).is_dir() for folder in self.masks)

    def find(
        self, root: Path, split: str | None, labels: Labels, scribbles: Path | None
    ) -> list[Files]:
        """Find the files of the names in a list; see `Layout.find`."""
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
