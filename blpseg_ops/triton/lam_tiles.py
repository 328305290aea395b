"""Which pairs of tiles matter: what is left out is proved to be below rounding (docs/lam-gpu.md).

The log of what source a weighs beside target b's denominator, or beside its own weight where that
is not known yet, is at most

    scale <f_a, f_b> + source_a + target_b - d^2 / (2 sigma^2).

Whole tiles are ruled out first, by 2 <f_a, f_b> = |f_a|^2 + |f_b|^2 - |f_a - f_b|^2: by the largest
|f|^2 on each side, and the least distances of the rectangles that the pixels lie in and of the
boxes that hold their first features. Where that leaves a pair of tiles, each pair of their pixels
is looked at: with y a pixel's first features and r the rest,

    <f_a, f_b> <= <y_a, y_b> + |r_a| |r_b|,

16 numbers a pixel instead of all.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from blpseg_ops.triton import lam_config
from blpseg_ops.triton.lam_math import SIDE, TILE, place, squared_distances, within
from blpseg_ops.triton.lam_pack import PACKED, Grid

AXES = 16  # the first 15 features, and the norm of the rest
ROUNDING = 2.0**-24
CANDIDATES = 128  # source tiles that are looked at in one go
SAMPLES = 8  # tiles by which it is decided whether to look at pairs of pixels

_AXES = tl.constexpr(AXES)
_SAMPLES = tl.constexpr(SAMPLES)
_HUGE = tl.constexpr(1e37)  # a bound that no distance takes enough off


class Tiles(NamedTuple):
    """What the kernels know of every pixel and tile, beside features and values."""

    own_product: Tensor  # [N, tiles, 64] |f|^2
    delta: Tensor  # [N, tiles, 64] <g, out>; backward only
    log_denominator: Tensor  # [N, tiles, 64] log((Z + eps T) / w_bb); backward only
    axes: Tensor  # [N, tiles, 64, AXES]
    source_bound: Tensor  # [N, tiles, 64]
    target_bound: Tensor  # [N, tiles, 64]
    low: Tensor  # [N, tiles, AXES] the least of each of the axes
    high: Tensor  # [N, tiles, AXES] the largest
    source_peak: Tensor  # [N, tiles] the largest |scale| |f|^2 / 2 + source_bound
    target_peak: Tensor  # [N, tiles]


class Numbers(NamedTuple):
    """LAM's numbers as kernels take them."""

    scale: float
    precision: float  # 1 / (2 sigma^2)
    log_eps: float
    radius: int  # of the window; 2^30 where there is none

    @staticmethod
    def of(sigma: float, eps: float, scale: float, radius: int | None) -> Numbers:
        """From those of the operator."""
        # Beyond 1e30 a neighbour's weight is 0 all the same, and the pixel's own is not 0 * inf.
        precision = min(0.5 / sigma / sigma, 1e30)
        log_eps = math.log(eps) if eps > 0 else -math.inf
        return Numbers(scale, precision, log_eps, 2**30 if radius is None else min(radius, 2**30))


def describe(
    features: Tensor,  # [N, tiles, 64, packed_dims]
    values: Tensor,  # [N, tiles, 64, packed_channels]
    grid: Grid,
    numbers: Numbers,
    backward: tuple[Tensor, Tensor, Tensor] | None = None,
) -> Tiles:
    """Make the numbers of every tile.

    Args:
        features: Packed.
        values: Packed.
        grid: How they are packed.
        numbers: LAM's.
        backward: Upstream gradient and output, packed as values, and log_denominator [N, h, w] as
            forward returned it; None in forward.
    """
    n, tiles = features.shape[:2]
    pixels = features.new_empty(5 if backward else 3, n, tiles, TILE, dtype=torch.float32)
    axes = features.new_empty(n, tiles, TILE, AXES, dtype=torch.float32)
    boxes = features.new_empty(2, n, tiles, AXES, dtype=torch.float32)
    peaks = features.new_empty(2, n, tiles, dtype=torch.float32)
    own_product, source, target = pixels[:3]
    delta, known = pixels[3:] if backward else (own_product, own_product)
    made = Tiles(own_product, delta, known, axes, source, target, *boxes, *peaks)
    gradient, output, log_denominator = backward or (values, values, own_product)
    describe_kernel[n * tiles,](
        features,
        values,
        gradient,
        output,
        log_denominator,
        _mean_size(values, grid),
        _mean_size(gradient, grid),
        *made,
        *grid,
        *log_denominator.stride()[:3],
        features.shape[-1],
        values.shape[-1],
        numbers.scale,
        BACKWARD=backward is not None,
        BLOCK=PACKED,
    )
    return made


