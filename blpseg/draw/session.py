"""Teach a segmenter with the scribbles, in a thread of its own, and keep what it predicts.

The thread does the most urgent work first: an export, then scribbles that are new, then the image
on the page, then the images in the strip. Drawing and saving never wait for it.
"""

from __future__ import annotations

import logging
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from blpseg.data.labels import IGNORE
from blpseg.draw.export import Export, ExportCanceled, Predictor
from blpseg.draw.folder import DrawFolder
from blpseg.draw.results import Result, make_result
from blpseg.draw.scribbles import ScribbleStore
from blpseg.draw.working_copy import working_image, working_scribbles
from blpseg.errors import UserError

_BATCH = 8  # images with earlier scribbles that are added at a time
_log = logging.getLogger(__name__)


class Segmenter(Protocol):
    """What `blpseg.ScribbleSegmenter` can do."""

    def fit(self, images: Sequence[np.ndarray], scribbles: Sequence[np.ndarray]) -> object:
        """Learn from images [H, W, 3] uint8 and scribbles [H, W], 255 for unlabeled."""

    def predict_proba(self, image: np.ndarray) -> np.ndarray:
        """Return class probabilities [K, H, W] float32."""

    def annotation_probability(self, image: np.ndarray) -> np.ndarray:
        """Return annotation probabilities [H, W] float32."""

    def save(self, path: Path) -> None:
        """Write the segmenter to a file."""


