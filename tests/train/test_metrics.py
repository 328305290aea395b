"""Scores equal counts made by hand."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from scipy.ndimage import binary_erosion

from blpseg.metrics import (
    AccuracyByDistance,
    BoundaryIoU,
    DistanceBin,
    Scores,
    SegmentationScores,
    band_width,
    border_band,
    border_distance,
    image_miou,
    scribble_distance,
)

NONE = torch.full((1, 4), 9)


def labels(*rows: list[int]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.uint8)


def nearest(points: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Return the distance of each pixel to the nearest point, by trying every point."""
    grid = np.stack(np.indices(shape), -1)[..., None, :]
    return np.sqrt(((grid - points) ** 2).sum(-1)).min(-1)


def test_iou_is_counted_over_the_whole_set_without_void() -> None:
    scores = SegmentationScores(["a", "b", "c"], distances=False)
    scores.update(labels([0, 0, 1, 1]), labels([0, 1, 1, 255]), NONE)
    scores.update(labels([1, 1, 1, 0]), labels([1, 1, 1, 1]), NONE)
    found = scores.compute()
    assert found.iou == {"a": pytest.approx(1 / 3), "b": pytest.approx(4 / 6), "c": None}
    assert found.miou == pytest.approx((1 / 3 + 4 / 6) / 2)
    assert found.images == 2


def test_a_class_that_is_only_predicted_counts_as_0() -> None:
    scores = SegmentationScores(["a", "b", "c"], distances=False)
    scores.update(labels([0, 0, 2, 0]), labels([0, 0, 0, 0]), NONE)
    found = scores.compute()
    assert found.iou == {"a": pytest.approx(3 / 4), "b": None, "c": 0}
    assert found.miou == pytest.approx(3 / 8)


def test_nothing_but_void_gives_no_scores() -> None:
    scores = SegmentationScores(["a", "b"])
    scores.update(labels([0, 0, 1, 0]), labels([255, 255, 255, 255]), labels([2, 2, 2, 0]))
    found = scores.compute()
    assert found.miou is None and found.iou == {"a": None, "b": None}
    assert all(part.accuracy is None for part in found.by_border_distance)


def test_border_distance_is_the_distance_to_another_label() -> None:
    mask = np.random.default_rng(0).integers(0, 3, (4, 5)).repeat(4, 0).repeat(4, 1)
    mask[:2, :3] = 255
    found = border_distance(mask)
    for label in np.unique(mask):
        others = np.argwhere(mask != label)
        assert np.allclose(found[mask == label], nearest(others, mask.shape)[mask == label])
    assert found.min() == 1


def test_an_image_of_one_label_has_no_border() -> None:
    assert np.isinf(border_distance(np.zeros((3, 4), np.uint8))).all()


def test_scribble_distance_is_the_distance_to_any_scribble() -> None:
    target = np.full((20, 30), 3)
    target[4, 5:12], target[15, 25] = 0, 2
    found = scribble_distance(target, 3)
    assert np.allclose(found, nearest(np.argwhere(target < 3), target.shape))


def test_accuracy_by_distance_bins_are_half_open() -> None:
    metric = AccuracyByDistance((0, 2, 5))
    metric.update(np.array([True, False, True]), np.array([0, 1.9, 2]))
    metric.update(np.array([True, False, False]), np.array([4.9, 5, np.inf]))
    bins = [(b.start, b.end, b.accuracy, b.pixels) for b in metric.compute()]
    assert bins == [(0, 2, 0.5, 2), (2, 5, 1.0, 2), (5, None, 0.0, 2)]


def eroded_band(region: np.ndarray, width: int) -> np.ndarray:
    """Return a region minus `width` 3 x 3 erosions of it, as Boundary IoU defines it."""
    inside = binary_erosion(np.pad(region, 1), np.ones((3, 3)), iterations=width)[1:-1, 1:-1]
    return region & ~inside


@pytest.mark.parametrize("width", [1, 2, 5])
def test_border_band_is_what_erosion_takes_from_each_region(width: int) -> None:
    mask = np.random.default_rng(width).integers(0, 3, (5, 6)).repeat(7, 0).repeat(7, 1)
    mask[3:9, 2:4] = 255
    expected = np.zeros(mask.shape, bool)
    for label in np.unique(mask):
        expected |= eroded_band(mask == label, width)
    found = border_band(mask, width)
    assert np.array_equal(found, expected) and 0 < found.mean() < 1


