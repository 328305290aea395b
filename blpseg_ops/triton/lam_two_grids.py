"""``torch.ops.blpseg.lam_two_grids`` and its backward on the GPU: the order of work.

Keys are packed and described once. Queries are visited in bands of rows, so that packed copies and
lists of tiles take memory for one band: pack, describe, list, then the main kernels. The keys'
gradients add up over the bands. Nothing waits for the device.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from blpseg_ops._schemas import LIBRARY
from blpseg_ops.fallback.lam_two_grids import (
    lam_two_grids_backward as fallback_backward,
)
from blpseg_ops.fallback.lam_two_grids import (
    lam_two_grids_forward as fallback_forward,
)
from blpseg_ops.fallback.lam_two_grids import memory_format_of
from blpseg_ops.fallback.layout import laid_out_as
from blpseg_ops.triton import lam_config
from blpseg_ops.triton.lam import directions_of, grad_unit
from blpseg_ops.triton.lam_config import Launch
from blpseg_ops.triton.lam_describe import Tiles, Upstream, describe
from blpseg_ops.triton.lam_math import SIDE, TILE, LamParams
from blpseg_ops.triton.lam_pack import TileGrid, pack
from blpseg_ops.triton.two_grids_backward import two_grids_keys_kernel, two_grids_queries_kernel
from blpseg_ops.triton.two_grids_describe import QueryTiles, describe_queries
from blpseg_ops.triton.two_grids_forward import two_grids_forward_kernel
from blpseg_ops.triton.two_grids_math import TwoGrids
from blpseg_ops.triton.two_grids_tile_lists import OtherTiles, list_other_tiles

L = TypeVar("L")  # a launch, or several

BAND = 2**24  # numbers that the packed maps of a band hold, at least one row of tiles
KEY_PROGRAMS = 512  # that the keys' gradients are cut into, at least


def lam_two_grids(
    queries: Tensor,  # [N, D, H, W]
    features: Tensor,  # [N, D, h, w]
    values: Tensor,  # [N, C, h, w]
    inv_two_sigma_sq: Tensor,  # [N]
    eps: float,
    scale: float,
    radius: float | None = None,
) -> tuple[Tensor, Tensor]:  # output [N, C, H, W], log_denominator [N, H, W]
    """Compute ``torch.ops.blpseg.lam_two_grids``."""
    if not _fits(queries, features, values):
        return fallback_forward(queries, features, values, inv_two_sigma_sq, eps, scale, radius)
    n, channels = values.shape[:2]
    height, width = queries.shape[2:]
    output = torch.empty(
        (n, channels, height, width),
        dtype=values.dtype,
        device=values.device,
        memory_format=memory_format_of(values),
    )
    log_denominator = values.new_empty(n, height, width, dtype=torch.float32)
    if n == 0:
        return output, log_denominator
    with torch.cuda.device_of(features):
        keys = Keys.of(features, values, queries, inv_two_sigma_sq, eps, scale, radius)
        launch = keys.choose(lam_config.two_grids_forward)
        tiles_per_program = launch.constants["QUERIES"] // TILE
        packed_channels = keys.values.shape[-1]
        for top, bottom in _bands(queries, keys.features.shape[-1]):
            band = keys.describe_band(queries, top, bottom, tiles_per_program)
            lists = keys.list_other_tiles(band, tiles_per_program, of_keys=False, bands=1)
            stride_n, stride_c, stride_y, stride_x = output.stride()
            two_grids_forward_kernel[
                lists.list_lengths.numel(), packed_channels // launch.constants["SLICE_C"]
            ](
                **keys.arguments(band, lists),
                nearest_score=band.tiles.nearest_score,
                output=output,
                log_denominator=log_denominator,
                stride_n=stride_n,
                stride_c=stride_c,
                stride_y=stride_y,
                stride_x=stride_x,
                channels=channels,
                **launch.keywords(),
            )
    return output, log_denominator


def lam_two_grids_backward(
    grad_output: Tensor,  # [N, C, H, W]
    queries: Tensor,  # [N, D, H, W]
    features: Tensor,  # [N, D, h, w]
    values: Tensor,  # [N, C, h, w]
    output: Tensor,  # [N, C, H, W]
    log_denominator: Tensor,  # [N, H, W]
    inv_two_sigma_sq: Tensor,  # [N]
    eps: float,
    scale: float,
    radius: float | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # of queries, features, values, inv_two_sigma_sq
    """Compute ``torch.ops.blpseg.lam_two_grids_backward``."""
    if not _fits(queries, features, values):
        return fallback_backward(
            grad_output, queries, features, values, output, log_denominator, inv_two_sigma_sq, eps,
            scale, radius,
        )  # fmt: skip
    grad_queries = torch.empty_like(queries)
    grad_inv = torch.zeros_like(inv_two_sigma_sq, memory_format=torch.contiguous_format)
    if len(queries) == 0:
        return grad_queries, torch.empty_like(features), torch.empty_like(values), grad_inv
    with torch.cuda.device_of(features):
        keys = Keys.of(features, values, queries, inv_two_sigma_sq, eps, scale, radius)
        launch = keys.choose(lam_config.two_grids_queries)
        tiles_per_program = launch.constants["QUERIES"] // TILE
        bands = list(_bands(queries, keys.features.shape[-1] + 2 * keys.values.shape[-1]))
        mean_grad = _mean_size(grad_output, keys.values.shape[-1])
        sums = _KeySums(keys)
        for top, bottom in bands:
            upstream = grad_output, output, log_denominator
            band = keys.describe_band(
                queries, top, bottom, tiles_per_program, upstream=upstream, mean_grad=mean_grad
            )
            grad_inv -= _differentiate_queries(keys, band, launch, grad_queries)
            sums.add(band, len(bands))
    return grad_queries, *sums.gradients(features, values), grad_inv


class Band(NamedTuple):
    """A band of queries, packed and described."""

    queries: Tensor  # [N, tiles, 64, packed_dims]
    grids: TwoGrids
    tiles: QueryTiles
    grad_output: Tensor  # [N, tiles, 64, packed_channels]; not read in forward
    grad_unit: Tensor  # [N] of float16's score gradients; not read in forward


class Keys(NamedTuple):
    """Keys and values, packed and described, and the numbers of the call."""

    features: Tensor  # [N, tiles, 64, packed_dims]
    values: Tensor  # [N, tiles, 64, packed_channels]
    tiles: Tiles
    grid: TileGrid
    directions: Tensor | None  # [N, packed_dims, AXES]
    dims: int
    channels: int
    query_height: int
    inv_two_sigma_sq: Tensor  # [N]
    scale: float
    log_eps: float
    radius: float | None
    family: str

    @staticmethod
    def of(
        features: Tensor,
        values: Tensor,
        queries: Tensor,
        inv_two_sigma_sq: Tensor,
        eps: float,
        scale: float,
        radius: float | None,
    ) -> Keys:
        """Pack and describe the keys."""
        (_, dims, h, w), channels = features.shape, values.shape[1]
        family = lam_config.family_of_device(features.device)
        if radius is not None and radius >= max(h, w):
            radius = None
        # Blocks of either pass hold one tile or two; two fit the grid of both.
        grid = TileGrid.of(features, 2)
        packed = (
            pack(features, grid, lam_config.packed_dims(dims)),
            pack(values, grid, lam_config.packed_channels(channels)),
        )
        longest_list = grid.tiles
        if radius is not None:
            longest_list = min(longest_list, (2 * math.ceil(radius / SIDE) + 2) ** 2)
        directions = directions_of(packed[0], longest_list, family)
        params = LamParams.of(math.inf, 0.0, scale, None)
        tiles = describe(*packed, grid, params, family, window=False, directions=directions)
        tiles.box_high[..., -1] = tiles.axes[..., -1].amax(-1)
        return Keys(
            *packed, tiles, grid, directions, dims, channels, queries.shape[2],
            inv_two_sigma_sq.contiguous(), scale, math.log(eps) if eps > 0 else -math.inf, radius,
            family,
        )  # fmt: skip

    def choose(self, entry: Callable[..., L]) -> L:
        """Look up a kernel's launch, or launches, in the table."""
        return entry(
            self.family,
            self.features.dtype,
            self.features.shape[-1],
            self.values.shape[-1],
            self.log_eps > -math.inf,
            self.radius is not None,
        )

    def describe_band(
        self,
        queries: Tensor,  # [N, D, H, W]
        top: int,
        bottom: int,
        tiles_per_program: int,
        *,
        upstream: tuple[Tensor, Tensor, Tensor] | None = None,
        mean_grad: Tensor | None = None,
    ) -> Band:
        """Pack and describe rows `top` to `bottom` of the queries."""
        rows = queries[:, :, top:bottom]
        query_grid = TileGrid.of(rows, tiles_per_program)
        packed = pack(rows, query_grid, self.features.shape[-1])
        grids = TwoGrids.of(self.grid, query_grid, self.query_height, top, self.radius)
        packed_upstream, grad, unit = None, packed, packed
        if upstream is not None:
            grad, output = (
                pack(maps[:, :, top:bottom], query_grid, self.values.shape[-1])
                for maps in upstream[:2]
            )
            packed_upstream = Upstream(grad, output, upstream[2].contiguous())
            unit = grad_unit(grad, self.values)
        tiles = describe_queries(
            packed,
            self.features,
            self.tiles,
            grids,
            self.inv_two_sigma_sq,
            self.scale,
            self.family,
            window=self.radius is not None,
            directions=self.directions,
            upstream=packed_upstream,
            mean_grad=mean_grad,
        )
        return Band(packed, grids, tiles, grad, unit)

    def list_other_tiles(
        self, band: Band, tiles_per_program: int, *, of_keys: bool, bands: int
    ) -> OtherTiles:
        """List the tiles that matter to blocks of the band's queries, or of the keys."""
        return list_other_tiles(
            self.tiles,
            band.tiles,
            band.grids,
            self.inv_two_sigma_sq,
            self.scale,
            self.log_eps,
            tiles_per_program,
            self.family,
            of_keys=of_keys,
            window=self.radius is not None,
            bands=bands,
        )

    def arguments(self, band: Band, lists: OtherTiles) -> dict[str, Any]:
        """Return the arguments that all main kernels take."""
        return {
            "queries": band.queries,
            "features": self.features,
            "values": self.values,
            "inv_two_sigma_sqs": self.inv_two_sigma_sq,
            "list_capacity": lists.tile_lists.shape[-1],
            "packed_dims": self.features.shape[-1],
            "packed_channels": self.values.shape[-1],
            "scale": self.scale,
            "log_eps": self.log_eps,
            **lists._asdict(),
            **band.grids._asdict(),
        }

    def arguments_of_backward(self, band: Band, lists: OtherTiles) -> dict[str, Any]:
        """Return the arguments that both kernels of backward take."""
        return {
            **self.arguments(band, lists),
            "grad_output": band.grad_output,
            "nearest_score": band.tiles.nearest_score,
            "delta": band.tiles.delta,
            "log_denominator": band.tiles.log_denominator,
            "grad_unit": band.grad_unit,
            "dims": self.dims,
        }


