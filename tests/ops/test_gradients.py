"""Gradients of the ops: gradcheck, and comparison with autograd on the reference."""

from __future__ import annotations

import sys
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

import blpseg_ops


def _randn(rng: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=rng, dtype=torch.float64)


def _target(rng: torch.Generator, n: int, classes: int, h: int, w: int) -> Tensor:
    """Return a target with classes, unlabeled and ignored pixels; the last image has no label."""
    target = torch.randint(0, classes + 2, (n, h, w), generator=rng)
    target[target == classes + 1] = 255
    target[-1] = classes
    return target


@pytest.mark.parametrize("eps", [0.0, 1e-7, 0.3])
@pytest.mark.parametrize("scale", [1.0, 0.4])
@pytest.mark.parametrize("block", [2**24, 2 * 12 * 5], ids=["one block", "three blocks"])
def test_lam_gradcheck(
    rng: torch.Generator, monkeypatch: pytest.MonkeyPatch, eps: float, scale: float, block: int
) -> None:
    monkeypatch.setattr(sys.modules["blpseg_ops.fallback.lam"], "BLOCK", block)
    features = _randn(rng, 2, 3, 3, 4).requires_grad_()
    values = _randn(rng, 2, 2, 3, 4).requires_grad_()
    op = partial(blpseg_ops.lam, sigma=1.3, eps=eps, scale=scale)
    assert gradcheck(op, (features, values))
    assert gradcheck(lambda f: op(f, values.detach()), (features,))
    assert gradcheck(lambda v: op(features.detach(), v), (values,))


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("size", [(7, 9), (3, 5), (2, 3)], ids=["up", "equal", "down"])
def test_blp_loss_agrees_with_autograd(
    rng: torch.Generator, gamma: float, size: tuple[int, int]
) -> None:
    # No gradcheck: the weight is a constant in backward, but not under finite differences.
    seg, annotation = _randn(rng, 3, 4, 3, 5), _randn(rng, 3, 5, 3, 5)
    target = _target(rng, 3, 4, *size)
    grads = []
    for backend in ("auto", "reference"):
        logits = seg.clone().requires_grad_()
        loss = blpseg_ops.blp_loss(logits, annotation, target, gamma=gamma, backend=backend)
        grads.extend(torch.autograd.grad(1.7 * loss, logits))
    torch.testing.assert_close(*grads, rtol=1e-12, atol=1e-14)
    assert grads[0][:-1].abs().amax((1, 2, 3)).min() > 0
    assert grads[0][-1].abs().max() == 0  # the image without labels


def test_partial_cross_entropy_gradcheck(rng: torch.Generator) -> None:
    seg, annotation = _randn(rng, 2, 3, 2, 3).requires_grad_(), _randn(rng, 2, 4, 2, 3)
    target = _target(rng, 2, 3, 5, 7)
    assert gradcheck(lambda x: blpseg_ops.blp_loss(x, annotation, target, gamma=0.0), (seg,))


def test_partial_cross_entropy_is_torch_s(rng: torch.Generator) -> None:
    seg, annotation = _randn(rng, 1, 3, 4, 4), _randn(rng, 1, 4, 4, 4)
    target = torch.randint(0, 4, (1, 4, 4), generator=rng)
    expected = torch.nn.functional.cross_entropy(seg, target.where(target < 3, -1), ignore_index=-1)
    loss = blpseg_ops.blp_loss(seg, annotation, target, gamma=0.0)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)  # the guard of 1e-7 in between


def test_annotation_logits_get_no_gradient_from_the_blp_loss(rng: torch.Generator) -> None:
    seg, annotation = _randn(rng, 1, 3, 2, 2), _randn(rng, 1, 4, 2, 2).requires_grad_()
    target = torch.zeros(1, 4, 4, dtype=torch.int64)
    loss = blpseg_ops.blp_loss(seg, annotation, target)
    if loss.requires_grad:
        loss.backward()
    assert annotation.grad is None


@pytest.mark.parametrize("unlabeled_weight", [0.0, 0.02, 1.0])
@pytest.mark.parametrize("size", [(5, 7), (2, 3), (1, 2)], ids=["up", "equal", "down"])
def test_annotation_loss_gradcheck(
    rng: torch.Generator, unlabeled_weight: float, size: tuple[int, int]
) -> None:
    logits = _randn(rng, 2, 4, 2, 3).requires_grad_()
    target = _target(rng, 2, 3, *size)
    op = partial(blpseg_ops.annotation_loss, unlabeled_weight=unlabeled_weight)
    assert gradcheck(lambda x: op(x, target), (logits,))


@pytest.mark.parametrize("self_training", [False, True])
@pytest.mark.parametrize("size", [(7, 9), (3, 5), (2, 3)], ids=["up", "equal", "down"])
def test_blp_objective_agrees_with_autograd(
    rng: torch.Generator, self_training: bool, size: tuple[int, int]
) -> None:
    seg, annotation = _randn(rng, 3, 4, 3, 5), _randn(rng, 3, 5, 3, 5)
    target = _target(rng, 3, 4, *size)
    present = torch.ones(3, 4, dtype=torch.bool) if self_training else None
    grads = []
    for backend in ("auto", "reference"):
        logits = seg.clone().requires_grad_(), annotation.clone().requires_grad_()
        blp, annotated, _ = blpseg_ops.blp_objective(
            *logits, target, class_present=present, threshold=0.4, backend=backend
        )
        grads.append(torch.autograd.grad(1.7 * blp + 0.3 * annotated, logits))
    torch.testing.assert_close(*grads, rtol=1e-12, atol=1e-14)
    for grad in grads[0]:
        assert grad[:-1].abs().amax((1, 2, 3)).min() > 0


