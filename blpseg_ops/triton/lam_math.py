"""What LAM's kernels share: pixel positions, scores, and the constants of the tiling.

Images are cut into tiles of 8 x 8 pixels, so that the Gaussian rules out whole tiles.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import triton
import triton.language as tl

SIDE = 8  # pixels per side of a tile
TILE = SIDE * SIDE  # pixels per tile

_LOG2_E = tl.constexpr(math.log2(math.e))
_SIDE = tl.constexpr(SIDE)
_TILE = tl.constexpr(TILE)


class LamParams(NamedTuple):
    """LAM's parameters as kernels take them; field names are the kernels' argument names."""

    scale: float
    inv_two_sigma_sq: float
    log_eps: float
    radius: int  # of the window; unused (0) in kernels compiled with WINDOW=False

    @staticmethod
    def of(sigma: float, eps: float, scale: float, radius: int | None) -> LamParams:
        """Convert the operator's parameters."""
        # Beyond 1e30 a neighbor's weight is 0 all the same, and the pixel's own is not 0 * inf.
        inv_two_sigma_sq = min(0.5 / sigma / sigma, 1e30)
        log_eps = math.log(eps) if eps > 0 else -math.inf
        return LamParams(scale, inv_two_sigma_sq, log_eps, min(radius or 0, 2**30))


@triton.jit
def pixel_yx(pixels, tile_columns):
    """Return row and column in the image of pixels that are numbered tile by tile."""
    tile, lane = pixels // _TILE, pixels % _TILE
    y = tile // tile_columns * _SIDE + lane // _SIDE
    x = tile % tile_columns * _SIDE + lane % _SIDE
    return y, x


