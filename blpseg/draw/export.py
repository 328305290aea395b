"""Write the segmentation of every image to a new folder FOLDER/exports/DATE.

label_maps/NAME.png     the class of every pixel, in the image's size; and classes.txt
coco.json               the same as COCO annotations
segmenter.pt            the segmenter, which `blpseg.ScribbleSegmenter.load` reads
"""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from blpseg.data.images import UNREADABLE, image_shape
from blpseg.draw import coco
from blpseg.draw.colors import png_palette
from blpseg.draw.confinement import require_inside
from blpseg.draw.folder import DrawFolder
from blpseg.errors import UserError

KINDS = ("labels", "coco", "segmenter")

Predictor = Callable[[Path], np.ndarray]
"""Takes an image file; returns class probabilities [K, h, w] float32, any size."""


class ExportCanceled(Exception):  # noqa: N818, it reports no error
    """The user stopped the export; nothing is left of it."""


class Outcome(NamedTuple):
    """What an export wrote."""

    folder: str
    """Relative to the data set's folder."""

    problems: list[str]
    """Images that could not be segmented, a line each."""


class Export:
    """One export.

    Args:
        folder: The data set.
        kinds: Some of `KINDS`.

    Raises:
        UserError: A kind is unknown, or none is given.
    """

    def __init__(self, folder: DrawFolder, kinds: Sequence[str]) -> None:
        unknown = set(kinds) - set(KINDS)
        if unknown or not kinds:
            raise UserError(f"kinds: expected some of {', '.join(KINDS)}, got {list(kinds)}")
        self.folder = folder
        self.kinds = set(kinds)
        self._canceled = threading.Event()

    def cancel(self) -> None:
        """Stop at the next image."""
        self._canceled.set()

    def run(
        self,
        predict: Predictor,
        save_segmenter: Callable[[Path], None],
        progress: Callable[[int, int], None],
    ) -> Outcome:
        """Segment all images and write the files.

        Args:
            predict: Segments an image.
            save_segmenter: Writes the segmenter to a path.
            progress: Called with the number of images done, and of all.

        Raises:
            ExportCanceled: `cancel` was called; the files are removed.
            OSError: A file cannot be written; the files are removed.
        """
        root = self.folder.root
        place = root / "exports" / datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
        partial = place.with_name(place.name + ".part")
        require_inside(root, partial)
        partial.mkdir(parents=True)
        try:
            problems = self._write(partial, predict, save_segmenter, progress)
            partial.rename(place)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            with suppress(OSError):  # it holds earlier exports
                partial.parent.rmdir()
            raise
        return Outcome(str(place.relative_to(root)), problems)

    def _write(
        self,
        place: Path,
        predict: Predictor,
        save_segmenter: Callable[[Path], None],
        progress: Callable[[int, int], None],
    ) -> list[str]:
        classes = self.folder.classes
        (place / "classes.txt").write_text("\n".join(classes) + "\n", encoding="utf-8")
        if "segmenter" in self.kinds:
            save_segmenter(place / "segmenter.pt")
        if not self.kinds & {"labels", "coco"}:
            return []
        if "labels" in self.kinds:
            (place / "label_maps").mkdir()
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        problems = []
        total = len(self.folder.images)
        for index, path in enumerate(self.folder.images):
            progress(index, total)
            if self._canceled.is_set():
                raise ExportCanceled
            try:
                height, width, _ = image_shape(path)
                labels = _labels(predict(path), (height, width))
            except (UserError, *UNREADABLE) as error:
                problems.append(f"{path.name}: {error}")
                continue
            if "labels" in self.kinds:
                picture = Image.frombytes("P", (width, height), labels.tobytes())
                picture.putpalette(png_palette())
                picture.save(place / "label_maps" / f"{self.folder.names[index]}.png")
            if "coco" in self.kinds:
                size = {"width": width, "height": height}
                images.append({"id": index + 1, "file_name": path.name, **size})
                annotations += coco.annotations(labels, index + 1, len(annotations) + 1)
        if "coco" in self.kinds:
            content = {
                "images": images,
                "annotations": annotations,
                "categories": coco.categories(classes),
            }
            (place / "coco.json").write_text(json.dumps(content), encoding="utf-8")
        progress(total, total)
        return problems


def _labels(probability: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize class probabilities [K, h, w] and return the largest class, [H, W] uint8."""
    if probability.shape[1:] == size:
        return probability.argmax(0).astype(np.uint8)
    import torch

    import blpseg_ops

    resized = blpseg_ops.upsample_argmax(torch.from_numpy(probability)[None], size)
    return resized[0].numpy()
