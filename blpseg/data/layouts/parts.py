"""Trees of folders of the same form for images and labels; the splits are the topmost folders."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from blpseg.data.layouts.base import Layout
from blpseg.data.layouts.lookup import Files, Labels, require_files, require_folder, scribble_folder
from blpseg.errors import UserError


@dataclass(frozen=True)
class PartFolders(Layout):
    """Images and labels in folder trees of the same form; the topmost folders are the splits."""

    images: str
    image_suffix: str
    scribbles: tuple[str, ...]
    masks: str
    label_suffix: str
    train_split: str = "train"
    val_split: str = "val"

    def has_split(self, root: Path, split: str) -> bool:
        """Return whether there is a folder of images of this split."""
        return (root / self.images / split).is_dir()

    def has_masks(self, root: Path) -> bool:
        """Return whether the validation split has masks."""
        return (root / self.masks / self.val_split).is_dir()

    def find(
        self, root: Path, split: str | None, labels: Labels, scribbles: Path | None
    ) -> list[Files]:
        """Find the images of a folder and their labels; see `Layout.find`."""
        top = root / self.images
        folder = require_folder(top / (split or ""))
        drawn = scribble_folder(root, self.scribbles, scribbles, labels)
        found = []
        for image in sorted(folder.rglob(f"*{self.image_suffix}")):
            place = image.relative_to(top).as_posix().removesuffix(self.image_suffix)
            labeled = place + self.label_suffix
            found.append(
                Files(
                    image.name.removesuffix(self.image_suffix),
                    image,
                    drawn and drawn / labeled,
                    root / self.masks / labeled,
                )
            )
        if not found:
            raise UserError(f"{folder}: expected images *{self.image_suffix}, found none")
        return require_files(root, found, labels)
