"""LAM from queries on a grid of their own, in plain PyTorch, and its gradient from the formula.

The formula and its symbols are in :mod:`blpseg_ops.reference.lam`. Queries are visited in blocks,
so nothing of the size of all pairs is held. Weights are relative to that of the key n that is
nearest to the query: it always counts, and at H = h it is the query's own pixel.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from blpseg_ops._dtypes import accumulate_dtype
from blpseg_ops._precision import matmul
from blpseg_ops.fallback.lam import BLOCK, SQUARE
from blpseg_ops.fallback.layout import laid_out_as


class _Span(NamedTuple):
    """Queries start..stop - 1 of one axis, and the keys that they see."""

    start: int
    stop: int
    first_key: int
    last_key: int  # exclusive
    queries: int  # on the whole axis
    keys: int  # on the whole axis

    def nearest(self, like: Tensor) -> Tensor:  # int64 [queries]
        """Return the index of the key nearest to each query."""
        b = torch.arange(self.start, self.stop, device=like.device)
        return self.keys * (2 * b + 1) // (2 * self.queries)

    def differences(self, like: Tensor) -> tuple[Tensor, Tensor]:  # [keys, queries], [queries]
        """Return p_a - p_b for keys a, and p_n - p_b for the nearest key n, both in float64.

        2 queries (p_a - p_b) is a whole number, so that whether a key lies in a window is exact.
        """
        b = torch.arange(self.start, self.stop, dtype=torch.float64, device=like.device)
        a = torch.arange(self.first_key, self.last_key, dtype=torch.float64, device=like.device)
        n, place = self.nearest(like).double(), self.keys * (2 * b + 1)
        per_key = 2 * self.queries
        to_nearest = (self.queries * (2 * n + 1) - place) / per_key
        return (self.queries * (2 * a[:, None] + 1) - place) / per_key, to_nearest


class _Block(NamedTuple):
    """A rectangle of queries that are computed together, and the rectangle of keys they see."""

    y: _Span
    x: _Span

    def crop_keys(self, maps: Tensor) -> Tensor:  # [N, ?, h, w] -> [N, ?, keys]
        return self._keys_of(maps).flatten(2)

    def crop_queries(self, maps: Tensor) -> Tensor:  # [N, ?, H, W] -> [N, ?, queries]
        return self._queries_of(maps).flatten(2)

    def crop_nearest(self, maps: Tensor) -> Tensor:  # [N, ?, h, w] -> [N, ?, queries]
        y, x = self.y.nearest(maps), self.x.nearest(maps)
        return maps[:, :, y][..., x].flatten(2)

    def add_to_keys(self, maps: Tensor, summand: Tensor) -> None:  # [N, ?, h, w], [N, ?, keys]
        part = self._keys_of(maps)
        part += summand.reshape(part.shape)

    def store_queries(self, maps: Tensor, block: Tensor) -> None:  # [N, ?, H, W], [N, ?, queries]
        part = self._queries_of(maps)
        part.copy_(block.reshape(part.shape))

    def _keys_of(self, maps: Tensor) -> Tensor:
        y, x = self.y, self.x
        return maps[..., y.first_key : y.last_key, x.first_key : x.last_key]

    def _queries_of(self, maps: Tensor) -> Tensor:
        return maps[..., self.y.start : self.y.stop, self.x.start : self.x.stop]


class _Pairs(NamedTuple):
    """Logarithms and distances of all pairs of a block."""

    log_weight: Tensor  # log(w_ab / w_nb) [N, keys, queries]
    log_exp_score: Tensor  # log(exp(s_ab) / w_nb) [N, keys, queries]
    sq_distance: Tensor  # |p_a - p_b|^2 [keys, queries]


def lam_two_grids_forward(
    queries: Tensor,  # [N, D, H, W]
    features: Tensor,  # [N, D, h, w]
    values: Tensor,  # [N, C, h, w]
    inv_two_sigma_sq: Tensor,  # [N]
    eps: float,
    scale: float,
    radius: float | None = None,
) -> tuple[Tensor, Tensor]:  # output [N, C, H, W], log_denominator [N, H, W]
    """Return the output, and log((Z_b + eps T_b) / w_nb), from which backward makes the weights."""
    dtype = accumulate_dtype(features.dtype)
    f, v = features.to(dtype), values.to(dtype)
    outputs, log_denominators = [], []
    for band in _blocks(queries.shape, features.shape, radius):
        parts, log_parts = [], []
        for block in band:
            q = block.crop_queries(queries).to(dtype)
            pairs = _pairs(q, f, block, inv_two_sigma_sq, scale, radius)
            log_denominator = pairs.log_weight.logsumexp(1, keepdim=True)
            if eps > 0:
                log_eps_t = pairs.log_exp_score.logsumexp(1, keepdim=True) + math.log(eps)
                # Not logaddexp: its ONNX form overflows.
                log_denominator = torch.stack([log_denominator, log_eps_t]).logsumexp(0)
            prob = (pairs.log_weight - log_denominator).exp()  # P_ab
            output = matmul(block.crop_keys(v), prob).to(values.dtype)
            rows = block.y.stop - block.y.start
            parts.append(output.unflatten(-1, (rows, -1)))
            log_parts.append(log_denominator[:, 0].unflatten(-1, (rows, -1)))
        outputs.append(torch.cat(parts, -1))
        log_denominators.append(torch.cat(log_parts, -1))
    output = torch.cat(outputs, -2).contiguous(memory_format=memory_format_of(values))
    return output, torch.cat(log_denominators, -2)


def memory_format_of(values: Tensor) -> torch.memory_format:  # [N, C, h, w]
    """Return the memory format of the output."""
    if not values.is_contiguous() and values.is_contiguous(memory_format=torch.channels_last):
        return torch.channels_last
    return torch.contiguous_format


def lam_two_grids_backward(
    grad_output: Tensor,  # [N, C, H, W]
    queries: Tensor,  # [N, D, H, W]
    features: Tensor,  # [N, D, h, w]
    values: Tensor,  # [N, C, h, w]
    output: Tensor,  # [N, C, H, W]
    log_denominator: Tensor,  # [N, H, W]
    inv_two_sigma_sq: Tensor,  # [N]
    eps: float,
    scale: float,
    radius: float | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Compute the gradients from their formula; all weights are computed again.

    With P_ab = w_ab / (Z_b + eps T_b), R_ab = eps exp(s_ab) / (Z_b + eps T_b), the upstream
    gradient g and delta_b = <g_b, out_b>::

        dv_a  = sum_b P_ab g_b
        m_ab  = P_ab (<g_b, v_a> - delta_b)        ds_ab = m_ab - R_ab delta_b
        df_a  = scale * sum_b ds_ab q_b            dq_b = scale * sum_a ds_ab f_a
        d(1 / (2 sigma^2)) = -sum_ab m_ab |p_a - p_b|^2

    Returns:
        Gradients of queries, features, values and inv_two_sigma_sq, each in its shape.
    """
    dtype = accumulate_dtype(features.dtype)
    f, v = features.to(dtype), values.to(dtype)
    grad_f, grad_v = torch.zeros_like(f), torch.zeros_like(v)
    grad_q = torch.empty_like(queries)
    grad_inv = torch.zeros_like(inv_two_sigma_sq, memory_format=torch.contiguous_format)
    for band in _blocks(queries.shape, features.shape, radius):
        for block in band:
            q, g = block.crop_queries(queries).to(dtype), block.crop_queries(grad_output).to(dtype)
            pairs = _pairs(q, f, block, inv_two_sigma_sq, scale, radius)
            log_d = block.crop_queries(log_denominator[:, None])
            prob = (pairs.log_weight - log_d).exp()  # P_ab
            delta = (g * block.crop_queries(output).to(dtype)).sum(1, keepdim=True)
            block.add_to_keys(grad_v, matmul(g, prob.mT))
            grad_s = prob * (matmul(block.crop_keys(v).mT, g) - delta)
            grad_inv -= (grad_s * pairs.sq_distance).sum((1, 2))
            if eps > 0:
                grad_s = grad_s - eps * (pairs.log_exp_score - log_d).exp() * delta
            block.add_to_keys(grad_f, scale * matmul(q, grad_s.mT))
            block.store_queries(grad_q, scale * matmul(block.crop_keys(f), grad_s))
    return (
        grad_q,
        laid_out_as(grad_f.to(features.dtype), features),
        laid_out_as(grad_v.to(values.dtype), values),
        grad_inv,
    )


