"""What LAM's kernels share: where pixels lie, scores, and the constants of the tiling.

Images are cut into tiles of 8 x 8 pixels, so that the Gaussian leaves out whole tiles.
"""

from __future__ import annotations

import triton
import triton.language as tl

SIDE = 8  # pixels of a tile a side
TILE = SIDE * SIDE  # pixels in a tile

_SIDE = tl.constexpr(SIDE)
_TILE = tl.constexpr(TILE)


@triton.jit
def place(pixels, columns):
    """Row and column in the image of pixels that are counted tile by tile."""
    tile, lane = pixels // _TILE, pixels % _TILE
    y = tile // columns * _SIDE + lane // _SIDE
    x = tile % columns * _SIDE + lane % _SIDE
    return y, x


@triton.jit
def squared_distances(y_rows, x_rows, y_columns, x_columns):
    """[rows, columns] of two lists of pixels, float32: exact, and 0 for one and the same pixel."""
    dy = (y_rows[:, None] - y_columns[None, :]).to(tl.float32)
    dx = (x_rows[:, None] - x_columns[None, :]).to(tl.float32)
    return dy * dy + dx * dx


@triton.jit
def within(y_rows, x_rows, y_columns, x_columns, radius):
    """Whether a pixel lies in the other's window, [rows, columns] of two lists of pixels."""
    dy = tl.abs(y_rows[:, None] - y_columns[None, :])
    dx = tl.abs(x_rows[:, None] - x_columns[None, :])
    return tl.maximum(dy, dx) <= radius


@triton.jit
def products(
    rows,  # [ROWS, BLOCK] pointers to the first BLOCK numbers of vectors
    first_of_rows,  # [ROWS, BLOCK], what they point to: stays in place where it is the whole
    columns,  # [COLUMNS, BLOCK] pointers
    length,  # of the vectors
    WHOLE: tl.constexpr,  # whether that is BLOCK
    BLOCK: tl.constexpr,
    INPUT_PRECISION: tl.constexpr,
):
    """Inner products [ROWS, COLUMNS], by blocks of the vectors."""
    if WHOLE:
        total = tl.dot(first_of_rows, tl.trans(tl.load(columns)), input_precision=INPUT_PRECISION)
    else:
        total = tl.zeros([rows.shape[0], columns.shape[0]], tl.float32)
        for start in range(0, length, BLOCK):
            block = tl.trans(tl.load(columns + start))
            total = tl.dot(tl.load(rows + start), block, total, input_precision=INPUT_PRECISION)
    return total


@triton.jit
def log_weights(product, own_product, distance2, scale, precision):
    """Logs of exp(s_ab) / w_bb and of w_ab / w_bb, from <f_a, f_b> and <f_b, f_b>.

    The products' difference comes first: both are in the hundreds, and what is left is small. A
    pixel's ratio to itself is 0 whatever the two roundings of |f|^2 are, or NaN where that is not
    finite. Forward and backward round alike, so that shares add up to 1.
    """
    difference = tl.where(distance2 == 0, own_product - own_product, product - own_product)
    log_similarity = difference * scale
    return log_similarity, log_similarity - distance2 * precision


@triton.jit
def only(visible, log_similarity, log_weight):
    """Both logs, where a pair's source is visible to its target; nothing elsewhere."""
    nothing = float("-inf")
    return tl.where(visible, log_similarity, nothing), tl.where(visible, log_weight, nothing)
