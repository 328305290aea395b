"""List the pairs of tiles that matter; what is skipped is below rounding (docs/lam-gpu.md).

Whole tiles are ruled out first (list), by 2 <f_a, f_b> = |f_a|^2 + |f_b|^2 - |f_a - f_b|^2: by the
largest |f|^2 on each side, the least distance of the tiles' pixels and the least distance of the
boxes that hold their first features. Pairs of pixels of the remaining tiles are looked at next
(refine): with y a pixel's first features and r the rest,

    <f_a, f_b> <= <y_a, y_b> + |r_a| |r_b|,

16 numbers per pixel instead of all.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from blpseg_ops.triton import lam_config
from blpseg_ops.triton.lam_describe import AXES, Tiles
from blpseg_ops.triton.lam_math import (
    SIDE,
    LamParams,
    in_window,
    pixel_yx,
    squared_distances,
)
from blpseg_ops.triton.lam_pack import TileGrid

ROUNDING = 2.0**-24
SAMPLES = 8  # candidates that decide whether pairs of pixels are looked at

_AXES = tl.constexpr(AXES)
_SAMPLES = tl.constexpr(SAMPLES)
_HUGE = tl.constexpr(1e37)  # more than any distance takes off a bound


class TileLists(NamedTuple):
    """The key tiles of each query block; field names are the kernels' argument names."""

    tile_lists: Tensor  # [N, query blocks, list_capacity] int32, ascending
    list_lengths: Tensor  # [N, query blocks] int32


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
        symmetric: Whether a pair also matters with query and key exchanged.
    """
    n = len(tiles.sq_norm)
    blocks = grid.tiles // tiles_per_program
    # Tiles that a window reaches, up, down, left and right.
    distance_bound = -(-params.radius // SIDE) if window else grid.tiles
    list_capacity = min(
        grid.tiles, (2 * distance_bound + 1) * (2 * distance_bound + tiles_per_program)
    )
    lists = tiles.sq_norm.new_empty(2, n, blocks, list_capacity, dtype=torch.int32)
    lengths = tiles.sq_norm.new_empty(2, n, blocks, dtype=torch.int32)
    numbers = {
        "tile_columns": grid.tile_columns,
        "tiles": grid.tiles,
        "list_capacity": list_capacity,
        **params._asdict(),
        "log_skip_threshold": math.log(ROUNDING / (grid.height * grid.width)),
    }
    list_kernel[n * blocks,](
        box_low=tiles.box_low,
        box_high=tiles.box_high,
        key_max_bound=tiles.key_max_bound,
        query_max_bound=tiles.query_max_bound,
        tile_lists=lists[0],
        list_lengths=lengths[0],
        **numbers,
        **lam_config.list_tiles(tiles_per_program, window, symmetric).keywords(),
    )
    refine_kernel[n * blocks,](
        axes=tiles.axes,
        key_log_bound=tiles.key_log_bound,
        query_log_bound=tiles.query_log_bound,
        candidates=lists[0],
        candidate_lengths=lengths[0],
        tile_lists=lists[1],
        list_lengths=lengths[1],
        **numbers,
        **lam_config.refine(family, tiles_per_program, window, symmetric).keywords(),
    )
    return TileLists(lists[1], lengths[1])


@triton.jit
def _gaps(low, high, own_low, own_high):
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

    length = 0
    for start in range(begin, end, BLOCK):
        # 3. An upper bound of what matters, for each of BLOCK tiles.
        tile = start + tl.arange(0, BLOCK)
        exists = tile < end
        tile_axes = tile[:, None] * _AXES + axis[None, :]
        gaps = _gaps(
            tl.load(box_low + tile_axes, mask=exists[:, None], other=0.0),
            tl.load(box_high + tile_axes, mask=exists[:, None], other=0.0),
            own_low[None, :],
            own_high[None, :],
        )
        box_distance = tl.minimum(tl.maximum(scale, 0) / 2 * tl.sum(gaps * gaps, 1), _HUGE / 2)
        y, x = tile // tile_columns * 8, tile % tile_columns * 8
        dy = _gaps(y, y + 7, top, top + 7).to(tl.float32)
        dx = _gaps(x, x + 7, left, left + 8 * TILES_PER_PROGRAM - 1).to(tl.float32)
        log_gaussian = tl.maximum(-inv_two_sigma_sq * (dy * dy + dx * dx), log_eps)
        key_bound = tl.load(key_max_bound + tile, mask=exists, other=0.0)
        bound = key_bound + own_query_bound
        if SYMMETRIC:
            query_bound = tl.load(query_max_bound + tile, mask=exists, other=0.0)
            bound = tl.maximum(bound, query_bound + own_key_bound)
        # The factor covers the rounding of box_distance.
        matters = bound - (1 - 2.0**-14) * box_distance + log_gaussian > log_skip_threshold
        keep = exists & matters
        if WINDOW:
            keep = keep & (tl.maximum(dy, dx) <= radius)

        # 4. Append those that matter.
        position = length + tl.cumsum(keep.to(tl.int32), 0) - 1
        tl.store(tile_lists + position, tile, mask=keep)
        length += tl.sum(keep.to(tl.int32), 0)
    tl.store(list_lengths + block, length)


@triton.jit
def _pixels_matter(
    tile,
    own_y,
    own_x,
    own_axes,
    own_key_bound,
    own_query_bound,
    axes,
    key_log_bound,
    query_log_bound,
    tile_columns,
    inv_two_sigma_sq,
    log_eps,
    radius,
    log_skip_threshold,
    WINDOW: tl.constexpr,
    SYMMETRIC: tl.constexpr,
    INPUT_PRECISION: tl.constexpr,
):
    """Return 1 if any pair of pixels of the query block and the tile may matter, else 0."""
    pixel = tile * 64 + tl.arange(0, 64)
    y, x = pixel_yx(pixel, tile_columns)
    other_axes = tl.load(axes + pixel[:, None] * _AXES + tl.arange(0, _AXES)[None, :])
    score_bound = tl.dot(own_axes, tl.trans(other_axes), input_precision=INPUT_PRECISION)
    bound = score_bound + (own_query_bound[:, None] + tl.load(key_log_bound + pixel)[None, :])
    if SYMMETRIC:
        exchanged = own_key_bound[:, None] + tl.load(query_log_bound + pixel)[None, :]
        bound = tl.maximum(bound, score_bound + exchanged)
    bound += tl.maximum(-inv_two_sigma_sq * squared_distances(own_y, own_x, y, x), log_eps)
    matters = tl.where(bound <= log_skip_threshold, 0, 1)  # NaN matters
    if WINDOW:
        matters = tl.where(in_window(own_y, own_x, y, x, radius), matters, 0)
    return tl.max(tl.max(matters, 1), 0)


@triton.jit(
    do_not_specialize=[
        "tile_columns", "tiles", "list_capacity", "scale", "inv_two_sigma_sq", "log_eps", "radius",
        "log_skip_threshold",
    ]
)  # fmt: skip
def refine_kernel(
    axes,  # [N, tiles, 64, AXES]
    key_log_bound,  # [N, tiles, 64]
    query_log_bound,  # [N, tiles, 64]
    candidates,  # [N, query blocks, list_capacity]
    candidate_lengths,  # [N, query blocks]
    tile_lists,  # [N, query blocks, list_capacity]
    list_lengths,  # [N, query blocks]
    tile_columns,
    tiles,
    list_capacity,
    scale,
    inv_two_sigma_sq,
    log_eps,
    radius,
    log_skip_threshold,
    QUERIES: tl.constexpr,
    WINDOW: tl.constexpr,
    SYMMETRIC: tl.constexpr,
    INPUT_PRECISION: tl.constexpr,
    BLOCK: tl.constexpr,  # entries copied per step
):
    """Keep the candidates that hold a pair of pixels that matters.

    All are kept unseen where a few, spread over the list, matter all: where hardly any can be
    skipped, looking would cost more than it saves. Program id: image and query block.
    """
    blocks_per_image = tiles * 64 // QUERIES
    block = tl.program_id(0).to(tl.int64)
    image = (tl.program_id(0) // blocks_per_image).to(tl.int64)
    axes += image * tiles * 64 * _AXES
    key_log_bound += image * tiles * 64
    query_log_bound += image * tiles * 64
    candidates += block * list_capacity
    tile_lists += block * list_capacity

    # 1. The query block.
    own = tl.program_id(0) % blocks_per_image * QUERIES + tl.arange(0, QUERIES)
    own_y, own_x = pixel_yx(own, tile_columns)
    axis = tl.arange(0, _AXES)[None, :]
    factor = tl.where(axis < _AXES - 1, scale, tl.abs(scale))
    own_axes = tl.load(axes + own[:, None] * _AXES + axis) * factor
    own_key_bound = tl.load(key_log_bound + own)
    own_query_bound = tl.load(query_log_bound + own)

    # 2. A sample decides whether the rest is looked at.
    length = tl.load(candidate_lengths + block)
    step = tl.maximum(length // _SAMPLES, 1)
    seen, mattered = 0, 0
    for i in range(0, length, step):
        tile = tl.load(candidates + i)
        mattered += _pixels_matter(
            tile, own_y, own_x, own_axes, own_key_bound, own_query_bound, axes, key_log_bound,
            query_log_bound, tile_columns, inv_two_sigma_sq, log_eps, radius, log_skip_threshold,
            WINDOW, SYMMETRIC, INPUT_PRECISION,
        )  # fmt: skip
        seen += 1

    if mattered == seen:
        # 3. Copy the list.
        for start in range(0, length, BLOCK):
            entry = start + tl.arange(0, BLOCK)
            exists = entry < length
            tl.store(tile_lists + entry, tl.load(candidates + entry, mask=exists), mask=exists)
        tl.store(list_lengths + block, length)
    else:
        # 4. Look at each candidate.
        kept = 0
        for i in range(length):
            tile = tl.load(candidates + i)
            matters = _pixels_matter(
                tile, own_y, own_x, own_axes, own_key_bound, own_query_bound, axes, key_log_bound,
                query_log_bound, tile_columns, inv_two_sigma_sq, log_eps, radius,
                log_skip_threshold, WINDOW, SYMMETRIC, INPUT_PRECISION,
            )  # fmt: skip
            tl.store(tile_lists + kept, tile, mask=matters > 0)
            kept += matters
        tl.store(list_lengths + block, kept)