@triton.jit
def step_yx(tile, part, lanes, tile_columns, PIXELS: tl.constexpr):
    """Return float32 row and column in the image of the pixels that a step visits.

    They are the PIXELS pixels of a tile from part * PIXELS on; `lanes` numbers them from 0. Only
    the tile's corner changes from step to step.
    """
    top = tile // tile_columns * _SIDE + part * (PIXELS // _SIDE)
    left = tile % tile_columns * _SIDE
    y = top.to(tl.float32) + (lanes // _SIDE).to(tl.float32)
    x = left.to(tl.float32) + (lanes % _SIDE).to(tl.float32)
    return y, x


@triton.jit
def squared_distances(y_rows, x_rows, y_columns, x_columns):
    """Return float32 [ROWS, COLUMNS] between two lists of pixels, exact."""
    dy = (y_rows[:, None] - y_columns[None, :]).to(tl.float32)
    dx = (x_rows[:, None] - x_columns[None, :]).to(tl.float32)
    return dy * dy + dx * dx


@triton.jit
def in_window(y_rows, x_rows, y_columns, x_columns, radius):
    """Return whether two pixels lie in each other's window, [ROWS, COLUMNS]."""
    dy = tl.abs(y_rows[:, None] - y_columns[None, :])
    dx = tl.abs(x_rows[:, None] - x_columns[None, :])
    return tl.maximum(dy, dx) <= radius


@triton.jit
def round_to_tf32(x):
    """Return the nearest number of 10 bits behind the leading one; matrix units take it as is.

    NaN stays NaN where lam_pack has set its bits.
    """
    bits = x.to(tl.int32, bitcast=True)
    return (((bits + 0x1000) >> 13) << 13).to(tl.float32, bitcast=True)


@triton.jit
def _exchangeable_dot(rows, columns):  # float32 [ROWS, BLOCK], [BLOCK, COLUMNS]
    """Return rows columns to 22 bits, with the same bits if rows and columns change places.

    tf32x3 adds high low onto low high: an exchange changes the order, and so the rounding.
    """
    rows_high, columns_high = round_to_tf32(rows), round_to_tf32(columns)
    low_high = tl.dot(rows - rows_high, columns_high, input_precision="tf32")
    high_low = tl.dot(rows_high, columns - columns_high, input_precision="tf32")
    # Triton turns low_high + high_low into one accumulator, and so into an order.
    small = tl.fma(low_high, 1.0, high_low)
    small = tl.where(small == small, small, 0)  # inf - inf; the large product has the infinity
    return tl.dot(rows_high, columns_high, small, input_precision="tf32")


@triton.jit
def _split_dot(rows, columns):  # float32 [ROWS, BLOCK], [BLOCK, COLUMNS]
    """Return rows columns to 22 bits; NaN where a number is not finite.

    Triton's own tf32x3 replaces NaN of the small products, which takes a third of its instructions.
    """
    rows_high, columns_high = round_to_tf32(rows), round_to_tf32(columns)
    small = tl.dot(rows - rows_high, columns_high, input_precision="tf32")
    small = tl.dot(rows_high, columns - columns_high, small, input_precision="tf32")
    return tl.dot(rows_high, columns_high, small, input_precision="tf32")


@triton.jit
def dot(rows, columns, INPUT_PRECISION: tl.constexpr):
    """Return rows columns."""
    if rows.dtype == tl.float32 and INPUT_PRECISION == "tf32x3":
        product = _split_dot(rows, columns)
    else:
        product = tl.dot(rows, columns, input_precision=INPUT_PRECISION)
    return product


@triton.jit
def add_dot(total, rows, columns, INPUT_PRECISION: tl.constexpr):
    """Return total + rows columns."""
    if rows.dtype == tl.float32 and INPUT_PRECISION == "tf32x3":
        total += _split_dot(rows, columns)
    else:
        total = tl.dot(rows, columns, total, input_precision=INPUT_PRECISION)
    return total


@triton.jit
def dot_products(
    rows,  # [ROWS, BLOCK] pointers to the first BLOCK numbers of vectors
    first_block_of_rows,  # [ROWS, BLOCK], loaded from `rows` once per program
    columns,  # [COLUMNS, BLOCK] pointers
    length,  # of the vectors
    FITS_IN_ONE_BLOCK: tl.constexpr,  # length == BLOCK
    BLOCK: tl.constexpr,
    INPUT_PRECISION: tl.constexpr,
):
    """Return the inner products [ROWS, COLUMNS], summed block by block."""
    if FITS_IN_ONE_BLOCK:
        total = dot(first_block_of_rows, tl.trans(tl.load(columns)), INPUT_PRECISION)
    else:
        total = tl.zeros([rows.shape[0], columns.shape[0]], tl.float32)
        for start in range(0, length, BLOCK):
            block = tl.trans(tl.load(columns + start))
            total = add_dot(total, tl.load(rows + start), block, INPUT_PRECISION)
    return total


@triton.jit
def scores(
    rows,  # [ROWS, BLOCK] pointers to the first BLOCK features of pixels
    first_block_of_rows,  # [ROWS, BLOCK], loaded from `rows` once per program
    columns,  # [COLUMNS, BLOCK] pointers
    length,  # of the features
    FITS_IN_ONE_BLOCK: tl.constexpr,  # length == BLOCK
    BLOCK: tl.constexpr,
    INPUT_PRECISION: tl.constexpr,
):
    """Return the scores <f_a, f_b> [ROWS, COLUMNS].

    Their bits are the same in all kernels, and if a and b are exchanged: blocks are the same in
    forward and backward, and a matrix unit's product does not depend on the operands' order.
    """
    if rows.dtype.element_ty != tl.float32 or INPUT_PRECISION != "tf32x3":
        total = dot_products(
            rows, first_block_of_rows, columns, length, FITS_IN_ONE_BLOCK, BLOCK, INPUT_PRECISION
        )
    elif FITS_IN_ONE_BLOCK:
        total = _exchangeable_dot(first_block_of_rows, tl.trans(tl.load(columns)))
    else:
        total = tl.zeros([rows.shape[0], columns.shape[0]], tl.float32)
        for start in range(0, length, BLOCK):
            total += _exchangeable_dot(tl.load(rows + start), tl.trans(tl.load(columns + start)))
    return total


@triton.jit
def log_weights(dot_product, query_sq_norm, distance2, scale, inv_two_sigma_sq):
    """Return log(exp(s_ab) / w_bb) and log(w_ab / w_bb) from <f_a, f_b> and <f_b, f_b>.

    The dot products are subtracted first: both are in the hundreds, and their difference is small.
    A pixel's ratio to itself is 0 whatever the two roundings of |f|^2 are, or NaN where |f|^2 is
    not finite. Forward and backward compute it in the same order, so probabilities add up to 1.
    """
    difference = tl.where(
        distance2 == 0, query_sq_norm - query_sq_norm, dot_product - query_sq_norm
    )
    log_similarity = difference * scale
    return log_similarity, log_similarity - distance2 * inv_two_sigma_sq


@triton.jit
def mask_logits(visible, log_similarity, log_weight):
    """Return both logits, set to -inf where the query does not see the key."""
    masked = float("-inf")
    return tl.where(visible, log_similarity, masked), tl.where(visible, log_weight, masked)


@triton.jit
def exp(x):
    """Return e^x, 0 below 2^-126: the hardware's exponential as it is, without denormal numbers."""
    return tl.exp2(x * _LOG2_E)


@triton.jit
def probability(log_weight, log_denominator):
    """Return exp(log_weight - log_denominator), at most 1 whatever the rounding."""
    log_prob = log_weight - log_denominator
    return exp(tl.minimum(log_prob, 0.0, propagate_nan=tl.PropagateNan.ALL))


@triton.jit
def probability_and_score_gradient(
    log_similarity,  # log(exp(s_ab) / w), w being what the denominator is relative to
    log_weight,  # log(w_ab / w)
    reward,  # <g_b, v_a>
    query_log_denominator,
    query_delta,
    log_eps,
    HAS_EPS: tl.constexpr,
):
    """Return P_ab and ds_ab = P_ab (<g_b, v_a> - delta_b) - R_ab delta_b."""
    prob = probability(log_weight, query_log_denominator)
    grad_score = prob * (reward - query_delta)
    if HAS_EPS:
        grad_score -= probability(log_similarity + log_eps, query_log_denominator) * query_delta
    return prob, grad_score


@triton.jit
def update_softmax(
    log_weight,  # [QUERIES, KEYS]
    log_similarity,  # [QUERIES, KEYS]
    log_eps,
    max_logit,  # [QUERIES]
    denominator,  # [QUERIES], relative to exp(max_logit)
    HAS_EPS: tl.constexpr,
):
    """Add a step's keys to Z + eps T; return the weights and the factor on what was summed."""
    step_max = tl.max(log_weight, 1)
    if HAS_EPS:
        step_max = tl.maximum(step_max, tl.max(log_similarity, 1) + log_eps)
    new_max = tl.maximum(max_logit, step_max)
    rescale = exp(max_logit - new_max)
    weight = exp(log_weight - new_max[:, None])
    step_sum = tl.sum(weight, 1)
    if HAS_EPS:
        step_sum += tl.sum(exp(log_similarity + (log_eps - new_max)[:, None]), 1)
    return weight, rescale, new_max, denominator * rescale + step_sum
