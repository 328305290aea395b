"""Inputs that are hard on LAM's kernels, and how far from float64 their results may be."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from blpseg_ops import LocalAggregation
from blpseg_ops.fallback.lam import lam_backward, lam_forward

from ._common import randn

RESULTS = ("output", "log_denominator", "grad_features", "grad_values")
CHECKED = ("output", "grad_features", "grad_values")
Operator = Callable[..., tuple[Tensor, Tensor]]

# How far the module in float32 may be from float64, relative to the largest number of a result.
MODULE_TOLERANCE = 1e-3
# Of hostile inputs: 20 tiles of 64 pixels, so that no kernel takes its path for small maps.
H, W = 26, 33


@dataclass(frozen=True)
class Case:
    """LAM's arguments and its upstream gradient."""

    features: Tensor  # [N, D, h, w]
    values: Tensor  # [N, C, h, w]
    grad_output: Tensor  # [N, C, h, w]
    sigma: float = 6.0
    eps: float = 0.0
    scale: float = 1.0
    radius: int | None = None

    @property
    def params(self) -> tuple[float, float, float, int | None]:
        """The operators' arguments after their tensors."""
        return self.sigma, self.eps, self.scale, self.radius

    def map(self, change: Callable[[Tensor], Tensor]) -> Case:
        """Return the case with every tensor changed."""
        features, values, grad_output = map(change, (self.features, self.values, self.grad_output))
        return replace(self, features=features, values=values, grad_output=grad_output)

    def to(self, dtype: torch.dtype) -> Case:
        """Return the case in another dtype."""
        return self.map(lambda x: x.to(dtype))

    def run(self, forward: Operator, backward: Operator) -> Results:
        """Run forward and backward by functions with the operators' signatures."""
        saved = forward(self.features, self.values, *self.params)
        inputs = self.grad_output, self.features, self.values
        return Results(*saved, *backward(*inputs, *saved, *self.params))


@dataclass(frozen=True)
class Results:
    """The results of LAM's forward and backward."""

    output: Tensor  # [N, C, h, w]
    log_denominator: Tensor  # [N, h, w]
    grad_features: Tensor  # [N, D, h, w]
    grad_values: Tensor  # [N, C, h, w]


def run_kernel(case: Case) -> Results:
    """Run forward and backward by the operators."""
    return case.run(torch.ops.blpseg.lam, torch.ops.blpseg.lam_backward)


def run_reference(case: Case) -> Results:
    """Run forward and backward by the reference, in the case's own dtype."""
    return case.run(lam_forward, lam_backward)


def run_rounded(name: str, case: Any) -> Any:
    """Run operator `name` and its backward on float32 copies; round their results once.

    This is what narrower inputs must give, bit for bit.
    """
    dtype, operator = case.values.dtype, getattr(torch.ops.blpseg, name)

    def forward(*arguments: Any) -> tuple[Tensor, Tensor]:
        output, log_denominator = operator(*arguments)
        return output.to(dtype).float(), log_denominator

    backward = getattr(torch.ops.blpseg, name + "_backward")
    results = case.to(torch.float32).run(forward, backward)
    maps = [each.name for each in fields(results) if getattr(results, each.name).dim() == 4]
    return replace(results, **{name: getattr(results, name).to(dtype) for name in maps})


def assert_equal(results: Results, expected: Results) -> None:
    """Assert that all results have the same bits."""
    for name in RESULTS:
        assert torch.equal(getattr(results, name), getattr(expected, name)), name


def probabilities(
    forward: Operator, backward: Operator, features: Tensor, *params: float | None
) -> tuple[Tensor, Tensor]:
    """Return P[key, query] of one image as forward and as backward compute it.

    With one channel per pixel that is 1 there and 0 elsewhere, an output is a probability, and so
    is a gradient of the values. In it the key's side of backward multiplies the features.
    """
    h, w = features.shape[2:]
    one_hot = torch.eye(h * w, dtype=features.dtype).reshape(1, h * w, h, w)
    results = Case(features, one_hot, one_hot, *params).run(forward, backward)
    return results.output[0].flatten(1), results.grad_values[0].flatten(1).T


def assert_scores_agree(forward_probs: Tensor, backward_probs: Tensor) -> None:
    """Assert that both passes had the same scores, also those of far_clusters, about 1e6.

    One unit in the last place of such a score in float32 is 2^-4, which would change a probability
    by 6 %.
    """
    seen = forward_probs > 1e-6  # smaller ones may be skipped
    assert seen.sum() > len(seen)  # more than each pixel's own
    ratio = (backward_probs / forward_probs)[seen]
    assert (ratio - 1).abs().max() < 1e-4


