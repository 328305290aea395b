"""Describe every pixel and tile by the numbers that the other kernels need.

The main kernels take |f|^2 and, in backward, delta and the log of the denominator. The list kernels
take upper bounds: with b the query and a the key,

    log P_ab <= scale <f_a, f_b> + key_log_bound_a + query_log_bound_b - d^2 / (2 sigma^2).

query_log_bound is -scale |f_b|^2 minus a lower bound of log(denominator / w_bb): in backward the
denominator is known, in forward the bound is the sum over the query's own tile. key_log_bound is
log A_a, by how much the key's values exceed their usual size (docs/lam-error.md).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from blpseg_ops.triton import lam_config
from blpseg_ops.triton.lam_directions import AXES
from blpseg_ops.triton.lam_math import (
    TILE,
    LamParams,
    in_window,
    log_weights,
    mask_logits,
    pixel_yx,
    round_to_tf32,
    squared_distances,
)
from blpseg_ops.triton.lam_pack import TileGrid

_AXES = tl.constexpr(AXES)
_HUGE = tl.constexpr(1e37)  # a bound that no distance makes negligible


class Tiles(NamedTuple):
    """Numbers per pixel and per tile; field names are the kernels' argument names."""

    sq_norm: Tensor  # [N, tiles, 64] |f|^2
    delta: Tensor  # [N, tiles, 64] <g, out>; backward only
    log_denominator: Tensor  # [N, tiles, 64] log((Z + eps T) / w_bb); backward only
    axes: Tensor  # [N, tiles, 64, AXES] y and |r|, rounded to tf32
    key_log_bound: Tensor  # [N, tiles, 64]
    query_log_bound: Tensor  # [N, tiles, 64]
    box_low: Tensor  # [N, tiles, AXES] the smallest of each axis
    box_high: Tensor  # [N, tiles, AXES] the largest of each axis
    key_max_bound: Tensor  # [N, tiles] max of |scale| |f|^2 / 2 + key_log_bound
    query_max_bound: Tensor  # [N, tiles] max of |scale| |f|^2 / 2 + query_log_bound


class Upstream(NamedTuple):
    """What backward knows beside features and values."""

    grad_output: Tensor  # [N, tiles, 64, packed_channels]
    output: Tensor  # [N, tiles, 64, packed_channels]
    log_denominator: Tensor  # [N, h, w], as forward returned it


def describe(
    features: Tensor,  # [N, tiles, 64, packed_dims]
    values: Tensor,  # [N, tiles, 64, packed_channels]
    grid: TileGrid,
    params: LamParams,
    family: str,
    *,
    window: bool,
    directions: Tensor | None = None,  # [N, packed_dims, AXES]
    upstream: Upstream | None = None,
) -> Tiles:
    """Describe every tile.

    Args:
        features: Packed.
        values: Packed.
        grid: How pixels are packed.
        params: LAM's.
        family: The chip's, in lam_config.
        window: Whether params.radius limits what a query sees.
        directions: From principal_directions; None: the axes are the first 15 features.
        upstream: None in forward.
    """
    n, tiles = features.shape[:2]
    pixel_maps = features.new_empty(5 if upstream else 3, n, tiles, TILE, dtype=torch.float32)
    boxes = features.new_empty(2, n, tiles, AXES, dtype=torch.float32)
    # Not slices of one: all are aligned alike, so no shape compiles another variant.
    key_max_bound, query_max_bound = (
        features.new_empty(n, tiles, dtype=torch.float32) for _ in range(2)
    )
    sq_norm, key_log_bound, query_log_bound = pixel_maps[:3]
    delta, log_denominator = pixel_maps[3:] if upstream else (sq_norm, sq_norm)
    made = Tiles(
        sq_norm=sq_norm,
        delta=delta,
        log_denominator=log_denominator,
        axes=features.new_empty(n, tiles, TILE, AXES, dtype=torch.float32),
        key_log_bound=key_log_bound,
        query_log_bound=query_log_bound,
        box_low=boxes[0],
        box_high=boxes[1],
        key_max_bound=key_max_bound,
        query_max_bound=query_max_bound,
    )
    value_sums = _sum_of_sizes(values)
    grad_sums = _sum_of_sizes(upstream.grad_output) if upstream else value_sums
    known = upstream or Upstream(values, values, sq_norm)
    stride_n, stride_y, stride_x = known.log_denominator.stride()[:3]
    describe_kernel[n * tiles,](
        features=features,
        directions=sq_norm if directions is None else directions,
        values=values,
        grad_output=known.grad_output,
        output=known.output,
        log_denominator_in=known.log_denominator,
        value_sums=value_sums,
        grad_sums=grad_sums,
        **made._asdict(),
        **grid._asdict(),
        stride_n=stride_n,
        stride_y=stride_y,
        stride_x=stride_x,
        packed_dims=features.shape[-1],
        packed_channels=values.shape[-1],
        **params._asdict(),
        **lam_config.describe(
            family, window, backward=upstream is not None, has_directions=directions is not None
        ).keywords(),
    )
    return made


