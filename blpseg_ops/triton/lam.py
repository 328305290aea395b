"""``torch.ops.blpseg.lam`` and its backward on the GPU: the order of work.

Inputs are packed into tiles (lam_pack), tiles that matter are listed (lam_tiles), and each run of
pixels walks its list (lam_forward, lam_backward). Nothing waits for the device.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from blpseg_ops._schemas import LIBRARY
from blpseg_ops.reference.lam import lam_backward as reference_backward
from blpseg_ops.reference.lam import lam_forward as reference_forward
from blpseg_ops.reference.layout import laid_out_as
from blpseg_ops.triton import lam_config
from blpseg_ops.triton.lam_backward import backward_kernel
from blpseg_ops.triton.lam_forward import forward_kernel
from blpseg_ops.triton.lam_math import TILE
from blpseg_ops.triton.lam_pack import Grid, pack
from blpseg_ops.triton.lam_tiles import Numbers, describe, list_tiles


def lam(
    features: Tensor,  # [N, D, h, w]
    values: Tensor,  # [N, C, h, w]
    sigma: float,
    eps: float,
    scale: float,
    radius: int | None = None,
) -> tuple[Tensor, Tensor]:  # output [N, C, h, w], log_denominator [N, h, w]
    """The operator of that name."""
    if not _fits(features, values):
        return reference_forward(features, values, sigma, eps, scale, radius)
    n, channels, h, w = values.shape
    output = values.new_empty(values.shape)
    log_denominator = values.new_empty(n, h, w, dtype=torch.float32)
    if n == 0:
        return output, log_denominator
    dims = lam_config.packed_dims(features.shape[1])
    width = lam_config.packed_channels(channels)
    family = _family(features.device)
    constants, warps, stages = lam_config.forward(
        family, features.dtype, dims, width, eps, radius is not None
    )
    together = constants["TARGETS"] // TILE
    grid, numbers = Grid.of(features, together), Numbers.of(sigma, eps, scale, radius)
    with torch.cuda.device_of(features):
        f, v = pack(features, grid, dims), pack(values, grid, width)
        tiles = describe(f, v, grid, numbers)
        lists, counts = list_tiles(tiles, grid, numbers, together, family, symmetric=False)
        forward_kernel[counts.numel(), width // constants["SLICE"]](
            f,
            v,
            tiles.own_product,
            lists,
            counts,
            output,
            log_denominator,
            *grid,
            lists.shape[-1],
            channels,
            dims,
            width,
            *numbers,
            **constants,
            num_warps=warps,
            num_stages=stages,
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
    """The operator of that name."""
    if not _fits(features, values):
        return reference_backward(
            grad_output, features, values, output, log_denominator, sigma, eps, scale, radius
        )
    grad_features, grad_values = features.new_empty(features.shape), values.new_empty(values.shape)
    if len(features) == 0:
        return grad_features, grad_values
    dims = lam_config.packed_dims(features.shape[1])
    width = lam_config.packed_channels(values.shape[1])
    family = _family(features.device)
    constants, warps, stages = lam_config.backward(
        family, features.dtype, dims, width, eps, radius is not None
    )
    together = constants["TARGETS"] // TILE
    slices = max(dims // constants["SLICE_D"], width // constants["SLICE_C"])
    grid, numbers = Grid.of(features, together), Numbers.of(sigma, eps, scale, radius)
    with torch.cuda.device_of(features):
        f = pack(features, grid, dims)
        v, g, out = (pack(maps, grid, width) for maps in (values, grad_output, output))
        tiles = describe(f, v, grid, numbers, (g, out, log_denominator))
        lists, counts = list_tiles(tiles, grid, numbers, together, family, symmetric=True)
        backward_kernel[counts.numel(), slices](
            f,
            v,
            g,
            tiles.own_product,
            tiles.delta,
            tiles.log_denominator,
            lists,
            counts,
            grad_features,
            grad_values,
            *grid,
            lists.shape[-1],
            features.shape[1],
            values.shape[1],
            dims,
            width,
            *numbers,
            **constants,
            num_warps=warps,
            num_stages=stages,
        )
    return laid_out_as(grad_features, features), laid_out_as(grad_values, values)


LIBRARY.impl("lam", lam, "CUDA")
LIBRARY.impl("lam_backward", lam_backward, "CUDA")


def _fits(features: Tensor, values: Tensor) -> bool:
    """Whether the kernels take the inputs; others go to the reference."""
    return (
        features.dtype in lam_config.DTYPES
        and _has_matrix_units(features.device)
        and features.shape[1] <= lam_config.MOST_DIMS
        and values.shape[1] <= lam_config.MOST_CHANNELS
    )


@lru_cache
def _has_matrix_units(device: torch.device) -> bool:
    """Whether the chip multiplies matrices of every dtype that the table knows."""
    if device.type != "cuda" or torch.version.hip is not None:
        return True
    return torch.cuda.get_device_capability(device) >= (8, 0)


@lru_cache
def _family(device: torch.device) -> str:
    """The chip's row of the table."""
    if device.type != "cuda":  # Triton's interpreter, for which any does
        return "sm_90"
    properties = torch.cuda.get_device_properties(device)
    if torch.version.hip is not None:
        return lam_config.family_of(properties.gcnArchName)
    return lam_config.family_of(f"sm_{properties.major}{properties.minor}")
