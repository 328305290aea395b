"""Which pairs of tiles matter: what is left out is proved to be below rounding (docs/lam-gpu.md).

With half_a = |scale| |f_a|^2 / 2, the log of what source a weighs beside target b's own weight is

    scale <f_a, f_b> - scale |f_b|^2 - d^2 / (2 sigma^2)
        <= half_a + (half_b - scale |f_b|^2) - scale |f_a - f_b|^2 / 2 - d^2 / (2 sigma^2),

where the third term is left out for scale < 0. For two tiles, the first two terms are bounded by
the largest in each, the last two by the least distance: of the rectangles that the pixels lie in,
and of the boxes that hold their first AXES features. The target's denominator, where it is known,
is taken off; where values or gradients are larger than usual, that is added on.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from blpseg_ops.triton.lam_math import TILE, place
from blpseg_ops.triton.lam_pack import PACKED, Grid

AXES = 8  # features that boxes are made of
ROUNDING = 2.0**-24
CANDIDATES = 128  # source tiles that are looked at in one go

_AXES = tl.constexpr(AXES)
_HUGE = tl.constexpr(1e37)  # a peak that no distance takes enough off


class Tiles(NamedTuple):
    """What the kernels know of every pixel and tile, beside features and values."""

    own_product: Tensor  # [N, tiles, 64] |f|^2
    delta: Tensor  # [N, tiles, 64] <g, out>; backward only
    log_denominator: Tensor  # [N, tiles, 64] log((Z + eps T) / w_bb); backward only
    low: Tensor  # [N, tiles, AXES] the least of each of the first features
    high: Tensor  # [N, tiles, AXES] the largest
    source_peak: Tensor  # [N, tiles]
    target_peak: Tensor  # [N, tiles]


class Numbers(NamedTuple):
    """LAM's numbers as kernels take them."""

    scale: float
    precision: float  # 1 / (2 sigma^2)
    log_eps: float

    @staticmethod
    def of(sigma: float, eps: float, scale: float) -> Numbers:
        """From those of the operator."""
        # Beyond 1e30 a neighbour's weight is 0 all the same, and the pixel's own is not 0 * inf.
        precision = min(1 / (2 * sigma**2), 1e30) if sigma > 1e-15 else 1e30
        return Numbers(scale, precision, math.log(eps) if eps > 0 else -math.inf)


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
    pixels = features.new_empty(3 if backward else 1, n, tiles, TILE, dtype=torch.float32)
    boxes = features.new_empty(2, n, tiles, AXES, dtype=torch.float32)
    peaks = features.new_empty(2, n, tiles, dtype=torch.float32)
    own_product = pixels[0]
    delta, known = pixels[1:] if backward else (own_product, own_product)
    made = Tiles(own_product, delta, known, *boxes, *peaks)
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
    total = torch.linalg.vector_norm(packed, 1, (1, 2), dtype=torch.float32)
    return total / (grid.height * grid.width)