def _pairs(
    q: Tensor,  # [N, D, queries]
    f: Tensor,  # [N, D, h, w]
    block: _Block,
    inv_two_sigma_sq: Tensor,  # [N]
    scale: float,
    radius: float | None,
) -> _Pairs:
    keys, queries = block.y.last_key - block.y.first_key, block.y.stop - block.y.start
    columns, width = block.x.last_key - block.x.first_key, block.x.stop - block.x.start
    sides = (keys, columns, queries, width)
    (dy, dy_nearest), (dx, dx_nearest) = block.y.differences(f), block.x.differences(f)
    dy, dx = dy[:, None, :, None].expand(sides), dx[None, :, None, :].expand(sides)
    sq_nearest = (dy_nearest[:, None] ** 2 + dx_nearest**2).flatten()
    sq_distance = (dy**2 + dx**2).flatten(0, 1).flatten(1)

    score = scale * (matmul(block.crop_keys(f).mT, q))
    score = score - scale * (block.crop_nearest(f) * q).sum(1, keepdim=True)
    if radius is not None:
        outside = (dy.abs() > radius) | (dx.abs() > radius)
        score = score.masked_fill(outside.flatten(0, 1).flatten(1), -math.inf)
    inv = inv_two_sigma_sq[:, None, None]
    beyond_nearest = (sq_distance - sq_nearest).to(f.dtype)
    return _Pairs(
        score - inv * beyond_nearest,
        score + inv * sq_nearest.to(f.dtype),
        sq_distance.to(f.dtype),
    )


