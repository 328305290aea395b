"""LAM, the local aggregation module, in plain PyTorch.

With pixels a (source) and b (target), features f, values v and grid positions p::

    s_ab  = scale * <f_a, f_b>
    w_ab  = exp(s_ab - |p_a - p_b|^2 / (2 sigma^2))
    Z_b   = sum_a w_ab        T_b = sum_a exp(s_ab)
    out_b = sum_a w_ab v_a / (Z_b + eps T_b)

Sums are taken in the logarithm: |f|^2 reaches hundreds, where the exponentials themselves overflow.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from blpseg_ops.reference.resize import accumulate_dtype


def lam(
    features: Tensor,  # [N, D, h, w]
    values: Tensor,  # [N, C, h, w]
    sigma: float = 6.0,
    *,
    eps: float = 0.0,
    scale: float = 1.0,
) -> Tensor:  # [N, C, h, w]
    """Twin of :func:`blpseg_ops.lam`."""
    return lam_forward(features, values, sigma, eps, scale)[0]


def lam_forward(
    features: Tensor,  # [N, D, h, w]
    values: Tensor,  # [N, C, h, w]
    sigma: float,
    eps: float,
    scale: float,
) -> tuple[Tensor, Tensor]:  # output [N, C, h, w], log_denominator [N, h, w]
    """LAM, and log(Z + eps T) of every target pixel, from which backward remakes all weights."""
    similarity, log_weight = _logarithms(features, sigma, scale)
    log_denominator = log_weight.logsumexp(1)
    if eps > 0:
        log_eps_t = similarity.logsumexp(1) + math.log(eps)
        log_denominator = torch.logaddexp(log_denominator, log_eps_t)
    share = (log_weight - log_denominator[:, None]).exp()  # P_ab
    output = values.to(share.dtype).flatten(2) @ share
    return (
        output.to(values.dtype).reshape(values.shape),
        log_denominator.reshape(-1, *values.shape[2:]),
    )


def lam_backward(
    grad_output: Tensor,  # [N, C, h, w]
    features: Tensor,  # [N, D, h, w]
    values: Tensor,  # [N, C, h, w]
    output: Tensor,  # [N, C, h, w]
    log_denominator: Tensor,  # [N, h, w]
    sigma: float,
    eps: float,
    scale: float,
) -> tuple[Tensor, Tensor]:  # grad_features [N, D, h, w], grad_values [N, C, h, w]
    """The gradient of LAM from its formula, with every weight recomputed.

    With P_ab = w_ab / (Z_b + eps T_b), R_ab = eps exp(s_ab) / (Z_b + eps T_b), the upstream
    gradient g and delta_b = <g_b, out_b>::

        dv_a  = sum_b P_ab g_b
        ds_ab = P_ab (<g_b, v_a> - delta_b) - R_ab delta_b
        df_c  = scale * (sum_a ds_ac f_a + sum_b ds_cb f_b)
    """
    similarity, log_weight = _logarithms(features, sigma, scale)
    dtype = similarity.dtype
    log_denominator = log_denominator.flatten(1)[:, None]
    share = (log_weight - log_denominator).exp()
    g, v, out = (x.to(dtype).flatten(2) for x in (grad_output, values, output))
    delta = (g * out).sum(1, keepdim=True)
    grad_values = g @ share.mT
    grad_similarity = share * (v.mT @ g - delta)
    if eps > 0:
        grad_similarity = grad_similarity - eps * (similarity - log_denominator).exp() * delta
    f = features.to(dtype).flatten(2)
    grad_features = scale * f @ (grad_similarity + grad_similarity.mT)
    return (
        grad_features.to(features.dtype).reshape(features.shape),
        grad_values.to(values.dtype).reshape(values.shape),
    )


def _logarithms(
    features: Tensor,  # [N, D, h, w]
    sigma: float,
    scale: float,
) -> tuple[Tensor, Tensor]:  # s_ab and log w_ab, both [N, a, b]
    f = features.to(accumulate_dtype(features.dtype)).flatten(2)
    similarity = scale * f.mT @ f
    h, w = features.shape[2:]
    y = torch.arange(h, dtype=f.dtype, device=f.device).repeat_interleave(w)
    x = torch.arange(w, dtype=f.dtype, device=f.device).repeat(h)
    distance2 = (y[:, None] - y) ** 2 + (x[:, None] - x) ** 2
    return similarity, similarity - distance2 / (2 * sigma**2)