def list_tiles(
    made: Tiles, grid: Grid, numbers: Numbers, together: int, symmetric: bool
) -> tuple[Tensor, Tensor]:  # [N, tiles / together, tiles] and [N, tiles / together], int32
    """List the source tiles that matter to each run of `together` target tiles, and count them.

    Args:
        made: What is known of the tiles.
        grid: How pixels are packed.
        numbers: LAM's.
        together: Target tiles that share a list.
        symmetric: Whether a pair matters also when it does with source and target exchanged.
    """
    n, tiles = made.source_peak.shape
    lists = made.low.new_empty(n, tiles // together, tiles, dtype=torch.int32)
    counts = made.low.new_empty(n, tiles // together, dtype=torch.int32)
    list_kernel[counts.numel(),](
        made.low,
        made.high,
        made.source_peak,
        made.target_peak,
        lists,
        counts,
        grid.columns,
        tiles,
        *numbers,
        math.log(ROUNDING / (grid.height * grid.width)),
        TOGETHER=together,
        SYMMETRIC=symmetric,
        BLOCK=CANDIDATES,
    )
    return lists, counts


@triton.jit
def _excess(block, mean):  # [64, BLOCK] and [BLOCK] -> scalar
    """How many times a tile's largest number exceeds 4 times its channel's mean size."""
    largest = tl.max(tl.abs(block), 0)
    return tl.max(largest / (4 * tl.where(mean > 0, mean, 1)), 0)  # all 0 where the mean is


@triton.jit
def _peak(bounds, counted, extra):
    """The largest of the bounds that are counted, and more; huge where a number is not finite."""
    peak = tl.max(tl.where(counted, bounds, float("-inf")), 0) + extra
    return tl.where(peak == peak, peak, _HUGE)


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
    image = tile // tiles
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

    axis = tl.arange(0, _AXES)
    first = tl.load(features + row[:, None] * packed_dims + axis[None, :]).to(tl.float32)
    least = tl.min(tl.where(inside[:, None], first, float("inf")), 0)
    largest = tl.max(tl.where(inside[:, None], first, float("-inf")), 0)
    tl.store(low + tile * _AXES + axis, least)
    tl.store(high + tile * _AXES + axis, largest)

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

    half = tl.abs(scale) * norm2 / 2
    tl.store(source_peak + tile, _peak(half, inside, tl.log(source_excess) + not_finite))
    target = half - scale * norm2
    if BACKWARD:
        tl.store(delta + row, product)
        where = image * stride_n + y.to(tl.int64) * stride_y + x.to(tl.int64) * stride_x
        known = tl.load(log_denominator_in + where, mask=inside, other=0.0)
        tl.store(log_denominator + row, known)
        target -= known
        not_finite += tl.sum(product + known, 0) * 0
        # Nothing flows back from a target without an upstream gradient.
        inside &= largest_gradient > 0
    tl.store(target_peak + tile, _peak(target, inside, tl.log(target_excess) + not_finite))


@triton.jit
def _gaps(low, high, own_low, own_high):
    """Least distances of intervals."""
    return tl.maximum(tl.maximum(low - own_high, own_low - high), 0)


@triton.jit(
    do_not_specialize=["columns", "tiles", "scale", "precision", "log_eps", "log_negligible"]
)
def list_kernel(
    low,
    high,
    source_peak,
    target_peak,
    lists,
    counts,
    columns,
    tiles,
    scale,
    precision,
    log_eps,
    log_negligible,
    TOGETHER: tl.constexpr,
    SYMMETRIC: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """List the tiles of one run of targets, in ascending order, BLOCK candidates at a time."""
    run = tl.program_id(0).to(tl.int64)
    image = run * TOGETHER // tiles
    low += image * tiles * _AXES
    high += image * tiles * _AXES
    source_peak += image * tiles
    target_peak += image * tiles
    lists += run * tiles

    first = (run * TOGETHER % tiles).to(tl.int32)
    own = first + tl.arange(0, TOGETHER)
    axis = tl.arange(0, _AXES)
    own_axes = own[:, None] * _AXES + axis[None, :]
    own_low = tl.min(tl.load(low + own_axes), 0)
    own_high = tl.max(tl.load(high + own_axes), 0)
    own_target = tl.max(tl.load(target_peak + own), 0)
    own_source = tl.max(tl.load(source_peak + own), 0)
    top, left = first // columns * 8, first % columns * 8

    count = 0
    for start in range(0, tiles, BLOCK):
        tile = start + tl.arange(0, BLOCK)
        there = tile < tiles
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
        size = tl.abs(source) + tl.abs(own_target)
        if SYMMETRIC:
            peak = tl.maximum(peak, target + own_source)
            size = tl.maximum(size, tl.abs(target) + tl.abs(own_source))
        # The terms' own rounding is less than the slack.
        slack = 2.0**-16 * (size + apart)
        matters = peak - apart + farness > log_negligible - slack
        keep = there & matters
        position = count + tl.cumsum(keep.to(tl.int32), 0) - 1
        tl.store(lists + position, tile, mask=keep)
        count += tl.sum(keep.to(tl.int32), 0)
    tl.store(counts + run, count)
