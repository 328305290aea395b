"""The scribble simulator against what is known of human scribbles, and its statistics."""

from __future__ import annotations

import re
from functools import reduce
from operator import add
from typing import Any

import numpy as np
import pytest
from scipy.ndimage import binary_dilation

from blpseg.data.scenes import render_scene
from blpseg.data.scribble_simulator import simulate_scribbles
from blpseg.data.scribble_statistics import DistanceSums, ScribbleStatistics, scribble_statistics
from blpseg.data.shapes import UNLABELED

VOC_SIZE = (375, 500)  # pixels; the human figures are for pictures of about this size


@pytest.fixture(scope="module")
def masks() -> list[np.ndarray]:
    return [render_scene((5, index), VOC_SIZE).mask for index in range(24)]


def _measure(masks: list[np.ndarray], **options: Any) -> ScribbleStatistics:
    return reduce(
        add,
        (
            scribble_statistics(simulate_scribbles(mask, seed=index, **options), mask)
            for index, mask in enumerate(masks)
        ),
    )


def _bias(found: ScribbleStatistics) -> float:
    """Return mean border distance of background scribbles / mean over the whole background."""
    return found.scribble[0].mean / found.region[0].mean


def test_prefers_the_middle_as_people_do(masks: list[np.ndarray]) -> None:
    found = _measure(masks)
    assert 1.3 < _bias(found) < 1.8  # people: 43 px / 28 px = 1.54
    # People: 0.9 % of the scribbles lie within 5 px of the border, and 11 % of the region does.
    assert found.scribble[0].near_share < 0.02
    assert 0.07 < found.region[0].near_share < 0.15
    assert 0.02 < found.labeled_share < 0.05  # people: 2 to 5 %
    assert 0.001 < found.contradicting_share < 0.01  # people: 0.1 to 1 %


def test_the_dial_of_the_preference(masks: list[np.ndarray]) -> None:
    biases = [_bias(_measure(masks[:12], preference=p)) for p in (0.0, 1.0, 3.0)]
    assert 0.85 < biases[0] < 1.25  # next to none: a path through a region cuts its corners
    assert biases[0] + 0.15 < biases[1] < biases[2]


@pytest.mark.parametrize("thickness", [4, 6])
def test_thin_things_show_no_preference(thickness: int) -> None:
    mask = np.zeros(VOC_SIZE, np.uint8)
    mask[50 : 50 + thickness, 20:480] = 1
    mask[100:360, 200 : 200 + thickness] = 1
    found = _measure([mask] * 12)
    assert found.scribble[1].pixels > 0
    assert 0.85 < found.scribble[1].mean / found.region[1].mean < 1.2


def test_every_large_region_is_scribbled_and_length_counts(masks: list[np.ndarray]) -> None:
    shares = {}
    for length in (0.5, 1.0, 2.0):
        shares[length] = _measure(masks[:8], length=length).labeled_share
    assert shares[0.5] < 0.75 * shares[1.0]
    assert shares[1.0] < 0.75 * shares[2.0]
    for index, mask in enumerate(masks):
        scribble = simulate_scribbles(mask, seed=index, length=0.5)
        large = {int(k) for k in np.unique(mask) if (mask == k).sum() > 3000}
        assert large <= set(np.unique(scribble))


def test_dropped_strokes(masks: list[np.ndarray]) -> None:
    mask = masks[0]
    assert (simulate_scribbles(mask, seed=0, drop=1.0) == UNLABELED).all()
    whole, half = _measure(masks[:8]), _measure(masks[:8], drop=0.5)
    assert 0.25 < half.labeled / whole.labeled < 0.75


def test_shrunk_strokes(masks: list[np.ndarray]) -> None:
    whole = simulate_scribbles(masks[0], seed=0, width=1) != UNLABELED
    near = binary_dilation(whole, np.ones((3, 3)))  # ends may round to other pixels
    counts = [int(whole.sum())]
    for share in (0.3, 0.7, 1.0):
        shrunk = simulate_scribbles(masks[0], seed=0, width=1, shrink=share) != UNLABELED
        assert not (shrunk & ~near).any()
        counts.append(int(shrunk.sum()))
    assert counts[1] < 0.85 * counts[0] and counts[2] < 0.6 * counts[1]
    assert 0 < counts[3] < 0.2 * counts[0]


