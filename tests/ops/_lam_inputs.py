"""Inputs that are hard on LAM's kernels, and how far from float64 their results may be."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

import torch
from torch import Tensor

from blpseg_ops import LocalAggregation
from blpseg_ops.reference.lam import lam_backward, lam_forward

from ._common import randn

RESULTS = ("output", "log_denominator", "grad_features", "grad_values")
JUDGED = ("output", "grad_features", "grad_values")
Operator = Callable[..., tuple[Tensor, Tensor]]

H, W = 26, 33  # of hostile inputs: 20 tiles of 64 pixels, more than are computed plainly


@dataclass(frozen=True)
class Case:
    """The arguments of LAM and the gradient that comes back to it."""

    features: Tensor  # [N, D, h, w]
    values: Tensor  # [N, C, h, w]
    grad_output: Tensor  # [N, C, h, w]
    sigma: float = 6.0
    eps: float = 0.0
    scale: float = 1.0
    radius: int | None = None

    @property
    def numbers(self) -> tuple[float, float, float, int | None]:
        """What the operators take behind their tensors."""
        return self.sigma, self.eps, self.scale, self.radius

    def map(self, change: Callable[[Tensor], Tensor]) -> Case:
        """The same with each tensor changed."""
        features, values, grad_output = map(change, (self.features, self.values, self.grad_output))
        return replace(self, features=features, values=values, grad_output=grad_output)

    def to(self, dtype: torch.dtype) -> Case:
        """The same in another dtype."""
        return self.map(lambda x: x.to(dtype))


@dataclass(frozen=True)
class Results:
    """What LAM makes of a case."""

    output: Tensor  # [N, C, h, w]
    log_denominator: Tensor  # [N, h, w]
    grad_features: Tensor  # [N, D, h, w]
    grad_values: Tensor  # [N, C, h, w]


def run_kernel(case: Case) -> Results:
    """Forward and backward by the operators."""
    return run_with(torch.ops.blpseg.lam, torch.ops.blpseg.lam_backward, case)


def run_reference(case: Case) -> Results:
    """Forward and backward by the reference, in the case's own dtype."""
    return run_with(lam_forward, lam_backward, case)


def run_with(forward: Operator, backward: Operator, case: Case) -> Results:
    """Forward and backward by functions of the operators' signatures."""
    saved = forward(case.features, case.values, *case.numbers)
    inputs = case.grad_output, case.features, case.values
    return Results(*saved, *backward(*inputs, *saved, *case.numbers))


def assert_equal(results: Results, expected: Results) -> None:
    """Bit for bit."""
    for name in RESULTS:
        assert torch.equal(getattr(results, name), getattr(expected, name)), name


class Judge:
    """A case in float64, and the rule by which results in float32 or float64 are accepted.

    An error is measured by the largest number of the image's channel (of the image, for the
    features' gradient, where channels mix), and the largest error counts. In float32 it may be
    twice that of the plain formulation in float32, and a few roundings. In float64 there is no
    better judge: results agree to rounding, which grows with the scores, whose exponentials are
    taken.
    """

    def __init__(self, case: Case) -> None:
        self.case = case.to(torch.float32)
        wide = self.case.to(torch.float64)
        self.truth = run_reference(wide)
        self._sizes = {
            "output": self.truth.output.abs().amax((2, 3), keepdim=True),
            "grad_features": self._size_of_grad_features(wide),
            "grad_values": self.truth.grad_values.abs().amax((2, 3), keepdim=True),
        }
        score = abs(case.scale) * wide.features.square().sum(1).max().item()
        self._rounding = 2**-48 * max(16.0, score)
        self._plain: Results | None = None

    def check_kernel(self, dtype: torch.dtype) -> None:
        """Assert that what the kernel makes of the case in a dtype is accepted."""
        results = run_kernel(self.case.to(dtype))
        assert all(getattr(results, name).dtype == dtype for name in RESULTS)
        self.check(results)

    def check(self, results: Results) -> None:
        """Assert that results are accepted."""
        for name in JUDGED:
            error, allowed = self._error(results, name), self._allowed(results, name)
            assert error <= allowed, f"{name}: off by {error:.1e}, allowed {allowed:.1e}"

    def _allowed(self, results: Results, name: str) -> float:
        if getattr(results, name).dtype == torch.float64:
            return self._rounding
        if self._plain is None:
            self._plain = run_reference(self.case)
        return 2 * self._error(self._plain, name) + 4e-7

    def _error(self, results: Results, name: str) -> float:
        error = (getattr(results, name).double() - getattr(self.truth, name)).abs()
        # Where all is 0, nothing but 0 is right.
        return (error / self._sizes[name]).where(error != 0, 0).max().item()

    def _size_of_grad_features(self, wide: Case) -> Tensor:  # [N, 1, 1, 1]
        """The largest of each image, or what the gradient is the small difference of.

        In a pixel's own part of the gradient of its features, its output is taken from its values.
        """
        own_share = (-self.truth.log_denominator).exp()
        terms = wide.grad_output.abs() * (wide.values.abs() + self.truth.output.abs())
        own = abs(wide.scale) * wide.features.abs().amax(1) * own_share * terms.sum(1)
        return self.truth.grad_features.abs().amax(1).maximum(own).amax((1, 2))[:, None, None, None]


