"""Describe the queries of a band by the numbers that the other kernels of two grids need.

The main kernels take <f_n, q_b> of n, the key nearest to the query, and, in backward, delta and the
log of the denominator. The list kernels take upper bounds: with b the query and a the key,

    log P_ab <= scale <f_a, q_b> + key_log_bound_a + query_log_bound_b - d_ab^2 / (2 sigma^2),
    query_log_bound_b = d_nb^2 / (2 sigma^2) - scale <f_n, q_b> - lower bound of log(D_b / w_nb).

In backward D_b is known. In forward D_b >= w_nb, and D_b is at least the sum over 8 x 8 keys around
the middle of the tile (docs/lam-gpu.md).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from blpseg_ops.triton import lam_config
from blpseg_ops.triton.lam_describe import (
    Tiles,
    Upstream,
    countable_bound,
    leading_and_rest,
    ratio_over_mean,
)
from blpseg_ops.triton.lam_directions import AXES
from blpseg_ops.triton.lam_math import TILE, pixel_yx
from blpseg_ops.triton.two_grids_math import TwoGrids, nearest_key, pair_logits, pixel_number

_AXES = tl.constexpr(AXES)


class QueryTiles(NamedTuple):
    """Numbers per query and per tile of queries; field names are the kernels' argument names."""

    nearest_score: Tensor  # [N, tiles, 64] <f_n, q>
    delta: Tensor  # [N, tiles, 64] <g, out>; backward only
    log_denominator: Tensor  # [N, tiles, 64] log((Z + eps T) / w_nb); backward only
    query_axes: Tensor  # [N, tiles, 64, AXES]
    query_log_bound: Tensor  # [N, tiles, 64]
    query_box: Tensor  # [2, N, tiles, AXES] the smallest and the largest of each axis
    middle_axes: Tensor  # [N, tiles, AXES] y of the key m in the tile's middle, and -|r|
    query_max_bound: Tensor  # [N, tiles] max of scale <f_m, q_b> + query_log_bound


def describe_queries(
    queries: Tensor,  # [N, query_tiles, 64, packed_dims]
    features: Tensor,  # [N, key_tiles, 64, packed_dims]
    keys: Tiles,
    grids: TwoGrids,
    inv_two_sigma_sq: Tensor,  # [N]
    scale: float,
    family: str,
    *,
    window: bool,
    directions: Tensor | None,  # [N, packed_dims, AXES]
    upstream: Upstream | None = None,
    mean_grad: Tensor | None = None,  # [N, packed_channels]
) -> QueryTiles:
    """Describe every tile of a band of queries.

    Args:
        queries: Packed.
        features: Packed.
        keys: What describe has told of the features.
        grids: How both are packed.
        inv_two_sigma_sq: 1 / (2 sigma^2) per image.
        scale: LAM's.
        family: The chip's, in lam_config.
        window: Whether a query sees only keys in its window.
        directions: From principal_directions; None: the axes are the first 15 features.
        upstream: Of the band, log_denominator [N, H, W] of all queries; None in forward.
        mean_grad: Mean size of the upstream gradient per channel; None in forward.
    """
    n, tiles = queries.shape[:2]
    maps = queries.new_empty(4 if upstream else 2, n, tiles, TILE, dtype=torch.float32)
    nearest_score, query_log_bound = maps[:2]
    delta, log_denominator = maps[2:] if upstream else (nearest_score, nearest_score)
    made = QueryTiles(
        nearest_score=nearest_score,
        delta=delta,
        log_denominator=log_denominator,
        query_axes=queries.new_empty(n, tiles, TILE, AXES, dtype=torch.float32),
        query_log_bound=query_log_bound,
        query_box=queries.new_empty(2, n, tiles, AXES, dtype=torch.float32),
        middle_axes=queries.new_empty(n, tiles, AXES, dtype=torch.float32),
        query_max_bound=queries.new_empty(n, tiles, dtype=torch.float32),
    )
    known = upstream or Upstream(queries, queries, nearest_score)
    two_grids_describe_kernel[n * tiles,](
        queries=queries,
        features=features,
        directions=nearest_score if directions is None else directions,
        key_axes=keys.axes,
        sq_norm=keys.sq_norm,
        inv_two_sigma_sqs=inv_two_sigma_sq,
        grad_output=known.grad_output,
        output=known.output,
        log_denominator_in=known.log_denominator,
        mean_grad=nearest_score if mean_grad is None else mean_grad,
        **made._asdict(),
        **grids._asdict(),
        packed_dims=queries.shape[-1],
        packed_channels=known.grad_output.shape[-1],
        scale=scale,
        **lam_config.describe(
            family, window, backward=upstream is not None, has_directions=directions is not None
        ).keywords(),
    )
    return made