def _sum_of_sizes(packed: Tensor) -> Tensor:  # [N, tiles, 64, C] -> [N, C], sums of |v|
    total: Tensor = torch.linalg.vector_norm(packed, 1, (1, 2), dtype=torch.float32)
    return total


@triton.jit
def ratio_over_mean(block, mean):  # [64, BLOCK] and [BLOCK] -> scalar
    """Return how many times a tile's largest number exceeds 4 times its channel's mean size."""
    largest = tl.max(tl.abs(block), 0)
    return tl.max(largest / (4 * tl.where(mean > 0, mean, 1)), 0)  # all 0 where the mean is


@triton.jit
def countable_bound(number, counted):
    """Return -inf for pixels that do not count, and a huge bound for NaN: nothing is skipped."""
    return tl.where(counted, tl.where(number == number, number, _HUGE), float("-inf"))


@triton.jit
def leading_and_rest(leading, norm2, not_finite, HAS_DIRECTIONS: tl.constexpr):
    """Return the 15 coordinates y [64, AXES] and an upper bound |r| of the rest's norm [64].

    Both are 0 where `not_finite` is not 0. Refine rounds y to tf32, which moves <y_a, y_b> by less
    than the term of 2^-10 adds to |r_a| |r_b|. The other term covers the rounding of sums and of
    the directions' inner products.
    """
    axis = tl.arange(0, _AXES)[None, :]
    leading = tl.where(axis < _AXES - 1, leading, 0)
    leading = tl.where(not_finite == 0, leading, 0)
    rest2 = tl.maximum(norm2 - tl.sum(leading * leading, 1), 0)
    rounding: tl.constexpr = 2.0**-10 + (2.0**-12 if HAS_DIRECTIONS else 2.0**-13)
    rest = (1 + 2.0**-10) * tl.sqrt(rest2 + rounding * norm2)
    return leading, tl.where(not_finite == 0, rest, 0)


@triton.jit
def _own_tile_log_sum(
    dot_product,  # [64, 64] of a tile's features with themselves
    sq_norm,  # [64]
    y,
    x,
    inside,  # [64]
    scale,
    inv_two_sigma_sq,
    radius,
    WINDOW: tl.constexpr,
):
    """Return a lower bound of log(Z_b / w_bb): the sum over the keys of the query's own tile."""
    query_sq_norm = sq_norm[:, None]
    distance2 = squared_distances(y, x, y, x)
    _, log_weight = log_weights(dot_product, query_sq_norm, distance2, scale, inv_two_sigma_sq)
    # The dot products' rounding, and that of the same in the main kernels, is less than this.
    slack = 2.0**-13 * tl.abs(scale) * tl.sqrt(query_sq_norm) * tl.sqrt(sq_norm)[None, :]
    log_weight -= tl.where(distance2 == 0, 0, slack)
    visible = inside[None, :]
    if WINDOW:
        visible = visible & in_window(y, x, y, x, radius)
    _, log_weight = mask_logits(visible, log_weight, log_weight)
    largest = tl.maximum(tl.max(log_weight, 1), 0)
    return largest + tl.log(tl.maximum(tl.sum(tl.exp(log_weight - largest[:, None]), 1), 1e-30))


