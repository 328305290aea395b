"""Draw random inputs of every op, for hypothesis and for the fuzzer.

Both pass a ``random.Random``. Hypothesis's shrinks failing inputs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from random import Random

import torch
from torch import Tensor

from . import _lam_inputs, _loss_inputs
from ._common import LAYOUTS, randn

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
Layout = Callable[[Tensor], Tensor]

# About one tile of 8 x 8 pixels, one row, one column; the last two have more than 4 tiles.
LAM_SIZES = ((1, 1), (1, 7), (11, 1), (2, 3), (8, 8), (7, 9), (9, 12), (1, 260), (17, 17))
LOW = ((1, 1), (1, 5), (6, 1), (3, 4), (7, 9), (8, 16))
HIGH = (*LOW, (12, 16), (13, 31), (2, 40), (33, 1), (32, 64))


def draw_tensor(rng: Random, *shape: int) -> Tensor:
    """Return normal random numbers in float64."""
    return randn(*shape, seed=rng.getrandbits(31))


def draw_layout(rng: Random) -> Layout:
    """Return a function that changes the memory layout of [N, C, h, w]; some repeat values."""
    name = rng.choice(("contiguous", *LAYOUTS))
    lay_out = LAYOUTS.get(name, Tensor.contiguous)

    def change(x: Tensor) -> Tensor:
        # Layouts that repeat values take them from fixed indices, which small tensors lack.
        small = x.shape[1] < 2 or min(x.shape[2:]) < 4
        return x if name.endswith("for all") and small else lay_out(x)

    return change


def draw_lam(rng: Random) -> _lam_inputs.Case:
    """Return arguments of lam, float64 and contiguous."""
    n, (h, w) = rng.randint(0, 3), rng.choice(LAM_SIZES)
    d, c = rng.choice((1, 2, 5, 16, 33)), rng.choice((1, 2, 3, 21))
    features = draw_tensor(rng, n, d, h, w) * rng.choice((0.0, 1e-3, 1.0, 3.0, 20.0)) / d**0.5
    match rng.choice(("normal", "offset", "constant", "one large", "of rank 2")):
        case "offset":
            features += rng.choice((0.3, -5.0))
        case "constant":
            features = features[..., :1, :1].expand(features.shape).contiguous()
        case "one large":
            features[..., h // 2, w // 3] *= 10
        case "of rank 2":
            coordinates = features.flatten(2)[:, :2] * d**0.5
            basis = draw_tensor(rng, d, coordinates.shape[1]) / d**0.5
            features = (basis @ coordinates).reshape(n, d, h, w)
    values, grad_output = (draw_tensor(rng, n, c, h, w) for _ in range(2))
    return _lam_inputs.Case(
        features,
        values * rng.choice((0.0, 1e-3, 1.0, 1e4)) + rng.choice((0.0, 7.0)),
        grad_output * rng.choice((1.0, 1e-4, 0.0)),
        sigma=rng.choice((0.2, 1.0, 6.0, 1e4)),
        eps=rng.choice((0.0, 1e-7, 1e-2)),
        scale=rng.choice((1.0, 0.25, -0.5, 0.0)),
        radius=rng.choice((None, None, 0, 1, 3, 100)),
    )


def draw_losses(rng: Random) -> _loss_inputs.Case:
    """Return arguments of all losses; logits are float64 and contiguous."""
    n, classes = rng.randint(0, 3), rng.choice((1, 2, 3, 5, 21, 21, 256))
    low, high = rng.choice(LOW), rng.choice(HIGH)
    dtype = rng.choice((torch.uint8, torch.int16, torch.int32, torch.int64))
    if dtype == torch.uint8 and classes > 254:
        dtype = torch.int32
    ignored = (254, 255, classes + 1) if dtype == torch.uint8 else (255, -1, classes + 1, 999)
    case = _loss_inputs.random_case(
        n,
        classes,
        low,
        high,
        rng.choice(tuple(_loss_inputs.LABELS)),
        gamma=rng.choice((0.0, 0.5, 1.0, 2.0, 3.0)),
        unlabeled_weight=rng.choice((0.0, 0.02, 1.0)),
        threshold=rng.choice((0.0, 0.3, 0.9, 1.0)),
        ignore_index=rng.choice([i for i in ignored if not 0 <= i <= classes]),
    )
    # Not larger: if 1 - q p is pure rounding error, no digit of the weight is correct.
    deviation, offset = rng.choice((0.0, 0.1, 3.0)), rng.choice((0.0, -100.0, 1e3))
    turned = case.target.roll((rng.randint(0, high[0]), rng.randint(0, high[1])), (1, 2))
    return replace(
        case.map(lambda x: deviation * draw_tensor(rng, *x.shape) + offset),
        target=draw_target_layout(rng)(turned.to(dtype)),
        class_present=draw_tensor(rng, n, classes) > rng.choice((-9.0, -0.5, 9.0)),
    )


def draw_target_layout(rng: Random) -> Layout:
    """Return a function that changes the memory layout of a target [N, H, W]."""

    def wider(target: Tensor) -> Tensor:
        n, h, w = target.shape
        storage = torch.full((n, h + 3, 2 * w), 77, dtype=target.dtype)
        storage[:, 2:-1, 1::2] = target
        return storage[:, 2:-1, 1::2]

    return rng.choice((Tensor.contiguous, lambda target: target.mT.contiguous().mT, wider))


def draw_upsample_argmax(rng: Random) -> tuple[Tensor, tuple[int, int]]:
    """Return arguments of upsample_argmax; logits are float64 and contiguous."""
    n, classes = rng.randint(0, 3), rng.choice((1, 2, 3, 21, 255, 256))
    low, size = rng.choice(LOW), rng.choice(HIGH)
    logits = draw_tensor(rng, n, classes, *low) * rng.choice((0.0, 1.0, 1e4))
    match rng.choice(("normal", "whole numbers", "infinite")):
        case "whole numbers":  # ties
            logits = logits.round()
        case "infinite":  # without interpolation, since 0 times infinity is NaN
            size = low
            logits[draw_tensor(rng, *logits.shape) > 1] = rng.choice((math.inf, -math.inf))
            logits[draw_tensor(rng, *logits.shape) > 2] = math.nan
    return logits, size
