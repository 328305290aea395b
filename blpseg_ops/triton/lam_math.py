"""What LAM's kernels share: where pixels lie, scores, and the constants of the tiling.

Images are cut into tiles of 8 x 8 pixels, so that the Gaussian leaves out whole tiles. Logarithms in
kernels are to base 2, which is what the hardware's exponential takes.
"""

from __future__ import annotations

import triton
import triton.language as tl

SIDE = 8  # pixels of a tile a side
TILE = SIDE * SIDE  # pixels in a tile
LOG2E = 1.4426950408889634

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
def products(
    rows,  # [ROWS, BLOCK_D] pointers to the first BLOCK_D features
    first_of_rows,  # [ROWS, BLOCK_D], what they point to: stays in place where that is all
    columns,  # [COLUMNS, BLOCK_D] pointers
    DIMS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    INPUT_PRECISION: tl.constexpr,
):
    """<f_row, f_column> [ROWS, COLUMNS], by blocks of BLOCK_D features."""
    total = tl.zeros([rows.shape[0], columns.shape[0]], tl.float32)
    for d in tl.static_range(0, DIMS, BLOCK_D):
        left = first_of_rows if d == 0 else tl.load(rows + d)
        right = tl.load(columns + d)
        total = tl.dot(left, tl.trans(right), total, input_precision=INPUT_PRECISION)
    return total


@triton.jit
def log_ratio(product, own_product, distance2, scale):
    """log2 of exp(s_ab) / exp(s_bb), from <f_a, f_b> and <f_b, f_b>.

    The difference comes first: both are in the hundreds, and what is left is small. A pixel's ratio
    to itself is 0 whatever the two roundings of |f|^2 are, or NaN where that is not finite.
    """
    return tl.where(distance2 == 0, own_product - own_product, (product - own_product) * scale)
