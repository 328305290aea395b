"""Scribbles on disk: label maps with revisions, changed by edits and written atomically."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from blpseg.data.images import UNREADABLE, image_shape
from blpseg.data.labels import IGNORE, LabelFormat, numbered_classes, read_png
from blpseg.draw.colors import png_palette
from blpseg.draw.confinement import write_inside
from blpseg.draw.folder import Conflict, DrawFolder
from blpseg.draw.strokes import Edit
from blpseg.errors import UserError

NO_FILE = "none"  # the revision of an image without a scribble file
_KEPT = 3  # label maps in memory


@dataclass(frozen=True)
class Scribbles:
    """The label map of one image at one time."""

    labels: np.ndarray
    """[H, W] uint8: a class, or 255 for unlabeled. Not to be changed."""

    revision: str
    """Hash of the file's content, `NO_FILE` without a file: the same after a restart."""


@dataclass(frozen=True)
class _Cached:
    scribbles: Scribbles
    stamp: tuple[int, ...] | None  # of the file


class ScribbleStore:
    """Read and change the scribbles of a folder; safe to use from several threads.

    Args:
        folder: The folder.
    """

    def __init__(self, folder: DrawFolder) -> None:
        self.folder = folder
        self._lock = threading.RLock()
        self._cache: OrderedDict[int, _Cached] = OrderedDict()

    def load(self, index: int) -> Scribbles:
        """Read the scribbles of an image; all pixels are unlabeled without a file.

        Raises:
            UserError: The image or its scribble file cannot be used; the message says why.
        """
        with self._lock:
            path = self.folder.scribble_path(index)
            stamp = _stamp(path)
            cached = self._cache.get(index)
            if cached is None or cached.stamp != stamp:
                cached = self._remember(index, self._read(index, path), stamp)
            self._cache.move_to_end(index)
            return cached.scribbles

    def apply(self, index: int, revision: str, edits: Sequence[Edit]) -> Scribbles:
        """Change the scribbles of an image and write them.

        Args:
            index: The image.
            revision: The revision that the edits were made on.
            edits: Applied in order, all or none.

        Returns:
            The new scribbles.

        Raises:
            Conflict: The scribbles have another revision; nothing is written.
            UserError: The files cannot be used, or an edit is wrong; nothing is written.
            OSError: The file cannot be written; the old one is kept.
        """
        with self._lock:
            before = self.load(index)
            if before.revision != revision:
                raise Conflict(
                    f"The scribbles of {self.folder.names[index]} were changed in another tab or "
                    "by another program."
                )
            labels = before.labels.copy()
            for edit in edits:
                edit.check(labels.shape, len(self.folder.classes))
                edit.apply(labels)
            path = self.folder.scribble_path(index)
            if np.array_equal(labels, before.labels) and revision != NO_FILE:
                return before
            self.folder.save_classes()
            write_inside(
                self.folder.root,
                path,
                lambda file: _encode(labels).save(file, "PNG", compress_level=1),
            )
            after = Scribbles(labels, _revision(path))
            self._remember(index, after, _stamp(path))
            return after

    def _read(self, index: int, path: Path) -> Scribbles:
        image = self.folder.images[index]
        try:
            height, width, _ = image_shape(image)
        except UNREADABLE as error:
            raise UserError(f"{image.name} cannot be read ({error}).") from error
        xml = path.with_suffix(".xml")
        if xml.exists():
            raise UserError(
                f"scribbles/{xml.name} holds the scribbles of this image as XML. To draw on them, "
                "convert it with `blpseg scribbles convert` and move the XML file away."
            )
        if not path.exists():
            return Scribbles(np.full((height, width), IGNORE, np.uint8), NO_FILE)
        values = numbered_classes(len(self.folder.classes), 0, IGNORE, "unlabeled", IGNORE)
        revision = _revision(path)
        labels = read_png(path)
        if problems := LabelFormat(values, lambda _: labels).problems(path, (width, height)):
            raise UserError(problems[0].replace(f"{self.folder.root}/", "", 1) + ".")
        return Scribbles(np.ascontiguousarray(labels), revision)

    def _remember(self, index: int, scribbles: Scribbles, stamp: tuple[int, ...] | None) -> _Cached:
        scribbles.labels.flags.writeable = False
        cached = _Cached(scribbles, stamp)
        self._cache[index] = cached
        self._cache.move_to_end(index)
        while len(self._cache) > _KEPT:
            self._cache.popitem(last=False)
        return cached


def _encode(labels: np.ndarray) -> Image.Image:
    height, width = labels.shape
    image = Image.frombytes("P", (width, height), labels.tobytes())
    image.putpalette(png_palette())
    return image


def _stamp(path: Path) -> tuple[int, ...] | None:
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino


def _revision(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]
