"""Positions and log weights of LAM between two grids, as all of its kernels compute them.

Places are whole numbers, so that whether a key lies in a window is exact. Along an axis with h keys
and H queries, key y has place H (2 y + 1) and query Y has place h (2 Y + 1): differences are
2 H (p_a - p_b). Weights are relative to that of n, the key nearest to the query.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import triton
import triton.language as tl

from blpseg_ops.triton.lam_math import SIDE, TILE
from blpseg_ops.triton.lam_pack import TileGrid

_SIDE = tl.constexpr(SIDE)
_TILE = tl.constexpr(TILE)


class TwoGrids(NamedTuple):
    """The keys and a band of queries; field names are the kernels' argument names."""

    key_height: int
    key_width: int
    key_columns: int  # of tiles
    key_tiles: int
    query_height: int  # of all queries, not of the band
    query_width: int
    query_top: int  # the band's first row
    query_columns: int  # of tiles
    query_tiles: int  # in the band
    reach_y: int  # of the window, in units of places; unused (0) with WINDOW=False
    reach_x: int

    @staticmethod
    def of(
        keys: TileGrid, band: TileGrid, query_height: int, query_top: int, radius: float | None
    ) -> TwoGrids:
        """Combine the tiles of the keys and of a band of the queries."""
        sides = (query_height, keys.height), (band.width, keys.width)
        reach_y, reach_x = (
            0 if radius is None else math.floor(2.0 * queries * min(radius, float(count)))
            for queries, count in sides
        )
        return TwoGrids(
            *keys, query_height, band.width, query_top, band.tile_columns, band.tiles, reach_y,
            reach_x,
        )  # fmt: skip


@triton.jit
def pixel_number(y, x, tile_columns):
    """Return the numbers of pixels, tile by tile: the inverse of pixel_yx."""
    tile = y // _SIDE * tile_columns + x // _SIDE
    return tile * _TILE + y % _SIDE * _SIDE + x % _SIDE


@triton.jit
def nearest_key(query, queries, keys):
    """Return n and p_n - p_b along one axis, for queries and keys on the whole axis."""
    place = keys * (2 * query + 1)
    nearest = tl.minimum(place // (2 * queries), keys - 1)
    offset = queries * (2 * nearest + 1) - place
    # Rounded to nearest: keys at the same distance stay so.
    return nearest, tl.div_rn(offset.to(tl.float32), (2 * queries).to(tl.float32))


@triton.jit
def pair_logits(
    dot_product,  # <f_a, q_b>, [ROWS, COLUMNS]; keys are rows and queries columns, or vice versa
    nearest_score,  # <f_n, q_b>
    query_y,
    query_x,
    key_y,
    key_x,
    query_height,
    query_width,
    key_height,
    key_width,
    reach_y,
    reach_x,
    scale,
    inv_two_sigma_sq,
    WINDOW: tl.constexpr,
):
    """Return log(exp(s_ab) / w_nb), log(w_ab / w_nb), |p_a - p_b|^2 - |p_n - p_b|^2, |p_n - p_b|^2.

    The logs are -inf where the query does not see the key. The third is step (step + 2 (p_n - p_b))
    per axis, so it is exactly 0 for two keys at the same distance.
    """
    nearest_y, offset_y = nearest_key(query_y, query_height, key_height)
    nearest_x, offset_x = nearest_key(query_x, query_width, key_width)
    step_y, step_x = (key_y - nearest_y).to(tl.float32), (key_x - nearest_x).to(tl.float32)
    beyond_nearest = step_y * (step_y + 2 * offset_y) + step_x * (step_x + 2 * offset_x)
    sq_nearest = offset_y * offset_y + offset_x * offset_x
    log_ratio = (dot_product - nearest_score) * scale
    log_similarity = log_ratio + inv_two_sigma_sq * sq_nearest
    log_weight = log_ratio - inv_two_sigma_sq * beyond_nearest
    visible = (key_y < key_height) & (key_x < key_width)
    if WINDOW:
        dy = query_height * (2 * key_y + 1) - key_height * (2 * query_y + 1)
        dx = query_width * (2 * key_x + 1) - key_width * (2 * query_x + 1)
        visible = visible & (tl.abs(dy) <= reach_y) & (tl.abs(dx) <= reach_x)
    masked = float("-inf")
    log_similarity = tl.where(visible, log_similarity, masked)
    log_weight = tl.where(visible, log_weight, masked)
    return log_similarity, log_weight, beyond_nearest, sq_nearest
