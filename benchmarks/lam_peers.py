"""What ``lam`` is measured against.

A peer is made for a case once, which is not timed: it may precompute what does not depend on
features and values, such as the dense Gaussian of L x L numbers. It returns a function of features
and values that returns the output.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

import blpseg_ops
from benchmarks.lam_cases import Case, Run


def _ours(case: Case) -> Run:
    return partial(blpseg_ops.lam, sigma=case.sigma, radius=case.radius, eps=case.eps)


def _published(features: Tensor, values: Tensor, gaussian: Tensor, eps: float) -> Tensor:
    f = features.flatten(2)
    weight = (f.mT @ f).softmax(-1) * gaussian  # [N, L, L], a row per query
    weight = weight / (weight.sum(-1, keepdim=True) + eps)
    return (weight @ values.flatten(2).mT).mT.reshape(values.shape)


def _eager(case: Case) -> Run:
    return partial(_published, gaussian=_log_gaussian(case).exp_(), eps=case.eps)


def _compiled(case: Case) -> Run:
    return torch.compile(_eager(case), dynamic=False)


def _sdpa(case: Case) -> Run:
    bias = _log_gaussian(case)

    def run(features: Tensor, values: Tensor) -> Tensor:
        query, channels = _tokens(features), values.shape[1]
        # The fused kernel wants equal widths.
        padded = F.pad(_tokens(values), (0, features.shape[1] - channels))
        mask = bias.to(query.dtype)
        output = F.scaled_dot_product_attention(query, query, padded, attn_mask=mask, scale=1.0)
        return _maps(output[..., :channels], case)

    return run


def flex(
    case: Case, block_mask: BlockMask | None = None, kernel_options: dict[str, Any] | None = None
) -> Run:
    """FlexAttention with the Gaussian as its score modification."""

    def gaussian(score: Tensor, _n: Tensor, _head: Tensor, b: Tensor, a: Tensor) -> Tensor:
        dy, dx = b // case.w - a // case.w, b % case.w - a % case.w
        return score - (dy * dy + dx * dx) / (2 * case.sigma**2)

    attention = torch.compile(flex_attention, dynamic=False)
    arguments = {
        "score_mod": gaussian,
        "block_mask": _block_mask(case) if block_mask is None else block_mask,
        "scale": 1.0,
        "kernel_options": kernel_options,
    }

    def run(features: Tensor, values: Tensor) -> Tensor:
        query = _tokens(features)
        return _maps(attention(query, query, _tokens(values), **arguments), case)

    return run


def _flex_flash(case: Case) -> Run:
    """FlexAttention by FlashAttention 4's kernels, where these are installed."""
    return flex(case, kernel_options={"BACKEND": "FLASH"})


def _block_mask(case: Case) -> BlockMask | None:
    """The blocks of pairs that windows touch; None where a pixel sees the whole image."""
    if case.radius is None:
        return None

    def window(_n: Tensor, _head: Tensor, b: Tensor, a: Tensor) -> Tensor:
        dy, dx = b // case.w - a // case.w, b % case.w - a % case.w
        return (dy.abs() <= case.radius) & (dx.abs() <= case.radius)

    # Compiled, for it would hold all L x L pairs otherwise.
    make = torch.compile(create_block_mask, dynamic=False)
    device = torch.get_default_device()
    return make(window, None, None, case.pixels, case.pixels, device=device)


def _windowed(features: Tensor, values: Tensor, bias: Tensor, radius: int) -> Tensor:
    side = 2 * radius + 1
    keys, seen = (
        F.unfold(maps, side, padding=radius).unflatten(1, (-1, side * side))  # [N, D, side^2, L]
        for maps in (features, values)
    )
    score = (keys * features.flatten(2)[:, :, None]).sum(1)
    weight = (score + bias).softmax(1)  # [N, side^2, L]
    return (seen * weight[:, None]).sum(2).reshape(values.shape)


def _unfold(case: Case) -> Run:
    radius = case.radius
    step = torch.arange(-radius, radius + 1)
    distance2 = (step[:, None] ** 2 + step**2).flatten()
    inside = F.unfold(torch.ones(1, 1, case.h, case.w), 2 * radius + 1, padding=radius)[0]
    bias = inside.log() - distance2[:, None] / (2 * case.sigma**2)  # [side^2, L]
    return partial(_windowed, bias=bias, radius=radius)


def _unfold_compiled(case: Case) -> Run:
    return torch.compile(_unfold(case), dynamic=False)


def _log_gaussian(case: Case) -> Tensor:  # [L, L]
    y, x = torch.arange(case.h), torch.arange(case.w)
    dy2, dx2 = (y[:, None] - y) ** 2, (x[:, None] - x) ** 2
    distance2 = dy2[:, None, :, None] + dx2[None, :, None, :].float()
    return distance2.div_(-2 * case.sigma**2).view(case.pixels, -1)


def _tokens(maps: Tensor) -> Tensor:  # [N, C, h, w] -> [N, 1, L, C]
    return maps.flatten(2).mT[:, None].contiguous()


def _maps(tokens: Tensor, case: Case) -> Tensor:  # [N, 1, L, C] -> [N, C, h, w]
    return tokens[:, 0].mT.unflatten(2, (case.h, case.w)).contiguous()


OURS, EAGER, COMPILED, SDPA, FLEX = WHOLE = (
    "blpseg_ops",
    "published",
    "published, compiled",
    "SDPA",
    "FlexAttention",
)
FLEX_FLASH = "FlexAttention, FLASH backend"  # on some GPUs only
UNFOLD, UNFOLD_COMPILED = "unfold", "unfold, compiled"
WINDOWED = OURS, UNFOLD, UNFOLD_COMPILED, FLEX
PEERS: dict[str, Callable[[Case], Run]] = {
    OURS: _ours,
    EAGER: _eager,
    COMPILED: _compiled,
    SDPA: _sdpa,
    FLEX: flex,
    FLEX_FLASH: _flex_flash,
    UNFOLD: _unfold,
    UNFOLD_COMPILED: _unfold_compiled,
}
COMPILES = {COMPILED, FLEX, FLEX_FLASH, UNFOLD_COMPILED}
KEEPS_MATRIX = {EAGER, COMPILED, SDPA}  # L x L float32 numbers, made once


def bytes_kept(peer: str, case: Case) -> int:
    """Size of what a peer precomputes for a case."""
    return 4 * case.pixels**2 if peer in KEEPS_MATRIX else 0
