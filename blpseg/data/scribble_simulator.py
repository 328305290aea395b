"""Simulated scribbles on label masks, with the label preference that people show.

People draw in the roomy middle of a region, away from its border (Wang et al. 2023). On the human
scribbles of PASCAL VOC, background scribbles lie 43 px from the region's border on average where
the region's pixels lie 28 px, and 0.9 % of them within 5 px of it against 11 % of the region's; on
thin objects there is no such bias; 2 to 5 % of an image is labeled, and 0.1 to 1 % of that
contradicts the mask.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.random import Generator
from PIL import Image, ImageDraw
from scipy import ndimage
from skimage.graph import MCP_Geometric

from blpseg.data.regions import check_label_map, distance_to_border
from blpseg.data.shapes import UNLABELED, draw_stroke, shrink_stroke

# Found by measuring the simulator against the figures above. "Side" is the picture's longer side.
_SHARE = 0.03  # of a region's pixels to label
_STROKE = (0.5, 1.1)  # length of one stroke, over the root of the region's area
_ROOMY = 0.012  # distance from the border where people begin to prefer the middle, over the side
_END_PULL = 1.5  # exponent of the preference where a stroke begins and ends
_PATH_PULL = (
    0.1,
    1.4,
)  # exponent along the path: constant, and per unit of preference
_APART = 10  # cells within which a stroke repels the next
_WOBBLE = 0.006  # standard deviation of the hand, over the side
_CAREFUL = 0.5  # and at most this share of the distance to the border
_GRID = 64  # cells a side, at most, that a stroke is planned on
_SMALLEST = (1.5, 0.0005)  # area that gets a stroke: in brush areas, and over the side squared


@dataclass(frozen=True)
class ScribbleOptions:
    """Settings of the simulator.

    Raises:
        ValueError: A setting is out of range.
    """

    preference: float = 1.0
    """Strength of the label preference: 0 draws anywhere in a region, 1 as people do."""

    width: int = 3
    """Width of the brush, in pixels."""

    length: float = 1.0
    """Factor on the length of the strokes."""

    drop: float = 0.0
    """Probability that a stroke is left out."""

    shrink: float = 0.0
    """Share of each stroke's length that is cut off, half of it at each end; 1 leaves a dot."""

    def __post_init__(self) -> None:
        if not 0 <= self.preference < float("inf"):
            raise ValueError(f"preference must be a finite number >= 0, got {self.preference}")
        if not (isinstance(self.width, int | np.integer) and self.width >= 1):
            raise ValueError(f"width must be a whole number of pixels >= 1, got {self.width}")
        if not 0 < self.length < float("inf"):
            raise ValueError(f"length must be a finite number > 0, got {self.length}")
        if not 0 <= self.drop <= 1:
            raise ValueError(f"drop must lie in 0..1, got {self.drop}")
        if not 0 <= self.shrink <= 1:
            raise ValueError(f"shrink must lie in 0..1, got {self.shrink}")


def simulate_scribbles(
    mask: np.ndarray,  # [H, W] integers
    *,
    seed: int | Sequence[int],
    preference: float = 1.0,
    width: int = 3,
    length: float = 1.0,
    drop: float = 0.0,
    shrink: float = 0.0,
    ignore_value: int = 255,
) -> np.ndarray:  # [H, W] uint8
    """Draw scribbles on a mask as a person would.

    Every connected region of a class gets strokes in proportion to its area. A stroke begins and
    ends at random places that prefer the middle of the region, and follows a path between them
    that prefers the middle as well. Smoothing and jitter then imitate the hand, so a few pixels
    cross the border. Regions hardly larger than the brush get no stroke.

    Args:
        mask: [H, W] integers: classes 0..254, and ``ignore_value`` for void, not scribbled on.
        seed: A non-negative int or a sequence of them, as `numpy.random.SeedSequence` takes it.
        preference: Strength of the label preference: 0 draws anywhere in a region, 1 as people do.
        width: Width of the brush, in pixels.
        length: Factor on the length of the strokes.
        drop: Probability that a stroke is left out; a class may lose all of its strokes.
        shrink: Share of each stroke's length that is cut off, half of it at each end. The other
            strokes do not change with this or ``drop``.
        ignore_value: Value of void pixels.

    Returns:
        [H, W] uint8, the class where there is a scribble, 255 elsewhere.

    Raises:
        ValueError: The mask is no label map, or a setting is out of range.
    """
    options = ScribbleOptions(preference, width, length, drop, shrink)
    labels = _labels_of(mask, ignore_value)
    canvas = Image.new("L", mask.shape[::-1], UNLABELED)
    draw = ImageDraw.Draw(canvas)
    rng = np.random.default_rng(seed)
    for label in labels:
        for region in _regions(mask == label, options):
            for stroke in _enough_strokes(region, max(mask.shape), options, rng):
                if rng.random() >= options.drop:
                    kept = shrink_stroke(stroke + region.corner, options.shrink)
                    draw_stroke(draw, kept, label, options.width)
    return np.array(canvas)


