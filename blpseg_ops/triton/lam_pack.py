"""Copy maps [N, C, h, w] of any strides into contiguous tiles [N, tiles, 64, packed_width].

Channels are padded with zeros to a width that matrix units take; so are the pixels of a tile that
lie outside the image.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from blpseg_ops.triton import lam_config
from blpseg_ops.triton.lam_math import SIDE, TILE, pixel_yx


class TileGrid(NamedTuple):
    """How an image is cut into tiles, numbered row by row; fields are named as kernel arguments."""

    height: int
    width: int
    tile_columns: int
    tiles: int

    @staticmethod
    def of(maps: Tensor, tiles_per_program: int) -> TileGrid:  # [N, C, h, w]
        """Return the tiles of maps; every group of tiles_per_program lies in one row of tiles."""
        height, width = maps.shape[2:]
        tile_columns = -(-width // (SIDE * tiles_per_program)) * tiles_per_program
        return TileGrid(height, width, tile_columns, tile_columns * -(-height // SIDE))


def pack(
    maps: Tensor, grid: TileGrid, packed_width: int
) -> Tensor:  # [N, C, h, w] -> [N, tiles, 64, packed_width]
    """Copy maps into tiles."""
    n, channels = maps.shape[:2]
    packed = maps.new_empty(n, grid.tiles, TILE, packed_width)
    stride_n, stride_c, stride_y, stride_x = maps.stride()
    launch = lam_config.pack()
    pack_kernel[n * grid.tiles, packed_width // launch.constants["BLOCK"]](
        maps=maps,
        packed=packed,
        channels=channels,
        **grid._asdict(),
        stride_n=stride_n,
        stride_c=stride_c,
        stride_y=stride_y,
        stride_x=stride_x,
        packed_width=packed_width,
        **launch.keywords(),
    )
    return packed


@triton.jit(
    do_not_specialize=[
        "channels", "height", "width", "tile_columns", "tiles", "stride_n", "stride_c", "stride_y",
    ]
)  # fmt: skip
def pack_kernel(
    maps,  # [N, C, h, w]
    packed,  # [N, tiles, 64, packed_width]
    channels,
    height,
    width,
    tile_columns,
    tiles,
    stride_n,
    stride_c,
    stride_y,
    stride_x,
    packed_width,
    BLOCK: tl.constexpr,  # channels per program
):
    """Pack BLOCK channels of one tile; program ids: image and tile, block of channels."""
    pixel = tl.arange(0, 64)
    channel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    image = (tl.program_id(0) // tiles).to(tl.int64)
    y, x = pixel_yx(tl.program_id(0) % tiles * 64 + pixel, tile_columns)
    pixel_offset = image * stride_n + y.to(tl.int64) * stride_y + x.to(tl.int64) * stride_x
    channel_offset = channel.to(tl.int64) * stride_c
    inside = ((y < height) & (x < width))[:, None] & (channel < channels)[None, :]
    block = tl.load(maps + pixel_offset[:, None] + channel_offset[None, :], mask=inside, other=0.0)
    if block.dtype == tl.float32:
        # A NaN's bits may be all ones, which round_to_tf32 would turn into a zero.
        bits = block.to(tl.int32, bitcast=True)
        bits = tl.where((bits & 0x7FFFFFFF) > 0x7F800000, 0x7FC00000, bits)
        block = bits.to(tl.float32, bitcast=True)
    row = tl.program_id(0).to(tl.int64) * 64 + pixel
    tl.store(packed + row[:, None] * packed_width + channel[None, :], block)
