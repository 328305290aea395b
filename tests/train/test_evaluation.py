"""Evaluation: what is measured and written, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from blpseg.checkpoints import load_model
from blpseg.config import DataConfig
from blpseg.data.folder import ScribbleFolder
from blpseg.errors import UserError
from blpseg.evaluation import evaluate, score_model
from blpseg.inference import predict_image
from blpseg.views import Views


def test_scores_are_those_of_the_predictions(checkpoint: Path, shapes: Path) -> None:
    model = load_model(checkpoint).model
    folder = ScribbleFolder(DataConfig(shapes), "val", labels="masks")
    watched = []
    found = score_model(
        model, folder, progress=lambda items: map(lambda s: watched.append(s) or s, items)
    )
    right = total = 0
    for sample in folder:
        labels = predict_image(model, sample.image).labels
        right += (labels == sample.mask).sum().item()
        total += labels.numel()
    for bins in (found.by_border_distance, found.by_scribble_distance):
        assert sum(part.pixels for part in bins) == total
        assert sum(part.accuracy * part.pixels for part in bins if part.pixels) == pytest.approx(
            right
        )
    assert [sample.name for sample in watched] == folder.names
    assert found.images == 2 and found.miou > 0.45


def test_evaluation_is_written_once(checkpoint: Path, shapes: Path) -> None:
    found = evaluate(checkpoint, quiet=True)
    path = checkpoint.with_name("trained.evaluation.json")
    written = json.loads(path.read_text())
    assert written == found.as_plain_data()
    assert written["split"] == "val" and written["root"] == str(shapes)
    assert written["iteration"] == 40 and written["scores"]["images"] == 2
    with pytest.raises(UserError, match="exists already; --overwrite replaces it"):
        evaluate(checkpoint, quiet=True)
    folder = ScribbleFolder(DataConfig(shapes), "train", labels="masks")
    expected = score_model(load_model(checkpoint).model, folder, views=Views([0.5, 1.5], flip=True))
    again = evaluate(
        checkpoint, "train", views=Views([0.5, 1.5], flip=True), overwrite=True, quiet=True
    )
    assert json.loads(path.read_text()) == again.as_plain_data()
    assert again.scores == expected and again.scores.images == 5
    assert again.views.scales == [0.5, 1.5] and again.views.flip


def test_evaluation_goes_elsewhere_when_told(
    checkpoint: Path, own_shapes: Path, tmp_path: Path
) -> None:
    output = tmp_path / "new" / "scores.json"
    found = evaluate(checkpoint, data={"root": own_shapes}, output=output, quiet=True)
    assert json.loads(output.read_text()) == found.as_plain_data()
    assert found.split is None and found.root == str(own_shapes) and found.scores.images == 3
    assert not checkpoint.with_name("trained.evaluation.json").exists()


def test_images_may_differ_in_size(checkpoint: Path, own_shapes: Path) -> None:
    for name, size in (("shape0", (31, 47)), ("shape1", (90, 33))):
        Image.new("RGB", size).save(own_shapes / f"images/{name}.png")
        for folder in ("scribbles", "masks"):
            Image.fromarray(np.zeros(size[::-1], np.uint8)).save(
                own_shapes / f"{folder}/{name}.png"
            )
    found = evaluate(checkpoint, data={"root": own_shapes}, views=Views([0.75, 1]), quiet=True)
    pixels = sum(part.pixels for part in found.scores.by_border_distance)
    assert pixels == 31 * 47 + 90 * 33 + 48 * 64


def test_other_classes_are_refused(checkpoint: Path, own_shapes: Path) -> None:
    (own_shapes / "classes.txt").write_text("background\nsquare\ndisc\n")
    with pytest.raises(UserError) as caught:
        evaluate(checkpoint, data={"root": own_shapes}, quiet=True)
    assert "expected the checkpoint's classes background, disc, square; got background, square" in (
        str(caught.value)
    )


@pytest.mark.parametrize("content", [b"", b"no checkpoint", None])
def test_other_files_are_no_checkpoints(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "file.pt"
    if content is None:
        torch.save({"weights": torch.zeros(2)}, path)
    else:
        path.write_bytes(content)
    with pytest.raises(
        UserError, match=r"file\.pt: expected a checkpoint that `blpseg train` wrote"
    ):
        evaluate(path, quiet=True)
    with pytest.raises(UserError, match=r"gone\.pt: expected a checkpoint, but there is no such"):
        evaluate(tmp_path / "gone.pt", quiet=True)
