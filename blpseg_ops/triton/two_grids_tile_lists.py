"""List the tiles of the other grid that matter to a block of queries or of keys (docs/lam-gpu.md).

For every query (or key) of a block, the upper bounds of all that is skipped add up to 2^-24 at
most. As in lam_tile_lists, tiles are looked at twice. list: whole tiles, by the boxes of their
coordinates. With m the key in the middle of a tile of queries, and y a pixel's 15 coordinates,

    <f_a - f_m, q_b> <= sum over the axes of the largest (y_a - y_m) y_b + (|r_a| + |r_m|) |r_b|.

refine: pairs of pixels of the tiles that remain, <f_a, q_b> <= <y_a, y_b> + |r_a| |r_b|.
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
from blpseg_ops.triton.lam_math import SIDE, TILE, pixel_yx, round_to_tf32
from blpseg_ops.triton.lam_tile_lists import (
    ROUNDING,
    append_tiles,
    interval_gaps,
    largest_sum,
    skippable_bins,
)
from blpseg_ops.triton.two_grids_describe import QueryTiles
from blpseg_ops.triton.two_grids_math import TwoGrids

_AXES = tl.constexpr(AXES)
_LOG2_E = tl.constexpr(math.log2(math.e))
_HUGE = tl.constexpr(1e37)  # more than any distance takes off a bound


class OtherTiles(NamedTuple):
    """The tiles of the other grid per block; field names are the kernels' argument names."""

    tile_lists: Tensor  # [N, blocks, list_capacity] int32, ascending
    list_lengths: Tensor  # [N, blocks] int32


class _Side(NamedTuple):
    """One grid as the kernels see it: `step` is the distance of two lines' places, halved."""

    step_y: int
    step_x: int
    top: int  # the first row
    columns: int  # of tiles
    tiles: int

    def named(self, prefix: str) -> dict[str, int]:
        return {f"{prefix}_{name}": value for name, value in self._asdict().items()}


def _sides(grids: TwoGrids) -> tuple[_Side, _Side]:  # queries, keys
    queries = _Side(
        grids.key_height, grids.key_width, grids.query_top, grids.query_columns, grids.query_tiles
    )
    keys = _Side(grids.query_height, grids.query_width, 0, grids.key_columns, grids.key_tiles)
    return queries, keys


