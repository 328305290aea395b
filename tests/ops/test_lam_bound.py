"""Hostile inputs of LAM's kernel: what it skips stays below rounding, what is not finite shows."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from blpseg_ops import lam, reference

from ._common import randn
from ._lam_inputs import (
    CHECKED,
    HOSTILE,
    RESULTS,
    Case,
    ErrorBudget,
    Results,
    hostile,
    normal_case,
    random_case,
    run_kernel,
    spanned,
)

pytest.importorskip("blpseg_ops._C", reason="no native code was built")

WIDE = [torch.float32, torch.float64]
# Features that backward can sum over alike tiles once they span few of their dimensions.
SPANNED = [
    *("smooth", "all features equal", "norm 30", "norms of all sizes", "far pixel 1e2"),
    *("far pixels", "hot value", "hot gradient", "unseen hot gradient", "one gradient"),
    *("sigma 0.3", "scale -1", "scale 0", "two clusters", "two far clusters", "D 7"),
]
ROUNDING = {torch.float32: 2**-24, torch.float64: 2**-53}
PIXEL = (..., 9, 16)
SIDE = 64
OTHERS = SIDE**2 - 1


@pytest.mark.parametrize("dtype", WIDE, ids=str)
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_inputs(name: str, dtype: torch.dtype) -> None:
    hostile(name, 0.0).check_kernel(dtype)


@pytest.mark.parametrize("dtype", WIDE, ids=str)
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_inputs_with_eps(name: str, dtype: torch.dtype, both_ways_to_sum_t: None) -> None:
    hostile(name, 1e-7).check_kernel(dtype)


@pytest.mark.parametrize("dtype", WIDE, ids=str)
@pytest.mark.parametrize("name", ["smooth", "far pixel 1e2", "two clusters", "scale -1"])
def test_a_large_guard(name: str, dtype: torch.dtype, both_ways_to_sum_t: None) -> None:
    hostile(name, 1e-3).check_kernel(dtype)


@pytest.mark.parametrize("dtype", WIDE, ids=str)
@pytest.mark.parametrize(("name", "eps"), [(name, 1e-7) for name in SPANNED] + [("smooth", 1e-3)])
def test_hostile_inputs_that_span_few_dimensions(
    name: str, eps: float, dtype: torch.dtype, both_ways_to_sum_t: None
) -> None:
    spanned(name, eps).check_kernel(dtype)


@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 2e-5), (torch.float64, 1e-12)])
@pytest.mark.parametrize("name", CHECKED)
def test_the_error_budget_can_be_exceeded(name: str, dtype: torch.dtype, error: float) -> None:
    budget = hostile("smooth", 0.0)
    results = run_kernel(budget.case.to(dtype))
    budget.check(results)
    wrong = getattr(results, name).clone()
    largest = wrong.abs().max()
    wrong.flatten()[-1] += error * largest
    with pytest.raises(AssertionError, match=f"^{name}: off by"):
        budget.check(replace(results, **{name: wrong}))
    wrong.flatten()[-1] = math.nan
    with pytest.raises(AssertionError, match=f"^{name}: off by nan"):
        budget.check(replace(results, **{name: wrong}))


def _shares(case: Case) -> Tensor:
    """P_ab of the first image [a, b], with eps 0."""
    features = case.features[0].flatten(1).double()
    h, w = case.features.shape[2:]
    place = torch.cartesian_prod(torch.arange(h), torch.arange(w)).double()
    distance2 = torch.cdist(place, place, compute_mode="donot_use_mm_for_euclid_dist").square()
    return (features.T @ features - distance2 / (2 * case.sigma**2)).softmax(0)


@pytest.mark.parametrize("eps", [0.0, 1e-3])
def test_most_pairs_can_be_skipped(eps: float) -> None:
    # Tiny scores: their rounding hides nothing. Where the step in the values is far, what is left
    # of it is as small as the shares are, at any size from 1 down to nothing.
    case = random_case(1e-3 * randn(1, 4, 48, 48), sigma=1.5, eps=eps)
    step = torch.linspace(-1, 1, 48, dtype=torch.float64).sign().expand(1, 3, 48, 48)
    case = replace(case, values=step, grad_output=step.mT)
    assert (_shares(case) < 1e-12).double().mean() > 0.75
    budget = ErrorBudget(case)
    for dtype, tolerance in ((torch.float64, 1e-14), (torch.float32, 5e-7)):
        budget.check_kernel(dtype)
        output = run_kernel(budget.case.to(dtype)).output
        assert (output - budget.expected.output).abs().max() <= tolerance


def _pixel_apart(there: float, others: float, dtype: torch.dtype) -> Tensor:  # [1, 3, SIDE, SIDE]
    """A map that is the same everywhere but at PIXEL; its first channel alone is not 0."""
    apart = torch.zeros(1, 3, SIDE, SIDE, dtype=torch.float64)
    apart[:, 0] = others
    apart[:, 0][PIXEL] = there
    return apart.to(dtype)


# Of each of the OTHERS, in roundings. A kernel that skipped them for being small one by one would
# lose 200 roundings and more; what it may lose is the rounding of a sum.
@pytest.mark.parametrize("share", [0.5, 0.05])
@pytest.mark.parametrize("dtype", WIDE, ids=str)
class TestManySmallShares:
    """One pixel where shares below rounding add up; expected numbers are closed forms."""

    def test_forward(self, dtype: torch.dtype, share: float) -> None:
        rounding = ROUNDING[dtype]
        features = _pixel_apart(math.sqrt(-math.log(share * rounding)), 0, dtype)
        values = _pixel_apart(0, 1, dtype)
        output = lam(features, values, 1e6)[0, 0][PIXEL].item()
        total = OTHERS * share * rounding
        assert output == pytest.approx(total / (1 + total), rel=0, abs=64 * rounding)

    def test_the_guard(self, dtype: torch.dtype, share: float) -> None:
        rounding, eps = ROUNDING[dtype], 1e-3
        features = _pixel_apart(math.sqrt(math.log(eps / (share * rounding))), 0, dtype)
        output = lam(features, torch.ones_like(features), 0.1, eps=eps)[0, 0][PIXEL].item()
        expected = 1 / (1 + eps + OTHERS * share * rounding)
        assert output == pytest.approx(expected, rel=0, abs=64 * rounding)

    def test_backward(self, dtype: torch.dtype, share: float) -> None:
        rounding = ROUNDING[dtype]
        norm = math.sqrt(-math.log(OTHERS * share * rounding))
        case = Case(
            features=_pixel_apart(0, norm, dtype),
            values=_pixel_apart(1, 0, dtype),
            grad_output=_pixel_apart(0, 1, dtype),
            sigma=1e6,
        )
        results = run_kernel(case)
        total = OTHERS * share * rounding
        grad_values = results.grad_values[0, 0][PIXEL].item()
        assert grad_values == pytest.approx(total, rel=0, abs=64 * rounding)
        grad_features = results.grad_features[0, 0][PIXEL].item()
        assert grad_features == pytest.approx(norm * total, rel=0, abs=64 * rounding * norm)


def _assert_non_finite_where_plain_pytorch_is(results: Results, case: Case) -> None:
    features, values = case.features.clone(), case.values.clone()
    output = reference.lam(
        features.requires_grad_(),
        values.requires_grad_(),
        case.sigma,
        eps=case.eps,
        scale=case.scale,
    )
    output.backward(case.grad_output)
    expected = {"output": output, "grad_features": features.grad, "grad_values": values.grad}
    assert not all(x.isfinite().all() for x in expected.values())
    for name in CHECKED:
        hidden = getattr(results, name).isfinite() & ~expected[name].isfinite()
        assert not hidden.any(), name


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("tensor", ["features", "values", "grad_output"])
@pytest.mark.parametrize("size", [(3, 6, 3, 5, 6), (3, 6, 3, 23, 26)], ids=str)
@pytest.mark.parametrize("eps", [0.0, 1e-3])
def test_non_finite_numbers_show(
    size: tuple[int, int, int, int, int], tensor: str, number: float, eps: float
) -> None:
    finite = normal_case(*size, eps=eps).to(torch.float32)
    changed = getattr(finite, tensor).clone()
    changed[1, 1, 3, 4] = number
    case = replace(finite, **{tensor: changed})
    results = run_kernel(case)
    _assert_non_finite_where_plain_pytorch_is(results, case)

    # The images beside it are what they are alone.
    for n in (0, 2):
        alone = run_kernel(case.map(lambda x, n=n: x[n : n + 1]))
        for name in RESULTS:
            assert torch.equal(getattr(results, name)[n : n + 1], getattr(alone, name)), name
            assert getattr(alone, name).isfinite().all(), name


@pytest.mark.parametrize(
    ("dtype", "size"), [(torch.float32, 1e25), (torch.float32, 1e38), (torch.float64, 1e200)]
)
@pytest.mark.parametrize("scale", [1.0, -1.0])
def test_scores_that_overflow_show(dtype: torch.dtype, size: float, scale: float) -> None:
    case = normal_case(1, 6, 3, 23, 26, scale=scale).to(dtype)
    case.features.mul_(size)
    _assert_non_finite_where_plain_pytorch_is(run_kernel(case), case)


@pytest.mark.parametrize(("dtype", "size"), [(torch.float32, 1e25), (torch.float64, 1e200)])
def test_a_score_that_overflows_shows(dtype: torch.dtype, size: float) -> None:
    case = normal_case(1, 6, 3, 23, 26).to(dtype)
    case.features[0, :, 3, 4] *= size
    _assert_non_finite_where_plain_pytorch_is(run_kernel(case), case)