def test_the_seed_decides_and_nothing_else(masks: list[np.ndarray]) -> None:
    first = simulate_scribbles(masks[0], seed=3)
    np.random.seed(1)
    assert np.array_equal(first, simulate_scribbles(masks[0], seed=3))
    assert not np.array_equal(first, simulate_scribbles(masks[0], seed=4))
    assert first.dtype == np.uint8
    assert first.shape == VOC_SIZE


def test_widths() -> None:
    mask = np.zeros((120, 160), np.uint8)
    areas = [
        sum((simulate_scribbles(mask, seed=s, width=w) == 0).sum() for s in range(6))
        / sum((simulate_scribbles(mask, seed=s, width=w, length=0.5) == 0).sum() for s in range(6))
        for w in (1, 3)
    ]
    assert min(areas) > 1.2
    line = simulate_scribbles(mask, seed=0, width=1)
    assert (line == 0).sum() > 20


@pytest.mark.parametrize(
    "mask",
    [
        np.zeros((1, 1), np.uint8),
        np.zeros((3, 200), np.uint8),
        np.full((40, 40), 254, np.uint8),
        np.full((20, 20), 255, np.uint8),
        np.eye(50, dtype=np.int64),
        np.pad(np.ones((1, 1), np.int32), 30),
        np.random.default_rng(0).integers(0, 200, (64, 64)),
    ],
    ids=["pixel", "strip", "one class", "void", "diagonal", "one-pixel region", "confetti"],
)
def test_odd_masks(mask: np.ndarray) -> None:
    scribble = simulate_scribbles(mask, seed=0)
    assert scribble.shape == mask.shape
    assert set(np.unique(scribble)) <= set(np.unique(mask)) | {UNLABELED}


def test_void_is_no_class() -> None:
    mask = np.zeros((80, 80), np.uint8)
    mask[:, 40:] = 7
    assert 7 not in simulate_scribbles(mask, seed=0, ignore_value=7)
    assert 7 in simulate_scribbles(mask, seed=0)


def test_statistics_by_hand() -> None:
    mask = np.zeros((5, 8), np.uint8)
    mask[:, 4:] = 1
    mask[0, 0] = 255
    scribble = np.full((5, 8), 255, np.uint8)
    scribble[2, 2:6] = 0  # two pixels right, two across the border
    scribble[0, 0] = 1  # on void: does not count
    scribble[4, 7] = 1
    found = scribble_statistics(scribble, mask, border=1.0)
    assert (found.pixels, found.labeled, found.contradicting) == (39, 5, 2)
    assert found.scribble == {0: DistanceSums(2, 3.0, 1), 1: DistanceSums(1, 1.0, 1)}
    assert found.region[1] == DistanceSums(20, 26.0, 14)
    assert found.contradicting_share == 0.4
    both = found + found
    assert both.region[1] == DistanceSums(40, 52.0, 28)
    assert both.labeled_share == found.labeled_share == 5 / 39
    assert both.region[1].mean == 1.3


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"preference": -1}, "preference must be a finite number >= 0, got -1"),
        ({"width": 0}, "width must be a whole number of pixels >= 1, got 0"),
        ({"width": 1.5}, "width must be a whole number of pixels >= 1, got 1.5"),
        ({"length": 0}, "length must be a finite number > 0, got 0"),
        ({"drop": 1.5}, "drop must lie in 0..1, got 1.5"),
        ({"shrink": -0.5}, "shrink must lie in 0..1, got -0.5"),
    ],
)
def test_dials_out_of_range(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match="^" + re.escape(text)):
        simulate_scribbles(np.zeros((8, 8), np.uint8), seed=0, **options)


@pytest.mark.parametrize(
    ("mask", "text"),
    [
        (np.zeros((2, 2, 3), np.uint8), "mask must be an [H, W] array of integers, got shape"),
        (np.zeros((2, 2)), "mask must be an [H, W] array of integers, got shape (2, 2), float64"),
        (np.full((9, 9), 300), "mask must hold 0..254 or 255, got 300..300"),
        (np.full((9, 9), -1), "mask must hold 0..254 or 255, got -1..-1"),
    ],
)
def test_masks_that_are_none(mask: np.ndarray, text: str) -> None:
    with pytest.raises(ValueError, match="^" + re.escape(text)):
        simulate_scribbles(mask, seed=0)
    with pytest.raises(ValueError, match="scribble must have the mask's size"):
        scribble_statistics(np.zeros((2, 3), np.uint8), np.zeros((3, 2), np.uint8))