def _differentiate_queries(
    keys: Keys,
    band: Band,
    launch: Launch,
    grad_queries: Tensor,  # [N, D, H, W]
) -> Tensor:  # [N]
    """Store the gradients of the band's queries; return minus that of inv_two_sigma_sq."""
    tiles_per_program = launch.constants["QUERIES"] // TILE
    lists = keys.list_other_tiles(band, tiles_per_program, of_keys=False, bands=1)
    sigma_sums = torch.empty_like(lists.list_lengths, dtype=torch.float32)
    stride_n, stride_d, stride_y, stride_x = grad_queries.stride()
    two_grids_queries_kernel[
        lists.list_lengths.numel(), keys.features.shape[-1] // launch.constants["SLICE_D"]
    ](
        **keys.arguments_of_backward(band, lists),
        grad_queries=grad_queries,
        sigma_sums=sigma_sums,
        stride_n=stride_n,
        stride_d=stride_d,
        stride_y=stride_y,
        stride_x=stride_x,
        **launch.keywords(),
    )
    return sigma_sums.sum(1)


class _KeySums:
    """The gradients of features and values, which add up over bands of queries."""

    def __init__(self, keys: Keys) -> None:
        self._keys = keys
        self._launches = [
            (launch, self._slices(launch.constants))
            for launch in keys.choose(lam_config.two_grids_keys)
        ]
        n, tiles = keys.features.shape[:2]
        self._tiles_per_program = self._launches[0][0].constants["KEYS"] // TILE
        blocks = n * tiles // self._tiles_per_program
        programs = blocks * max(slices for _, slices in self._launches)
        parts = max(1, min(16, KEY_PROGRAMS // programs))
        h, w = keys.grid.height, keys.grid.width
        self._features, self._values = (
            keys.features.new_zeros(parts, n, count, h, w, dtype=torch.float32)
            for count in (keys.dims, keys.channels)
        )

    def add(self, band: Band, bands: int) -> None:
        """Add what a band of queries gives to the keys."""
        keys = self._keys
        lists = keys.list_other_tiles(band, self._tiles_per_program, of_keys=True, bands=bands)
        for launch, slices in self._launches:
            two_grids_keys_kernel[lists.list_lengths.numel(), slices, len(self._features)](
                **keys.arguments_of_backward(band, lists),
                features_sums=self._features,
                values_sums=self._values,
                channels=keys.channels,
                **launch.keywords(),
            )

    def _slices(self, constants: dict[str, Any]) -> int:
        """Return the number of slices of features or channels that programs take one of."""
        if constants["FEATURES"] and constants["VALUES"]:
            return 1
        if constants["FEATURES"]:
            return int(self._keys.features.shape[-1] // constants["SLICE_D"])
        return int(self._keys.values.shape[-1] // constants["SLICE_C"])

    def gradients(self, features: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Return the sums over parts, in the dtypes and layouts of features and values."""
        grad_features, grad_values = (
            laid_out_as(sums.sum(0).to(like.dtype), like)
            for sums, like in ((self._features, features), (self._values, values))
        )
        return grad_features, grad_values


def _bands(queries: Tensor, packed_width: int) -> Iterator[tuple[int, int]]:
    """Yield the first and last row, exclusive, of each band of the queries."""
    n, _, height, width = queries.shape
    tiles_in_row = -(-width // SIDE) + 1
    rows = SIDE * max(1, BAND // (n * tiles_in_row * TILE * packed_width))
    for top in range(0, height, rows):
        yield top, min(top + rows, height)


def _mean_size(maps: Tensor, packed_channels: int) -> Tensor:  # [N, C, H, W]
    """Return the mean |g| per channel [N, packed_channels]."""
    n, channels, height, width = maps.shape
    mean = maps.new_zeros(n, packed_channels, dtype=torch.float32)
    total = torch.linalg.vector_norm(maps, 1, (2, 3), dtype=torch.float32)
    mean[:, :channels] = total / (height * width)
    return mean


def _fits(queries: Tensor, features: Tensor, values: Tensor) -> bool:
    """Return whether the kernels take the inputs; others go to the fallback."""
    places = max(
        (side + 16) * (keys + 16)
        for side, keys in zip(queries.shape[2:], features.shape[2:], strict=True)
    )
    return (
        features.dtype in lam_config.DTYPES
        and lam_config.has_matrix_units(features.device)
        and features.shape[1] <= lam_config.MAX_DIMS
        and values.shape[1] <= lam_config.MAX_CHANNELS_OF_TWO_GRIDS
        and places < 2**28  # places are whole numbers of 32 bits
    )


LIBRARY.impl("lam_two_grids", lam_two_grids, "CUDA")
LIBRARY.impl("lam_two_grids_backward", lam_two_grids_backward, "CUDA")
