"""List the pairs of tiles that matter; what is skipped is below rounding (docs/lam-gpu.md).

For every pixel of a query block, the upper bounds of all probabilities that are skipped add up to
2^-24 at most. Tiles are looked at twice:

1. list: whole tiles, by 2 <f_a, f_b> = |f_a|^2 + |f_b|^2 - |f_a - f_b|^2: the largest |f|^2 on each
   side, the least distance of the tiles' pixels and that of the boxes of their coordinates.
2. refine: pairs of pixels of the remaining tiles. With y a pixel's 15 coordinates and r the rest,
   <f_a, f_b> <= <y_a, y_b> + |r_a| |r_b|, 16 numbers per pixel instead of all. The tiles with the
   smallest sums are skipped, as many as the 2^-24 allows.

With eps > 0 a tile is near, far or skipped. Far tiles count in T only: their weights are
negligible, eps exp(s) is not.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from blpseg_ops.triton import lam_config
from blpseg_ops.triton.lam_describe import Tiles
from blpseg_ops.triton.lam_directions import AXES
from blpseg_ops.triton.lam_math import SIDE, LamParams, in_window, pixel_yx, round_to_tf32
from blpseg_ops.triton.lam_pack import TileGrid

ROUNDING = 2.0**-24

_AXES = tl.constexpr(AXES)
_BINS = tl.constexpr(64)  # of the histogram of sums
_BINS_PER_OCTAVE = tl.constexpr(4)
_BUDGET = tl.constexpr(ROUNDING * (1 - 2.0**-10))  # less what rounding of the sums themselves costs
_LOG2_BUDGET = tl.constexpr(-24.0)
_LOG2_E = tl.constexpr(math.log2(math.e))
_HUGE = tl.constexpr(1e37)  # more than any distance takes off a bound


class TileLists(NamedTuple):
    """The key tiles of each query block; field names are the kernels' argument names."""

    tile_lists: Tensor  # [N, query blocks, list_capacity] int32: near tiles, then far, ascending
    list_lengths: Tensor  # [2, N, query blocks] int32, of near and of far tiles