def far_clusters(h: int, w: int, dim: int) -> Tensor:  # [1, D, h, w]
    """Two clusters of features, 2000 apart: no shift makes all scores small.

    Along the axis that separates them, features of a cluster differ by 1e-3, and scores by about 1.
    """
    features = _of_norm(1.0, h, w, dim)
    axis = features[:, dim // 2]
    axis *= 1e-3
    axis[..., : w // 2] += 1000.123
    axis[..., w // 2 :] -= 1000.123
    return features


class ErrorBudget:
    """A case, what it gives in float64, and how far results may be from that.

    An error counts relative to the largest number of its image and channel; for the features'
    gradient, where channels mix, relative to the largest of its image. The largest error counts.
    In float32 it may be twice the error of the plain formulation in float32, plus a few roundings.
    The plain error depends on the processor, because torch sums in another order on each.
    In float64 nothing more exact is at hand: both results may be wrong by a rounding of the
    scores, whose exponentials are taken.
    """

    checked: tuple[str, ...] = CHECKED
    few_roundings = 4e-7  # in float32

    def __init__(self, case: Any) -> None:
        self.case = case.to(torch.float32)
        wide = self.case.to(torch.float64)
        self.expected = self._run_reference(wide)
        self._sizes = self._find_sizes(wide)
        self._rounding = 2**-48 * max(16.0, self._max_score(wide))
        self._plain: Any = None

    def check_kernel(self, dtype: torch.dtype) -> None:
        """Assert that the operators' results for the case in a dtype are within the budget."""
        results = run_kernel(self.case.to(dtype))
        assert all(getattr(results, name).dtype == dtype for name in RESULTS)
        self.check(results)

    def check(self, results: Any) -> None:
        """Assert that results are within the budget; None is passed over."""
        for name in self.checked:
            if getattr(results, name) is None:
                continue
            error, allowed = self._error(results, name), self._allowed(results, name)
            assert error <= allowed, f"{name}: off by {error:.1e}, allowed {allowed:.1e}"

    def check_halves(self, results: Results) -> None:
        """Assert that results of a case in bfloat16 or float16 are within that dtype's rounding.

        Probabilities and score gradients are rounded to the dtype, and so are the results.
        """
        maps = [name for name in self.checked if getattr(results, name).dim() == 4]
        for name in maps:
            result, expected = getattr(results, name), getattr(self.expected, name)
            allowed = 4 * torch.finfo(result.dtype).eps * expected.abs().max() + 1e-12
            error = (result - expected).abs().max()
            assert error <= allowed, f"{name}: off by {error:.1e}, allowed {allowed:.1e}"

    def _run_reference(self, case: Any) -> Any:
        return run_reference(case)

    def _find_sizes(self, wide: Any) -> dict[str, Tensor]:
        """Return what errors are relative to, broadcastable to each result."""
        return {
            "output": self.expected.output.abs().amax((2, 3), keepdim=True),
            "grad_features": self._size_of_grad_features(wide),
            "grad_values": self.expected.grad_values.abs().amax((2, 3), keepdim=True),
        }

    def _max_score(self, wide: Any) -> float:
        return abs(wide.scale) * wide.features.square().sum(1).max().item()

    def _allowed(self, results: Any, name: str) -> float:
        if getattr(results, name).dtype == torch.float64:
            return self._rounding
        if self._plain is None:
            self._plain = self._run_reference(self.case)
        return 2 * self._error(self._plain, name) + self.few_roundings

    def _error(self, results: Any, name: str) -> float:
        error = (getattr(results, name).double() - getattr(self.expected, name)).abs()
        # Where every expected number is 0, only 0 is right.
        return (error / self._sizes[name]).where(error != 0, 0).max().item()

    def _size_of_grad_features(self, wide: Case) -> Tensor:  # [N, 1, 1, 1]
        """Return the largest gradient of each image, or the terms that it is a difference of.

        A pixel's own term of its feature gradient is proportional to its value minus its output.
        """
        own_prob = (-self.expected.log_denominator).exp()
        terms = wide.grad_output.abs() * (wide.values.abs() + self.expected.output.abs())
        own = abs(wide.scale) * wide.features.abs().amax(1) * own_prob * terms.sum(1)
        size = self.expected.grad_features.abs().amax(1).maximum(own)
        return size.amax((1, 2))[:, None, None, None]


def smooth_images(n: int, h: int, w: int) -> Tensor:  # [N, 3, h, w], variance about 1
    """Images whose patches resemble their neighbors, with 5 % of noise, as photos are.

    White noise would not do: all its patches are so far apart that LAM returns its input, and the
    gradients of the embedding are rounding noise.
    """
    coarse = randn(n, 3, -(-h // 16), -(-w // 16))
    images = torch.nn.functional.interpolate(coarse, (h, w), mode="bicubic", align_corners=False)
    return images + 0.05 * randn(n, 3, h, w, seed=1)


def module_step(
    module: LocalAggregation, images: Tensor, logits: Tensor
) -> tuple[Tensor, ...]:  # the output and the gradient of each parameter
    """Run the module forward and backward, with the sum of squares as loss."""
    output = module(images, logits)
    return output.detach(), *torch.autograd.grad(output.square().sum(), module.parameters())


def random_case(features: Tensor, channels: int = 3, **params: float) -> Case:
    """Return a case with the features [N, D, h, w], random values and a random gradient."""
    n, _, h, w = features.shape
    values, grad_output = (randn(n, channels, h, w, seed=seed) for seed in (1, 2))
    return Case(features, values, grad_output, **params)


def normal_case(n: int, d: int, c: int, h: int, w: int, norm: float = 2.0, **params: float) -> Case:
    """Return a random case of a size; `norm` is about the norm of a pixel's features."""
    return random_case(randn(n, d, h, w) * norm / math.sqrt(d), c, **params)


def _of_norm(norm: float, h: int, w: int, dim: int = 16) -> Tensor:  # [1, D, h, w]
    features = randn(1, dim, h, w)
    return norm * features / features.norm(dim=1, keepdim=True)


def smooth_features(h: int = H, w: int = W, dim: int = 12) -> Tensor:  # [1, D, h, w]
    """Waves of about 20 pixels, norm 4."""
    y, x = torch.arange(h).double()[:, None], torch.arange(w).double()
    fy, fx, phase = randn(3, dim, 1, 1)
    return ((fy * y + fx * x) / 4 + phase).sin()[None] * 4 / math.sqrt(dim / 2)


def _smooth(h: int, w: int, **params: float) -> Case:
    return random_case(smooth_features(h, w), **params)


def _far_pixel(norm: float, h: int, w: int, y: int = 0, x: int = 0, dim: int = 16) -> Case:
    features = 0.5 * randn(1, dim, h, w)
    features[0, :, y, x] *= norm / features[0, :, y, x].norm()
    return random_case(features)


def _far_pixels(h: int, w: int) -> Case:
    """Every 20th pixel, with norms from 10 to 1e3."""
    features = 0.5 * randn(1, 16, h, w)
    far = features.flatten(2)[..., ::20]
    far *= torch.logspace(1, 3, far.shape[-1]) / far.norm(dim=1, keepdim=True)
    return random_case(features)


def _hot_pixel(h: int, w: int) -> tuple[int, int]:
    return h * 15 // 26, w * 20 // 33


def _hot_spot(what: str, h: int, w: int) -> Case:
    case = _smooth(h, w)
    y, x = _hot_pixel(h, w)
    hot = getattr(case, what).clone()
    hot[0, 2, y, x] = 1e6
    return replace(case, **{what: hot})


def _unseen_hot_spot(what: str, h: int, w: int) -> Case:
    """One distant pixel has all of the values, or all of the upstream gradient.

    Other queries give it a probability of 1e-12. As a query it gives 2e-8 to every pixel.
    """
    y, x = _hot_pixel(h, w)
    features = torch.zeros(1, 8, h, w, dtype=torch.float64)
    features[:, 0] = math.sqrt(40)
    features[:, 0, y, x] /= 2
    case = random_case(features, sigma=1e4)
    hot = torch.zeros_like(getattr(case, what))
    hot[..., y, x] = 1e6
    return replace(case, **{what: hot})


def _sparse_gradient(step: int, h: int, w: int) -> Case:
    case = _smooth(h, w)
    sparse = torch.zeros_like(case.grad_output)
    sparse[..., 3::step, 4::step] = case.grad_output[..., 3::step, 4::step]
    return replace(case, grad_output=sparse)


def _two_clusters(distance: float, h: int, w: int) -> Case:
    features = _of_norm(0.5, h, w)
    features[:, 0, :, : w // 2] += distance / 2
    features[:, 0, :, w // 2 :] -= distance / 2
    return random_case(features)


def _norms_of_all_sizes(h: int, w: int) -> Case:
    return random_case(_of_norm(1.5, h, w) * (1.5 * randn(1, 1, h, w, seed=3)).exp())


def _embedding(h: int, w: int) -> Case:
    """The module's own features: rank 51 of 256, with a float32 convolution's rounding."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        module = LocalAggregation()
        image = torch.nn.functional.interpolate(torch.randn(1, 3, 16, 16), (4 * h, 4 * w))
        image += 0.1 * torch.randn(image.shape)
        return random_case(module.embed(image).double(), channels=21)


def _low_rank(own_directions: int, h: int, w: int, dim: int = 128) -> Case:
    """Rank 5 exactly, except for some pixels that have a direction of their own each."""
    own_directions = min(own_directions, h * w)
    basis, coordinates = ((8 * x).round() / 8 for x in (randn(dim, 5), randn(5, h * w, seed=3)))
    features = basis @ coordinates / 8
    pixels = torch.randperm(h * w, generator=torch.Generator().manual_seed(5))[:own_directions]
    features[:, pixels] += 4 / math.sqrt(dim) * randn(dim, own_directions, seed=4)
    return random_case(features.reshape(1, dim, h, w))


# Each takes the height and the width.
HOSTILE: dict[str, Callable[[int, int], Case]] = {
    "smooth": _smooth,
    "all features equal": lambda h, w: random_case(randn(1, 16, 1, 1).repeat(1, 1, h, w)),
    "all features zero": lambda h, w: random_case(torch.zeros(1, 16, h, w)),
    "norm 1e-3": lambda h, w: random_case(_of_norm(1e-3, h, w)),
    "norm 1": lambda h, w: random_case(_of_norm(1, h, w)),
    "norm 30": lambda h, w: random_case(_of_norm(30, h, w)),
    "norm 1e3": lambda h, w: random_case(_of_norm(1e3, h, w)),
    "norms of all sizes": _norms_of_all_sizes,
    "far pixel 1e2": partial(_far_pixel, 1e2),
    "far pixel 1e3": partial(_far_pixel, 1e3),
    "far pixel 1e3, elsewhere": partial(_far_pixel, 1e3, y=5, x=2),
    "far pixel 1e5": partial(_far_pixel, 1e5),
    "far pixel 1e4, many dimensions": partial(_far_pixel, 1e4, dim=80),
    "far pixels": _far_pixels,
    "hot value": partial(_hot_spot, "values"),
    "hot gradient": partial(_hot_spot, "grad_output"),
    "unseen hot value": partial(_unseen_hot_spot, "values"),
    "unseen hot gradient": partial(_unseen_hot_spot, "grad_output"),
    "few gradients": partial(_sparse_gradient, 11),
    "one gradient": partial(_sparse_gradient, 100),
    "sigma 1e-20": partial(_smooth, sigma=1e-20),
    "sigma 0.3": partial(_smooth, sigma=0.3),
    "sigma 1": partial(_smooth, sigma=1.0),
    "sigma 30": partial(_smooth, sigma=30.0),
    "sigma 1e6": partial(_smooth, sigma=1e6),
    "scale -1": partial(_smooth, scale=-1.0),
    "scale 0": partial(_smooth, scale=0.0),
    "scale 0.06": partial(_smooth, scale=0.06),
    "two clusters": partial(_two_clusters, 16),
    "two far clusters": partial(_two_clusters, 200),
    "a common offset": lambda h, w: random_case(_of_norm(1, h, w) + 30),
    "the module's embedding": _embedding,
    "rank 5": partial(_low_rank, 0),
    "rank 5, one own direction": partial(_low_rank, 1),
    "rank 5, 40 own directions": partial(_low_rank, 40),
    "rank 5, 200 own directions": partial(_low_rank, 200),
    "D 7": lambda h, w: random_case(_of_norm(3, h, w, 7)),
    "D 1": lambda h, w: random_case(_of_norm(3, h, w, 1) * randn(1, 1, h, w, seed=6)),
}


@cache
def hostile(
    name: str, eps: float, radius: int | None = None, h: int = H, w: int = W
) -> ErrorBudget:
    """Return the error budget of one of HOSTILE; every call with the same arguments shares it."""
    return ErrorBudget(replace(HOSTILE[name](h, w), eps=eps, radius=radius))


@cache
def spanned(name: str, eps: float) -> ErrorBudget:
    """Return hostile()'s budget for features turned into a subspace of 64 dimensions."""
    case = HOSTILE[name](H, W)
    rank = case.features.shape[1]
    directions = torch.linalg.qr(randn(64, rank, seed=7))[0]
    features = torch.einsum("dr,nrhw->ndhw", directions, case.features)
    return ErrorBudget(replace(case, features=features, eps=eps))