def random_case(features: Tensor, channels: int = 3, **numbers: float) -> Case:
    """A case of given features [N, D, h, w], with random values and gradient."""
    n, _, h, w = features.shape
    values, grad_output = (randn(n, channels, h, w, seed=seed) for seed in (1, 2))
    return Case(features, values, grad_output, **numbers)


def normal_case(
    n: int, d: int, c: int, h: int, w: int, norm: float = 2.0, **numbers: float
) -> Case:
    """A case of a size, all random; `norm` is about that of the features."""
    return random_case(randn(n, d, h, w) * norm / math.sqrt(d), c, **numbers)


def _of_norm(norm: float, dim: int = 16) -> Tensor:  # [1, D, H, W]
    features = randn(1, dim, H, W)
    return norm * features / features.norm(dim=1, keepdim=True)


def smooth_features(h: int = H, w: int = W, dim: int = 12) -> Tensor:  # [1, D, h, w]
    """Waves of some 20 pixels, norm 4."""
    y, x = torch.arange(h).double()[:, None], torch.arange(w).double()
    fy, fx, phase = randn(3, dim, 1, 1)
    return ((fy * y + fx * x) / 4 + phase).sin()[None] * 4 / math.sqrt(dim / 2)


def _smooth(**numbers: float) -> Case:
    return random_case(smooth_features(), **numbers)


def _far_pixel(norm: float, y: int = 0, x: int = 0, dim: int = 16) -> Case:
    features = 0.5 * randn(1, dim, H, W)
    features[0, :, y, x] *= norm / features[0, :, y, x].norm()
    return random_case(features)


def _far_pixels() -> Case:
    """Every 20th pixel, with norms from 10 to 1e3."""
    features = 0.5 * randn(1, 16, H, W)
    far = features.flatten(2)[..., ::20]
    far *= torch.logspace(1, 3, far.shape[-1]) / far.norm(dim=1, keepdim=True)
    return random_case(features)


def _hot_spot(what: str) -> Case:
    case = _smooth()
    hot = getattr(case, what).clone()
    hot[0, 2, 15, 20] = 1e6
    return replace(case, **{what: hot})


def _unseen_hot_spot(what: str) -> Case:
    """One pixel apart with all of the values, or of the gradient.

    The others get a share of 1e-12 of it, and it gets one of 2e-8 of itself and of each other.
    """
    features = torch.zeros(1, 8, H, W, dtype=torch.float64)
    features[:, 0] = math.sqrt(40)
    features[:, 0, 15, 20] /= 2
    case = random_case(features, sigma=1e4)
    hot = torch.zeros_like(getattr(case, what))
    hot[..., 15, 20] = 1e6
    return replace(case, **{what: hot})


def _sparse_gradient(step: int) -> Case:
    case = _smooth()
    sparse = torch.zeros_like(case.grad_output)
    sparse[..., 3::step, 4::step] = case.grad_output[..., 3::step, 4::step]
    return replace(case, grad_output=sparse)