def _blocks(
    queries: Sequence[int], features: Sequence[int], radius: float | None
) -> Iterator[list[_Block]]:
    """Cut the queries into blocks; yield the blocks of one band of rows at a time.

    Without a window a block is a number of whole rows, or a part of one row. With a window it is a
    rectangle about as large as the window. If sizes are symbols, as in an exported graph, there is
    one block.
    """
    n, _, height, width = queries
    h, w = features[2:]
    if any(isinstance(side, torch.SymInt) for side in (height, width, h, w)):
        yield [_Block(_Span(0, height, 0, h, height, h), _Span(0, width, 0, w, width, w))]
        return
    if torch.compiler.is_compiling():
        n = 1  # the cut must not depend on the batch size: one graph serves all
    if radius is None or radius >= max(h, w):
        radius = float(max(h, w))
        pixels = max(1, BLOCK // max(1, n * h * w))
        rows, columns = max(1, pixels // width), min(pixels, width)
    else:
        side = 2 * radius + 1
        rows = max(SQUARE, math.ceil(side * height / h))
        columns = max(SQUARE, math.ceil(side * width / w))
        while (
            max(rows, columns) > 1
            and n
            * rows
            * columns
            * _keys_seen(rows * h / height + side)
            * _keys_seen(columns * w / width + side)
            > BLOCK
        ):
            rows, columns = max(1, rows // 2), max(1, columns // 2)
    for top in range(0, height, rows):
        y = _span(top, min(top + rows, height), height, h, radius)
        yield [
            _Block(y, _span(left, min(left + columns, width), width, w, radius))
            for left in range(0, width, columns)
        ]


def _keys_seen(side: float) -> int:
    return math.ceil(side) + 1


def _span(start: int, stop: int, queries: int, keys: int, radius: float) -> _Span:
    """Return the span of the queries start..stop - 1 with all keys of their windows."""
    first = (start + 0.5) * keys / queries - 0.5 - radius
    last = (stop - 0.5) * keys / queries - 0.5 + radius
    return _Span(
        start,
        stop,
        max(0, math.floor(first)),
        min(keys, math.ceil(last) + 1),
        queries,
        keys,
    )
