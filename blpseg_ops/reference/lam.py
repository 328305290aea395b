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
from collections.abc import Iterator

import torch
from torch import Tensor

from blpseg_ops.reference.resize import accumulate_dtype

BLOCK = 2**24  # pairs of pixels that are looked at in one go: 64 MiB a matrix in float32


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
    """LAM, and log((Z + eps T) / w_bb) of every target pixel b, to remake all weights from.

    Relative to the pixel's own weight it is a small number. log(Z + eps T) itself is as large as
    the scores, hundreds, and float32 would round it by as much as 3e-5.
    """
    v = values.to(accumulate_dtype(values.dtype)).flatten(2)
    own = _own_scores(features, scale)
    outputs, log_denominators = [], []
    for targets in _blocks(features):
        similarity, log_weight = _logarithms(features, targets, sigma, scale)
        log_denominator = log_weight.logsumexp(1)
        if eps > 0:
            log_eps_t = similarity.logsumexp(1) + math.log(eps)
            log_denominator = torch.logaddexp(log_denominator, log_eps_t)
        outputs.append(v @ (log_weight - log_denominator[:, None]).exp())  # v P
        log_denominators.append(log_denominator - own[:, targets])
    return (
        torch.cat(outputs, 2).to(values.dtype).reshape(values.shape),
        torch.cat(log_denominators, 1).reshape(-1, *values.shape[2:]),
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
    dtype = accumulate_dtype(features.dtype)
    f, v, g, out = (x.to(dtype).flatten(2) for x in (features, values, grad_output, output))
    log_denominator = (log_denominator.flatten(1) + _own_scores(features, scale))[:, None]
    grad_f, grad_v = torch.zeros_like(f), torch.zeros_like(v)
    for targets in _blocks(features):
        similarity, log_weight = _logarithms(features, targets, sigma, scale)
        log_d, g_b = log_denominator[..., targets], g[..., targets]
        share = (log_weight - log_d).exp()  # P_ab
        delta = (g_b * out[..., targets]).sum(1, keepdim=True)
        grad_v += g_b @ share.mT
        grad_s = share * (v.mT @ g_b - delta)
        if eps > 0:
            grad_s = grad_s - eps * (similarity - log_d).exp() * delta
        grad_f[..., targets] += scale * f @ grad_s
        grad_f += scale * f[..., targets] @ grad_s.mT
    return (
        grad_f.to(features.dtype).reshape(features.shape),
        grad_v.to(values.dtype).reshape(values.shape),
    )


def _own_scores(features: Tensor, scale: float) -> Tensor:  # [N, D, h, w] -> s_bb [N, h * w]
    f = features.to(accumulate_dtype(features.dtype)).flatten(2)
    return scale * (f * f).sum(1)


def _blocks(features: Tensor) -> Iterator[slice]:  # [N, D, h, w] -> slices of the h * w pixels
    """Blocks of target pixels; each target's sums stand alone, so a block at a time will do."""
    n, _, h, w = features.shape
    size = max(1, BLOCK // max(1, n * h * w))
    for start in range(0, h * w, size):
        yield slice(start, start + size)


def _logarithms(
    features: Tensor,  # [N, D, h, w]
    targets: slice,
    sigma: float,
    scale: float,
) -> tuple[Tensor, Tensor]:  # s_ab and log w_ab, both [N, a, b], b among the targets
    f = features.to(accumulate_dtype(features.dtype)).flatten(2)
    similarity = scale * f.mT @ f[..., targets]
    h, w = features.shape[2:]
    y = torch.arange(h, dtype=f.dtype, device=f.device).repeat_interleave(w)
    x = torch.arange(w, dtype=f.dtype, device=f.device).repeat(h)
    distance2 = (y[:, None] - y[targets]) ** 2 + (x[:, None] - x[targets]) ** 2
    return similarity, similarity - distance2 / (2 * sigma**2)
