"""The segmenter's thread: what it learns from, when, and what it does with failures."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from blpseg.draw.folder import DrawFolder
from blpseg.draw.results import teaching_value
from blpseg.draw.scribbles import ScribbleStore
from blpseg.draw.session import Session
from blpseg.draw.strokes import Stroke
from blpseg.draw.working_copy import working_image, working_scribbles
from blpseg.errors import UserError

from ._program import ColorSegmenter

GROUND, DISC = Stroke([(5, 5), (150, 5)], 3.0, 0), Stroke([(60, 60), (80, 60)], 3.0, 1)


class Recorded:
    """A session whose events and segmenters are kept."""

    def __init__(self, root: Path, make: Any = ColorSegmenter) -> None:
        self.events: list[dict[str, Any]] = []
        self.news = threading.Condition()
        self.made: list[ColorSegmenter] = []
        self.folder = DrawFolder(root)
        self.store = ScribbleStore(self.folder)

        def make_and_keep(num_classes: int) -> ColorSegmenter:
            self.made.append(make(num_classes))
            return self.made[-1]

        self.session = Session(self.folder, self.store, make_and_keep, self.publish)

    def publish(self, event: dict[str, Any]) -> None:
        with self.news:
            self.events.append(event)
            self.news.notify_all()

    def wait(self, seconds_to_wait: float = 10, **wanted: Any) -> dict[str, Any]:
        """Wait for an event and forget those before it."""

        def find() -> int | None:
            fits = (wanted.items() <= event.items() for event in self.events)
            return next((at for at, fit in enumerate(fits) if fit), None)

        with self.news:
            assert self.news.wait_for(lambda: find() is not None, seconds_to_wait), (
                wanted,
                self.events,
            )
            at = find()
            found = self.events[at]
            del self.events[: at + 1]
        return found

    def draw(self, index: int, *edits: Stroke) -> None:
        self.store.apply(index, self.store.load(index).revision, edits)
        self.folder.set_drawn(index, True)
        self.session.scribbles_changed(index)


@pytest.fixture
def recorded(root: Path) -> Iterator[Recorded]:
    """Return a running session."""
    recorded = Recorded(root)
    recorded.session.start()
    yield recorded
    recorded.session.close()


def test_learns_from_two_classes_and_segments_what_is_on_the_page(recorded: Recorded) -> None:
    recorded.session.focus(0, [1, 2])
    recorded.draw(0, GROUND)
    recorded.wait(phase="waiting")
    assert not recorded.made
    recorded.draw(0, DISC)
    assert recorded.wait(type="result")["image"] == 0
    recorded.wait(phase="ready")
    # The thread may see the first stroke late, together with the second, and learn twice.
    versions = {recorded.session.result(index).version for index in range(3)}
    assert versions == {recorded.session.version} and recorded.session.version in (1, 2)
    result = recorded.session.result(1)
    assert result is not None
    import gzip

    labels = np.frombuffer(gzip.decompress(result.labels), np.uint8).reshape(result.shape)
    truth = np.asarray(Image.open(recorded.folder.images[1]))[..., 0] > 128
    assert np.array_equal(labels == 1, truth)


def test_new_strokes_go_to_the_same_segmenter_and_a_new_class_to_a_new_one(
    recorded: Recorded,
) -> None:
    recorded.session.focus(0, [])
    recorded.draw(0, GROUND, DISC)
    recorded.wait(type="result", version=1)
    recorded.draw(1, GROUND)
    recorded.wait(type="result", version=2)
    assert len(recorded.made) == 1 and len(recorded.made[0].taught) == 2
    recorded.folder.set_classes(
        [*recorded.folder.classes, "leaf"], recorded.folder.classes_revision
    )
    recorded.session.classes_changed()
    recorded.wait(type="result", version=3)
    assert [one.num_classes for one in recorded.made] == [2, 3]
    assert len(recorded.made[1].taught) == 2


def test_earlier_scribbles_are_learned_at_the_start(root: Path) -> None:
    first = Recorded(root)
    first.draw(2, GROUND, DISC)
    second = Recorded(root)
    second.session.focus(0, [])
    second.session.start()
    second.wait(type="result", image=0)
    second.session.close()


def test_failure_is_told_and_the_next_stroke_tries_again(root: Path) -> None:
    class Failing(ColorSegmenter):
        fails = True

        def fit(self, images: Any, scribbles: Any) -> None:
            if Failing.fails:
                raise RuntimeError("out of\nmemory")
            super().fit(images, scribbles)

    recorded = Recorded(root, Failing)
    recorded.session.start()
    recorded.session.focus(0, [])
    recorded.draw(0, GROUND, DISC)
    assert recorded.wait(phase="failed")["error"] == "out of memory"
    Failing.fails = False
    recorded.draw(1, GROUND)
    recorded.wait(type="result", image=0)
    assert len(recorded.made[0].taught) == 2
    recorded.session.close()


def test_unreadable_images_are_left_out(root: Path) -> None:
    (root / "images" / "disc0.png").write_bytes(b"no image")
    recorded = Recorded(root)
    recorded.session.start()
    recorded.session.focus(0, [1])
    recorded.draw(1, GROUND, DISC)
    recorded.wait(type="result", image=1)
    recorded.session.scribbles_changed(0)
    recorded.wait(phase="ready")
    recorded.session.close()


def test_export_needs_a_segmentation(recorded: Recorded) -> None:
    with pytest.raises(UserError, match="no segmentation yet. Scribble at least two classes"):
        recorded.session.start_export(["labels"])


def test_working_copies_of_large_images_keep_thin_lines(tmp_path: Path) -> None:
    path = tmp_path / "large.png"
    Image.linear_gradient("L").resize((2560, 1920)).convert("RGB").save(path)
    image = working_image(path)
    assert image.shape == (768, 1024, 3) and image.dtype == np.uint8
    labels = np.full((1920, 2560), 255, np.uint8)
    labels[1000, 100:2400] = 1
    small = working_scribbles(labels)
    assert small.shape == (768, 1024) and (small[400, 40:960] == 1).all()
    assert (small != 255).sum() == 920
    many = np.random.default_rng(0).integers(0, 65535, (1100, 40, 5), np.uint16)
    import tifffile

    tifffile.imwrite(tmp_path / "many.tif", many, photometric="minisblack", planarconfig="contig")
    shrunk = working_image(tmp_path / "many.tif")
    assert shrunk.shape == (1024, 37, 5) and shrunk.dtype == np.uint16
    assert np.abs(shrunk.mean((0, 1)) - many.mean((0, 1))).max() < 100


def test_a_scribble_teaches_most_in_unsure_regions_of_kinds_without_scribbles() -> None:
    """A border is as unsure as the regions, but a pixel wide."""
    sure, unsure = np.array([0.98, 0.01, 0.01]), np.array([0.45, 0.45, 0.1])
    probability = np.tile(sure[:, None, None], (1, 60, 120)).astype(np.float32)
    probability[:, :20] = unsure[:, None, None]  # two regions; the right one's kind is scribbled
    probability[:, 50] = unsure[:, None]
    annotation = np.zeros((60, 120), np.float32)
    annotation[:, 60:] = 0.9
    value = teaching_value(probability, annotation)
    assert value.max() == 1 and value[10, 30] > 0.95
    assert value[10, 90] == pytest.approx(0.1, abs=0.02)
    assert 0.1 < value[50, 30] < 0.4 and value[35, 30] < 0.05
    calm = teaching_value(probability[:, 30:40], np.zeros((10, 120), np.float32))
    np.testing.assert_allclose(calm, 0.03 / 0.25, atol=1e-5)
