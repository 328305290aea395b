"""Draw random inputs of every op, for hypothesis and for the fuzzer.

Both pass a ``random.Random``. Hypothesis's shrinks failing inputs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from random import Random

import torch
import torch.nn.functional as F
from torch import Tensor

from blpseg_ops.ops.lam_two_grids import LARGEST_INV_TWO_SIGMA_SQ

from . import _lam_inputs, _loss_inputs, _two_grids_inputs
from ._common import LAYOUTS, randn

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
Layout = Callable[[Tensor], Tensor]

# About one tile of 8 x 8 pixels, one row, one column; the last two have more than 4 tiles.
LAM_SIZES = ((1, 1), (1, 7), (11, 1), (2, 3), (8, 8), (7, 9), (9, 12), (1, 260), (17, 17))
LOW = ((1, 1), (1, 5), (6, 1), (3, 4), (7, 9), (8, 16))
HIGH = (*LOW, (12, 16), (13, 31), (2, 40), (33, 1), (32, 64))
QUERY_SIZES = ((1, 1), (1, 5), (6, 1), (4, 16), (9, 7), (5, 33), (36, 17), (40, 21))
# The smallest one is clamped, infinity means no Gaussian. 1 / (2 sigma^2) is exact in float32.
SIGMAS = (1e-12, 0.25, 1.0, 8.0, 2.0**13, math.inf)


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


def draw_features(rng: Random, n: int, d: int, h: int, w: int) -> Tensor:  # [N, D, h, w]
    """Return features of any size and structure."""
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
    return features


def draw_values(rng: Random, *shape: int) -> Tensor:
    """Return values of any size, with or without an offset."""
    return draw_tensor(rng, *shape) * rng.choice((0.0, 1e-3, 1.0, 1e4)) + rng.choice((0.0, 7.0))


def draw_upstream(rng: Random, *shape: int) -> Tensor:
    """Return an upstream gradient of any size."""
    return draw_tensor(rng, *shape) * rng.choice((1.0, 1e-4, 0.0))


def draw_lam(rng: Random) -> _lam_inputs.Case:
    """Return arguments of lam, float64 and contiguous."""
    n, (h, w) = rng.randint(0, 3), rng.choice(LAM_SIZES)
    d, c = rng.choice((1, 2, 5, 16, 33)), rng.choice((1, 2, 3, 21))
    return _lam_inputs.Case(
        draw_features(rng, n, d, h, w),
        draw_values(rng, n, c, h, w),
        draw_upstream(rng, n, c, h, w),
        sigma=rng.choice((0.2, 1.0, 6.0, 1e4)),
        eps=rng.choice((0.0, 1e-7, 1e-2)),
        scale=rng.choice((1.0, 0.25, -0.5, 0.0)),
        radius=rng.choice((None, None, 0, 1, 3, 100)),
    )


def draw_two_grids(rng: Random) -> _two_grids_inputs.Case:
    """Return arguments of lam_two_grids, float64 and contiguous."""
    n, keys = rng.randint(0, 3), rng.choice(LAM_SIZES)
    queries = rng.choice((keys, *QUERY_SIZES))
    d, c = rng.choice((1, 2, 5, 16, 33)), rng.choice((1, 2, 3, 21))
    features = draw_features(rng, n, d, *keys)
    match rng.choice(("their own", "like the keys")):
        case "their own":
            query_features = draw_features(rng, n, d, *queries)
        case "like the keys":
            query_features = F.interpolate(features, queries) if n else torch.empty(n, d, *queries)
            query_features = query_features.double() + 0.05 * draw_tensor(rng, n, d, *queries)
    sigmas = torch.tensor([rng.choice(SIGMAS) for _ in range(n)], dtype=torch.float64)
    return _two_grids_inputs.Case(
        query_features,
        features,
        draw_values(rng, n, c, *keys),
        draw_upstream(rng, n, c, *queries),
        inv_two_sigma_sq(sigmas),
        eps=rng.choice((0.0, 1e-7, 1e-2)),
        scale=rng.choice((1.0, 0.25, -0.5, 0.0)),
        radius=rng.choice((None, None, 0.5, 0.75, 1, 2.3, 100, math.inf)),
    )


def draw_sigma(rng: Random, dtype: torch.dtype) -> float | Tensor:
    """Return a sigma, as a number or as a 0-dim tensor."""
    sigma = rng.choice(SIGMAS)
    return rng.choice((sigma, torch.tensor(sigma, dtype=dtype)))


def inv_two_sigma_sq(sigma: Tensor) -> Tensor:
    """Return 1 / (2 sigma^2), at most LARGEST_INV_TWO_SIGMA_SQ."""
    return (0.5 / sigma.double() ** 2).clamp(max=LARGEST_INV_TWO_SIGMA_SQ)


@dataclass(frozen=True)
class Bilateral:
    """Arguments of joint_bilateral and its upstream gradient."""

    guide: Tensor  # [N, G, H, W], or of another size if there is a size
    values: Tensor  # [N, C, h, w]
    grad_output: Tensor  # [N, C, H, W]
    sigma_space: float
    sigma_color: float
    size: tuple[int, int] | None
    radius: float | None

    def map(self, change: Layout) -> Bilateral:
        """Return the case with every map changed."""
        names = ("guide", "values", "grad_output")
        return replace(self, **{name: change(getattr(self, name)) for name in names})

    def to(self, dtype: torch.dtype) -> Bilateral:
        """Return the case in another dtype."""
        return self.map(lambda x: x.to(dtype))


def draw_joint_bilateral(rng: Random) -> Bilateral:
    """Return arguments of joint_bilateral, float64 and contiguous."""
    n, c = rng.randint(0, 3), rng.choice((1, 2, 21))
    grid, guide_grid = rng.choice(LOW), rng.choice(QUERY_SIZES)
    size = rng.choice((None, None, *QUERY_SIZES))
    deviation, offset = rng.choice(((1.0, 0.0), (0.3, 0.5), (40.0, 128.0), (0.0, 1.0)))
    return Bilateral(
        draw_tensor(rng, n, rng.choice((1, 3, 16)), *guide_grid) * deviation + offset,
        draw_values(rng, n, c, *grid),
        draw_upstream(rng, n, c, *(size or guide_grid)),
        sigma_space=rng.choice(SIGMAS),
        sigma_color=rng.choice((0.3, 2.0, 100.0, math.inf)) * max(deviation, 0.1),
        size=size,
        radius=rng.choice((None, 0.5, 1.7, 3, math.inf)),
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


def draw_vector_layout(rng: Random) -> Layout:
    """Return a function that changes the memory layout of a vector; one repeats a value."""
    return rng.choice(
        (
            Tensor.contiguous,
            lambda x: torch.stack([x, x.new_full(x.shape, math.nan)], 1)[:, 0],
            lambda x: x[:1].expand(x.shape),
        )
    )


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
