"""Cases of LAM between two grids, and how far from float64 their results may be."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

import blpseg_ops
from blpseg_ops.fallback.lam_two_grids import lam_two_grids_backward, lam_two_grids_forward

from . import _lam_inputs
from ._common import randn

RESULTS = (
    "output",
    "log_denominator",
    "grad_queries",
    "grad_features",
    "grad_values",
    "grad_inv_two_sigma_sq",
)
MAPS = ("queries", "features", "values", "grad_output")
Operator = Callable[..., tuple[Tensor, ...]]


@dataclass(frozen=True)
class Case:
    """Arguments of the operator and its upstream gradient."""

    queries: Tensor  # [N, D, H, W]
    features: Tensor  # [N, D, h, w]
    values: Tensor  # [N, C, h, w]
    grad_output: Tensor  # [N, C, H, W]
    inv_two_sigma_sq: Tensor  # [N]
    eps: float = 0.0
    scale: float = 1.0
    radius: float | None = None

    @property
    def arguments(self) -> tuple[Any, ...]:
        """The operator's arguments."""
        params = self.inv_two_sigma_sq, self.eps, self.scale, self.radius
        return self.queries, self.features, self.values, *params

    def map(self, change: Callable[[Tensor], Tensor]) -> Case:
        """Return the case with every map changed."""
        return replace(self, **{name: change(getattr(self, name)) for name in MAPS})

    def to(self, dtype: torch.dtype) -> Case:
        """Return the case in another dtype."""
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        inv = self.inv_two_sigma_sq.to(wide)
        return replace(self.map(lambda x: x.to(dtype)), inv_two_sigma_sq=inv)

    def run(self, forward: Operator, backward: Operator) -> Results:
        """Run forward and backward by functions with the operators' signatures."""
        saved = forward(*self.arguments)
        maps, params = self.arguments[:3], self.arguments[3:]
        return Results(*saved, *backward(self.grad_output, *maps, *saved, *params))

    def cuda(self) -> Case:
        """Return the case on the GPU."""
        return replace(self.map(Tensor.cuda), inv_two_sigma_sq=self.inv_two_sigma_sq.cuda())


@dataclass(frozen=True)
class Results:
    """The results of forward and backward; None if a function hides one."""

    output: Tensor  # [N, C, H, W]
    log_denominator: Tensor | None  # [N, H, W]
    grad_queries: Tensor  # [N, D, H, W]
    grad_features: Tensor  # [N, D, h, w]
    grad_values: Tensor  # [N, C, h, w]
    grad_inv_two_sigma_sq: Tensor | None  # [N]


def run_kernel(case: Case) -> Results:
    """Run forward and backward by the operators."""
    return case.run(torch.ops.blpseg.lam_two_grids, torch.ops.blpseg.lam_two_grids_backward)


def run_fallback(case: Case) -> Results:
    """Run forward and backward by the fallback, in the case's own dtype."""
    return case.run(lam_two_grids_forward, lam_two_grids_backward)


def run_reference(case: Case) -> Results:
    """Run the reference and differentiate it by autograd; sigma must be finite."""
    leaves = [x.detach().requires_grad_() for x in case.arguments[:4]]
    queries, features, values, inv_two_sigma_sq = leaves
    sigma = (0.5 / inv_two_sigma_sq[:, None, None]).sqrt()  # of each image
    output = blpseg_ops.reference.lam(
        features,
        values,
        sigma,
        queries=queries,
        radius=case.radius,
        eps=case.eps,
        scale=case.scale,
    )
    return Results(output.detach(), None, *torch.autograd.grad(output, leaves, case.grad_output))


def assert_equal(results: Results, expected: Results) -> None:
    """Assert that all results have the same bits."""
    for name in RESULTS:
        assert torch.equal(getattr(results, name), getattr(expected, name)), name


class ErrorBudget(_lam_inputs.ErrorBudget):
    """The error budget of LAM between two grids.

    Errors are relative to the terms of the sums, since sums may cancel to 0.
    """

    checked = RESULTS
    few_roundings = 1e-6

    def _run_reference(self, case: Case) -> Results:
        return run_fallback(case)

    def _find_sizes(self, wide: Case) -> dict[str, Tensor]:
        truth, scale = self.expected, abs(wide.scale)
        sizes = replace(wide, values=wide.values.abs(), grad_output=wide.grad_output.abs())
        terms = run_fallback(sizes)
        # With eps > 0 all weights may vanish. Skipped terms are small beside the image's means.
        means = terms.output.maximum(sizes.values.mean((1, 2, 3), keepdim=True))
        key_sums = terms.grad_values.maximum(sizes.grad_output.mean((1, 2, 3), keepdim=True))
        output = truth.output.abs()
        # Sums of |ds_ab| of each query and of each key.
        of_query = (sizes.grad_output * (means + output)).sum(1)
        largest_output = output.amax((2, 3), keepdim=True)
        of_key = (key_sums * (sizes.values + largest_output)).sum(1)
        reach = math.inf if wide.radius is None else wide.radius
        sq_distance = sum(min(side, reach) ** 2 for side in wide.features.shape[2:])
        return {
            "output": _largest(means),
            "log_denominator": truth.log_denominator.abs()
            .amax((1, 2), keepdim=True)
            .clamp(min=max(1.0, self._max_score(wide))),
            "grad_queries": scale * _largest(wide.features) * _largest(of_query[:, None]),
            "grad_features": scale * _largest(wide.queries) * _largest(of_key[:, None]),
            "grad_values": _largest(key_sums),
            "grad_inv_two_sigma_sq": sq_distance * of_query.sum((1, 2)),
        }

    def _max_score(self, wide: Case) -> float:
        norms = [x.norm(dim=1).max().item() for x in (wide.queries, wide.features)]
        return abs(wide.scale) * norms[0] * norms[1]