def test_boundary_iou_is_that_of_erosion_class_by_class_over_the_set() -> None:
    rng, ratio, num_classes = np.random.default_rng(0), 0.03, 4
    metric = BoundaryIoU(num_classes, ratio)
    both, either = np.zeros(num_classes), np.zeros(num_classes)
    for height, width in ((41, 60), (63, 35), (20, 20)):
        mask = rng.integers(0, 3, (8, 8)).repeat(9, 0).repeat(9, 1)[:height, :width]
        prediction = np.roll(mask, 2, 1)
        mask[rng.random(mask.shape) < 0.02] = 255
        metric.update(prediction, mask)
        side = max(1, round(ratio * (height**2 + width**2) ** 0.5))
        for label in range(num_classes):
            ours = eroded_band((prediction == label) & (mask != 255), side)
            theirs = eroded_band(mask == label, side)
            both[label] += (ours & theirs).sum()
            either[label] += (ours | theirs).sum()
    found = metric.compute().numpy()
    assert np.allclose(found[:3], both[:3] / either[:3]) and np.isnan(found[3])
    assert 0.1 < found[0] < 0.9


def test_boundary_iou_is_lower_than_iou_where_only_borders_are_wrong() -> None:
    mask = torch.zeros(100, 100, dtype=torch.uint8)
    mask[20:80, 20:80] = 1
    prediction = mask.roll(3, 1)
    scores = SegmentationScores(["a", "b"])
    scores.update(prediction, mask, torch.full_like(mask, 2))
    found = scores.compute()
    assert found.iou["b"] == pytest.approx(57 / 63)
    assert found.boundary_iou["b"] < 0.5 and found.boundary_miou < found.miou
    scores = SegmentationScores(["a", "b"], boundary_ratio=0.5)  # all of the square is border
    scores.update(prediction, mask, torch.full_like(mask, 2))
    assert scores.compute().boundary_iou["b"] == pytest.approx(57 / 63)


def test_band_is_a_share_of_the_diagonal() -> None:
    assert band_width((300, 400), 0.02) == 10 and band_width((3, 4), 0.02) == 1


def test_an_image_s_miou_is_over_its_own_classes() -> None:
    mask, prediction = labels([0, 0, 3, 255]), labels([0, 3, 3, 7])
    assert image_miou(prediction, mask) == pytest.approx((1 / 2 + 1 / 2) / 2)
    assert image_miou(labels([0, 1, 3, 7]), mask) == pytest.approx((1 / 2 + 0 + 1) / 3)
    assert image_miou(prediction, labels([255] * 4)) is None


def test_bins_in_words() -> None:
    assert (
        DistanceBin(3, 6, 0.5, 9).span == "3 to 6" and DistanceBin(48, None, None, 0).span == "48+"
    )


def test_distances_are_collected_over_images_with_scribbles() -> None:
    mask = labels([0] * 8 + [1] * 8)
    target = torch.full((1, 16), 2, dtype=torch.uint8)
    scribbled = target.clone()
    scribbled[0, 0] = 0
    scores = SegmentationScores(["a", "b"])
    scores.update(labels([0] * 10 + [1] * 6), mask, scribbled)
    scores.update(mask, mask, target)
    found = scores.compute()
    scribble = {b.start: (b.accuracy, b.pixels) for b in found.by_scribble_distance}
    assert scribble[0] == (1, 5) and scribble[5] == (3 / 5, 5) and scribble[10] == (1, 6)
    border = {b.start: (b.accuracy, b.pixels) for b in found.by_border_distance}
    assert border[0] == (6 / 8, 8)
    assert sum(pixels for _, pixels in border.values()) == 32


def test_scores_are_fit_for_json() -> None:
    scores = SegmentationScores(["a", "b"])
    scores.update(labels([0, 0, 1, 1]), labels([0, 0, 0, 1]), labels([2, 2, 2, 1]))
    found = json.loads(json.dumps(scores.compute().as_plain_data(), allow_nan=False))
    assert found["iou"]["a"] == pytest.approx(2 / 3)
    assert Scores.from_plain_data(found) == scores.compute()
    assert found["by_scribble_distance"][0] == {"start": 0, "end": 5, "accuracy": 0.75, "pixels": 4}
