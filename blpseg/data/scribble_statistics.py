"""Measure how scribbles compare with masks: how many pixels, and how far from the borders."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import zip_longest

import numpy as np

from blpseg.data.regions import check_label_map, distance_to_border
from blpseg.data.shapes import UNLABELED


@dataclass(frozen=True)
class DistanceSums:
    """Sums of the distance of pixels to their region's border."""

    pixels: int = 0
    distance: float = 0.0
    near: int = 0
    histogram: tuple[int, ...] = field(default=(), compare=False)
    """Number of pixels per distance, in steps of 1 px: up to 1, up to 2, ..."""

    def __add__(self, other: DistanceSums) -> DistanceSums:
        return DistanceSums(
            self.pixels + other.pixels,
            self.distance + other.distance,
            self.near + other.near,
            tuple(map(sum, zip_longest(self.histogram, other.histogram, fillvalue=0))),
        )

    @property
    def mean(self) -> float:
        """Mean distance, in pixels; NaN without pixels."""
        return self.distance / self.pixels if self.pixels else float("nan")

    @property
    def near_share(self) -> float:
        """Share of the pixels near the border; NaN without pixels."""
        return self.near / self.pixels if self.pixels else float("nan")


@dataclass(frozen=True)
class ScribbleStatistics:
    """How scribbles compare with masks; `+` adds the statistics of images."""

    pixels: int
    """Number of pixels in the image without void."""

    labeled: int
    """Number of scribbled pixels."""

    contradicting: int
    """Number of scribbled pixels whose class differs from the mask's."""

    region: dict[int, DistanceSums]
    """Per class, over all its pixels in the mask."""

    scribble: dict[int, DistanceSums]
    """Per class, over its scribbled pixels that agree with the mask."""

    def __add__(self, other: ScribbleStatistics) -> ScribbleStatistics:
        return ScribbleStatistics(
            self.pixels + other.pixels,
            self.labeled + other.labeled,
            self.contradicting + other.contradicting,
            _merge(self.region, other.region),
            _merge(self.scribble, other.scribble),
        )

    @property
    def labeled_share(self) -> float:
        """Share of the pixels that are scribbled."""
        return self.labeled / self.pixels if self.pixels else float("nan")

    @property
    def contradicting_share(self) -> float:
        """Share of the scribbled pixels that contradict the mask."""
        return self.contradicting / self.labeled if self.labeled else float("nan")


def scribble_statistics(
    scribble: np.ndarray,  # [H, W] integers
    mask: np.ndarray,  # [H, W] integers
    *,
    border: float = 5.0,
    ignore_value: int = 255,
) -> ScribbleStatistics:
    """Measure how far from their region's border scribbles lie.

    A pixel's distance is measured to the nearest pixel of another class, of void, or outside the
    image.

    Args:
        scribble: [H, W] integers, 255 where there is no scribble.
        mask: [H, W] integers, the true classes.
        border: Distance in pixels up to which a pixel counts as near the border.
        ignore_value: Value of void pixels in the mask, which do not count.

    Returns:
        The statistics of this image.

    Raises:
        ValueError: An array is no label map, or their sizes differ.
    """
    check_label_map("scribble", scribble)
    check_label_map("mask", mask)
    if scribble.shape != mask.shape:
        raise ValueError(f"scribble must have the mask's size {mask.shape}, got {scribble.shape}")
    known = mask != ignore_value
    drawn = known & (scribble != UNLABELED)
    region, scribbled = {}, {}
    for label in np.unique(mask[known]):
        inside = mask == label
        distance = distance_to_border(inside)
        region[int(label)] = _sums(distance[inside], border)
        scribbled[int(label)] = _sums(distance[inside & (scribble == label)], border)
    contradicting = int((drawn & (scribble != mask)).sum())
    return ScribbleStatistics(int(known.sum()), int(drawn.sum()), contradicting, region, scribbled)


def _sums(distance: np.ndarray, border: float) -> DistanceSums:
    steps = np.maximum(np.ceil(distance).astype(int) - 1, 0)
    return DistanceSums(
        distance.size,
        float(distance.sum()),
        int((distance <= border).sum()),
        tuple(np.bincount(steps).tolist()),
    )


def _merge(a: dict[int, DistanceSums], b: dict[int, DistanceSums]) -> dict[int, DistanceSums]:
    none = DistanceSums()
    return {label: a.get(label, none) + b.get(label, none) for label in sorted({*a, *b})}
