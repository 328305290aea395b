"""Exports: label maps in the image's size, COCO's counts, nothing left of a failure."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from blpseg.draw import coco
from blpseg.draw.export import KINDS, Export, ExportCanceled
from blpseg.draw.folder import DrawFolder
from blpseg.errors import UserError

from ._program import write_images


def halves(path: Path) -> np.ndarray:
    """Say class 1 on the right half, on a grid of half the size: [2, 60, 80]."""
    right = np.broadcast_to(np.arange(80) >= 40, (60, 80)).astype(np.float32)
    return np.stack([1 - right, right])


def save(path: Path) -> None:
    path.write_text("segmenter")


def decode(counts: list[int], size: list[int]) -> np.ndarray:
    values = np.arange(len(counts)) % 2
    return np.repeat(values, counts).reshape(size, order="F")


def test_files_hold_the_segmentation_in_full_size(root: Path) -> None:
    (root / "images" / "disc1.png").write_bytes(b"no image")
    done = []
    outcome = Export(DrawFolder(root), KINDS).run(halves, save, lambda *at: done.append(at))
    place = root / outcome.folder
    assert done[0] == (0, 3) and done[-1] == (3, 3)
    assert len(outcome.problems) == 1 and "disc1.png" in outcome.problems[0]
    assert (place / "classes.txt").read_text() == "background\nobject\n"
    assert (place / "segmenter.pt").read_text() == "segmenter"
    truth = np.broadcast_to(np.arange(160) >= 80, (120, 160))
    assert [path.name for path in sorted((place / "label_maps").iterdir())] == [
        "disc0.png",
        "disc2.png",
    ]
    labels = np.asarray(Image.open(place / "label_maps" / "disc0.png"))
    assert np.array_equal(labels, truth)
    content = json.loads((place / "coco.json").read_text())
    assert content["categories"] == [{"id": 1, "name": "object"}]
    assert [image["file_name"] for image in content["images"]] == ["disc0.png", "disc2.png"]
    first, second = content["annotations"]
    assert (first["id"], second["id"]) == (1, 2)
    assert first["bbox"] == [80, 0, 80, 120] and first["area"] == 80 * 120
    assert np.array_equal(decode(**first["segmentation"]), truth)


@pytest.mark.parametrize("seed", range(3))
def test_counts_are_those_of_coco(seed: int) -> None:
    mask = np.random.default_rng(seed).random((7, 5)) < 0.5
    counts = coco.run_lengths(mask)
    assert np.array_equal(decode(counts, [7, 5]), mask)
    mask_tools = pytest.importorskip("pycocotools.mask")
    compressed = mask_tools.frPyObjects({"size": [7, 5], "counts": counts}, 7, 5)
    assert np.array_equal(mask_tools.decode(compressed), mask)


def test_stopped_and_failed_exports_leave_nothing(root: Path) -> None:
    export = Export(DrawFolder(root), ["labels"])
    with pytest.raises(ExportCanceled):
        export.run(halves, save, lambda done, total: export.cancel())

    def full(path: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        Export(DrawFolder(root), ["segmenter"]).run(halves, full, lambda *_: None)
    assert not (root / "exports").exists()


def test_exports_stay_in_the_folder(tmp_path: Path) -> None:
    root = write_images(tmp_path / "fruit", 1)
    (tmp_path / "outside").mkdir()
    (root / "exports").symlink_to(tmp_path / "outside")
    with pytest.raises(UserError, match="exports: is a link"):
        Export(DrawFolder(root), ["labels"]).run(halves, save, lambda *_: None)
    with pytest.raises(UserError, match="kinds: expected some of labels, coco, segmenter"):
        Export(DrawFolder(root), ["../x"])
