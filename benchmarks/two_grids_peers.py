"""What ``lam`` with queries is measured against: what projects write by hand today.

Those that hold a matrix of pairs visit the queries in chunks, so that they fit into memory at all.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

import blpseg_ops
from benchmarks.two_grids_cases import Case, Run

CHUNK = 2**26  # numbers in the largest tensor of a chunk: 256 MiB


def _ours(case: Case) -> Run:
    def run(features: Tensor, values: Tensor, queries: Tensor) -> Tensor:
        return blpseg_ops.lam(features, values, case.sigma, queries=queries, radius=case.radius)

    return run


def _positions(case: Case) -> tuple[Tensor, Tensor]:  # [H W], [H W] in the keys' grid
    y = (torch.arange(case.height) + 0.5) * case.h / case.height - 0.5
    x = (torch.arange(case.width) + 0.5) * case.w / case.width - 0.5
    return y.repeat_interleave(case.width), x.repeat(case.height)


def _bias(case: Case, y: Tensor, x: Tensor) -> Tensor:  # [queries, keys]
    dy = y[:, None] - torch.arange(case.h).repeat_interleave(case.w)
    dx = x[:, None] - torch.arange(case.w).repeat(case.h)
    bias = (dy**2 + dx**2) / (-2 * case.sigma**2)
    if case.radius is not None:
        bias.masked_fill_((dy.abs() > case.radius) | (dx.abs() > case.radius), float("-inf"))
    return bias


def _tokens(maps: Tensor) -> Tensor:  # [1, C, h, w] -> [pixels, C]
    return maps[0].flatten(1).mT.contiguous()


def _plain(key: Tensor, value: Tensor, query: Tensor, bias: Tensor) -> Tensor:
    return (query @ key.mT + bias).softmax(-1) @ value


def _sdpa(key: Tensor, value: Tensor, query: Tensor, bias: Tensor) -> Tensor:
    width = max(key.shape[1], value.shape[1])  # the fused kernel wants equal widths
    padded = (F.pad(x, (0, width - x.shape[1]))[None, None] for x in (query, key, value))
    output = F.scaled_dot_product_attention(*padded, attn_mask=bias, scale=1.0)
    return output[0, 0, :, : value.shape[1]]


def _in_chunks(case: Case, attend: Callable[..., Tensor]) -> Run:
    y, x = _positions(case)
    size = max(1, CHUNK // (case.h * case.w))

    def run(features: Tensor, values: Tensor, queries: Tensor) -> Tensor:
        key, value, query = map(_tokens, (features, values, queries))
        parts = [
            attend(key, value, part, _bias(case, part_y, part_x))
            for part, part_y, part_x in zip(
                query.split(size), y.split(size), x.split(size), strict=True
            )
        ]
        return torch.cat(parts).mT.reshape(1, case.c, case.height, case.width)

    return run


def _unfold(case: Case) -> Run:
    """The window of each query in keys and values that are upsampled to the nearest: gathered."""
    assert case.radius is not None
    side = int(2 * case.radius) + 2
    y, x = _positions(case)
    top, left = ((p - case.radius).ceil().long() for p in (y, x))
    size = max(1, CHUNK // (side**2 * max(case.d, case.c)))

    def run(features: Tensor, values: Tensor, queries: Tensor) -> Tensor:
        key, value, query = map(_tokens, (features, values, queries))
        parts = []
        for rows in torch.arange(len(query)).split(size):
            at_y = (top[rows, None] + torch.arange(side))[:, :, None].expand(-1, side, side)
            at_x = (left[rows, None] + torch.arange(side))[:, None, :].expand(-1, side, side)
            dy, dx = at_y - y[rows, None, None], at_x - x[rows, None, None]
            outside = (dy.abs() > case.radius) | (dx.abs() > case.radius)
            outside |= (at_y < 0) | (at_y >= case.h) | (at_x < 0) | (at_x >= case.w)
            bias = (dy**2 + dx**2) / (-2 * case.sigma**2)
            bias = bias.masked_fill(outside, float("-inf")).flatten(1)
            seen = (at_y.clamp(0, case.h - 1) * case.w + at_x.clamp(0, case.w - 1)).flatten(1)
            score = (key[seen] @ query[rows, :, None])[..., 0]
            prob = (score + bias).softmax(-1)
            parts.append((prob[:, None] @ value[seen])[:, 0])
        return torch.cat(parts).mT.reshape(1, case.c, case.height, case.width)

    return run


def _flex(case: Case) -> Run:
    """FlexAttention with the Gaussian as score modification, and a block mask of the window."""
    ratio_y, ratio_x = case.h / case.height, case.w / case.width

    def offsets(b: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
        y, x = (b // case.width + 0.5) * ratio_y - 0.5, (b % case.width + 0.5) * ratio_x - 0.5
        return a // case.w - y, a % case.w - x

    def gaussian(score: Tensor, _n: Tensor, _head: Tensor, b: Tensor, a: Tensor) -> Tensor:
        dy, dx = offsets(b, a)
        return score - (dy * dy + dx * dx) / (2 * case.sigma**2)

    def window(_n: Tensor, _head: Tensor, b: Tensor, a: Tensor) -> Tensor:
        dy, dx = offsets(b, a)
        return (dy.abs() <= case.radius) & (dx.abs() <= case.radius)

    mask = None
    if case.radius is not None:
        sides = case.height * case.width, case.h * case.w
        # Not compiled: torch 2.13 writes C++ for it that no compiler takes.
        device = str(torch.get_default_device())
        mask = create_block_mask(window, None, None, *sides, device=device)
    attention = torch.compile(flex_attention, dynamic=False)
    options: dict[str, Any] = {"score_mod": gaussian, "block_mask": mask, "scale": 1.0}

    def run(features: Tensor, values: Tensor, queries: Tensor) -> Tensor:
        key, value, query = (_tokens(x)[None, None] for x in (features, values, queries))
        output = attention(query, key, value, **options)
        return output[0, 0].mT.reshape(1, case.c, case.height, case.width)

    return run


OURS, PLAIN, SDPA, UNFOLD, FLEX = (
    "blpseg_ops",
    "PyTorch, all pairs",
    "SDPA with a bias",
    "unfold",
    "FlexAttention",
)
PEERS: dict[str, Callable[[Case], Run]] = {
    OURS: _ours,
    PLAIN: partial(_in_chunks, attend=_plain),
    SDPA: partial(_in_chunks, attend=_sdpa),
    UNFOLD: _unfold,
    FLEX: _flex,
}
COMPILES = {FLEX}
FILL = "filling a new output alone"  # no peer: what all of them do besides
