"""``lam`` from queries on a grid of their own, as an op."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from blpseg_ops._dtypes import accumulate_dtype
from blpseg_ops.fallback.lam_two_grids import (
    lam_two_grids_backward,
    lam_two_grids_forward,
    memory_format_of,
)
from blpseg_ops.ops._register import register_op
from blpseg_ops.ops._vmap import vmap_by_batching

# Above it, every key but the nearest has weight 0. Distances times this are finite in float32.
LARGEST_INV_TWO_SIGMA_SQ = 1e20


def two_grids(
    features: Tensor,  # [N, D, h, w]
    values: Tensor,  # [N, C, h, w]
    sigma: float | Tensor,
    queries: Tensor | None,  # [N, D, H, W]
    radius: float | None,
    eps: float,
    scale: float,
) -> Tensor:  # [N, C, H, W]
    """Compute :func:`blpseg_ops.lam` with queries, or with a tensor sigma; inputs are checked."""
    if queries is None:
        queries = features
        radius = None if radius is None else max(radius, 0.5)  # 0 sees the same keys
    dtype = accumulate_dtype(features.dtype)
    if isinstance(sigma, Tensor):
        sigma = sigma.to(features.device, dtype)
        inv_two_sigma_sq = 0.5 * sigma.pow(-2).clamp(max=2 * LARGEST_INV_TWO_SIGMA_SQ)
        inv_two_sigma_sq = inv_two_sigma_sq.expand(features.shape[0])
    else:
        number = min(0.5 / sigma / sigma, LARGEST_INV_TWO_SIGMA_SQ)
        inv_two_sigma_sq = features.new_full((features.shape[0],), number, dtype=dtype)
    radius = None if radius is None else float(radius)
    output: Tensor = lam_two_grids_op(
        queries, features, values, inv_two_sigma_sq, eps, scale, radius
    )[0]
    return output


def _fake(
    queries: Tensor,
    features: Tensor,
    values: Tensor,
    inv_two_sigma_sq: Tensor,
    eps: float,
    scale: float,
    radius: float | None = None,
) -> tuple[Tensor, Tensor]:
    n, c = values.shape[:2]
    sides = queries.shape[2:]
    output = torch.empty(
        (n, c, *sides),
        dtype=values.dtype,
        device=values.device,
        memory_format=memory_format_of(values),
    )
    denominator = features.new_empty((n, *sides), dtype=accumulate_dtype(features.dtype))
    return output, denominator


def _fake_backward(
    grad_output: Tensor,
    queries: Tensor,
    features: Tensor,
    values: Tensor,
    output: Tensor,
    log_denominator: Tensor,
    inv_two_sigma_sq: Tensor,
    *_: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return (
        torch.empty_like(queries),
        torch.empty_like(features),
        torch.empty_like(values),
        torch.empty_like(inv_two_sigma_sq, memory_format=torch.contiguous_format),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    queries, features, values, inv_two_sigma_sq, *ctx.params = inputs
    ctx.save_for_backward(queries, features, values, *output, inv_two_sigma_sq)
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad_output: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    if grad_output is None:
        return (None,) * 7
    grads = lam_two_grids_backward_op(grad_output, *ctx.saved_tensors, *ctx.params)
    return *grads, None, None, None


lam_two_grids_op = register_op(
    "lam_two_grids",
    fallback=lam_two_grids_forward,
    fake=_fake,
    vmap=vmap_by_batching,
    backward=_backward,
    setup_context=_setup_context,
    autocast_to_float32=True,
)
lam_two_grids_backward_op = register_op(
    "lam_two_grids_backward",
    fallback=lam_two_grids_backward,
    fake=_fake_backward,
    vmap=vmap_by_batching,
)
