"""Prediction on people's own photos."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import blpseg_ops
from blpseg.checkpoints import load_model
from blpseg.data.photos import read_photo
from blpseg.devices import choose_device
from blpseg.errors import UserError
from blpseg.inference import predict_image
from blpseg.pictures import heat_map, overlay
from blpseg.prediction import find_photos, predict, pseudo_label_map

from .conftest import folder_of

KINDS = ("masks", "overlays", "annotation")


@pytest.fixture
def photos(tmp_path: Path, shapes: Path) -> Path:
    """Return a folder with a JPEG that EXIF turns, a gray photo and one with transparency."""
    folder = tmp_path / "photos"
    folder.mkdir()
    photo = Image.open(shapes / "images/shape0.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    photo.save(folder / "turned.jpg", exif=exif)
    photo.convert("L").resize((35, 50)).save(folder / "gray.png")
    photo.convert("RGBA").save(folder / "clear.png")
    (folder / "notes.txt").write_text("no photo")
    return folder


def test_results_are_those_of_the_model(checkpoint: Path, photos: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    assert predict(checkpoint, [str(photos)], output, quiet=True) == []
    names = {"turned": (48, 64), "gray": (35, 50), "clear": (64, 48)}
    written = {str(path.relative_to(output)) for path in output.rglob("*.png")}
    assert written == {f"{kind}/{name}.png" for kind in KINDS for name in names} | {"sheet.png"}
    model = load_model(checkpoint).model
    for name, size in names.items():
        mask = Image.open(output / f"masks/{name}.png")
        assert mask.mode == "P" and mask.size == size
        photo = np.array(read_photo(next(photos.glob(f"{name}.*"))))
        found = predict_image(model, torch.from_numpy(photo).permute(2, 0, 1))
        labels = np.asarray(mask)
        assert np.array_equal(labels, found.labels.numpy())
        shown = np.asarray(Image.open(output / f"overlays/{name}.png"))
        assert np.array_equal(shown, overlay(photo, labels))
        heat = np.asarray(Image.open(output / f"annotation/{name}.png"))
        assert np.array_equal(heat, heat_map(found.annotation_probability.numpy()))
    assert len(np.unique(np.asarray(Image.open(output / "masks/clear.png")))) == 3


def test_failures_do_not_stop_the_others(checkpoint: Path, photos: Path, tmp_path: Path) -> None:
    (photos / "broken.jpg").write_bytes((photos / "turned.jpg").read_bytes()[:300])
    failures = predict(checkpoint, [str(photos)], tmp_path / "out", quiet=True)
    assert [failure.path for failure in failures] == [photos / "broken.jpg"]
    assert failures[0].reason.startswith(f"{photos / 'broken.jpg'}: cannot be read")
    assert {path.stem for path in (tmp_path / "out/masks").iterdir()} == {"turned", "gray", "clear"}


def test_results_are_not_overwritten_unless_asked(
    checkpoint: Path, photos: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    (output / "overlays").mkdir(parents=True)
    (output / "overlays/gray.png").write_text("precious")
    with pytest.raises(UserError) as caught:
        predict(checkpoint, [str(photos)], output, quiet=True)
    assert "overlays/gray.png: exists already" in str(caught.value)
    assert (output / "overlays/gray.png").read_text() == "precious"
    assert [path.name for path in output.iterdir()] == ["overlays"]
    predict(checkpoint, [str(photos)], output, overwrite=True, quiet=True)
    assert Image.open(output / "overlays/gray.png").size == (35, 50)


def test_inputs_are_files_folders_and_patterns(photos: Path) -> None:
    (photos / "deep").mkdir()
    (photos / "gray.png").rename(photos / "deep/gray[1].png")
    found = find_photos([str(photos / "turned.jpg"), str(photos), str(photos / "**/*.png")])
    assert found == [photos / "turned.jpg", photos / "clear.png", photos / "deep/gray[1].png"]
    assert find_photos([str(photos / "deep/gray[1].png")]) == [photos / "deep/gray[1].png"]


def test_inputs_of_one_name_are_refused(photos: Path) -> None:
    (photos / "deep").mkdir()
    (photos / "deep/gray.jpg").write_text("")
    with pytest.raises(UserError) as caught:
        find_photos([str(photos), str(photos / "deep")])
    assert f"{photos / 'gray.png'}, {photos / 'deep/gray.jpg'}: the same name" in str(caught.value)


@pytest.mark.parametrize("name", ["gone.jpg", "*.bmp", "empty"])
def test_inputs_that_name_nothing_are_refused(photos: Path, name: str) -> None:
    (photos / "empty").mkdir()
    with pytest.raises(UserError, match="expected an image, a folder of images or a pattern"):
        find_photos([str(photos / "gray.png"), str(photos / name)])


def test_devices_that_do_not_exist_are_refused() -> None:
    assert choose_device("cpu") == torch.device("cpu")
    assert choose_device("auto").type in ("cpu", "cuda", "mps", "xpu")
    with pytest.raises(
        UserError, match="device: expected auto or a torch device of this machine, got 'abacus'"
    ):
        choose_device("abacus")


def test_pseudo_labels_are_those_of_self_training(
    checkpoint: Path, shapes: Path, tmp_path: Path
) -> None:
    """A second stage can train on the files, and reads the labels that the op computes."""
    output = tmp_path / "out"
    predict(
        checkpoint,
        [str(shapes / "images")],
        output,
        pseudo_labels=True,
        threshold=0.6,
        scribbles=shapes / "scribbles",
        quiet=True,
    )
    model = load_model(checkpoint).model
    scribbled = folder_of(shapes)
    second_stage = folder_of(shapes, scribbles=output / "pseudo_labels")
    assert second_stage.names == scribbled.names
    shares = []
    for drawn, read in zip(scribbled, second_stage, strict=True):
        with torch.inference_mode():
            logits, _ = model.logits(drawn.image.float()[None] / 255)
        expected = blpseg_ops.pseudo_labels(
            logits, drawn.target[None], drawn.class_present[None], threshold=0.6
        )[0]
        expected[expected == 255] = model.num_classes  # unlabeled in a scribble file
        assert (read.target == expected).float().mean() > 0.999  # rounding at the threshold
        shares.append((read.target < model.num_classes).float().mean().item())
    assert 0.1 < np.mean(shares) < 1


def test_only_classes_of_the_scribbles_become_pseudo_labels() -> None:
    p = torch.tensor([[0.1, 0.2, 0.05, 0.5], [0.2, 0.1, 0.9, 0.3], [0.7, 0.7, 0.05, 0.2]])[:, None]
    scribbles = torch.tensor([[255, 1, 255, 255]], dtype=torch.uint8)
    assert pseudo_label_map(p, 0.6).tolist() == [[2, 2, 1, 255]]
    assert pseudo_label_map(p, 0.6, scribbles).tolist() == [[255, 1, 1, 255]]
    assert pseudo_label_map(p, 0.5, scribbles).tolist() == [[255, 1, 1, 0]]


def test_probabilities_are_saved(checkpoint: Path, photos: Path, tmp_path: Path) -> None:
    predict(checkpoint, [str(photos)], tmp_path, probabilities=True, quiet=True)
    for name, size in {"turned": (48, 64), "gray": (35, 50)}.items():
        p = np.load(tmp_path / f"probabilities/{name}.npz")["probabilities"]
        assert p.dtype == np.float16 and p.shape == (3, *size[::-1])
        assert np.allclose(p.sum(0, dtype=np.float32), 1, atol=2e-3)
        labels = np.asarray(Image.open(tmp_path / f"masks/{name}.png"))
        chosen = np.take_along_axis(p, labels[None].astype(int), 0)[0]
        assert (chosen >= p.max(0) - 1e-3).all()


def test_wrong_options_for_pseudo_labels(checkpoint: Path, photos: Path, tmp_path: Path) -> None:
    def refuse(message: str, **options: object) -> None:
        with pytest.raises(UserError, match=message):
            predict(checkpoint, [str(photos)], tmp_path / "out", quiet=True, **options)
        assert not (tmp_path / "out").exists()

    refuse("threshold: expected pseudo_labels with it", threshold=0.5)
    refuse("threshold: expected 0 to 1, got 2", pseudo_labels=True, threshold=2)
    (tmp_path / "drawn").mkdir()
    refuse("gray.png: there is no such file", pseudo_labels=True, scribbles=tmp_path / "drawn")
    for name in ("turned", "gray", "clear"):
        Image.new("L", (35, 50), 9).save(tmp_path / f"drawn/{name}.png")
    failures = predict(
        checkpoint,
        [str(photos)],
        tmp_path / "out",
        pseudo_labels=True,
        scribbles=tmp_path / "drawn",
        quiet=True,
    )
    reasons = {failure.path.stem: failure.reason for failure in failures}
    assert "holds the value 9; expected 0 to 2" in reasons["gray"]
    assert "is 35 x 50, but its image is 64 x 48" in reasons["clear"]
