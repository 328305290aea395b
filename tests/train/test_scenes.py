"""The built-in data set: what varies, what the seed fixes, and the folder it is written to."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import binary_opening

from blpseg.data.scenes import CLASSES, render_scene, write_scenes
from blpseg.data.shapes import UNLABELED


@pytest.mark.parametrize("size", [16, 128, (60, 201)], ids=str)
def test_shapes_and_labels(size: int | tuple[int, int]) -> None:
    shape = (size, size) if isinstance(size, int) else size
    image, mask = render_scene(1, size)
    assert image.shape == (*shape, 3)
    assert mask.shape == shape
    assert image.dtype == mask.dtype == np.uint8
    assert mask.max() < len(CLASSES)


def test_the_seed_decides_and_nothing_else() -> None:
    first = render_scene((1, 2))
    np.random.seed(0)
    again, other = render_scene((1, 2)), render_scene((1, 3))
    assert np.array_equal(first.image, again.image)
    assert np.array_equal(first.mask, again.mask)
    assert not np.array_equal(first.image, other.image)


def test_scenes_vary() -> None:
    """Every class occurs, alone and in company, with thick and thin parts, in many hues."""
    scenes = [render_scene((7, index)) for index in range(120)]
    present = np.array([[(mask == k).any() for k in range(len(CLASSES))] for _, mask in scenes])
    assert present[:, 0].all()
    assert (present[:, 1:].mean(0) > 0.15).all()
    counts = present[:, 1:].sum(1)
    assert {1, 2, 3} <= set(counts)
    for label in range(1, len(CLASSES)):
        shown = [scene for scene in scenes if (scene.mask == label).sum() > 200]
        colors = np.array([scene.image[scene.mask == label].mean(0) for scene in shown])
        # Classes' colors spread about as widely as all colors do, so none is told by its color.
        assert colors.std(0).mean() > 25, CLASSES[label]
        thin = [_thin_share(scene.mask == label) for scene in shown]
        assert np.mean(thin) > 0.05, CLASSES[label]


def _thin_share(region: np.ndarray) -> float:
    """Share of a region that an opening by a 7 x 7 square removes."""
    return 1 - binary_opening(region, np.ones((7, 7))).sum() / region.sum()


def test_writes_a_data_set(tmp_path: Path) -> None:
    root = tmp_path / "scenes"
    write_scenes(root, 3, seed=5, size=64, val_count=2)
    assert (root / "classes.txt").read_text().split() == list(CLASSES)
    names = (root / "splits" / "train.txt").read_text().split()
    val_names = (root / "splits" / "val.txt").read_text().split()
    assert len(names) == 3
    assert len(val_names) == 2
    for name in names + val_names:
        image, scribble, mask = (
            Image.open(root / folder / f"{name}.png") for folder in ("images", "scribbles", "masks")
        )
        assert image.size == scribble.size == mask.size == (64, 64)
        assert (image.mode, scribble.mode, mask.mode) == ("RGB", "P", "P")
        drawn = np.asarray(scribble)
        assert 0 < (drawn != UNLABELED).sum() < 0.2 * drawn.size


def test_a_scene_does_not_depend_on_the_count(tmp_path: Path) -> None:
    write_scenes(tmp_path / "few", 1, size=32, val_count=1)
    write_scenes(tmp_path / "many", 3, size=32, val_count=2)
    for file in (tmp_path / "few").glob("*/*.png"):
        other = tmp_path / "many" / file.relative_to(tmp_path / "few")
        assert file.read_bytes() == other.read_bytes()
    train, val = (
        np.asarray(Image.open(next((tmp_path / "few" / "images").glob(f"{split}*"))))
        for split in ("train", "val")
    )
    assert not np.array_equal(train, val)


def test_scribble_options_are_passed_on(tmp_path: Path) -> None:
    write_scenes(tmp_path / "none", 1, size=32, drop=1.0)
    (file,) = (tmp_path / "none" / "scribbles").iterdir()
    assert (np.asarray(Image.open(file)) == UNLABELED).all()


def test_never_writes_over_anything(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(FileExistsError, match="is not an empty folder"):
        write_scenes(tmp_path, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_bad_arguments(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least 16 pixels, got 8"):
        render_scene(0, 8)
    with pytest.raises(ValueError, match="must not be negative, got -1 and 0"):
        write_scenes(tmp_path / "a", -1)
    with pytest.raises(ValueError, match=r"drop must lie in 0\.\.1, got 2"):
        write_scenes(tmp_path / "a", 1, drop=2)
    assert not (tmp_path / "a").exists()