@triton.jit(
    do_not_specialize=[
        "height", "width", "tile_columns", "tiles", "stride_n", "stride_y", "stride_x",
        "scale", "inv_two_sigma_sq", "log_eps", "radius",
    ]
)  # fmt: skip
def describe_kernel(
    features,  # [N, tiles, 64, packed_dims]
    directions,  # [N, packed_dims, AXES], used only with HAS_DIRECTIONS
    values,  # [N, tiles, 64, packed_channels]
    grad_output,  # [N, tiles, 64, packed_channels]
    output,  # [N, tiles, 64, packed_channels]
    log_denominator_in,  # [N, h, w]
    value_sums,  # [N, packed_channels] of sizes
    grad_sums,  # [N, packed_channels] of sizes
    sq_norm,  # [N, tiles, 64], from here on outputs: see Tiles
    delta,  # [N, tiles, 64]
    log_denominator,  # [N, tiles, 64]
    axes,  # [N, tiles, 64, AXES]
    key_log_bound,  # [N, tiles, 64]
    query_log_bound,  # [N, tiles, 64]
    box_low,  # [N, tiles, AXES]
    box_high,  # [N, tiles, AXES]
    key_max_bound,  # [N, tiles]
    query_max_bound,  # [N, tiles]
    height,
    width,
    tile_columns,
    tiles,
    stride_n,
    stride_y,
    stride_x,
    packed_dims,
    packed_channels,
    scale,
    inv_two_sigma_sq,
    log_eps,
    radius,
    BACKWARD: tl.constexpr,
    WINDOW: tl.constexpr,
    HAS_DIRECTIONS: tl.constexpr,
    BLOCK: tl.constexpr,  # features or channels per step
    INPUT_PRECISION: tl.constexpr,
):
    """Describe one tile; program id: image and tile."""
    tile = tl.program_id(0).to(tl.int64)
    image = (tl.program_id(0) // tiles).to(tl.int64)
    pixel = tl.arange(0, 64)
    row = tile * 64 + pixel
    y, x = pixel_yx(tl.program_id(0) % tiles * 64 + pixel, tile_columns)
    inside = (y < height) & (x < width)
    lane = tl.arange(0, BLOCK)[None, :]

    # 1. |f|^2; the coordinates y of f; in forward, the scores within the tile.
    axis = tl.arange(0, _AXES)[None, :]
    if HAS_DIRECTIONS:
        leading = tl.zeros([64, _AXES], tl.float32)
    else:
        leading = tl.load(features + row[:, None] * packed_dims + axis).to(tl.float32)
    norm2 = tl.zeros([64], tl.float32)
    dot_product = tl.zeros([64, 64], tl.float32)
    for d in range(0, packed_dims, BLOCK):
        block = tl.load(features + row[:, None] * packed_dims + d + lane)
        f = block.to(tl.float32)
        norm2 += tl.sum(f * f, 1)
        if HAS_DIRECTIONS:
            dim = image * packed_dims + d + tl.arange(0, BLOCK)[:, None]
            leading = tl.dot(
                f,
                tl.load(directions + dim * _AXES + axis),
                leading,
                input_precision=INPUT_PRECISION,
            )
        if not BACKWARD:
            dot_product = tl.dot(
                block, tl.trans(block), dot_product, input_precision=INPUT_PRECISION
            )
    tl.store(sq_norm + row, norm2)

    # 2. The 15 coordinates y, an upper bound |r| of the rest's norm, and the box of y.
    not_finite = tl.sum(norm2, 0) * 0  # NaN where a number is not finite
    leading, rest = leading_and_rest(leading, norm2, not_finite, HAS_DIRECTIONS)
    packed_axes = round_to_tf32(tl.where(axis < _AXES - 1, leading, rest[:, None]))
    tl.store(axes + row[:, None] * _AXES + axis, packed_axes)
    smallest = tl.min(tl.where(inside[:, None], leading, float("inf")), 0)
    largest = tl.max(tl.where(inside[:, None], leading, float("-inf")), 0)
    tl.store(box_low + tile * _AXES + tl.arange(0, _AXES), smallest)
    tl.store(box_high + tile * _AXES + tl.arange(0, _AXES), largest)

    # 3. By how much values and gradients exceed their usual size; delta.
    key_ratio, query_ratio = 1.0, 1.0
    pixels = height.to(tl.float32) * width
    grad_times_output = tl.zeros([64], tl.float32)
    largest_grad = tl.zeros([64], tl.float32)
    for c in range(0, packed_channels, BLOCK):
        maps = row[:, None] * packed_channels + c + lane
        sums = image * packed_channels + c + tl.arange(0, BLOCK)
        v = tl.load(values + maps).to(tl.float32)
        mean = tl.load(value_sums + sums) / pixels
        key_ratio = tl.maximum(key_ratio, ratio_over_mean(v, mean))
        not_finite += tl.sum(tl.sum(v, 1), 0) * 0
        if BACKWARD:
            g = tl.load(grad_output + maps).to(tl.float32)
            mean = tl.load(grad_sums + sums) / pixels
            query_ratio = tl.maximum(query_ratio, ratio_over_mean(g, mean))
            grad_times_output += tl.sum(g * tl.load(output + maps).to(tl.float32), 1)
            largest_grad = tl.maximum(largest_grad, tl.max(tl.abs(g), 1))
            not_finite += tl.sum(tl.sum(g, 1), 0) * 0

    # 4. Bounds per pixel and their largest per tile.
    query_bound = -scale * norm2
    slack = tl.abs(query_bound)
    has_gradient = inside
    if BACKWARD:
        tl.store(delta + row, grad_times_output)
        pixel_offset = image * stride_n + y.to(tl.int64) * stride_y + x.to(tl.int64) * stride_x
        known = tl.load(log_denominator_in + pixel_offset, mask=inside, other=0.0)
        tl.store(log_denominator + row, known)
        query_bound -= known
        slack += tl.abs(known)
        not_finite += tl.sum(grad_times_output + known, 0) * 0
        # Nothing flows back from a query without an upstream gradient.
        has_gradient = inside & ((largest_grad > 0) | (grad_times_output != grad_times_output))
    else:
        known = _own_tile_log_sum(
            dot_product, norm2, y, x, inside, scale, inv_two_sigma_sq, radius, WINDOW
        )
        query_bound -= known
        slack += tl.abs(known)
    # The terms' own rounding is less than the slack.
    query_bound += 2.0**-14 * slack + 2.0**-10 + tl.log(query_ratio) + not_finite
    query_bound = countable_bound(query_bound, has_gradient)
    key_bound = countable_bound(tl.log(key_ratio) + not_finite + tl.zeros([64], tl.float32), inside)
    tl.store(query_log_bound + row, query_bound)
    tl.store(key_log_bound + row, key_bound)
    half_norm2 = tl.abs(scale) * norm2 / 2
    tl.store(
        query_max_bound + tile, tl.max(countable_bound(half_norm2 + query_bound, has_gradient), 0)
    )
    tl.store(key_max_bound + tile, tl.max(countable_bound(half_norm2 + key_bound, inside), 0))
