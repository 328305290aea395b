"""LAM, the local aggregation module: its definition, dense.

With key pixels a and query pixels b, features f, values v and grid positions p::

    s_ab  = scale * <f_a, f_b>
    w_ab  = exp(s_ab - |p_a - p_b|^2 / (2 sigma^2))
    Z_b   = sum_a w_ab        T_b = sum_a exp(s_ab)
    out_b = sum_a w_ab v_a / (Z_b + eps T_b)

a runs over the image or, with a radius, over a square window around b. The sums are taken as
log-sum-exp, since scores reach hundreds and their exponentials overflow.
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
    sigma: float = 6.0,
    *,
    radius: int | None = None,
    eps: float = 0.0,
    scale: float = 1.0,
) -> Tensor:  # [N, C, h, w]
    """Compute :func:`blpseg_ops.lam` from its formula.

    Holds several [N, L, L] tensors for L = h w pixels: 340 MB each per image of 96 x 96 in float32.
    """
    dtype, (h, w) = accumulate_dtype(values.dtype), values.shape[2:]
    f, v = features.to(dtype).flatten(2), values.to(dtype).flatten(2)
    y = torch.arange(h, dtype=dtype, device=v.device).repeat_interleave(w)
    x = torch.arange(w, dtype=dtype, device=v.device).repeat(h)
    dy, dx = y[:, None] - y, x[:, None] - x  # [L, L], [a, b]

    score = scale * matmul(f.mT, f)  # s_ab [N, L, L]
    if radius is not None:
        score = score.masked_fill((dy.abs() > radius) | (dx.abs() > radius), -math.inf)
    log_weight = score - (dy**2 + dx**2) / (2 * sigma**2)
    log_denominator = log_weight.logsumexp(1, keepdim=True)
    if eps > 0:
        log_eps_t = score.logsumexp(1, keepdim=True) + math.log(eps)
        log_denominator = torch.logaddexp(log_denominator, log_eps_t)
    output = matmul(v, (log_weight - log_denominator).exp()).reshape(values.shape)
    return output.to(values.dtype)