def _largest(maps: Tensor) -> Tensor:  # [N, ?, ?, ?] -> [N, 1, 1, 1]
    return maps.abs().amax((1, 2, 3), keepdim=True)


def normal_case(
    keys: tuple[int, int],
    queries: tuple[int, int],
    d: int = 5,
    c: int = 3,
    n: int = 2,
    norm: float = 3.0,
    inv: float = 0.05,
    **params: Any,
) -> Case:
    """Return a random case; `norm` is about the norm of features and queries."""
    return Case(
        randn(n, d, *queries, seed=1) * norm / math.sqrt(d),
        randn(n, d, *keys, seed=2) * norm / math.sqrt(d),
        randn(n, c, *keys, seed=3),
        randn(n, c, *queries, seed=4),
        torch.full((n,), inv, dtype=torch.float64),
        **params,
    )


def smooth(case: Case, norm: float) -> Case:
    """Give keys and queries features that resemble their neighbors', so that most pairs skip."""
    d = case.queries.shape[1]
    coarse = randn(case.queries.shape[0], d, 5, 5, seed=7)

    def at(maps: Tensor) -> Tensor:
        return nn.functional.interpolate(coarse, maps.shape[2:], mode="bilinear") * norm / d**0.5

    return replace(case, queries=at(case.queries), features=at(case.features))


def hot(maps: Tensor, value: float) -> Tensor:
    """Replace the numbers of one pixel."""
    changed = maps.clone()
    changed[:, :, maps.shape[2] // 2, maps.shape[3] // 3] = value
    return changed


HOSTILE: dict[str, Callable[[Case], Case]] = {
    "smooth": lambda case: smooth(case, 20.0),
    "large norms": lambda case: smooth(case, 300.0),
    "all keys equal": lambda case: replace(
        case, features=case.features[..., :1, :1].expand(case.features.shape)
    ),
    "zeros": lambda case: replace(case, features=case.features * 0, queries=case.queries * 0),
    "hot value": lambda case: replace(smooth(case, 20.0), values=hot(case.values, 1e6)),
    "hot gradient": lambda case: replace(
        smooth(case, 20.0), grad_output=hot(case.grad_output, 1e6)
    ),
    "hot key": lambda case: replace(case, features=hot(case.features, 50.0)),
    "few gradients": lambda case: replace(
        smooth(case, 20.0), grad_output=hot(case.grad_output * 0, 1.0)
    ),
    "negative scale": lambda case: replace(smooth(case, 20.0), scale=-1.0),
    "scale 0": lambda case: replace(case, scale=0.0),
}


def bilateral_formula(
    guide: Tensor,  # [N, G, H, W]
    means: Tensor,  # [N, G, h, w]: of the guide over each pixel of the values
    values: Tensor,  # [N, C, h, w]
    sigma_space: Tensor,
    sigma_color: Tensor,
    radius: float | None = None,
) -> Tensor:  # [N, C, H, W]
    """Compute joint_bilateral from its formula, with all pairs at once."""
    (h, w), (height, width) = values.shape[2:], guide.shape[2:]
    dy, dx = _steps(h, height)[:, None, :, None], _steps(w, width)[None, :, None]
    sq_distance = (dy**2 + dx**2).reshape(h * w, height * width)
    step = means.flatten(2)[..., None] - guide.flatten(2)[:, :, None]
    # A number per query changes no weight, and the Gaussian of a tiny sigma_space stays exact.
    sq_distance = sq_distance - sq_distance.amin(0)
    # Not divided by 2 sigma^2, whose gradient is NaN at infinity.
    log = -step.square().sum(1) * (0.5 * sigma_color**-2) - sq_distance * (0.5 * sigma_space**-2)
    if radius is not None:
        outside = (dy.abs() > radius) | (dx.abs() > radius)
        log = log.masked_fill(outside.reshape(h * w, height * width), -math.inf)
    return (values.flatten(2) @ log.softmax(1)).unflatten(2, (height, width))


def _steps(keys: int, queries: int) -> Tensor:  # [keys, queries]
    """Return p_a - p_b along one axis: a whole number over 2 queries."""
    a, b = torch.arange(keys, dtype=torch.float64), torch.arange(queries, dtype=torch.float64)
    return (queries * (2 * a[:, None] + 1) - keys * (2 * b + 1)) / (2 * queries)
