"""The fallback equals the reference; its gradient formulas equal autograd on the reference."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from blpseg_ops import reference
from blpseg_ops.fallback.annotation_loss import annotation_loss_backward, annotation_loss_forward
from blpseg_ops.fallback.blp_loss import blp_loss_backward, blp_loss_forward
from blpseg_ops.fallback.blp_objective import blp_objective_backward, blp_objective_forward
from blpseg_ops.fallback.lam import lam_backward, lam_forward

from ._common import LAYOUTS, randn

close = partial(torch.testing.assert_close, rtol=1e-11, atol=1e-12)


def by_autograd(
    function: Callable[..., Tensor], inputs: tuple[Tensor, ...], upstream: Tensor
) -> tuple[Tensor, ...]:
    """Return the output of a reference and its gradients by autograd."""
    leaves = [x.clone().requires_grad_() for x in inputs]
    output = function(*leaves)
    return output.detach(), *torch.autograd.grad(output, leaves, upstream)


@pytest.mark.parametrize("block", [2**24, 700], ids=["one block", "many blocks"])
@pytest.mark.parametrize("radius", [None, 0, 2, 5, 100])
@pytest.mark.parametrize("eps", [0.0, 1e-7, 0.1])
@pytest.mark.parametrize(("n", "h", "w"), [(2, 7, 9), (1, 1, 30), (3, 18, 1), (0, 4, 5)])
def test_lam(
    monkeypatch: pytest.MonkeyPatch,
    n: int,
    h: int,
    w: int,
    eps: float,
    radius: int | None,
    block: int,
) -> None:
    monkeypatch.setattr(sys.modules["blpseg_ops.fallback.lam"], "BLOCK", block)
    features, values, upstream = (randn(n, c, h, w, seed=c) for c in (5, 3, 3))
    function = partial(reference.lam, sigma=1.7, radius=radius, eps=eps, scale=0.8)
    expected = by_autograd(function, (features, values), upstream)
    params = (1.7, eps, 0.8, radius)
    output, log_denominator = lam_forward(features, values, *params)
    grads = lam_backward(upstream, features, values, output, log_denominator, *params)
    close((output, *grads), expected)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_lam_of_any_layout_has_the_layout_of_its_values(layout: str) -> None:
    features, values = (LAYOUTS[layout](randn(2, c, 6, 7, seed=c)) for c in (4, 3))
    output, _ = lam_forward(features, values, 1.7, 0.1, 1.0)
    close(output, reference.lam(features, values, 1.7, eps=0.1))
    assert output.stride() == torch.empty_like(values).stride()


N, K = 3, 4
LOSS_SIZES = pytest.mark.parametrize("size", [(9, 13), (5, 6), (3, 2)], ids=["up", "equal", "down"])


def loss_inputs(size: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return logits, a target with all kinds of values (the last image unlabeled), and classes."""
    rng = torch.Generator().manual_seed(0)
    target = torch.randint(0, K + 2, (N, *size), generator=rng)
    target = target.where(target <= K, 255)
    target[-1] = K
    present = torch.rand(N, K, generator=rng) < 0.7
    return randn(N, K, 5, 6, seed=1), randn(N, K + 1, 5, 6, seed=2), target, present


@LOSS_SIZES
@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_blp_loss(size: tuple[int, int], gamma: float) -> None:
    seg, annotation, target, _ = loss_inputs(size)
    upstream = torch.tensor(1.7, dtype=torch.float64)
    loss, *saved = blp_loss_forward(seg, annotation, target, gamma, 255)
    grad = blp_loss_backward(upstream, seg, annotation, target, *saved, gamma, 255)

    def function(seg: Tensor) -> Tensor:
        return reference.blp_loss(seg, annotation, target, gamma=gamma)

    close((loss, grad), by_autograd(function, (seg,), upstream))


@LOSS_SIZES
@pytest.mark.parametrize("labels", ["some", "none"])
def test_annotation_loss(size: tuple[int, int], labels: str) -> None:
    _, annotation, target, _ = loss_inputs(size)
    if labels == "none":
        target = torch.full_like(target, 255)
    upstream = torch.tensor(-0.3, dtype=torch.float64)
    loss, *saved = annotation_loss_forward(annotation, target, 0.1, 255)
    grad = annotation_loss_backward(upstream, annotation, target, *saved, 0.1, 255)
    function = partial(reference.annotation_loss, target=target, unlabeled_weight=0.1)
    close((loss, grad), by_autograd(function, (annotation,), upstream))


@LOSS_SIZES
@pytest.mark.parametrize("self_training", [False, True])
def test_blp_objective(size: tuple[int, int], self_training: bool) -> None:
    seg, annotation, target, present = loss_inputs(size)
    classes = present if self_training else None
    options: dict[str, Any] = {"class_present": classes, "threshold": 0.4}
    upstream = torch.tensor([1.7, -0.3], dtype=torch.float64)
    blp, annotated, blp_sum, annotation_sum, labels, *more = blp_objective_forward(
        seg, annotation, target, classes, 2.0, 0.02, 0.4, 255
    )
    sums = blp_sum, annotation_sum, *more
    blp_target = labels if self_training else target
    grads = blp_objective_backward(
        *upstream, seg, annotation, blp_target, target, *sums, 2.0, 0.02, 255
    )

    def function(seg: Tensor, annotation: Tensor) -> Tensor:
        return torch.stack(reference.blp_objective(seg, annotation, target, **options)[:2])

    expected, *expected_grads = by_autograd(function, (seg, annotation), upstream)
    close((torch.stack((blp, annotated)), *grads), (expected, *expected_grads))
    expected_labels = reference.blp_objective(seg, annotation, target, **options).pseudo_labels
    assert (expected_labels is None) == (not self_training)
    if expected_labels is not None:
        assert torch.equal(labels, expected_labels)