def capacity(grid: TileGrid, params: LamParams, tiles_per_program: int, *, window: bool) -> int:
    """Return how many tiles the longest list may hold."""
    if not window:
        return grid.tiles
    reach = -(-params.radius // SIDE)  # tiles that a window reaches, up, down, left and right
    return min(grid.tiles, (2 * reach + 1) * (2 * reach + tiles_per_program))


def list_tiles(
    tiles: Tiles,
    grid: TileGrid,
    params: LamParams,
    tiles_per_program: int,
    family: str,
    *,
    window: bool,
    symmetric: bool,
) -> TileLists:
    """List the key tiles that matter to each query block.

    Args:
        tiles: From describe.
        grid: How pixels are packed.
        params: LAM's.
        tiles_per_program: Query tiles that share a list.
        family: The chip's, in lam_config.
        window: Whether params.radius limits what a query sees.
        symmetric: Whether a pair also matters with query and key exchanged, as in backward.
    """
    n = len(tiles.sq_norm)
    blocks = grid.tiles // tiles_per_program
    list_capacity = capacity(grid, params, tiles_per_program, window=window)
    has_eps = params.log_eps > -math.inf
    # One allocation each: all are aligned alike, so no shape compiles another variant.
    candidates, tile_lists = (
        tiles.sq_norm.new_empty(n, blocks, list_capacity, dtype=torch.int32) for _ in range(2)
    )
    candidate_lengths = tiles.sq_norm.new_empty(n, blocks, dtype=torch.int32)
    list_lengths = tiles.sq_norm.new_empty(2, n, blocks, dtype=torch.int32)
    skipped_sum = tiles.sq_norm.new_empty(n, blocks)
    weight_sums = tiles.sq_norm.new_empty(n, blocks, list_capacity)
    guard_sums = torch.empty_like(weight_sums) if has_eps else weight_sums
    numbers = {
        "tile_columns": grid.tile_columns,
        "tiles": grid.tiles,
        "list_capacity": list_capacity,
        **params._asdict(),
    }
    list_kernel[n * blocks,](
        box_low=tiles.box_low,
        box_high=tiles.box_high,
        key_max_bound=tiles.key_max_bound,
        query_max_bound=tiles.query_max_bound,
        tile_lists=candidates,
        list_lengths=candidate_lengths,
        skipped_sum=skipped_sum,
        **numbers,
        # All pairs that this kernel skips take an eighth of the budget at most.
        log_skip_threshold=math.log(ROUNDING / 8 / (grid.height * grid.width)),
        **lam_config.list_tiles(tiles_per_program, window, symmetric).keywords(),
    )
    refine_kernel[n * blocks,](
        sq_norm=tiles.sq_norm,
        axes=tiles.axes,
        key_log_bound=tiles.key_log_bound,
        query_log_bound=tiles.query_log_bound,
        candidates=candidates,
        candidate_lengths=candidate_lengths,
        skipped_sum=skipped_sum,
        weight_sums=weight_sums,
        guard_sums=guard_sums,
        tile_lists=tile_lists,
        list_lengths=list_lengths,
        **numbers,
        **lam_config.refine(family, tiles_per_program, has_eps, window, symmetric).keywords(),
    )
    return TileLists(tile_lists, list_lengths)


@triton.jit
def interval_gaps(low, high, own_low, own_high):
    """Return the least distances of intervals."""
    return tl.maximum(tl.maximum(low - own_high, own_low - high), 0)


@triton.jit(
    do_not_specialize=[
        "tile_columns", "tiles", "list_capacity", "scale", "inv_two_sigma_sq", "log_eps", "radius",
        "log_skip_threshold",
    ]
)  # fmt: skip
def list_kernel(
    box_low,  # [N, tiles, AXES]
    box_high,  # [N, tiles, AXES]
    key_max_bound,  # [N, tiles]
    query_max_bound,  # [N, tiles]
    tile_lists,  # [N, query blocks, list_capacity]
    list_lengths,  # [N, query blocks]
    skipped_sum,  # [N, query blocks] upper bound of the probabilities skipped, per query
    tile_columns,
    tiles,
    list_capacity,
    scale,
    inv_two_sigma_sq,
    log_eps,
    radius,
    log_skip_threshold,
    TILES_PER_PROGRAM: tl.constexpr,
    WINDOW: tl.constexpr,
    SYMMETRIC: tl.constexpr,
    BLOCK: tl.constexpr,  # candidates per step
):
    """List the tiles of one query block, in ascending order; program id: image and query block."""
    # 1. The query block: its box, its largest bounds, its pixels.
    blocks_per_image = tiles // TILES_PER_PROGRAM
    block = tl.program_id(0).to(tl.int64)
    image = (tl.program_id(0) // blocks_per_image).to(tl.int64)
    box_low += image * tiles * _AXES
    box_high += image * tiles * _AXES
    key_max_bound += image * tiles
    query_max_bound += image * tiles
    tile_lists += block * list_capacity

    first = tl.program_id(0) % blocks_per_image * TILES_PER_PROGRAM
    own = first + tl.arange(0, TILES_PER_PROGRAM)
    axis = tl.arange(0, _AXES)
    own_axes = own[:, None] * _AXES + axis[None, :]
    own_low = tl.min(tl.load(box_low + own_axes), 0)
    own_high = tl.max(tl.load(box_high + own_axes), 0)
    own_query_bound = tl.max(tl.load(query_max_bound + own), 0)
    own_key_bound = tl.max(tl.load(key_max_bound + own), 0)
    top, left = first // tile_columns * 8, first % tile_columns * 8

    # 2. Rows of tiles that can be seen.
    begin, end = 0, tiles
    if WINDOW:
        row, distance_bound = first // tile_columns, (radius + 7) // 8
        begin = tl.maximum(row - distance_bound, 0) * tile_columns
        end = tl.minimum((row + distance_bound + 1) * tile_columns, tiles)

    length, skipped = 0, 0.0
    for start in range(begin, end, BLOCK):
        # 3. An upper bound of what matters, for each of BLOCK tiles.
        tile = start + tl.arange(0, BLOCK)
        exists = tile < end
        tile_axes = tile[:, None] * _AXES + axis[None, :]
        gaps = interval_gaps(
            tl.load(box_low + tile_axes, mask=exists[:, None], other=0.0),
            tl.load(box_high + tile_axes, mask=exists[:, None], other=0.0),
            own_low[None, :],
            own_high[None, :],
        )
        box_distance = tl.minimum(tl.maximum(scale, 0) / 2 * tl.sum(gaps * gaps, 1), _HUGE / 2)
        y, x = tile // tile_columns * 8, tile % tile_columns * 8
        dy = interval_gaps(y, y + 7, top, top + 7).to(tl.float32)
        dx = interval_gaps(x, x + 7, left, left + 8 * TILES_PER_PROGRAM - 1).to(tl.float32)
        log_gaussian = tl.maximum(-inv_two_sigma_sq * (dy * dy + dx * dx), log_eps)
        key_bound = tl.load(key_max_bound + tile, mask=exists, other=0.0)
        bound = key_bound + own_query_bound
        if SYMMETRIC:
            query_bound = tl.load(query_max_bound + tile, mask=exists, other=0.0)
            bound = tl.maximum(bound, query_bound + own_key_bound)
        # The factor covers the rounding of box_distance.
        bound += log_gaussian - (1 - 2.0**-14) * box_distance
        if WINDOW:
            exists = exists & (tl.maximum(dy, dx) <= radius)
        keep = exists & (bound > log_skip_threshold)
        skipped += tl.sum(
            tl.where(exists & (bound <= log_skip_threshold), 64 * tl.exp(bound), 0), 0
        )

        # 4. Append those that matter.
        position = length + tl.cumsum(keep.to(tl.int32), 0) - 1
        tl.store(tile_lists + position, tile, mask=keep)
        length += tl.sum(keep.to(tl.int32), 0)
    tl.store(list_lengths + block, length)
    tl.store(skipped_sum + block, skipped)


@triton.jit
def largest_sum(log2_bound):  # [QUERIES, 64] -> scalar
    """Return the largest sum over keys of 2^log2_bound; of two keys side by side, twice the larger.

    This takes half of the exponentials.
    """
    rows: tl.constexpr = log2_bound.shape[0]
    larger = tl.max(tl.reshape(log2_bound, [rows, 32, 2]), 2)
    sums = 2 * tl.sum(tl.exp2(larger), 1)
    return tl.max(tl.where(sums == sums, sums, float("inf")), 0)  # NaN is never skipped


@triton.jit
def bin_of(sums):
    """Return the histogram's bin of sums: the last one is never skipped."""
    log2_ratio = tl.log2(sums) - _LOG2_BUDGET
    place = tl.minimum(tl.maximum(log2_ratio * _BINS_PER_OCTAVE + (_BINS - 1), 0), _BINS - 1)
    return tl.where(sums == sums, place, _BINS - 1).to(tl.int32)


@triton.jit
def skippable_bins(
    sums,  # pointer to a list's sums
    others,  # pointer to sums; where their bin is not below others_skippable, tiles are left out
    others_skippable,
    length,
    spent,  # of the budget
    HAS_OTHERS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Return how many of the lowest bins hold no more than the budget in all."""
    bins = tl.arange(0, _BINS)
    histogram = tl.zeros([_BINS], tl.float32)
    for start in range(0, length, BLOCK):
        entry = start + tl.arange(0, BLOCK)
        counted = entry < length
        number = tl.load(sums + entry, mask=counted, other=0.0)
        if HAS_OTHERS:
            other = tl.load(others + entry, mask=counted, other=0.0)
            counted = counted & (bin_of(other) < others_skippable)
        in_bin = (bin_of(number)[:, None] == bins[None, :]) & counted[:, None]
        histogram += tl.sum(tl.where(in_bin, number[:, None], 0), 0)
    fits = (tl.cumsum(histogram, 0) + spent <= _BUDGET) & (bins < _BINS - 1)
    return tl.sum(fits.to(tl.int32), 0)


@triton.jit
def append_tiles(
    candidates,
    weight_sums,
    near_bin,
    guard_sums,
    far_bin,
    tile_lists,
    start_of_list,
    length,
    FAR: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Append the near or the far tiles to a list; return how many they are."""
    appended = 0
    for start in range(0, length, BLOCK):
        entry = start + tl.arange(0, BLOCK)
        exists = entry < length
        near = bin_of(tl.load(weight_sums + entry, mask=exists, other=0.0)) >= near_bin
        if FAR:
            guard = bin_of(tl.load(guard_sums + entry, mask=exists, other=0.0))
            keep = exists & (guard >= far_bin) & (near == 0)
        else:
            keep = exists & near
        position = start_of_list + appended + tl.cumsum(keep.to(tl.int32), 0) - 1
        tl.store(
            tile_lists + position, tl.load(candidates + entry, mask=exists, other=0), mask=keep
        )
        appended += tl.sum(keep.to(tl.int32), 0)
    return appended


@triton.jit(
    do_not_specialize=[
        "tile_columns", "tiles", "list_capacity", "scale", "inv_two_sigma_sq", "log_eps", "radius",
    ]
)  # fmt: skip
def refine_kernel(
    sq_norm,  # [N, tiles, 64]
    axes,  # [N, tiles, 64, AXES]
    key_log_bound,  # [N, tiles, 64]
    query_log_bound,  # [N, tiles, 64]
    candidates,  # [N, query blocks, list_capacity]
    candidate_lengths,  # [N, query blocks]
    skipped_sum,  # [N, query blocks]
    weight_sums,  # [N, query blocks, list_capacity], scratch: per tile, largest sum of P bounds
    guard_sums,  # [N, query blocks, list_capacity], scratch: likewise of R / max(1, S / 4)
    tile_lists,  # [N, query blocks, list_capacity]
    list_lengths,  # [2, N, query blocks], near and far
    tile_columns,
    tiles,
    list_capacity,
    scale,
    inv_two_sigma_sq,
    log_eps,
    radius,
    QUERIES: tl.constexpr,
    HAS_EPS: tl.constexpr,
    WINDOW: tl.constexpr,
    SYMMETRIC: tl.constexpr,
    INPUT_PRECISION: tl.constexpr,
    BLOCK: tl.constexpr,  # sums per step
):
    """Sort a query block's candidates into near, far and skipped tiles.

    Program id: image and query block. Logs are to base 2 here.
    """
    blocks_per_image = tiles * 64 // QUERIES
    block = tl.program_id(0).to(tl.int64)
    image = (tl.program_id(0) // blocks_per_image).to(tl.int64)
    sq_norm += image * tiles * 64
    axes += image * tiles * 64 * _AXES
    key_log_bound += image * tiles * 64
    query_log_bound += image * tiles * 64
    candidates += block * list_capacity
    weight_sums += block * list_capacity
    guard_sums += block * list_capacity
    tile_lists += block * list_capacity

    # 1. The query block. Distances are taken slightly too small, which covers their rounding.
    own = tl.program_id(0) % blocks_per_image * QUERIES + tl.arange(0, QUERIES)
    lane = tl.arange(0, 64)
    unit = tl.sqrt(inv_two_sigma_sq * _LOG2_E) * (1 - 2.0**-12)
    own_y, own_x = pixel_yx(own, tile_columns)
    origin_y, origin_x = tl.min(own_y, 0), tl.min(own_x, 0)
    scaled_y = (own_y - origin_y).to(tl.float32) * unit
    scaled_x = (own_x - origin_x).to(tl.float32) * unit
    lane_y = (lane // 8).to(tl.float32) * unit
    lane_x = (lane % 8).to(tl.float32) * unit
    axis = tl.arange(0, _AXES)[None, :]
    factor = tl.where(axis < _AXES - 1, scale, tl.abs(scale)) * _LOG2_E
    own_axes = round_to_tf32(tl.load(axes + own[:, None] * _AXES + axis) * factor)
    own_query_bound = tl.load(query_log_bound + own) * _LOG2_E
    if SYMMETRIC:
        own_key_bound = tl.load(key_log_bound + own) * _LOG2_E
        excess = own_query_bound - own_key_bound
        excess = tl.where(own_key_bound == float("-inf"), 0, excess)[:, None]
    if HAS_EPS:
        # R = eps exp(s) / D may add up to max(1, S / 4) times the budget, S = |scale| |f|^2.
        own_size = tl.abs(scale) * tl.load(sq_norm + own)[:, None]
        tolerated = tl.minimum(tl.maximum(own_size / 4, 1), 1e30)
        own_log_eps = log_eps * _LOG2_E - tl.log2(tolerated)

    # 2. Per candidate: the largest sum over its keys that a query has. All but the scores goes into
    # the accumulator that the product starts with. In backward both directions share it:
    # max(q_b + k_a, k_b + q_a) = k_b + k_a + max(q_b - k_b, q_a - k_a), q and k being the bounds.
    length = tl.load(candidate_lengths + block)
    for i in range(length):
        tile = tl.load(candidates + i)
        pixel = tile * 64 + lane
        # One bound for all keys: those outside the image have a score of 0 and count as well.
        other_key_bound = tl.load(key_log_bound + tile * 64) * _LOG2_E
        own_bound = own_key_bound if SYMMETRIC else own_query_bound
        tile_y, tile_x = tile // tile_columns * 8 - origin_y, tile % tile_columns * 8 - origin_x
        dy = scaled_y[:, None] - (lane_y + tile_y.to(tl.float32) * unit)[None, :]
        dx = scaled_x[:, None] - (lane_x + tile_x.to(tl.float32) * unit)[None, :]
        bound = tl.broadcast_to((own_bound + other_key_bound)[:, None], [QUERIES, 64])
        if not HAS_EPS:
            bound = bound - dx * dx - dy * dy
        other_axes = tl.load(axes + pixel[:, None] * _AXES + axis)
        bound = tl.dot(own_axes, tl.trans(other_axes), bound, input_precision=INPUT_PRECISION)
        if SYMMETRIC:
            # A maximum of one number: without it, each thread would load the bounds of its pairs.
            other_query_bound = tl.max(tl.load(query_log_bound + pixel[:, None]), 1) * _LOG2_E
            other_excess = other_query_bound - other_key_bound
            bound += tl.maximum(excess, other_excess[None, :])
        if WINDOW:
            visible = in_window(
                own_y - origin_y, own_x - origin_x, tile_y + lane // 8, tile_x + lane % 8, radius
            )
            bound = tl.where(visible, bound, float("-inf"))
        if HAS_EPS:
            tl.store(guard_sums + i, largest_sum(bound + own_log_eps))
            bound = bound - dx * dx - dy * dy
        tl.store(weight_sums + i, largest_sum(bound))
    tl.debug_barrier()  # the sums are read by other threads than wrote them

    # 3. Skip the smallest sums, as many as the budget allows.
    spent = tl.load(skipped_sum + block)
    near_bin = skippable_bins(weight_sums, weight_sums, 0, length, spent, False, BLOCK)
    near = append_tiles(
        candidates, weight_sums, near_bin, guard_sums, 0, tile_lists, 0, length, False, BLOCK
    )
    far = 0
    if HAS_EPS:
        far_bin = skippable_bins(guard_sums, weight_sums, near_bin, length, spent, True, BLOCK)
        far = append_tiles(
            candidates, weight_sums, near_bin, guard_sums, far_bin, tile_lists, near, length, True,
            BLOCK,
        )  # fmt: skip
    tl.store(list_lengths + block, near)
    tl.store(list_lengths + tl.num_programs(0) + block, far)
