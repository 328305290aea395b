"""The folder that is drawn on: its images, its classes, and the list of the images with scribbles.

It has the layout `folder` of `blpseg.data.layouts.folder`, so `blpseg train FOLDER` reads it.
"""

from __future__ import annotations

import hashlib
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path

from blpseg.data.images import IMAGE_SUFFIXES
from blpseg.data.labels import MAX_CLASSES
from blpseg.data.layouts.folder import by_name, image_folder, read_classes
from blpseg.data.layouts.lookup import has_list, read_list, repeated
from blpseg.draw.confinement import require_inside, write_inside
from blpseg.errors import UserError

DEFAULT_CLASSES = ("background", "object")
LIST_HEADER = (
    "# blpseg draw keeps this list of the images with scribbles; remove this line to keep your own"
)
_LONGEST_NAME = 100  # characters of a class name


class Conflict(Exception):  # noqa: N818, it is told to the page, not raised to a caller
    """Something changed since the page read it: in another tab, or by another program."""


class DrawFolder:
    """Images, classes and the list of a folder.

    Args:
        root: The folder. Images lie in ``images/`` or, without such a folder, in the folder itself.
        classes: Class names for a folder without ``classes.txt``; None takes `DEFAULT_CLASSES`.

    Raises:
        UserError: There are no images, two have the same name, ``classes.txt`` is wrong or differs
            from `classes`, or the folder cannot be written to.
    """

    def __init__(self, root: Path, classes: Sequence[str] | None = None) -> None:
        if not root.is_dir():
            raise UserError(f"{root}: expected a folder of images, but there is none")
        self.root = root.resolve()
        images = by_name(image_folder(self.root), IMAGE_SUFFIXES, optional=True)
        if not images:
            raise UserError(
                f"{root}: expected images ({' '.join(IMAGE_SUFFIXES)}) in it or in its folder "
                "images/, found none"
            )
        self.names = list(images)
        self.images = list(images.values())
        for path in (self.scribble_path(0), self._class_file, self._list_file):
            require_inside(self.root, path)
        _require_writable(self.root)
        self._lock = threading.Lock()
        self._classes = self._first_classes(classes)
        xml = by_name(self.root / "scribbles", (".png", ".xml"), optional=True)
        self.drawn = {name for name in xml if name in images}
        """Names of the images with scribbles, kept by `set_drawn`."""

    @property
    def classes(self) -> list[str]:
        """Return the class names, in the order of their labels."""
        return list(self._classes)

    @property
    def classes_revision(self) -> str:
        """Return a text that changes with the class names."""
        return hashlib.sha256("\n".join(self._classes).encode()).hexdigest()[:16]

    @property
    def list_is_ours(self) -> bool:
        """Return whether `splits/train.txt` is missing or begins with `LIST_HEADER`."""
        if not self._list_file.exists():
            return True
        with self._list_file.open(encoding="utf-8", errors="replace") as file:
            return file.readline().strip() == LIST_HEADER

    def scribble_path(self, index: int) -> Path:
        """Return the label map of an image; it may not exist."""
        return self.root / "scribbles" / f"{self.names[index]}.png"

    def set_classes(self, names: Sequence[str], revision: str) -> None:
        """Rename classes, or add some at the end, and write ``classes.txt``.

        Args:
            names: All class names, in the order of their labels.
            revision: `classes_revision` of the names that were changed.

        Raises:
            Conflict: The names or the file changed since.
            UserError: A name is empty, too long or taken, or there are too few or too many.
            OSError: The file cannot be written.
        """
        names = [" ".join(name.split()) for name in names]
        with self._lock:
            if revision != self.classes_revision or self._changed_on_disk():
                self._classes = self._first_classes(None)
                raise Conflict(
                    "The classes were changed in another tab or by another program. They were "
                    "loaded again; please repeat your change."
                )
            if len(names) < len(self._classes):
                raise UserError(
                    f"classes: expected at least the {len(self._classes)} classes that there are, "
                    f"got {len(names)}"
                )
            check_class_names(names)
            self._write_classes(names)
            self._classes = names

    def save_classes(self) -> None:
        """Write ``classes.txt`` unless it exists, so that label maps have their names."""
        with self._lock:
            if not self._class_file.exists():
                self._write_classes(self._classes)

    def set_drawn(self, index: int, drawn: bool) -> None:
        """Note whether an image has scribbles, and keep ``splits/train.txt`` if it is ours.

        Raises:
            OSError: The list cannot be written.
        """
        name = self.names[index]
        with self._lock:
            if drawn:
                self.drawn.add(name)
            else:
                self.drawn.discard(name)
            if self.list_is_ours:
                self._write_list()

    def _write_list(self) -> None:
        splits = self._list_file.parent
        held_out = set(read_list(splits, "val")) if has_list(splits, "val") else set()
        text = "\n".join([LIST_HEADER, *sorted(self.drawn - held_out)]) + "\n"
        if not self._list_file.exists() or self._list_file.read_text(encoding="utf-8") != text:
            write_inside(self.root, self._list_file, lambda file: file.write(text.encode()))

    def _first_classes(self, given: Sequence[str] | None) -> list[str]:
        if not self._class_file.exists():
            names = list(given or DEFAULT_CLASSES)
            check_class_names(names)
            return names
        found = read_classes(self._class_file)
        if given is not None and list(given) != found:
            raise UserError(
                f"--classes: {self._class_file} holds other classes ({', '.join(found)}); rename "
                "and add classes on the page, or correct that file"
            )
        return found

    def _changed_on_disk(self) -> bool:
        return self._class_file.exists() and read_classes(self._class_file) != self._classes

    def _write_classes(self, names: Sequence[str]) -> None:
        text = "\n".join(names) + "\n"
        write_inside(self.root, self._class_file, lambda file: file.write(text.encode()))

    @property
    def _class_file(self) -> Path:
        return self.root / "classes.txt"

    @property
    def _list_file(self) -> Path:
        return self.root / "splits" / "train.txt"


def check_class_names(names: Sequence[str]) -> None:
    """Raise `UserError` if these cannot be the class names of a data set."""
    if not 2 <= len(names) <= MAX_CLASSES:
        raise UserError(f"classes: expected 2 to {MAX_CLASSES} names, got {len(names)}")
    for name in names:
        if not name.strip():
            raise UserError("A class needs a name.")
        if len(name) > _LONGEST_NAME or not name.isprintable():
            raise UserError(
                f"A class name has at most {_LONGEST_NAME} printable characters; got {name!r}."
            )
    if twice := repeated(list(names)):
        raise UserError(f'There is a class "{twice[0]}" already; names must differ.')


def _require_writable(root: Path) -> None:
    try:
        with tempfile.TemporaryFile(dir=root):
            pass
    except OSError as error:
        raise UserError(
            f"{root}: cannot be written to ({error.strerror}); blpseg draw saves scribbles there"
        ) from error