class Session:
    """The thread and its results; all methods may be called from any thread.

    Args:
        folder: The folder.
        store: Its scribbles.
        make_segmenter: Makes a segmenter for a number of classes; called in the thread.
        publish: Sends an event to the pages.
    """

    def __init__(
        self,
        folder: DrawFolder,
        store: ScribbleStore,
        make_segmenter: Callable[[int], Segmenter],
        publish: Callable[[dict[str, Any]], None],
    ) -> None:
        self.folder = folder
        self.store = store
        self._make_segmenter = make_segmenter
        self._publish = publish
        self._wake = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="segmenter", daemon=True)
        self._closing = False
        self._segmenter: Segmenter | None = None
        self._num_classes = 0
        self._version = 0
        self._results: dict[int, Result] = {}
        self._seen: dict[int, frozenset[int]] = {}  # scribbled classes of the images taught
        self._new: list[int] = []  # images whose scribbles changed, the latest first
        self._untaught: dict[int, None] = {}  # images of `_seen` that wait for the next training
        self._current: int | None = None
        self._visible: list[int] = []
        self._failed: set[int] = set()  # images that cannot be segmented
        self._export: Export | None = None
        self._status: dict[str, Any] = {"phase": "start"}

    def start(self) -> None:
        """Start the thread; it learns first from the scribbles that there are."""
        indices = {name: index for index, name in enumerate(self.folder.names)}
        with self._wake:
            self._new = sorted(indices[name] for name in self.folder.drawn)
        self._thread.start()

    def close(self) -> None:
        """End the thread after its present step; does not wait for it."""
        with self._wake:
            self._closing = True
            if self._export is not None:
                self._export.cancel()
            self._wake.notify_all()

    @property
    def status(self) -> dict[str, Any]:
        """Return the event that says what the thread does."""
        return {"type": "status", **self._status}

    @property
    def version(self) -> int:
        """Return how often the segmenter was taught; 0 before the first time."""
        return self._version

    def result(self, index: int) -> Result | None:
        """Return the latest result for an image, if any."""
        return self._results.get(index)

    def scribbles_changed(self, index: int) -> None:
        """Teach the segmenter with the new scribbles of an image."""
        with self._wake:
            self._new = [index, *(other for other in self._new if other != index)]
            self._wake.notify_all()

    def classes_changed(self) -> None:
        """Start again with a new segmenter if the number of classes changed."""
        with self._wake:
            self._wake.notify_all()

    def focus(self, current: int | None, visible: Sequence[int]) -> None:
        """Say which images are on the page; they are segmented first."""
        with self._wake:
            self._current, self._visible = current, list(visible)
            self._wake.notify_all()

    def start_export(self, kinds: Sequence[str]) -> None:
        """Export in the thread; see `blpseg.draw.export`.

        Raises:
            UserError: An export is under way, or nothing was taught yet.
        """
        with self._wake:
            if self._export is not None:
                raise UserError("An export is under way.")
            if self._segmenter is None or not self._version:
                raise UserError(
                    "There is no segmentation yet. Scribble at least two classes first."
                )
            self._export = Export(self.folder, kinds)
            self._wake.notify_all()

    def cancel_export(self) -> None:
        """Stop the export that is under way, if any."""
        with self._wake:
            if self._export is not None:
                self._export.cancel()

    def _run(self) -> None:
        while True:
            with self._wake:
                while (step := self._next_step()) is None and not self._closing:
                    self._wake.wait()
                if self._closing:
                    return
            step()

    def _next_step(self) -> Callable[[], None] | None:
        """Choose the most urgent work; called with the lock held."""
        if self._export is not None:
            return self._do_export
        if self._new or (self._segmenter and self._num_classes != len(self.folder.classes)):
            return self._teach
        if self._version and self._segmenter is not None:
            for index in (self._current, *self._visible):
                if index is None or index in self._failed:
                    continue
                result = self._results.get(index)
                if result is None or result.version < self._version:
                    return lambda: self._predict(index)
        self._set_status(phase="ready" if self._version else self._idle_phase())
        return None

    def _idle_phase(self) -> str:
        return "waiting" if self._status["phase"] != "failed" else "failed"

    def _teach(self) -> None:
        try:
            if self._segmenter is not None and self._num_classes != len(self.folder.classes):
                self._segmenter = None
                self._untaught.update(dict.fromkeys(self._seen))
            self._take_batch()
            classes = frozenset().union(*self._seen.values())
            if len(classes) < 2:
                self._set_status(phase="waiting")
                return
            if not self._untaught:
                return
            began = time.monotonic()
            if self._segmenter is None:
                self._set_status(phase="loading")
                self._num_classes = len(self.folder.classes)
                self._segmenter = self._make_segmenter(self._num_classes)
            self._set_status(phase="learning")
            batch = list(self._untaught)
            images = [working_image(self.folder.images[index]) for index in batch]
            scribbles = [working_scribbles(self.store.load(index).labels) for index in batch]
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of classes that nobody has scribbled yet
                self._segmenter.fit(images, scribbles)
            self._untaught.clear()
            self._version += 1
            self._failed.clear()
            self._set_status(phase="learned", seconds=round(time.monotonic() - began, 2))
        except Exception as error:
            self._fail(error)

    def _take_batch(self) -> None:
        """Move the next images whose scribbles can be read to `_untaught`; note their classes."""
        with self._wake:
            batch, self._new = self._new[:_BATCH], self._new[_BATCH:]
        for index in batch:
            try:
                labels = self.store.load(index).labels
            except UserError as error:  # the page shows it on that image
                _log.info("left out: %s", error)
                continue
            present = frozenset(np.unique(labels).tolist()) - {IGNORE}
            if present or index in self._seen:
                self._seen[index] = present
                self._untaught[index] = None

    def _predict(self, index: int) -> None:
        if index == self._current:
            self._set_status(phase="segmenting")
        assert self._segmenter is not None
        try:
            image = working_image(self.folder.images[index])
        except UserError:  # the image cannot be read, which the page shows
            self._failed.add(index)
            return
        try:
            probability = self._segmenter.predict_proba(image)
            annotation = self._segmenter.annotation_probability(image)
            self._results[index] = make_result(self._version, probability, annotation)
        except Exception as error:  # for example an image with other channels than the scribbled
            self._failed.add(index)
            self._fail(error)
            return
        self._publish({"type": "result", "image": index, "version": self._version})

    def _do_export(self) -> None:
        export, segmenter = self._export, self._segmenter
        assert export is not None and segmenter is not None
        predictor: Predictor = lambda path: segmenter.predict_proba(working_image(path))  # noqa: E731

        def progress(done: int, total: int) -> None:
            self._publish({"type": "export", "phase": "running", "done": done, "total": total})

        try:
            outcome = export.run(predictor, segmenter.save, progress)
        except ExportCanceled:
            event = {"phase": "canceled"}
        except Exception as error:
            _log.exception("the export failed")
            event = {"phase": "failed", "error": _one_line(error)}
        else:
            event = {"phase": "done", "folder": outcome.folder, "problems": outcome.problems}
        with self._wake:
            self._export = None
        self._publish({"type": "export", **event})

    def _fail(self, error: Exception) -> None:
        _log.error("the segmentation failed", exc_info=error)
        self._set_status(phase="failed", error=_one_line(error))

    def _set_status(self, **status: Any) -> None:
        if status != self._status:
            self._status = status
            self._publish(self.status)


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) < 400 else text[:400] + "..."
