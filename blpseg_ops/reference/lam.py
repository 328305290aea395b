"""LAM, the local aggregation module: its definition, dense.

With key pixels a and query pixels b, features f, queries q, values v and positions p in the grid of
the keys::

    s_ab  = scale * <f_a, q_b>
    w_ab  = exp(s_ab - |p_a - p_b|^2 / (2 sigma^2))
    Z_b   = sum_a w_ab        T_b = sum_a exp(s_ab)
    out_b = sum_a w_ab v_a / (Z_b + eps T_b)

a runs over the image or, with a radius, over a square window around b. Without queries, q = f and
both grids are one. The sums are taken as log-sum-exp, since scores reach hundreds and their
exponentials overflow.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from blpseg_ops._dtypes import accumulate_dtype
from blpseg_ops._precision import matmul


def lam(
    features: Tensor,  # [N, D, h, w]
    values: Tensor,  # [N, C, h, w]
    sigma: float | Tensor = 6.0,
    *,
    queries: Tensor | None = None,  # [N, D, H, W]
    radius: float | None = None,
    eps: float = 0.0,
    scale: float = 1.0,
) -> Tensor:  # [N, C, H, W]
    """Compute :func:`blpseg_ops.lam` from its formula.

    Holds several [N, h w, H W] tensors: 340 MB each per image of 96 x 96 in float32.
    """
    dtype, (h, w) = accumulate_dtype(values.dtype), values.shape[2:]
    queries = features if queries is None else queries
    height, width = queries.shape[2:]
    f, v, q = (maps.to(dtype).flatten(2) for maps in (features, values, queries))
    dy = _differences(h, height, v)[:, None, :, None].expand(h, w, height, width)
    dx = _differences(w, width, v)[None, :, None, :].expand(h, w, height, width)
    dy, dx = (d.reshape(h * w, height * width) for d in (dy, dx))  # p_a - p_b, float64

    score = scale * matmul(f.mT, q)  # s_ab [N, h w, H W]
    if radius is not None:
        score = score.masked_fill((dy.abs() > radius) | (dx.abs() > radius), -math.inf)
    dy, dx = dy.to(dtype), dx.to(dtype)
    if isinstance(sigma, Tensor):  # with a gradient of 0 at infinity
        log_weight = score - (dy**2 + dx**2) * (0.5 * sigma**-2)
    else:
        log_weight = score - (dy**2 + dx**2) / (2 * sigma**2)
    log_denominator = log_weight.logsumexp(1, keepdim=True)
    if eps > 0:
        log_eps_t = score.logsumexp(1, keepdim=True) + math.log(eps)
        log_denominator = torch.logaddexp(log_denominator, log_eps_t)
    output = matmul(v, (log_weight - log_denominator).exp())
    return output.reshape(*output.shape[:2], height, width).to(values.dtype)


def _differences(keys: int, queries: int, like: Tensor) -> Tensor:  # float64 [keys, queries]
    """Return p_a - p_b along one axis, for p_b = (Y + 0.5) keys / queries - 0.5.

    The numerator is a whole number, so that whether a key lies in a window is exact.
    """
    a = torch.arange(keys, dtype=torch.float64, device=like.device)
    b = torch.arange(queries, dtype=torch.float64, device=like.device)
    return (queries * (2 * a[:, None] + 1) - keys * (2 * b + 1)) / (2 * queries)