@triton.jit(
    do_not_specialize=[
        "key_height", "key_width", "key_columns", "key_tiles", "query_height", "query_width",
        "query_top", "query_columns", "query_tiles", "reach_y", "reach_x", "scale",
    ]
)  # fmt: skip
def two_grids_describe_kernel(
    queries,  # [N, query_tiles, 64, packed_dims]
    features,  # [N, key_tiles, 64, packed_dims]
    directions,  # [N, packed_dims, AXES], used only with HAS_DIRECTIONS
    key_axes,  # [N, key_tiles, 64, AXES]
    sq_norm,  # [N, key_tiles, 64], of the keys
    inv_two_sigma_sqs,  # [N]
    grad_output,  # [N, query_tiles, 64, packed_channels]
    output,  # [N, query_tiles, 64, packed_channels]
    log_denominator_in,  # [N, H, W]
    mean_grad,  # [N, packed_channels]
    nearest_score,  # [N, query_tiles, 64], from here on outputs: see QueryTiles
    delta,  # [N, query_tiles, 64]
    log_denominator,  # [N, query_tiles, 64]
    query_axes,  # [N, query_tiles, 64, AXES]
    query_log_bound,  # [N, query_tiles, 64]
    query_box,  # [2, N, query_tiles, AXES]
    middle_axes,  # [N, query_tiles, AXES]
    query_max_bound,  # [N, query_tiles]
    key_height,
    key_width,
    key_columns,
    key_tiles,
    query_height,
    query_width,
    query_top,
    query_columns,
    query_tiles,
    reach_y,
    reach_x,
    packed_dims,
    packed_channels,
    scale,
    BACKWARD: tl.constexpr,
    WINDOW: tl.constexpr,
    HAS_DIRECTIONS: tl.constexpr,
    BLOCK: tl.constexpr,  # features or channels per step
    INPUT_PRECISION: tl.constexpr,
):
    """Describe one tile of queries; program id: image and tile."""
    tile = tl.program_id(0).to(tl.int64)
    image = (tl.program_id(0) // query_tiles).to(tl.int64)
    first_key = image * key_tiles * 64
    pixel = tl.arange(0, 64)
    row = tile * 64 + pixel
    tile_in_band = tl.program_id(0) % query_tiles
    y, x = pixel_yx(tile_in_band * 64 + pixel, query_columns)
    y += query_top
    inside = (y < query_height) & (x < query_width)
    lane, axis = tl.arange(0, BLOCK)[None, :], tl.arange(0, _AXES)[None, :]
    inv = tl.load(inv_two_sigma_sqs + image)

    # 1. The keys: the nearest of each query, that of the tile's middle, and 8 x 8 around it.
    nearest_y, offset_y = nearest_key(y, query_height, key_height)
    nearest_x, offset_x = nearest_key(x, query_width, key_width)
    nearest = first_key + pixel_number(nearest_y, nearest_x, key_columns)
    middle_y = tl.minimum(query_top + tile_in_band // query_columns * 8 + 4, query_height - 1)
    middle_x = tl.minimum(tile_in_band % query_columns * 8 + 4, query_width - 1)
    middle_y, _ = nearest_key(middle_y, query_height, key_height)
    middle_x, _ = nearest_key(middle_x, query_width, key_width)
    middle = first_key + pixel_number(middle_y, middle_x, key_columns)
    around_y = tl.maximum(middle_y - 4, 0) + pixel // 8
    around_x = tl.maximum(middle_x - 4, 0) + pixel % 8
    around = first_key + pixel_number(
        tl.minimum(around_y, key_height - 1), tl.minimum(around_x, key_width - 1), key_columns
    )

    # 2. |q|^2; the coordinates y of q; products with the nearest keys, the middle and, in forward,
    # those around it.
    if HAS_DIRECTIONS:
        leading = tl.zeros([64, _AXES], tl.float32)
    else:
        leading = tl.load(queries + row[:, None] * packed_dims + axis).to(tl.float32)
    norm2 = tl.zeros([64], tl.float32)
    with_nearest = tl.zeros([64], tl.float32)
    with_middle = tl.zeros([64], tl.float32)
    with_around = tl.zeros([64, 64], tl.float32)
    for d in range(0, packed_dims, BLOCK):
        block = tl.load(queries + row[:, None] * packed_dims + d + lane)
        q = block.to(tl.float32)
        norm2 += tl.sum(q * q, 1)
        key = tl.load(features + nearest[:, None] * packed_dims + d + lane).to(tl.float32)
        with_nearest += tl.sum(q * key, 1)
        key = tl.load(features + middle * packed_dims + d + lane).to(tl.float32)
        with_middle += tl.sum(q * key, 1)
        if HAS_DIRECTIONS:
            dim = image * packed_dims + d + tl.arange(0, BLOCK)[:, None]
            leading = tl.dot(
                q,
                tl.load(directions + dim * _AXES + axis),
                leading,
                input_precision=INPUT_PRECISION,
            )
        if not BACKWARD:
            keys = tl.load(features + around[:, None] * packed_dims + d + lane)
            with_around = tl.dot(
                block, tl.trans(keys), with_around, input_precision=INPUT_PRECISION
            )
    tl.store(nearest_score + row, with_nearest)

    # 3. The coordinates y, the rest's norm, and the box of both.
    not_finite = tl.sum(norm2, 0) * 0  # NaN where a number is not finite
    leading, rest = leading_and_rest(leading, norm2, not_finite, HAS_DIRECTIONS)
    axes = tl.where(axis < _AXES - 1, leading, rest[:, None])
    tl.store(query_axes + row[:, None] * _AXES + axis, axes)
    smallest = tl.min(tl.where(inside[:, None], axes, float("inf")), 0)
    largest = tl.max(tl.where(inside[:, None], axes, float("-inf")), 0)
    box = query_box + tile * _AXES + tl.arange(0, _AXES)
    tl.store(box, smallest)
    tl.store(box + tl.num_programs(0).to(tl.int64) * _AXES, largest)
    of_middle = tl.load(key_axes + middle * _AXES + tl.arange(0, _AXES))
    of_middle = tl.where(tl.arange(0, _AXES) < _AXES - 1, of_middle, -of_middle)
    tl.store(middle_axes + tile * _AXES + tl.arange(0, _AXES), of_middle)

    # 4. What is known of log(D_b / w_nb), and which queries count.
    norm = tl.sqrt(norm2)
    query_ratio = 1.0
    counted = inside
    if BACKWARD:
        grad_times_output = tl.zeros([64], tl.float32)
        largest_grad = tl.zeros([64], tl.float32)
        for c in range(0, packed_channels, BLOCK):
            block_of_maps = row[:, None] * packed_channels + c + lane
            g = tl.load(grad_output + block_of_maps).to(tl.float32)
            mean = tl.load(mean_grad + image * packed_channels + c + tl.arange(0, BLOCK))
            query_ratio = tl.maximum(query_ratio, ratio_over_mean(g, mean))
            grad_times_output += tl.sum(g * tl.load(output + block_of_maps).to(tl.float32), 1)
            largest_grad = tl.maximum(largest_grad, tl.max(tl.abs(g), 1))
            not_finite += tl.sum(tl.sum(g, 1), 0) * 0
        tl.store(delta + row, grad_times_output)
        place = (image * query_height + y) * query_width + x
        known = tl.load(log_denominator_in + place, mask=inside, other=0.0)
        tl.store(log_denominator + row, known)
        not_finite += tl.sum(grad_times_output + known, 0) * 0
        # Nothing flows back from a query without an upstream gradient.
        counted = inside & ((largest_grad > 0) | (grad_times_output != grad_times_output))
    else:
        _, log_weight, _, _ = pair_logits(
            with_around, with_nearest[:, None], y[:, None], x[:, None], around_y[None, :],
            around_x[None, :], query_height, query_width, key_height, key_width, reach_y, reach_x,
            scale, inv, WINDOW,
        )  # fmt: skip
        # The products' rounding, and that of the same in the main kernel, is less than this.
        key_norm = tl.sqrt(tl.load(sq_norm + around))
        log_weight -= 2.0**-13 * tl.abs(scale) * norm[:, None] * key_norm[None, :]
        highest = tl.maximum(tl.max(log_weight, 1), 0)
        known = tl.log(tl.maximum(tl.sum(tl.exp(log_weight - highest[:, None]), 1), 1e-30))
        known = tl.maximum(highest + known, 0, propagate_nan=tl.PropagateNan.ALL)

    # 5. Bounds. The terms' own rounding is less than the slack.
    sq_nearest = offset_y * offset_y + offset_x * offset_x
    size = tl.abs(scale) * norm
    slack = size * tl.sqrt(tl.load(sq_norm + nearest)) + tl.abs(known) + inv * sq_nearest
    query_bound = inv * sq_nearest - scale * with_nearest - known
    query_bound += 2.0**-14 * slack + 2.0**-10 + tl.log(query_ratio) + not_finite
    query_bound = countable_bound(query_bound, counted)
    tl.store(query_log_bound + row, query_bound)
    middle_bound = scale * with_middle + query_bound
    middle_bound += 2.0**-14 * size * tl.sqrt(tl.load(sq_norm + middle))
    tl.store(query_max_bound + tile, tl.max(countable_bound(middle_bound, counted), 0))
