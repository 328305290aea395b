"""The page's thread with the real `blpseg.ScribbleSegmenter`."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
from PIL import Image

from blpseg import ScribbleSegmenter

from .test_session import DISC, GROUND, Recorded


def test_real_segmenter_learns_from_scribbles_and_is_saved(root: Path) -> None:
    recorded = Recorded(root, ScribbleSegmenter)
    recorded.session.focus(1, [])
    recorded.draw(0, GROUND, DISC)
    recorded.session.start()
    recorded.wait(type="result", image=1, seconds_to_wait=60)
    result = recorded.session.result(1)
    assert result is not None
    labels = np.frombuffer(gzip.decompress(result.labels), np.uint8).reshape(result.shape)
    truth = np.asarray(Image.open(recorded.folder.images[1]))[..., 0] > 128
    assert ((labels == 1) & truth).sum() / ((labels == 1) | truth).sum() > 0.85
    recorded.folder.set_classes(
        [*recorded.folder.classes, "leaf"], recorded.folder.classes_revision
    )
    recorded.session.classes_changed()  # no scribble of it yet
    recorded.wait(type="result", image=1, version=2, seconds_to_wait=60)
    recorded.session.start_export(["segmenter"])
    place = recorded.wait(type="export", phase="done", seconds_to_wait=60)["folder"]
    recorded.session.close()
    saved = ScribbleSegmenter.load(root / place / "segmenter.pt", device="cpu")
    assert saved.num_classes == 3
    assert saved.predict(recorded.folder.images[2]).max() == 1
