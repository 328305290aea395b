"""LAM in plain PyTorch, block by block, and its gradient from the formula.

The formula and its symbols are in :mod:`blpseg_ops.reference.lam`. This file computes the same for
maps of any size: it visits the pixel pairs in blocks, recomputes the weights in backward, and keeps
to operators that torch.export and ONNX can express.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from blpseg_ops._dtypes import accumulate_dtype
from blpseg_ops._precision import matmul
from blpseg_ops.fallback.layout import laid_out_as

BLOCK = 2**24  # pixel pairs per block, over the batch: 64 MiB per matrix in float32
SQUARE = 16  # smallest side of a block of queries under a window; smaller ones repeat more keys


class _Rectangle(NamedTuple):
    """A rectangle of the h x w pixels."""

    top: int
    bottom: int
    left: int
    right: int

    def crop(self, maps: Tensor) -> Tensor:  # [..., h, w] -> [..., pixels]
        return maps[..., self.top : self.bottom, self.left : self.right].flatten(-2)

    def add_to(self, maps: Tensor, summand: Tensor) -> None:  # [..., h, w], [..., pixels]
        sides = (self.bottom - self.top, self.right - self.left)
        maps[..., self.top : self.bottom, self.left : self.right] += summand.unflatten(-1, sides)

    def pixel_yx(self, like: Tensor) -> tuple[Tensor, Tensor]:  # [pixels], [pixels]
        y = torch.arange(self.top, self.bottom, dtype=like.dtype, device=like.device)
        x = torch.arange(self.left, self.right, dtype=like.dtype, device=like.device)
        sides = (self.bottom - self.top, self.right - self.left)
        return y[:, None].expand(sides).flatten(), x.expand(sides).flatten()


class _Block(NamedTuple):
    """Queries that are computed together, and all the keys that they see."""

    queries: _Rectangle
    keys: _Rectangle


def lam_forward(
    features: Tensor,  # [N, D, h, w]
    values: Tensor,  # [N, C, h, w]
    sigma: float,
    eps: float,
    scale: float,
    radius: int | None = None,
) -> tuple[Tensor, Tensor]:  # output [N, C, h, w], log_denominator [N, h, w]
    """Return the output, and log((Z_b + eps T_b) / w_bb), from which backward makes the weights.

    The division by the pixel's own weight w_bb keeps that number small. log(Z_b + eps T_b) itself
    is as large as the scores, hundreds, where float32 rounds by up to 3e-5.
    """
    f = features.to(accumulate_dtype(features.dtype))
    v = values.to(accumulate_dtype(values.dtype))
    outputs, log_denominators = [], []
    for band in _blocks(features.shape, radius):
        parts = [_aggregate(f, v, block, sigma, eps, scale, radius) for block in band]
        outputs.append(torch.cat([output for output, _ in parts], -1))
        log_denominators.append(torch.cat([log_denominator for _, log_denominator in parts], -1))
    output = torch.cat(outputs, -2).to(values.dtype)
    return laid_out_as(output, values), torch.cat(log_denominators, -2)


def _aggregate(
    f: Tensor,  # [N, D, h, w]
    v: Tensor,  # [N, C, h, w]
    block: _Block,
    sigma: float,
    eps: float,
    scale: float,
    radius: int | None,
) -> tuple[Tensor, Tensor]:  # [N, C, rows, columns], [N, rows, columns] of the block's queries
    score, log_weight = _scores_and_log_weights(f, block, sigma, scale, radius)
    log_denominator = log_weight.logsumexp(1)
    if eps > 0:
        log_eps_t = score.logsumexp(1) + math.log(eps)
        # Not logaddexp: its ONNX form overflows.
        log_denominator = torch.stack([log_denominator, log_eps_t]).logsumexp(0)
    prob = (log_weight - log_denominator[:, None]).exp()  # P_ab
    output = matmul(block.keys.crop(v), prob)
    log_denominator = log_denominator - block.queries.crop(_own_scores(f, scale))
    sides = (block.queries.bottom - block.queries.top, -1)
    return output.unflatten(-1, sides), log_denominator.unflatten(-1, sides)


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
    """Compute LAM's gradients from their formula; all weights are computed again.

    With P_ab = w_ab / (Z_b + eps T_b), R_ab = eps exp(s_ab) / (Z_b + eps T_b), the upstream
    gradient g and delta_b = <g_b, out_b>::

        dv_a  = sum_b P_ab g_b
        ds_ab = P_ab (<g_b, v_a> - delta_b) - R_ab delta_b
        df_c  = scale * (sum_a ds_ac f_a + sum_b ds_cb f_b)
    """
    dtype = accumulate_dtype(features.dtype)
    f, v, g, out = (x.to(dtype) for x in (features, values, grad_output, output))
    log_denominator = log_denominator + _own_scores(f, scale)
    grad_f, grad_v = torch.zeros_like(f), torch.zeros_like(v)
    for block in (block for band in _blocks(features.shape, radius) for block in band):
        queries, keys = block
        score, log_weight = _scores_and_log_weights(f, block, sigma, scale, radius)
        log_d, g_b = queries.crop(log_denominator)[:, None], queries.crop(g)
        prob = (log_weight - log_d).exp()  # P_ab
        delta = (g_b * queries.crop(out)).sum(1, keepdim=True)
        keys.add_to(grad_v, matmul(g_b, prob.mT))
        grad_s = prob * (matmul(keys.crop(v).mT, g_b) - delta)
        if eps > 0:
            grad_s = grad_s - eps * (score - log_d).exp() * delta
        queries.add_to(grad_f, scale * matmul(keys.crop(f), grad_s))
        keys.add_to(grad_f, scale * matmul(queries.crop(f), grad_s.mT))
    return grad_f.to(features.dtype), grad_v.to(values.dtype)


def _own_scores(f: Tensor, scale: float) -> Tensor:  # [N, D, h, w] -> s_bb [N, h, w]
    return scale * (f * f).sum(1)


def _blocks(shape: Sequence[int], radius: int | None) -> Iterator[list[_Block]]:
    """Cut the queries into blocks; yield the blocks of one band of rows at a time.

    Each query's sums are independent of the other queries, so any cut gives the same result.
    Without a window a block is a number of whole rows, or a part of one row. With a window it is a
    square about as large as the window, so that few of its keys lie outside a query's window. If
    sizes are symbols, as in an exported graph, the image is one block.
    """
    n, _, h, w = shape
    if isinstance(h, torch.SymInt) or isinstance(w, torch.SymInt):
        image = _Rectangle(0, h, 0, w)
        yield [_Block(image, image)]
        return
    if torch.compiler.is_compiling():
        n = 1  # the cut must not depend on the batch size: one graph serves all
    if radius is None or radius >= max(h, w) - 1:
        radius = max(h, w)
        pixels = max(1, BLOCK // max(1, n * h * w))
        height, width = max(1, pixels // w), min(pixels, w)
    else:
        height = max(SQUARE, 2 * radius + 1)
        while height > 1 and n * (height * (height + 2 * radius)) ** 2 > BLOCK:
            height //= 2
        width = height
    for top in range(0, h, height):
        bottom = min(top + height, h)
        band = []
        for left in range(0, w, width):
            right = min(left + width, w)
            keys = _Rectangle(
                max(top - radius, 0),
                min(bottom + radius, h),
                max(left - radius, 0),
                min(right + radius, w),
            )
            band.append(_Block(_Rectangle(top, bottom, left, right), keys))
        yield band


def _scores_and_log_weights(
    f: Tensor,  # [N, D, h, w]
    block: _Block,
    sigma: float,
    scale: float,
    radius: int | None,
) -> tuple[Tensor, Tensor]:  # s_ab and log w_ab, both [N, keys, queries]
    score = scale * matmul(block.keys.crop(f).mT, block.queries.crop(f))
    (y_a, x_a), (y_b, x_b) = block.keys.pixel_yx(f), block.queries.pixel_yx(f)
    dy, dx = y_a[:, None] - y_b, x_a[:, None] - x_b
    if radius is not None:
        outside = (dy.abs() > radius) | (dx.abs() > radius)
        score = score.masked_fill(outside, -math.inf)
    return score, score - (dy**2 + dx**2) / (2 * sigma**2)