def _two_clusters(distance: float) -> Case:
    features = _of_norm(0.5)
    features[:, 0, :, : W // 2] += distance / 2
    features[:, 0, :, W // 2 :] -= distance / 2
    return random_case(features)


def _norms_of_all_sizes() -> Case:
    return random_case(_of_norm(1.5) * (1.5 * randn(1, 1, H, W, seed=3)).exp())


def _embedding() -> Case:
    """As the module makes it: 51 dimensions of 256, and the rounding of a float32 convolution."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        module = LocalAggregation()
        image = torch.nn.functional.interpolate(torch.randn(1, 3, 16, 16), (4 * H, 4 * W))
        image += 0.1 * torch.randn(image.shape)
        return random_case(module.embed(image).double(), channels=21)


def _low_rank(own_directions: int = 0, dim: int = 128) -> Case:
    """Rank 5, exactly, but for some pixels that have each a direction of its own."""
    basis, coordinates = ((8 * x).round() / 8 for x in (randn(dim, 5), randn(5, H * W, seed=3)))
    features = basis @ coordinates / 8
    pixels = torch.randperm(H * W, generator=torch.Generator().manual_seed(5))[:own_directions]
    features[:, pixels] += 4 / math.sqrt(dim) * randn(dim, own_directions, seed=4)
    return random_case(features.reshape(1, dim, H, W))


HOSTILE: dict[str, Callable[[], Case]] = {
    "smooth": _smooth,
    "all features equal": lambda: random_case(randn(1, 16, 1, 1).repeat(1, 1, H, W)),
    "all features zero": lambda: random_case(torch.zeros(1, 16, H, W)),
    "norm 1e-3": lambda: random_case(_of_norm(1e-3)),
    "norm 1": lambda: random_case(_of_norm(1)),
    "norm 30": lambda: random_case(_of_norm(30)),
    "norm 1e3": lambda: random_case(_of_norm(1e3)),
    "norms of all sizes": _norms_of_all_sizes,
    "far pixel 1e2": lambda: _far_pixel(1e2),
    "far pixel 1e3": lambda: _far_pixel(1e3),
    "far pixel 1e3, elsewhere": lambda: _far_pixel(1e3, 5, 2),
    "far pixel 1e5": lambda: _far_pixel(1e5),
    "far pixel 1e4, many dimensions": lambda: _far_pixel(1e4, dim=80),
    "far pixels": _far_pixels,
    "hot value": lambda: _hot_spot("values"),
    "hot gradient": lambda: _hot_spot("grad_output"),
    "unseen hot value": lambda: _unseen_hot_spot("values"),
    "unseen hot gradient": lambda: _unseen_hot_spot("grad_output"),
    "few gradients": lambda: _sparse_gradient(11),
    "one gradient": lambda: _sparse_gradient(100),
    "sigma 1e-20": lambda: _smooth(sigma=1e-20),
    "sigma 0.3": lambda: _smooth(sigma=0.3),
    "sigma 1": lambda: _smooth(sigma=1.0),
    "sigma 30": lambda: _smooth(sigma=30.0),
    "sigma 1e6": lambda: _smooth(sigma=1e6),
    "scale -1": lambda: _smooth(scale=-1.0),
    "scale 0": lambda: _smooth(scale=0.0),
    "scale 0.06": lambda: _smooth(scale=0.06),
    "two clusters": lambda: _two_clusters(16),
    "two far clusters": lambda: _two_clusters(200),
    "a common offset": lambda: random_case(_of_norm(1) + 30),
    "the module's embedding": _embedding,
    "rank 5": _low_rank,
    "rank 5, one own direction": lambda: _low_rank(1),
    "rank 5, 40 own directions": lambda: _low_rank(40),
    "rank 5, 200 own directions": lambda: _low_rank(200),
    "D 7": lambda: random_case(_of_norm(3, 7)),
    "D 1": lambda: random_case(_of_norm(3, 1) * randn(1, 1, H, W, seed=6)),
}


@cache
def hostile(name: str, eps: float, radius: int | None = None) -> Judge:
    """The judge of one of HOSTILE, made once."""
    return Judge(replace(HOSTILE[name](), eps=eps, radius=radius))