def simulate_strokes(
    mask: np.ndarray,  # [H, W] integers
    strokes: int,
    *,
    seed: int | Sequence[int],
    preference: float = 1.0,
    width: int = 3,
    length: float = 1.0,
    ignore_value: int = 255,
) -> np.ndarray:  # [H, W] uint8
    """Draw a given number of strokes per class, as a person who is short of time.

    The strokes are those of `simulate_scribbles`. Each goes to the connected region of the class
    with the largest area per stroke. With one seed, a larger number adds strokes to the same ones.

    Args:
        mask: [H, W] integers: classes 0..254, and ``ignore_value`` for void, not scribbled on.
        strokes: Number of strokes per class, >= 1.
        seed: A non-negative int or a sequence of them, as `numpy.random.SeedSequence` takes it.
        preference: Strength of the label preference: 0 draws anywhere in a region, 1 as people do.
        width: Width of the brush, in pixels.
        length: Factor on the length of the strokes.
        ignore_value: Value of void pixels.

    Returns:
        [H, W] uint8, the class where there is a stroke, 255 elsewhere. A class has none if all its
        regions are hardly larger than the brush.

    Raises:
        ValueError: The mask is no label map, or a setting is out of range.
    """
    options = ScribbleOptions(preference, width, length)
    if strokes < 1:
        raise ValueError(f"strokes must be >= 1, got {strokes}")
    labels = _labels_of(mask, ignore_value)
    canvas = Image.new("L", mask.shape[::-1], UNLABELED)
    draw = ImageDraw.Draw(canvas)
    for label in labels:
        rng = np.random.default_rng([*np.atleast_1d(seed), label])
        regions = [*_regions(mask == label, options)]
        planned = [_strokes(region, max(mask.shape), options, rng) for region in regions]
        drawn = [0] * len(regions)
        for _ in range(strokes if regions else 0):
            at = max(range(len(regions)), key=lambda i: regions[i].area / (1 + drawn[i]))
            draw_stroke(draw, next(planned[at]) + regions[at].corner, label, options.width)
            drawn[at] += 1
    return np.array(canvas)


def _labels_of(mask: np.ndarray, ignore_value: int) -> list[int]:
    check_label_map("mask", mask)
    labels = [int(label) for label in np.unique(mask) if label != ignore_value]
    if labels and not 0 <= labels[0] <= labels[-1] < UNLABELED:
        raise ValueError(f"mask must hold 0..254 or {ignore_value}, got {labels[0]}..{labels[-1]}")
    return labels


class _Region(NamedTuple):
    """A connected region of a class."""

    depth: np.ndarray  # [h, w], the pixels' distance to the region's border; 0 outside
    corner: tuple[int, int]  # x, y of the window's first pixel
    area: int  # in pixels


def _regions(of_class: np.ndarray, options: ScribbleOptions) -> Iterator[_Region]:
    """List the connected regions of a class that are large enough for a stroke."""
    regions, _ = ndimage.label(of_class)
    smallest = max(_SMALLEST[0] * options.width**2, _SMALLEST[1] * max(of_class.shape) ** 2)
    for index, window in enumerate(ndimage.find_objects(regions), 1):
        inside = regions[window] == index
        if (area := int(inside.sum())) >= smallest:
            corner = (window[1].start, window[0].start)
            yield _Region(distance_to_border(inside), corner, area)


