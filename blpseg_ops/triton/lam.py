"""``torch.ops.blpseg.lam`` and its backward on the GPU: the order of work.

Inputs are packed into tiles (lam_pack) and described by bounds (lam_describe); tiles that matter
are listed (lam_tile_lists); each query block walks its list (lam_forward, lam_backward). Nothing
waits for the device.
"""

from __future__ import annotations

import torch
from torch import Tensor

from blpseg_ops._schemas import LIBRARY
from blpseg_ops.fallback.lam import lam_backward as fallback_backward
from blpseg_ops.fallback.lam import lam_forward as fallback_forward
from blpseg_ops.fallback.layout import laid_out_as
from blpseg_ops.triton import lam_config
from blpseg_ops.triton.lam_backward import backward_kernel
from blpseg_ops.triton.lam_describe import Upstream, describe
from blpseg_ops.triton.lam_directions import principal_directions
from blpseg_ops.triton.lam_forward import forward_kernel
from blpseg_ops.triton.lam_math import TILE, LamParams
from blpseg_ops.triton.lam_pack import TileGrid, pack
from blpseg_ops.triton.lam_tile_lists import capacity, list_tiles


def lam(
    features: Tensor,  # [N, D, h, w]
    values: Tensor,  # [N, C, h, w]
    sigma: float,
    eps: float,
    scale: float,
    radius: int | None = None,
) -> tuple[Tensor, Tensor]:  # output [N, C, h, w], log_denominator [N, h, w]
    """Compute ``torch.ops.blpseg.lam``."""
    if not _fits(features, values):
        return fallback_forward(features, values, sigma, eps, scale, radius)
    n, channels, h, w = values.shape
    output = values.new_empty(values.shape)
    log_denominator = values.new_empty(n, h, w, dtype=torch.float32)
    if n == 0:
        return output, log_denominator
    packed_dims = lam_config.packed_dims(features.shape[1])
    packed_channels = lam_config.packed_channels(channels)
    family, window = lam_config.family_of_device(features.device), radius is not None
    launch = lam_config.forward(
        family, features.dtype, packed_dims, packed_channels, eps > 0, window
    )
    tiles_per_program = launch.constants["QUERIES"] // TILE
    grid = TileGrid.of(features, tiles_per_program)
    params = LamParams.of(sigma, eps, scale, radius)
    with torch.cuda.device_of(features):
        packed_features = pack(features, grid, packed_dims)
        packed_values = pack(values, grid, packed_channels)
        longest_list = capacity(grid, params, tiles_per_program, window=window)
        directions = directions_of(packed_features, longest_list, family)
        tiles = describe(
            packed_features,
            packed_values,
            grid,
            params,
            family,
            window=window,
            directions=directions,
        )
        lists = list_tiles(
            tiles, grid, params, tiles_per_program, family, window=window, symmetric=False
        )
        forward_kernel[
            lists.tile_lists.shape[0] * lists.tile_lists.shape[1],
            packed_channels // launch.constants["SLICE_C"],
        ](
            features=packed_features,
            values=packed_values,
            sq_norm=tiles.sq_norm,
            **lists._asdict(),
            output=output,
            log_denominator=log_denominator,
            **grid._asdict(),
            list_capacity=lists.tile_lists.shape[-1],
            channels=channels,
            packed_dims=packed_dims,
            packed_channels=packed_channels,
            **params._asdict(),
            **launch.keywords(),
        )
    return laid_out_as(output, values), log_denominator


