"""From maps [N, C, h, w] of any strides to tiles [N, tiles, 64, width], each in one piece.

Channels are padded with zeros to a width that matrix units take; so are a tile's pixels that lie
outside of the image.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from blpseg_ops.triton.lam_math import SIDE, TILE, place

PACKED = 32  # packed widths are multiples of this


class Grid(NamedTuple):
    """How an image is cut into tiles, which are counted row by row."""

    height: int
    width: int
    columns: int  # of tiles
    tiles: int

    @staticmethod
    def of(maps: Tensor, together: int) -> Grid:  # [N, C, h, w]
        """The tiles of maps; each run of so many, from the first on, lies in one row."""
        height, width = maps.shape[2:]
        columns = -(-width // (SIDE * together)) * together
        return Grid(height, width, columns, columns * -(-height // SIDE))


def pack(maps: Tensor, grid: Grid, width: int) -> Tensor:  # [N, C, h, w] -> [N, tiles, 64, width]
    """Copy maps into tiles."""
    n, channels = maps.shape[:2]
    tiles = maps.new_empty(n, grid.tiles, TILE, width)
    pack_kernel[n * grid.tiles, width // PACKED](
        maps, tiles, channels, *grid, *maps.stride(), width, BLOCK=PACKED
    )
    return tiles


@triton.jit(do_not_specialize=["channels", "height", "width", "columns", "tiles"])
def pack_kernel(
    maps,  # [N, C, h, w]
    packed,  # [N, tiles, 64, packed_width]
    channels,
    height,
    width,
    columns,
    tiles,
    stride_n,
    stride_c,
    stride_y,
    stride_x,
    packed_width,
    BLOCK: tl.constexpr,  # channels a program
):
    """Pack one tile's next BLOCK channels; program ids: image and tile, block of channels."""
    pixel = tl.arange(0, 64)
    channel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    image = (tl.program_id(0) // tiles).to(tl.int64)
    y, x = place(tl.program_id(0) % tiles * 64 + pixel, columns)
    of_pixel = image * stride_n + y.to(tl.int64) * stride_y + x.to(tl.int64) * stride_x
    of_channel = channel.to(tl.int64) * stride_c
    inside = ((y < height) & (x < width))[:, None] & (channel < channels)[None, :]
    block = tl.load(maps + of_pixel[:, None] + of_channel[None, :], mask=inside, other=0.0)
    row = tl.program_id(0).to(tl.int64) * 64 + pixel
    tl.store(packed + row[:, None] * packed_width + channel[None, :], block)
