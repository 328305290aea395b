"""LAM, the local aggregation module, in plain PyTorch.

With pixels a (source) and b (target), features f, values v and grid positions p::

    s_ab  = scale * <f_a, f_b>
    w_ab  = exp(s_ab - |p_a - p_b|^2 / (2 sigma^2))
    Z_b   = sum_a w_ab        T_b = sum_a exp(s_ab)
    out_b = sum_a w_ab v_a / (Z_b + eps T_b)

where a goes over the image or, with a radius, over a square window around b. Sums are taken in the
logarithm: |f|^2 reaches hundreds, where the exponentials themselves overflow.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from blpseg_ops.reference.layout import laid_out_as
from blpseg_ops.reference.resize import accumulate_dtype

BLOCK = 2**24  # pairs of pixels that are looked at in one go: 64 MiB a matrix in float32
SQUARE = 16  # a small window's targets are taken by squares of this side, of more source pixels


class _Rectangle(NamedTuple):
    """A part of the h x w pixels."""

    top: int
    bottom: int
    left: int
    right: int

    def of(self, maps: Tensor) -> Tensor:  # [..., h, w] -> [..., pixels]
        return maps[..., self.top : self.bottom, self.left : self.right].flatten(-2)

    def add_to(self, maps: Tensor, numbers: Tensor) -> None:  # [..., h, w], [..., pixels]
        sides = (self.bottom - self.top, self.right - self.left)
        maps[..., self.top : self.bottom, self.left : self.right] += numbers.unflatten(-1, sides)

    def places(self, like: Tensor) -> tuple[Tensor, Tensor]:  # rows and columns, [pixels] each
        rows = torch.arange(self.top, self.bottom, dtype=like.dtype, device=like.device)
        columns = torch.arange(self.left, self.right, dtype=like.dtype, device=like.device)
        sides = (self.bottom - self.top, self.right - self.left)
        return rows[:, None].expand(sides).flatten(), columns.expand(sides).flatten()


class _Block(NamedTuple):
    """Target pixels that are looked at together, and all the sources that they see."""

    targets: _Rectangle
    sources: _Rectangle


def lam(
    features: Tensor,  # [N, D, h, w]
    values: Tensor,  # [N, C, h, w]
    sigma: float = 6.0,
    *,
    radius: int | None = None,
    eps: float = 0.0,
    scale: float = 1.0,
) -> Tensor:  # [N, C, h, w]
    """Twin of :func:`blpseg_ops.lam`."""
    return lam_forward(features, values, sigma, eps, scale, radius)[0]


def lam_forward(
    features: Tensor,  # [N, D, h, w]
    values: Tensor,  # [N, C, h, w]
    sigma: float,
    eps: float,
    scale: float,
    radius: int | None = None,
) -> tuple[Tensor, Tensor]:  # output [N, C, h, w], log_denominator [N, h, w]
    """LAM, and log((Z + eps T) / w_bb) of every target pixel b, to remake all weights from.

    Relative to the pixel's own weight it is a small number. log(Z + eps T) itself is as large as
    the scores, hundreds, and float32 would round it by as much as 3e-5.
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
) -> tuple[Tensor, Tensor]:  # of the block's targets
    similarity, log_weight = _logarithms(f, block, sigma, scale, radius)
    log_denominator = log_weight.logsumexp(1)
    if eps > 0:
        log_eps_t = similarity.logsumexp(1) + math.log(eps)
        # logaddexp would say it, but overflows as ONNX has it.
        log_denominator = torch.stack([log_denominator, log_eps_t]).logsumexp(0)
    output = block.sources.of(v) @ (log_weight - log_denominator[:, None]).exp()  # v P
    log_denominator = log_denominator - block.targets.of(_own_scores(f, scale))
    sides = (block.targets.bottom - block.targets.top, -1)
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
    """The gradient of LAM from its formula, with every weight recomputed.

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
        targets, sources = block
        similarity, log_weight = _logarithms(f, block, sigma, scale, radius)
        log_d, g_b = targets.of(log_denominator)[:, None], targets.of(g)
        share = (log_weight - log_d).exp()  # P_ab
        delta = (g_b * targets.of(out)).sum(1, keepdim=True)
        sources.add_to(grad_v, g_b @ share.mT)
        grad_s = share * (sources.of(v).mT @ g_b - delta)
        if eps > 0:
            grad_s = grad_s - eps * (similarity - log_d).exp() * delta
        targets.add_to(grad_f, scale * sources.of(f) @ grad_s)
        sources.add_to(grad_f, scale * targets.of(f) @ grad_s.mT)
    return grad_f.to(features.dtype), grad_v.to(values.dtype)


def _own_scores(f: Tensor, scale: float) -> Tensor:  # [N, D, h, w] -> s_bb [N, h, w]
    return scale * (f * f).sum(1)


def _blocks(shape: Sequence[int], radius: int | None) -> Iterator[list[_Block]]:
    """The targets in blocks, band by band; each target's sums stand alone, so blocks will do.

    Without a window a block is of whole rows, or of a part of one; with a window it is a square
    about as large as the window, so that few of its sources are outside of a target's. Where sizes
    are symbols, in an exported graph, all is one block.
    """
    n, _, h, w = shape
    if isinstance(h, torch.SymInt) or isinstance(w, torch.SymInt):
        image = _Rectangle(0, h, 0, w)
        yield [_Block(image, image)]
        return
    if torch.compiler.is_compiling():
        n = 1  # a graph serves any batch
    if radius is None or radius >= max(h, w) - 1:
        radius = max(h, w)
        size = max(1, BLOCK // max(1, n * h * w))
        height, width = max(1, size // w), min(size, w)
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
            seen = _Rectangle(
                max(top - radius, 0),
                min(bottom + radius, h),
                max(left - radius, 0),
                min(right + radius, w),
            )
            band.append(_Block(_Rectangle(top, bottom, left, right), seen))
        yield band


def _logarithms(
    f: Tensor,  # [N, D, h, w]
    block: _Block,
    sigma: float,
    scale: float,
    radius: int | None,
) -> tuple[Tensor, Tensor]:  # s_ab and log w_ab, both [N, a, b]
    similarity = scale * block.sources.of(f).mT @ block.targets.of(f)
    (y_a, x_a), (y_b, x_b) = block.sources.places(f), block.targets.places(f)
    dy, dx = y_a[:, None] - y_b, x_a[:, None] - x_b
    if radius is not None:
        outside = (dy.abs() > radius) | (dx.abs() > radius)
        similarity = similarity.masked_fill(outside, -math.inf)
    return similarity, similarity - (dy**2 + dx**2) / (2 * sigma**2)