def capacity(grids: TwoGrids, tiles_per_program: int, *, of_keys: bool, window: bool) -> int:
    """Return how many tiles the longest list may hold, of a block of queries or of keys."""
    queries, keys = _sides(grids)
    own, other = (keys, queries) if of_keys else (queries, keys)
    if not window:
        return other.tiles

    def count(own_step: int, other_step: int, reach: int, pixels: int) -> int:
        lines = (2 * own_step * (pixels - 1) + 2 * reach) // (2 * other_step) + 1
        return (lines + SIDE - 2) // SIDE + 1  # wherever the first line lies in its tile

    rows = count(own.step_y, other.step_y, grids.reach_y, SIDE)
    columns = count(own.step_x, other.step_x, grids.reach_x, SIDE * tiles_per_program)
    return min(rows, other.tiles // other.columns) * min(columns, other.columns)


def list_other_tiles(
    keys: Tiles,
    queries: QueryTiles,
    grids: TwoGrids,
    inv_two_sigma_sq: Tensor,  # [N]
    scale: float,
    log_eps: float,
    tiles_per_program: int,
    family: str,
    *,
    of_keys: bool,
    window: bool,
    bands: int,
) -> OtherTiles:
    """List the tiles that matter to each block of queries, or of keys.

    Args:
        keys: From describe.
        queries: From describe_queries, of a band.
        grids: How both are packed.
        inv_two_sigma_sq: 1 / (2 sigma^2) per image.
        scale: LAM's.
        log_eps: log(eps), -inf for 0.
        tiles_per_program: Tiles of a block.
        family: The chip's, in lam_config.
        of_keys: Whether blocks are of keys, and tiles of queries.
        window: Whether a query sees only keys in its window.
        bands: Bands of queries; a key's skipped probabilities add up over them.
    """
    n = len(keys.sq_norm)
    own, other = _sides(grids)[::-1] if of_keys else _sides(grids)
    blocks = own.tiles // tiles_per_program
    list_capacity = capacity(grids, tiles_per_program, of_keys=of_keys, window=window)
    # One allocation each: all are aligned alike, so no shape compiles another variant.
    candidates, tile_lists = (
        keys.axes.new_empty(n, blocks, list_capacity, dtype=torch.int32) for _ in range(2)
    )
    candidate_lengths, list_lengths = (
        keys.axes.new_empty(n, blocks, dtype=torch.int32) for _ in range(2)
    )
    skipped_sum = keys.axes.new_empty(n, blocks)
    sums = keys.axes.new_empty(n, blocks, list_capacity)
    numbers = {
        **own.named("own"),
        **other.named("other"),
        "query_height": grids.query_height,
        "query_width": grids.query_width,
        "reach_y": grids.reach_y,
        "reach_x": grids.reach_x,
        "list_capacity": list_capacity,
        "scale": scale,
        "log_eps": log_eps,
        "log_shares": math.log(bands if of_keys else 1),
    }
    two_grids_list_kernel[n * blocks,](
        key_low=keys.box_low,
        key_high=keys.box_high,
        key_max_bound=keys.key_log_bound.amax(-1),
        query_box=queries.query_box,
        middle_axes=queries.middle_axes,
        query_max_bound=queries.query_max_bound,
        inv_two_sigma_sqs=inv_two_sigma_sq,
        candidates=candidates,
        candidate_lengths=candidate_lengths,
        skipped_sum=skipped_sum,
        **numbers,
        # All pairs that this kernel skips take an eighth of the budget at most.
        log_skip_threshold=math.log(ROUNDING / 8 / (other.tiles * TILE)),
        **lam_config.two_grids_list(tiles_per_program, window, of_keys).keywords(),
    )
    own_axes, own_log_bound = keys.axes, keys.key_log_bound
    other_axes, other_log_bound = queries.query_axes, queries.query_log_bound
    if not of_keys:
        own_axes, other_axes = other_axes, own_axes
        own_log_bound, other_log_bound = other_log_bound, own_log_bound
    two_grids_refine_kernel[n * blocks,](
        own_axes=own_axes,
        own_log_bound=own_log_bound,
        other_axes=other_axes,
        other_log_bound=other_log_bound,
        inv_two_sigma_sqs=inv_two_sigma_sq,
        candidates=candidates,
        candidate_lengths=candidate_lengths,
        skipped_sum=skipped_sum,
        sums=sums,
        tile_lists=tile_lists,
        list_lengths=list_lengths,
        **numbers,
        **lam_config.two_grids_refine(
            family, tiles_per_program, log_eps > -math.inf, window
        ).keywords(),
    )
    return OtherTiles(tile_lists, list_lengths)


@triton.jit
def _largest_score(key_low, key_high, middle, query_low, query_high):  # [1 or TILES, AXES] each
    """Return an upper bound [TILES] of scale <f_a - f_m, q_b>; the queries' box is times scale."""
    below, above = key_low - middle, key_high - middle
    largest = tl.maximum(
        tl.maximum(below * query_low, below * query_high),
        tl.maximum(above * query_low, above * query_high),
    )
    return tl.sum(largest, 1)


@triton.jit(
    do_not_specialize=[
        "own_step_y", "own_step_x", "own_top", "own_columns", "own_tiles", "other_step_y",
        "other_step_x", "other_top", "other_columns", "other_tiles", "query_height", "query_width",
        "reach_y", "reach_x", "list_capacity", "scale", "log_eps", "log_shares",
        "log_skip_threshold",
    ]
)  # fmt: skip
def two_grids_list_kernel(
    key_low,  # [N, key_tiles, AXES]
    key_high,  # [N, key_tiles, AXES], the largest norm of the rest in the last axis
    key_max_bound,  # [N, key_tiles]
    query_box,  # [2, N, query_tiles, AXES]
    middle_axes,  # [N, query_tiles, AXES]
    query_max_bound,  # [N, query_tiles]
    inv_two_sigma_sqs,  # [N]
    candidates,  # [N, blocks, list_capacity]
    candidate_lengths,  # [N, blocks]
    skipped_sum,  # [N, blocks] upper bound of what is skipped, per pixel of the block
    own_step_y,
    own_step_x,
    own_top,
    own_columns,
    own_tiles,
    other_step_y,
    other_step_x,
    other_top,
    other_columns,
    other_tiles,
    query_height,
    query_width,
    reach_y,
    reach_x,
    list_capacity,
    scale,
    log_eps,
    log_shares,
    log_skip_threshold,
    TILES_PER_PROGRAM: tl.constexpr,
    WINDOW: tl.constexpr,
    OF_KEYS: tl.constexpr,
    BLOCK: tl.constexpr,  # candidates per step
):
    """List the tiles of one block, in ascending order; program id: image and block."""
    # 1. The block's places.
    blocks_per_image = own_tiles // TILES_PER_PROGRAM
    block = tl.program_id(0).to(tl.int64)
    image = (tl.program_id(0) // blocks_per_image).to(tl.int64)
    images = tl.num_programs(0) // blocks_per_image
    candidates += block * list_capacity
    inv = tl.load(inv_two_sigma_sqs + image)
    first = tl.program_id(0) % blocks_per_image * TILES_PER_PROGRAM
    top, left = own_top + first // own_columns * 8, first % own_columns * 8
    place_top, place_left = own_step_y * (2 * top + 1), own_step_x * (2 * left + 1)
    place_bottom = own_step_y * (2 * top + 15)
    place_right = own_step_x * (2 * left + 16 * TILES_PER_PROGRAM - 1)
    # Distances are taken slightly too small, which covers their rounding.
    unit_y = (1 - 2.0**-12) / (2 * query_height).to(tl.float32)
    unit_x = (1 - 2.0**-12) / (2 * query_width).to(tl.float32)
    axis = tl.arange(0, _AXES)[None, :]
    factor = tl.where(axis < _AXES - 1, scale, tl.abs(scale))

    # 2. Rows of tiles that can be seen.
    begin, end = 0, other_tiles
    if WINDOW:
        nearest = tl.maximum(place_top - reach_y - other_step_y, 0) // (2 * other_step_y)
        farthest = tl.maximum(place_bottom + reach_y - other_step_y, 0) // (2 * other_step_y)
        begin = tl.maximum(nearest - other_top, 0) // 8 * other_columns
        end = tl.minimum((tl.maximum(farthest - other_top, 0) // 8 + 1) * other_columns, end)

    length, skipped = 0, 0.0
    for start in range(begin, end, BLOCK):
        # 3. Distances, and an upper bound of what matters, for each of BLOCK tiles.
        tile = start + tl.arange(0, BLOCK)
        exists = tile < end
        y, x = other_top + tile // other_columns * 8, tile % other_columns * 8
        gap_y = interval_gaps(
            other_step_y * (2 * y + 1), other_step_y * (2 * y + 15), place_top, place_bottom
        )
        gap_x = interval_gaps(
            other_step_x * (2 * x + 1), other_step_x * (2 * x + 15), place_left, place_right
        )
        dy, dx = gap_y.to(tl.float32) * unit_y, gap_x.to(tl.float32) * unit_x
        log_gaussian = tl.maximum(
            -inv * (dy * dy + dx * dx), log_eps, propagate_nan=tl.PropagateNan.ALL
        )
        if WINDOW:
            exists = exists & (gap_y <= reach_y) & (gap_x <= reach_x)
        bound = tl.full([BLOCK], float("-inf"), tl.float32)
        for t in tl.static_range(TILES_PER_PROGRAM):
            if OF_KEYS:
                key_tile = image * own_tiles + first + t + tl.zeros([1], tl.int32)
                query_tile = image * other_tiles + tile
                query_tiles = other_tiles
                key_exists, query_exists = tl.full([1], True, tl.int1), exists
            else:
                query_tile = image * own_tiles + first + t + tl.zeros([1], tl.int32)
                key_tile = image * other_tiles + tile
                query_tiles = own_tiles
                key_exists, query_exists = exists, tl.full([1], True, tl.int1)
            key_places = key_tile[:, None] * _AXES + axis
            query_places = query_tile[:, None] * _AXES + axis
            query_mask, key_mask = query_exists[:, None], key_exists[:, None]
            query_high = query_box + images.to(tl.int64) * query_tiles * _AXES
            score = _largest_score(
                tl.load(key_low + key_places, mask=key_mask, other=0.0),
                tl.load(key_high + key_places, mask=key_mask, other=0.0),
                tl.load(middle_axes + query_places, mask=query_mask, other=0.0),
                tl.load(query_box + query_places, mask=query_mask, other=0.0) * factor,
                tl.load(query_high + query_places, mask=query_mask, other=0.0) * factor,
            )
            key_bound = tl.load(key_max_bound + key_tile, mask=key_exists, other=0.0)
            query_bound = tl.load(query_max_bound + query_tile, mask=query_exists, other=0.0)
            counted = (key_bound > float("-inf")) & (query_bound > float("-inf"))
            of_pair = score + key_bound + query_bound + log_gaussian
            of_pair = tl.where(of_pair == of_pair, of_pair, _HUGE)  # NaN is never skipped
            bound = tl.maximum(bound, tl.where(counted, of_pair, float("-inf")))
        bound += log_shares
        keep = exists & (bound > log_skip_threshold)
        skipped += tl.sum(tl.where(exists & (keep == 0), 64 * tl.exp(bound), 0), 0)

        # 4. Append those that matter.
        position = length + tl.cumsum(keep.to(tl.int32), 0) - 1
        tl.store(candidates + position, tile, mask=keep)
        length += tl.sum(keep.to(tl.int32), 0)
    tl.store(candidate_lengths + block, length)
    tl.store(skipped_sum + block, skipped)


@triton.jit(
    do_not_specialize=[
        "own_step_y", "own_step_x", "own_top", "own_columns", "own_tiles", "other_step_y",
        "other_step_x", "other_top", "other_columns", "other_tiles", "query_height", "query_width",
        "reach_y", "reach_x", "list_capacity", "scale", "log_eps", "log_shares",
    ]
)  # fmt: skip
def two_grids_refine_kernel(
    own_axes,  # [N, own_tiles, 64, AXES]
    own_log_bound,  # [N, own_tiles, 64]
    other_axes,  # [N, other_tiles, 64, AXES]
    other_log_bound,  # [N, other_tiles, 64]
    inv_two_sigma_sqs,  # [N]
    candidates,  # [N, blocks, list_capacity]
    candidate_lengths,  # [N, blocks]
    skipped_sum,  # [N, blocks]
    sums,  # [N, blocks, list_capacity], scratch: per tile, the largest sum of bounds of a pixel
    tile_lists,  # [N, blocks, list_capacity]
    list_lengths,  # [N, blocks]
    own_step_y,
    own_step_x,
    own_top,
    own_columns,
    own_tiles,
    other_step_y,
    other_step_x,
    other_top,
    other_columns,
    other_tiles,
    query_height,
    query_width,
    reach_y,
    reach_x,
    list_capacity,
    scale,
    log_eps,
    log_shares,
    ROWS: tl.constexpr,  # pixels of a block
    HAS_EPS: tl.constexpr,
    WINDOW: tl.constexpr,
    INPUT_PRECISION: tl.constexpr,
    BLOCK: tl.constexpr,  # sums per step
):
    """Skip a block's candidates with the smallest sums; program id: image and block.

    Logs are to base 2 here.
    """
    blocks_per_image = own_tiles * 64 // ROWS
    block = tl.program_id(0).to(tl.int64)
    image = (tl.program_id(0) // blocks_per_image).to(tl.int64)
    other_axes += image * other_tiles * 64 * _AXES
    other_log_bound += image * other_tiles * 64
    candidates += block * list_capacity
    sums += block * list_capacity
    tile_lists += block * list_capacity

    # 1. The block. Distances are taken slightly too small, which covers their rounding.
    own = tl.program_id(0) % blocks_per_image * ROWS + tl.arange(0, ROWS)
    row = image * own_tiles * 64 + own
    lane = tl.arange(0, 64)
    root = tl.sqrt(tl.load(inv_two_sigma_sqs + image) * _LOG2_E) * (1 - 2.0**-12)
    unit_y = root / (2 * query_height).to(tl.float32)
    unit_x = root / (2 * query_width).to(tl.float32)
    own_y, own_x = pixel_yx(own, own_columns)
    place_y = (own_step_y * (2 * (own_top + own_y) + 1))[:, None]
    place_x = (own_step_x * (2 * own_x + 1))[:, None]
    axis = tl.arange(0, _AXES)[None, :]
    factor = tl.where(axis < _AXES - 1, scale, tl.abs(scale)) * _LOG2_E
    axes = round_to_tf32(tl.load(own_axes + row[:, None] * _AXES + axis) * factor)
    own_bound = ((tl.load(own_log_bound + row) + log_shares) * _LOG2_E)[:, None]

    # 2. Per candidate: the largest sum over its pixels that a pixel of the block has.
    length = tl.load(candidate_lengths + block)
    for i in range(length):
        tile = tl.load(candidates + i)
        pixel = tile * 64 + lane
        axes_of_tile = round_to_tf32(tl.load(other_axes + pixel[:, None] * _AXES + axis))
        score = tl.dot(axes, tl.trans(axes_of_tile), input_precision=INPUT_PRECISION)
        bound = score + own_bound + (tl.load(other_log_bound + pixel) * _LOG2_E)[None, :]
        y, x = pixel_yx(pixel, other_columns)
        dy = place_y - (other_step_y * (2 * (other_top + y) + 1))[None, :]
        dx = place_x - (other_step_x * (2 * x + 1))[None, :]
        if WINDOW:
            visible = (tl.abs(dy) <= reach_y) & (tl.abs(dx) <= reach_x)
            bound = tl.where(visible, bound, float("-inf"))
        scaled_y, scaled_x = dy.to(tl.float32) * unit_y, dx.to(tl.float32) * unit_x
        log_gaussian = -scaled_y * scaled_y - scaled_x * scaled_x
        if HAS_EPS:
            log_gaussian = tl.maximum(
                log_gaussian, log_eps * _LOG2_E, propagate_nan=tl.PropagateNan.ALL
            )
        tl.store(sums + i, largest_sum(bound + log_gaussian))
    tl.debug_barrier()  # the sums are read by other threads than wrote them

    # 3. Skip the smallest sums, as many as the budget allows.
    spent = tl.load(skipped_sum + block)
    first_bin = skippable_bins(sums, sums, 0, length, spent, False, BLOCK)
    kept = append_tiles(candidates, sums, first_bin, sums, 0, tile_lists, 0, length, False, BLOCK)
    tl.store(list_lengths + block, kept)
