"""A folder of a user's own images and label files.

root/images/NAME.jpg        png, jpg, jpeg, bmp, tif, tiff or webp; or root/NAME.jpg, if there is no
                            folder images/
root/scribbles/NAME.png     label map of mode L or P; or ScribbleSup's NAME.xml
root/masks/NAME.png         optional: the full label map
root/classes.txt            one class name a line, in the order of their values
root/splits/LIST.txt        optional: one NAME a line
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection
from pathlib import Path

from blpseg.data.images import IMAGE_SUFFIXES, images_in
from blpseg.data.labels import MAX_CLASSES
from blpseg.data.layouts.base import Layout
from blpseg.data.layouts.lookup import (
    Files,
    Labels,
    has_list,
    read_lines,
    read_list,
    repeated,
    require_folder,
)
from blpseg.errors import UserError, raise_problems


class FolderLayout(Layout):
    """The layout at the top of this file."""

    def classes(self, root: Path) -> list[str]:
        """Read classes.txt."""
        return read_classes(root / "classes.txt")

    def has_split(self, root: Path, split: str) -> bool:
        """Return whether there is a non-empty list splits/SPLIT.txt."""
        return has_list(root / "splits", split)

    def has_masks(self, root: Path) -> bool:
        """Return whether there is a folder masks/."""
        return (root / "masks").is_dir()

    def default_splits(self, root: Path) -> tuple[str | None, str | None]:
        """Return "train" and "val" where these lists exist."""
        train, val = super().default_splits(root)
        return train if self.has_split(root, "train") else None, val

    def find(
        self, root: Path, split: str | None, labels: Labels, scribbles: Path | None
    ) -> list[Files]:
        """Pair the images, scribbles and masks by name; see `Layout.find`."""
        images = by_name(image_folder(root), IMAGE_SUFFIXES)
        folder = scribbles or root / "scribbles"
        drawn = by_name(folder, (".png", ".xml"), optional=labels == "masks")
        masks = {}
        if labels != "scribbles":
            masks = by_name(root / "masks", (".png",), optional=labels == "all")
        needed, place = (masks, "masks") if labels == "masks" else (drawn, folder.name)
        if split is None:
            names = sorted(images)
            orphans = [
                f"{place}/{needed[name].name}: no image of this name"
                for name in sorted(needed.keys() - images)
            ]
        else:
            names, orphans = read_list(root / "splits", split), []
        problems = [f"images/: no image named {name!r}" for name in names if name not in images]
        problems += [f"{place}/{name}.png: missing" for name in names if name not in needed]
        raise_problems(str(root), problems + orphans)
        if not names:
            raise UserError(
                f"{image_folder(root)}: expected images ({' '.join(IMAGE_SUFFIXES)}), found none"
            )
        return [Files(name, images[name], drawn.get(name), masks.get(name)) for name in names]


def read_classes(path: Path) -> list[str]:
    """Read the class names, one per line; empty lines are skipped.

    Raises:
        UserError: The file is missing, names fewer than 2 or more than 254 classes, or names one
            twice.
    """
    names = read_lines(path, "the class names, one per line")
    if len(names) < 2:
        raise UserError(f"{path}: expected 2 class names or more, found {len(names)}")
    if len(names) > MAX_CLASSES:
        raise UserError(f"{path}: expected at most {MAX_CLASSES} class names, found {len(names)}")
    if twice := repeated(names):
        raise UserError(f"{path}: class names must differ, but {twice[0]!r} comes more than once")
    return names


def image_folder(root: Path) -> Path:
    """Return the folder of the images: images/, or the root itself if it holds images."""
    flat = not (root / "images").is_dir() and root.is_dir() and images_in(root)
    return root if flat else root / "images"


def by_name(folder: Path, suffixes: Collection[str], *, optional: bool = False) -> dict[str, Path]:
    """Map the names of a folder's files to the files, sorted.

    Args:
        folder: The folder.
        suffixes: Suffixes to find, in lower case.
        optional: Return nothing if the folder is missing.

    Raises:
        UserError: The folder is missing, or two files have the same name.
    """
    if optional and not folder.is_dir():
        return {}
    paths = defaultdict(list)
    for path in sorted(require_folder(folder).iterdir()):
        if path.suffix.lower() in suffixes:
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