def lam_backward(
    grad_output: Tensor,  # [N, C, h, w]
    features: Tensor,  # [N, D, h, w]
    values: Tensor,  # [N, C, h, w]
    output: Tensor,  # [N, C, h, w]
    log_denominator: Tensor,  # [N, h, w]
    sigma: float,
    eps: float,
    scale: float,
    radius: int | None = None,
) -> tuple[Tensor, Tensor]:  # grad_features [N, D, h, w], grad_values [N, C, h, w]
    """Compute ``torch.ops.blpseg.lam_backward``."""
    if not _fits(features, values):
        return fallback_backward(
            grad_output, features, values, output, log_denominator, sigma, eps, scale, radius
        )
    grad_features, grad_values = features.new_empty(features.shape), values.new_empty(values.shape)
    if len(features) == 0:
        return grad_features, grad_values
    dims, channels = features.shape[1], values.shape[1]
    packed_dims = lam_config.packed_dims(dims)
    packed_channels = lam_config.packed_channels(channels)
    family, window = lam_config.family_of_device(features.device), radius is not None
    launch = lam_config.backward(
        family, features.dtype, packed_dims, packed_channels, eps > 0, window
    )
    constants = launch.constants
    slices = max(packed_dims // constants["SLICE_D"], packed_channels // constants["SLICE_C"])
    tiles_per_program = constants["QUERIES"] // TILE
    grid = TileGrid.of(features, tiles_per_program)
    params = LamParams.of(sigma, eps, scale, radius)
    with torch.cuda.device_of(features):
        packed_features = pack(features, grid, packed_dims)
        packed_values, packed_grad, packed_output = (
            pack(maps, grid, packed_channels) for maps in (values, grad_output, output)
        )
        longest_list = capacity(grid, params, tiles_per_program, window=window)
        directions = directions_of(packed_features, longest_list, family)
        upstream = Upstream(packed_grad, packed_output, log_denominator)
        tiles = describe(
            packed_features,
            packed_values,
            grid,
            params,
            family,
            window=window,
            directions=directions,
            upstream=upstream,
        )
        lists = list_tiles(
            tiles, grid, params, tiles_per_program, family, window=window, symmetric=True
        )
        backward_kernel[lists.tile_lists.shape[0] * lists.tile_lists.shape[1], slices](
            features=packed_features,
            values=packed_values,
            grad_output=packed_grad,
            sq_norm=tiles.sq_norm,
            delta=tiles.delta,
            log_denominator=tiles.log_denominator,
            grad_unit=grad_unit(packed_grad, packed_values),
            **lists._asdict(),
            grad_features=grad_features,
            grad_values=grad_values,
            **grid._asdict(),
            list_capacity=lists.tile_lists.shape[-1],
            dims=dims,
            channels=channels,
            packed_dims=packed_dims,
            packed_channels=packed_channels,
            **params._asdict(),
            **launch.keywords(),
        )
    return laid_out_as(grad_features, features), laid_out_as(grad_values, values)


def directions_of(
    features: Tensor,  # [N, tiles, 64, packed_dims]
    longest_list: int,  # tiles
    family: str,
) -> Tensor | None:  # [N, packed_dims, AXES]
    """Return the directions by which tiles are listed; None: the first features."""
    if not lam_config.uses_directions(features.shape[-1], longest_list):
        return None
    return principal_directions(features, family)


def grad_unit(
    grad_output: Tensor,  # [N, tiles, 64, packed_channels]
    values: Tensor,  # [N, tiles, 64, packed_channels]
) -> Tensor:  # [N]
    """Return a power of two per image that keeps score gradients in float16's range, at most 1.

    Only float16 needs one: under loss scaling |<g_b, v_a> - delta_b| may exceed 65504.
    """
    if grad_output.dtype != torch.float16:
        return values  # not read
    # Each direction's score gradient is at most twice |g_b|_1 max |v|.
    largest = 4 * grad_output.abs().sum(-1, dtype=torch.float32).amax((1, 2))
    largest *= values.abs().amax((1, 2, 3))
    return (2**15 / largest).log2().floor().exp2().clamp(max=1)


LIBRARY.impl("lam", lam, "CUDA")
LIBRARY.impl("lam_backward", lam_backward, "CUDA")


def _fits(features: Tensor, values: Tensor) -> bool:
    """Return whether the kernels take the inputs; others go to the fallback."""
    return (
        features.dtype in lam_config.DTYPES
        and lam_config.has_matrix_units(features.device)
        and features.shape[1] <= lam_config.MAX_DIMS
        and values.shape[1] <= lam_config.MAX_CHANNELS
    )
