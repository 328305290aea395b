"""Find the directions in which an image's features are largest.

The list kernels bound <f_a, f_b> by a few coordinates of f and the norm of the rest. The closer
these directions are to the principal ones, the smaller the rest and the fewer tiles are visited.
Any orthonormal directions give right bounds, so a sample of pixels and few iterations are enough.
Nothing here waits for the device.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from blpseg_ops.triton import lam_config

AXES = 16  # 15 directions, and the norm of the rest

_AXES = tl.constexpr(AXES)
# A vector of which less is left, after the others' directions are taken out, is mostly rounding.
_LEAST_LEFT = tl.constexpr(2.0**-10)


def principal_directions(
    features: Tensor,  # [N, tiles, 64, packed_dims]
    family: str,
) -> Tensor:  # [N, packed_dims, AXES] float32
    """Return 15 orthonormal directions per image, nearly the principal ones, and a column of zeros.

    The directions' inner products differ from 0 and 1 by rounding. Where the sampled features span
    fewer directions, columns of zeros stand for the others.
    """
    n, tiles, _, packed_dims = features.shape
    directions = features.new_empty(n, packed_dims, AXES, dtype=torch.float32)
    directions_kernel[n,](
        features=features,
        directions=directions,
        tiles=tiles,
        packed_dims=packed_dims,
        **lam_config.directions(family, packed_dims).keywords(),
    )
    return directions


@triton.jit
def _orthonormal(vectors, axis):  # [DIMS, AXES] and [AXES] -> [DIMS, AXES]
    """Orthonormalize the columns one after the other (modified Gram-Schmidt)."""
    start = tl.sum(vectors * vectors, 0)
    for k in range(_AXES - 1):
        is_own = (axis == k)[None, :]
        column = tl.sum(tl.where(is_own, vectors, 0), 1)
        left = tl.sum(column * column, 0)
        least = tl.sum(tl.where(axis == k, start, 0), 0) * _LEAST_LEFT * _LEAST_LEFT
        norm = tl.where(left > tl.maximum(least, 1e-30), tl.sqrt(left), float("inf"))
        column = (column / norm)[:, None]
        overlap = tl.sum(vectors * column, 0)[None, :]
        vectors = tl.where(axis[None, :] > k, vectors - column * overlap, vectors)
        vectors = tl.where(is_own, column, vectors)
    return vectors


@triton.jit(do_not_specialize=["tiles"])
def directions_kernel(
    features,  # [N, tiles, 64, packed_dims]
    directions,  # [N, packed_dims, AXES]
    tiles,
    packed_dims,
    DIMS: tl.constexpr,  # packed_dims, or the next power of two
    SAMPLES: tl.constexpr,  # pixels
    ROWS: tl.constexpr,  # samples per step
    ITERATIONS: tl.constexpr,
    INPUT_PRECISION: tl.constexpr,
):
    """Iterate V <- orthonormal(X^T X V), X being a sample of an image's pixels; program id: image.

    The first V is orthonormal(X^T random).
    """
    image = tl.program_id(0).to(tl.int64)
    features += image * tiles * 64 * packed_dims
    dim, axis = tl.arange(0, DIMS), tl.arange(0, _AXES)
    exists = dim < packed_dims
    vectors = tl.zeros([DIMS, _AXES], tl.float32)
    for iteration in range(ITERATIONS + 1):
        total = tl.zeros([DIMS, _AXES], tl.float32)
        for first in range(0, SAMPLES, ROWS):
            # 1. A sample's largest number is 1: all pixels count, and nothing overflows.
            sample = first + tl.arange(0, ROWS)
            pixel = sample.to(tl.int64) * tiles * 64 // SAMPLES
            rows = pixel[:, None] * packed_dims + dim[None, :]
            x = tl.load(features + rows, mask=exists[None, :], other=0.0).to(tl.float32)
            x = tl.where(tl.abs(x) < float("inf"), x, 0)  # NaN becomes 0 too
            largest = tl.max(tl.abs(x), 1)[:, None]
            x = x / tl.where(largest > 1e-30, largest, float("inf"))

            # 2. Add X^T X V.
            products = tl.dot(x, vectors, input_precision=INPUT_PRECISION)
            random = tl.rand(0, sample[:, None] * _AXES + axis[None, :]) - 0.5
            random = tl.where(axis[None, :] < _AXES - 1, random, 0)
            products = tl.where(iteration == 0, random, products)
            total = tl.dot(tl.trans(x), products, total, input_precision=INPUT_PRECISION)
        vectors = _orthonormal(total, axis)
    # 3. Once more, since cancellation leaves the first result orthonormal to 2^-10 only.
    vectors = _orthonormal(vectors, axis)
    out = directions + image * packed_dims * _AXES
    tl.store(out + dim[:, None] * _AXES + axis[None, :], vectors, mask=exists[:, None])