@pytest.mark.parametrize("wanted", ["seg_logits", "annotation_logits", "both"])
@pytest.mark.parametrize("used", ["blp_loss", "annotation_loss", "both"])
@pytest.mark.parametrize("self_training", [False, True])
def test_each_loss_of_the_objective_trains_its_own_logits(
    rng: torch.Generator, self_training: bool, used: str, wanted: str
) -> None:
    seg, annotation = _randn(rng, 2, 3, 2, 3), _randn(rng, 2, 4, 2, 3)
    target = _target(rng, 2, 3, 5, 7)
    present = torch.ones(2, 3, dtype=torch.bool) if self_training else None
    pseudo = target
    if present is not None:
        pseudo = blpseg_ops.pseudo_labels(seg, target, present, threshold=0.4)
    expected = {}
    for name, logits, op in (
        ("seg_logits", seg, lambda x: blpseg_ops.blp_loss(x, annotation.detach(), pseudo)),
        ("annotation_logits", annotation, lambda x: blpseg_ops.annotation_loss(x, target)),
    ):
        twin = logits.clone().requires_grad_()
        (expected[name],) = torch.autograd.grad(op(twin), twin)

    seg.requires_grad_(wanted != "annotation_logits")
    annotation.requires_grad_(wanted != "seg_logits")
    objective = blpseg_ops.blp_objective(
        seg, annotation, target, class_present=present, threshold=0.4
    )
    losses = (
        (objective.blp_loss, objective.annotation_loss)
        if used == "both"
        else (getattr(objective, used),)
    )
    sum(losses).backward()
    for logits, name, loss in (
        (seg, "seg_logits", "blp_loss"),
        (annotation, "annotation_logits", "annotation_loss"),
    ):
        if wanted in (name, "both") and used in (loss, "both"):
            torch.testing.assert_close(logits.grad, expected[name], rtol=1e-12, atol=1e-14)
        else:
            assert logits.grad is None


def test_everything_ignored_is_zero_with_zero_gradient(rng: torch.Generator) -> None:
    seg, annotation = (_randn(rng, 2, k, 2, 2).requires_grad_() for k in (3, 4))
    target = torch.full((2, 5, 5), 255)
    blp = blpseg_ops.blp_loss(seg, annotation.detach(), target)
    annotated = blpseg_ops.annotation_loss(annotation, target)
    assert blp.item() == 0
    assert annotated.item() == 0
    (blp + annotated).backward()
    assert seg.grad.abs().max() == 0
    assert annotation.grad.abs().max() == 0


def test_large_logits_stay_finite(rng: torch.Generator) -> None:
    seg, annotation = (1e4 * torch.randn(2, k, 3, 3, generator=rng) for k in (3, 4))
    seg.requires_grad_()
    annotation.requires_grad_()
    target = _target(rng, 2, 3, 6, 6)
    loss = blpseg_ops.blp_loss(seg, annotation.detach(), target, gamma=0.5)
    loss = loss + blpseg_ops.annotation_loss(annotation, target)
    loss.backward()
    assert loss.isfinite()
    assert seg.grad.isfinite().all()
    assert annotation.grad.isfinite().all()


def test_lam_with_scores_whose_exponentials_overflow(rng: torch.Generator) -> None:
    features = 40 * torch.randn(1, 8, 5, 5, generator=rng)  # scores near 1e4
    values = torch.randn(1, 2, 5, 5, generator=rng)
    narrow = blpseg_ops.lam(features, values, eps=1e-7)
    wide = blpseg_ops.lam(features.double(), values.double(), eps=1e-7)
    assert narrow.isfinite().all()
    torch.testing.assert_close(narrow.double(), wide, rtol=0, atol=1e-2)  # 1e4 * 2^-24 in a score


def test_double_backward_is_refused(rng: torch.Generator) -> None:
    features = _randn(rng, 1, 2, 2, 2).requires_grad_()
    output = blpseg_ops.lam(features, features)
    (grad,) = torch.autograd.grad(output.sum(), features, create_graph=True)
    with pytest.raises(RuntimeError, match="lam can be differentiated once; backend=.reference"):
        grad.sum().backward()


def test_double_backward_of_the_objective_is_refused(rng: torch.Generator) -> None:
    seg, annotation = (_randn(rng, 1, k, 2, 2).requires_grad_() for k in (3, 4))
    target = torch.zeros(1, 4, 4, dtype=torch.int64)
    blp, annotated, _ = blpseg_ops.blp_objective(seg, annotation, target)
    grads = torch.autograd.grad(blp + annotated, (seg, annotation), create_graph=True)
    with pytest.raises(RuntimeError, match="blp_objective can be differentiated once"):
        (grads[0].sum() + grads[1].sum()).backward()


def test_the_reference_supports_higher_derivatives(rng: torch.Generator) -> None:
    features = _randn(rng, 1, 2, 2, 2).requires_grad_()
    op = partial(blpseg_ops.lam, eps=0.1, backend="reference")
    assert torch.autograd.gradgradcheck(lambda f: op(f, f), (features,))