def _mean_size(packed: Tensor, grid: Grid) -> Tensor:  # [N, tiles, 64, C] -> [N, C], mean |v|
    total: Tensor = torch.linalg.vector_norm(packed, 1, (1, 2), dtype=torch.float32)
    return total / (grid.height * grid.width)


def list_tiles(
    made: Tiles, grid: Grid, numbers: Numbers, together: int, family: str, symmetric: bool
) -> tuple[Tensor, Tensor]:  # [N, tiles / together, room] and [N, tiles / together], int32
    """List the source tiles that matter to each run of `together` target tiles, and count them.

    Args:
        made: What is known of the tiles.
        grid: How pixels are packed.
        numbers: LAM's.
        together: Target tiles that share a list.
        family: The chip's, in lam_config.
        symmetric: Whether a pair matters also when it does with source and target exchanged.
    """
    n, tiles = made.source_peak.shape
    reach = -(-numbers.radius // SIDE)  # tiles, up, down, left and right
    room = min(tiles, (2 * reach + 1) * (2 * reach + together))
    lists = made.low.new_empty(2, n, tiles // together, room, dtype=torch.int32)
    counts = made.low.new_empty(2, n, tiles // together, dtype=torch.int32)
    limit = math.log(ROUNDING / (grid.height * grid.width))
    list_kernel[counts[0].numel(),](
        made.low,
        made.high,
        made.source_peak,
        made.target_peak,
        lists[0],
        counts[0],
        grid.columns,
        tiles,
        room,
        *numbers,
        limit,
        TOGETHER=together,
        SYMMETRIC=symmetric,
        BLOCK=CANDIDATES,
    )
    refine_kernel[counts[0].numel(),](
        made.axes,
        made.source_bound,
        made.target_bound,
        lists[0],
        counts[0],
        lists[1],
        counts[1],
        grid.columns,
        tiles,
        room,
        *numbers,
        limit,
        TARGETS=together * TILE,
        WINDOW=numbers.radius < 2**30,
        SYMMETRIC=symmetric,
        INPUT_PRECISION=lam_config.bound_precision(family),
        BLOCK=CANDIDATES,
        num_warps=4 * together,
    )
    return lists[1], counts[1]


@triton.jit
def _excess(block, mean):  # [64, BLOCK] and [BLOCK] -> scalar
    """How many times a tile's largest number exceeds 4 times its channel's mean size."""
    largest = tl.max(tl.abs(block), 0)
    return tl.max(largest / (4 * tl.where(mean > 0, mean, 1)), 0)  # all 0 where the mean is


@triton.jit
def _bound(number, counted):
    """Of pixels that count; huge where it is not a number, so that nothing is left out."""
    return tl.where(counted, tl.where(number == number, number, _HUGE), float("-inf"))


@triton.jit(do_not_specialize=["height", "width", "columns", "tiles", "scale"])
def describe_kernel(
    features,  # [N, tiles, 64, packed_dims]
    values,  # [N, tiles, 64, packed_channels]
    gradient,  # [N, tiles, 64, packed_channels]
    output,  # [N, tiles, 64, packed_channels]
    log_denominator_in,  # [N, h, w]
    mean_value,  # [N, packed_channels]
    mean_gradient,  # [N, packed_channels]
    own_product,
    delta,
    log_denominator,
    axes,
    source_bound,
    target_bound,
    low,
    high,
    source_peak,
    target_peak,
    height,
    width,
    columns,
    tiles,
    stride_n,
    stride_y,
    stride_x,
    packed_dims,
    packed_channels,
    scale,
    BACKWARD: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Describe one tile: see Tiles for what is written."""
    tile = tl.program_id(0).to(tl.int64)
    image = (tl.program_id(0) // tiles).to(tl.int64)
    pixel = tl.arange(0, 64)
    row = tile * 64 + pixel
    y, x = place(tl.program_id(0) % tiles * 64 + pixel, columns)
    inside = (y < height) & (x < width)
    number = tl.arange(0, BLOCK)[None, :]

    norm2 = tl.zeros([64], tl.float32)
    for d in range(0, packed_dims, BLOCK):
        f = tl.load(features + row[:, None] * packed_dims + d + number).to(tl.float32)
        norm2 += tl.sum(f * f, 1)
    tl.store(own_product + row, norm2)

    # Products in tf32 may lose 2^-9 |y_a| |y_b|, which is less than this adds to |r_a| |r_b|.
    axis = tl.arange(0, _AXES)[None, :]
    y_first = tl.load(features + row[:, None] * packed_dims + axis).to(tl.float32)
    y_first = tl.where(axis < _AXES - 1, y_first, 0)
    rest2 = tl.maximum(norm2 - tl.sum(y_first * y_first, 1), 0)
    rest = (1 + 2.0**-8) * tl.sqrt(rest2 + 2.0**-8 * norm2)
    numbers = tl.where(axis < _AXES - 1, y_first, rest[:, None])
    tl.store(axes + row[:, None] * _AXES + axis, numbers)
    least = tl.min(tl.where(inside[:, None], y_first, float("inf")), 0)
    largest = tl.max(tl.where(inside[:, None], y_first, float("-inf")), 0)
    tl.store(low + tile * _AXES + tl.arange(0, _AXES), least)
    tl.store(high + tile * _AXES + tl.arange(0, _AXES), largest)

    source_excess, target_excess = 1.0, 1.0
    not_finite = tl.sum(norm2, 0) * 0  # NaN where a number is not finite
    product = tl.zeros([64], tl.float32)
    largest_gradient = tl.zeros([64], tl.float32)
    for c in range(0, packed_channels, BLOCK):
        maps = row[:, None] * packed_channels + c + number
        means = image * packed_channels + c + tl.arange(0, BLOCK)
        v = tl.load(values + maps).to(tl.float32)
        source_excess = tl.maximum(source_excess, _excess(v, tl.load(mean_value + means)))
        not_finite += tl.sum(tl.sum(v, 1), 0) * 0
        if BACKWARD:
            g = tl.load(gradient + maps).to(tl.float32)
            target_excess = tl.maximum(target_excess, _excess(g, tl.load(mean_gradient + means)))
            product += tl.sum(g * tl.load(output + maps).to(tl.float32), 1)
            largest_gradient = tl.maximum(largest_gradient, tl.max(tl.abs(g), 1))
            not_finite += tl.sum(tl.sum(g, 1), 0) * 0

    target = -scale * norm2
    slack = tl.abs(target)
    has_gradient = inside
    if BACKWARD:
        tl.store(delta + row, product)
        where = image * stride_n + y.to(tl.int64) * stride_y + x.to(tl.int64) * stride_x
        known = tl.load(log_denominator_in + where, mask=inside, other=0.0)
        tl.store(log_denominator + row, known)
        target -= known
        slack += tl.abs(known)
        not_finite += tl.sum(product + known, 0) * 0
        # Nothing flows back from a target without an upstream gradient.
        has_gradient = inside & ((largest_gradient > 0) | (product != product))
    # The terms' own rounding is less than the slack.
    target += 2.0**-14 * slack + 2.0**-10 + tl.log(target_excess) + not_finite
    of_target = _bound(target, has_gradient)
    of_source = _bound(tl.log(source_excess) + not_finite + tl.zeros([64], tl.float32), inside)
    tl.store(target_bound + row, of_target)
    tl.store(source_bound + row, of_source)
    half = tl.abs(scale) * norm2 / 2
    tl.store(target_peak + tile, tl.max(_bound(half + of_target, has_gradient), 0))
    tl.store(source_peak + tile, tl.max(_bound(half + of_source, inside), 0))


@triton.jit
def _gaps(low, high, own_low, own_high):
    """Least distances of intervals."""
    return tl.maximum(tl.maximum(low - own_high, own_low - high), 0)


@triton.jit(
    do_not_specialize=[
        "columns", "tiles", "room", "scale", "precision", "log_eps", "radius", "log_negligible",
    ]
)  # fmt: skip
def list_kernel(
    low,
    high,
    source_peak,
    target_peak,
    lists,
    counts,
    columns,
    tiles,
    room,
    scale,
    precision,
    log_eps,
    radius,
    log_negligible,
    TOGETHER: tl.constexpr,
    SYMMETRIC: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """List the tiles of one run of targets, in ascending order, BLOCK candidates at a time."""
    runs = tiles // TOGETHER
    run = tl.program_id(0).to(tl.int64)
    image = (tl.program_id(0) // runs).to(tl.int64)
    low += image * tiles * _AXES
    high += image * tiles * _AXES
    source_peak += image * tiles
    target_peak += image * tiles
    lists += run * room

    first = tl.program_id(0) % runs * TOGETHER
    own = first + tl.arange(0, TOGETHER)
    axis = tl.arange(0, _AXES)
    own_axes = own[:, None] * _AXES + axis[None, :]
    own_low = tl.min(tl.load(low + own_axes), 0)
    own_high = tl.max(tl.load(high + own_axes), 0)
    own_target = tl.max(tl.load(target_peak + own), 0)
    own_source = tl.max(tl.load(source_peak + own), 0)
    top, left = first // columns * 8, first % columns * 8

    count = 0
    row, reach = first // columns, (radius + 7) // 8  # of tiles
    last = tl.minimum(row + reach + 1, tiles // columns) * columns
    for start in range(tl.maximum(row - reach, 0) * columns, last, BLOCK):
        tile = start + tl.arange(0, BLOCK)
        there = tile < last
        axes = tile[:, None] * _AXES + axis[None, :]
        gaps = _gaps(
            tl.load(low + axes, mask=there[:, None], other=0.0),
            tl.load(high + axes, mask=there[:, None], other=0.0),
            own_low[None, :],
            own_high[None, :],
        )
        apart = tl.minimum(tl.maximum(scale, 0) / 2 * tl.sum(gaps * gaps, 1), _HUGE / 2)
        y, x = tile // columns * 8, tile % columns * 8
        dy = _gaps(y, y + 7, top, top + 7).to(tl.float32)
        dx = _gaps(x, x + 7, left, left + 8 * TOGETHER - 1).to(tl.float32)
        farness = tl.maximum(-precision * (dy * dy + dx * dx), log_eps)
        source = tl.load(source_peak + tile, mask=there, other=0.0)
        target = tl.load(target_peak + tile, mask=there, other=0.0)
        peak = source + own_target
        if SYMMETRIC:
            peak = tl.maximum(peak, target + own_source)
        # Rounding of `apart`, too, is less than what is taken off here.
        matters = peak - (1 - 2.0**-14) * apart + farness > log_negligible
        keep = there & matters & (tl.maximum(dy, dx) <= radius)
        position = count + tl.cumsum(keep.to(tl.int32), 0) - 1
        tl.store(lists + position, tile, mask=keep)
        count += tl.sum(keep.to(tl.int32), 0)
    tl.store(counts + run, count)


@triton.jit
def _pixels_matter(
    tile,
    own_y,
    own_x,
    own_axes,
    own_source,
    own_target,
    axes,
    source_bound,
    target_bound,
    columns,
    precision,
    log_eps,
    radius,
    log_negligible,
    WINDOW: tl.constexpr,
    SYMMETRIC: tl.constexpr,
    INPUT_PRECISION: tl.constexpr,
):
    """1 if any pair of pixels of the run and the tile may matter, else 0."""
    pixel = tile * 64 + tl.arange(0, 64)
    y, x = place(pixel, columns)
    theirs = tl.load(axes + pixel[:, None] * _AXES + tl.arange(0, _AXES)[None, :])
    similarity = tl.dot(own_axes, tl.trans(theirs), input_precision=INPUT_PRECISION)
    bound = similarity + (own_target[:, None] + tl.load(source_bound + pixel)[None, :])
    if SYMMETRIC:
        exchanged = own_source[:, None] + tl.load(target_bound + pixel)[None, :]
        bound = tl.maximum(bound, similarity + exchanged)
    bound += tl.maximum(-precision * squared_distances(own_y, own_x, y, x), log_eps)
    matters = tl.where(bound <= log_negligible, 0, 1)  # what is not a number does
    if WINDOW:
        matters = tl.where(within(own_y, own_x, y, x, radius), matters, 0)
    return tl.max(tl.max(matters, 1), 0)


@triton.jit(
    do_not_specialize=[
        "columns", "tiles", "room", "scale", "precision", "log_eps", "radius", "log_negligible",
    ]
)  # fmt: skip
def refine_kernel(
    axes,
    source_bound,
    target_bound,
    candidates,  # [N, runs, room]
    candidate_counts,  # [N, runs]
    lists,  # [N, runs, room]
    counts,  # [N, runs]
    columns,
    tiles,
    room,
    scale,
    precision,
    log_eps,
    radius,
    log_negligible,
    TARGETS: tl.constexpr,
    WINDOW: tl.constexpr,
    SYMMETRIC: tl.constexpr,
    INPUT_PRECISION: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Keep of a run's candidates those that hold a pair of pixels that matters.

    All are kept unseen where a few, spread over the list, matter all: where hardly any can be left
    out, looking would cost more than it saves.
    """
    runs = tiles * 64 // TARGETS
    run = tl.program_id(0).to(tl.int64)
    image = (tl.program_id(0) // runs).to(tl.int64)
    axes += image * tiles * 64 * _AXES
    source_bound += image * tiles * 64
    target_bound += image * tiles * 64
    candidates += run * room
    lists += run * room

    own = tl.program_id(0) % runs * TARGETS + tl.arange(0, TARGETS)
    own_y, own_x = place(own, columns)
    axis = tl.arange(0, _AXES)[None, :]
    factor = tl.where(axis < _AXES - 1, scale, tl.abs(scale))
    own_axes = tl.load(axes + own[:, None] * _AXES + axis) * factor
    own_source, own_target = tl.load(source_bound + own), tl.load(target_bound + own)

    count = tl.load(candidate_counts + run)
    step = tl.maximum(count // _SAMPLES, 1)
    seen, mattered = 0, 0
    for i in range(0, count, step):
        tile = tl.load(candidates + i)
        mattered += _pixels_matter(
            tile, own_y, own_x, own_axes, own_source, own_target, axes, source_bound,
            target_bound, columns, precision, log_eps, radius, log_negligible, WINDOW, SYMMETRIC,
            INPUT_PRECISION,
        )  # fmt: skip
        seen += 1

    if mattered == seen:
        for start in range(0, count, BLOCK):
            entry = start + tl.arange(0, BLOCK)
            there = entry < count
            tl.store(lists + entry, tl.load(candidates + entry, mask=there), mask=there)
        tl.store(counts + run, count)
    else:
        kept = 0
        for i in range(count):
            tile = tl.load(candidates + i)
            matters = _pixels_matter(
                tile, own_y, own_x, own_axes, own_source, own_target, axes, source_bound,
                target_bound, columns, precision, log_eps, radius, log_negligible, WINDOW,
                SYMMETRIC, INPUT_PRECISION,
            )  # fmt: skip
            tl.store(lists + kept, tile, mask=matters > 0)
            kept += matters
        tl.store(counts + run, kept)
