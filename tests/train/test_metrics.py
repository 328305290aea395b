"""Scores against what one counts by hand."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from blpseg.metrics import (
    AccuracyByDistance,
    SegmentationScores,
    border_distance,
    scribble_distance,
)

NONE = torch.full((1, 4), 9)


def labels(*rows: list[int]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.uint8)


def nearest(points: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Distance of each pixel to the nearest of the points, by trying them all."""
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
    assert found["by_scribble_distance"][0] == {"start": 0, "end": 5, "accuracy": 0.75, "pixels": 4}