def _enough_strokes(
    region: _Region, side: float, options: ScribbleOptions, rng: Generator
) -> Iterator[np.ndarray]:  # [P, 2] x, y
    """Plan the strokes of a region until their total length suffices."""
    wanted = options.length * _SHARE * region.area / options.width
    for stroke in _strokes(region, side, options, rng):
        yield stroke
        wanted -= max(float(np.hypot(*np.diff(stroke, axis=0).T).sum()), options.width)
        if wanted < options.length * region.area**0.5 / 2:
            return


def _strokes(
    region: _Region,
    side: float,  # the longer side of the picture, in pixels
    options: ScribbleOptions,
    rng: Generator,
) -> Iterator[np.ndarray]:  # [P, 2] x, y
    """Plan strokes of one connected region without an end; each avoids those before it."""
    depth, spots = _cells(region.depth)
    roominess = 1 + depth / (_ROOMY * side)
    ends = ((depth > 0) * roominess ** (_END_PULL * options.preference)).ravel()
    ends /= ends.sum()
    pull = _PATH_PULL[0] + _PATH_PULL[1] * options.preference
    cost = np.where(depth > 0, roominess**-pull, -1)  # -1: no way through
    fresh = depth > 0  # cells that no stroke has crossed
    typical = options.length * region.area**0.5
    while True:
        longest = typical * rng.uniform(*_STROKE)
        start, *others = rng.choice(ends.size, 9, p=ends)
        # Of 8 candidate ends, take the one that gives the stroke the wanted length.
        apart = np.hypot(*(spots.reshape(-1, 2)[others] - spots.reshape(-1, 2)[start]).T)
        end = others[int(np.abs(apart - longest).argmin())]
        begin, finish = (np.unravel_index(i, depth.shape) for i in (start, end))
        ways = MCP_Geometric(cost)
        ways.find_costs([begin], [finish])
        way = tuple(np.transpose(ways.traceback(finish)))
        stroke = _smooth_and_jitter(
            spots[way], np.minimum(_WOBBLE * side, _CAREFUL * depth[way]), rng
        )
        reach = np.r_[0, np.cumsum(np.hypot(*np.diff(stroke, axis=0).T))]
        stroke = stroke[reach <= longest]
        yield stroke
        fresh[way] = False
        # The next stroke avoids this one, so that strokes spread over the region.
        novelty = np.minimum(1, ndimage.distance_transform_edt(fresh) / _APART + 0.02)
        ends = ends * novelty.ravel()
        ends /= ends.sum()
        cost = np.where(depth > 0, cost / novelty, -1)


def _cells(
    depth: np.ndarray,  # [h, w]
) -> tuple[np.ndarray, np.ndarray]:  # [r, c] depth, [r, c, 2] x, y in pixels
    """Coarsen a map of border distances to cells; a cell takes its pixel of largest distance.

    Thin parts stay connected this way, and paths from cell to cell stay inside the region.
    """
    size = -(-max(depth.shape) // _GRID)
    padded = np.pad(depth, [(0, -extent % size) for extent in depth.shape])
    rows, columns = (extent // size for extent in padded.shape)
    pixels = padded.reshape(rows, size, columns, size).swapaxes(1, 2).reshape(rows, columns, -1)
    y, x = np.divmod(pixels.argmax(2), size)
    x, y = x + size * np.arange(columns), y + size * np.arange(rows)[:, None]
    return pixels.max(2), np.stack([x, y], 2).astype(float)


def _smooth_and_jitter(
    path: np.ndarray,  # [P, 2] x, y
    wobble: np.ndarray,  # [P], standard deviation, in pixels
    rng: Generator,
) -> np.ndarray:  # [P, 2]
    """Imitate a hand: round a planned path's corners and let it drift."""
    rounded = ndimage.gaussian_filter1d(path, 1.5, axis=0, mode="nearest")
    slow = 3.0  # steps over which the hand drifts; the root restores the deviation
    drift = ndimage.gaussian_filter1d(rng.normal(size=path.shape), slow, axis=0, mode="wrap")
    return rounded + wobble[:, None] * (2 * slow * np.pi**0.5) ** 0.5 * drift
