"""LAM in a window: against a mask over all pairs in float64, and what the window is for."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import astuple

import pytest
import torch
from torch import Tensor

import blpseg_ops

from ._common import MEASURE, randn, run_program
from ._lam_inputs import HOSTILE, ErrorBudget, hostile, normal_case, run_reference


def masked(
    features: Tensor, values: Tensor, sigma: float, radius: int, eps: float, scale: float
) -> Tensor:
    """The formula over all pairs of pixels, those outside of the window left out by hand."""
    f, v = features.double().flatten(2), values.double().flatten(2)
    h, w = features.shape[2:]
    y, x = (
        place.flatten() for place in torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    )
    dy, dx = y[:, None] - y, x[:, None] - x
    outside = (dy.abs() > radius) | (dx.abs() > radius)
    similarity = (scale * f.mT @ f).masked_fill(outside, -math.inf)
    log_weight = similarity - (dy**2 + dx**2) / (2 * sigma**2)
    log_eps = math.log(eps) if eps > 0 else -math.inf
    log_denominator = torch.logaddexp(log_weight.logsumexp(1), similarity.logsumexp(1) + log_eps)
    return (v @ (log_weight - log_denominator[:, None]).exp()).reshape(values.shape)


def inputs(h: int, w: int) -> tuple[Tensor, Tensor, Tensor]:
    features = (0.4 * randn(2, 8, h, w)).requires_grad_()
    values = randn(2, 3, h, w, seed=1).requires_grad_()
    return features, values, randn(2, 3, h, w, seed=2)


def everything(
    function: Callable[[Tensor, Tensor], Tensor], features: Tensor, values: Tensor, upstream: Tensor
) -> tuple[Tensor, ...]:
    """Output and gradients."""
    output = function(features, values)
    return output, *torch.autograd.grad(output, (features, values), upstream)


@pytest.mark.parametrize("radius", [0, 3, 8, 1000])
@pytest.mark.parametrize("eps", [0.0, 1e-2])
@pytest.mark.parametrize(("h", "w"), [(21, 30), (17, 50), (1, 40), (40, 3)])
def test_reference_is_the_formula_over_a_window(h: int, w: int, eps: float, radius: int) -> None:
    tensors = inputs(h, w)
    numbers = {"sigma": 2.0, "radius": radius, "eps": eps, "scale": 0.7}
    found = everything(lambda f, v: blpseg_ops.reference.lam(f, v, **numbers), *tensors)
    expected = everything(lambda f, v: masked(f, v, **numbers), *tensors)
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(("radius", "eps"), [(2, 1e-7), (16, 0.0)])
@pytest.mark.parametrize("name", HOSTILE)
def test_kernel_on_hostile_inputs(name: str, radius: int, eps: float) -> None:
    # In float32 the error at a lone hot pixel is luck, the plain formulation's likewise.
    hostile(name, eps, radius).check_kernel(torch.float64)


@pytest.mark.parametrize("radius", [0, 1, 7, 8, 9, 63])
@pytest.mark.parametrize("size", [(2, 33, 5, 33, 31), (1, 9, 5, 10, 129), (2, 3, 2, 1, 700)])
def test_kernel_at_odd_sizes(size: tuple[int, int, int, int, int], radius: int) -> None:
    budget = ErrorBudget(normal_case(*size, sigma=2.5, eps=1e-3, scale=0.7, radius=radius))
    for dtype in (torch.float32, torch.float64):
        budget.check_kernel(dtype)


def test_fallback_in_small_blocks_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    case = normal_case(2, 8, 3, 21, 30, sigma=3.0, eps=1e-3, radius=4)
    whole = run_reference(case)
    monkeypatch.setattr(sys.modules["blpseg_ops.fallback.lam"], "BLOCK", 2 * 100**2)
    parts = run_reference(case)
    torch.testing.assert_close(astuple(parts), astuple(whole), rtol=1e-12, atol=1e-12)


def test_pixels_beyond_the_window_have_no_say() -> None:
    features, values, _ = inputs(30, 40)
    far = values.detach().clone()
    far[..., 20:, :] += 100
    far_features = features.detach().clone()
    far_features[..., 20:, :] *= 30
    near = blpseg_ops.lam(features, values, 1e3, radius=5, eps=1e-2)
    changed = blpseg_ops.lam(far_features, far, 1e3, radius=5, eps=1e-2)
    torch.testing.assert_close(changed[..., :15, :], near[..., :15, :], rtol=1e-5, atol=1e-5)
    assert (changed[..., 15, :] - near[..., 15, :]).abs().min() > 1


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_radius_0_returns_the_values(backend: str) -> None:
    features, values, _ = inputs(9, 10)
    alone = blpseg_ops.lam(features, values, radius=0, backend=backend)
    torch.testing.assert_close(alone, values, rtol=1e-6, atol=0)


def test_gradients_stay_in_the_window() -> None:
    features, values, _ = inputs(30, 40)
    output = blpseg_ops.lam(features, values, 1e3, radius=4)
    for grad in torch.autograd.grad(output[..., 11, 17].sum(), (features, values)):
        reached = grad.abs().sum((0, 1)) > 0
        inside = torch.zeros(30, 40, dtype=torch.bool)
        inside[7:16, 13:22] = True
        assert torch.equal(reached, inside)


@pytest.mark.parametrize("op", ["torch.ops.blpseg.lam", "blpseg_ops.fallback.lam.lam_forward"])
def test_memory_does_not_grow_with_pairs(op: str) -> None:
    done = run_program(
        MEASURE
        + f"""
import blpseg_ops.fallback.lam
f, v = torch.randn(1, 8, 200, 200), torch.randn(1, 2, 200, 200)
call = lambda: {op}(f, v, 6.0, 1e-7, 1.0, 3)
call()
print(beyond(call))
"""
    )
    assert float(done.stdout) < 100, done.stderr  # all pairs: 6 GB
