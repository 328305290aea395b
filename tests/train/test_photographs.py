"""The built-in photographs: their scribbles fit them, and are few enough to teach."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from blpseg.data.photographs import CLASSES, PHOTOGRAPHS, load_photograph, write_photographs
from blpseg.data.shapes import UNLABELED

from .conftest import folder_of

PRESENT = {
    "astronaut": {"background", "flag", "spacecraft", "helmet", "person"},
    "chelsea": {"background", "cat"},
    "coffee": {"background", "cup", "saucer", "spoon"},
}


@pytest.mark.parametrize("name", PHOTOGRAPHS)
def test_scribbles_fit_the_photograph(name: str) -> None:
    image, scribbles = load_photograph(name)
    assert image.shape == (*scribbles.shape, 3)
    drawn = scribbles != UNLABELED
    assert {CLASSES[label] for label in np.unique(scribbles[drawn])} == PRESENT[name]
    assert 0.03 < drawn.mean() < 0.08


def test_they_are_a_data_set(tmp_path: Path) -> None:
    root = tmp_path / "photos"
    write_photographs(root)
    samples = folder_of(root)
    assert tuple(samples.classes) == CLASSES
    assert samples.names == list(PHOTOGRAPHS)
    for sample in samples:
        image, scribbles = load_photograph(sample.name)
        assert np.array_equal(sample.image.permute(1, 2, 0), image)
        expected = np.where(scribbles == UNLABELED, len(CLASSES), scribbles)
        assert np.array_equal(sample.target, expected)
    with pytest.raises(FileExistsError, match="not an empty folder"):
        write_photographs(root)


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(KeyError, match="rocket: expected one of astronaut, chelsea, coffee"):
        load_photograph("rocket")
