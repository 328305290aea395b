"""Properties of every op on inputs that hypothesis draws.

Results are compared with the float64 reference, within the error budgets of ``_lam_inputs.py`` and
``_loss_inputs.py``. The examples are the same in each run; ``fuzz.py`` runs the same checks on new
ones.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from random import Random

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import blpseg_ops
from blpseg_ops._dtypes import accumulate_dtype, label_dtype
from blpseg_ops.fallback.annotation_loss import _pixels as annotation_loss_pixels
from blpseg_ops.fallback.blp_loss import _pixels as blp_loss_pixels
from blpseg_ops.fallback.resize import upsample_adjoint
from blpseg_ops.reference.blp_loss import GUARD
from blpseg_ops.reference.resize import upsample

from . import _lam_inputs, _loss_inputs
from ._draws import (
    DTYPES,
    draw_lam,
    draw_layout,
    draw_losses,
    draw_tensor,
    draw_upsample_argmax,
)

hypothesis = pytest.importorskip("hypothesis")


def drawn(examples: int) -> Callable[[Callable[[Random], None]], Callable[[], None]]:
    """Turn a function that draws its own inputs into a test."""

    def decorate(check: Callable[[Random], None]) -> Callable[[], None]:
        settings = hypothesis.settings(
            max_examples=examples,
            derandomize=True,
            database=None,
            deadline=None,
            print_blob=True,
            suppress_health_check=list(hypothesis.HealthCheck),
        )
        source = hypothesis.strategies.randoms(use_true_random=False)
        return settings(hypothesis.given(rng=source)(check))

    return decorate


# --- Against float64 ------------------------------------------------------------------------------


class LamErrorBudget(_lam_inputs.ErrorBudget):
    """The error budget of LAM for arbitrary draws.

    Errors are relative to the terms of the sums, since sums may cancel to 0. The budget is four
    times as large, since with few pixels the plain formulation's own error is luck.
    """

    def __init__(self, case: _lam_inputs.Case) -> None:
        super().__init__(case)
        wide = self.case.to(torch.float64)
        sizes = replace(wide, values=wide.values.abs(), grad_output=wide.grad_output.abs())
        terms = _lam_inputs.run_reference(sizes)
        for name in ("output", "grad_values"):
            self._sizes[name] = getattr(terms, name).amax((2, 3), keepdim=True)
        pairs = sizes.grad_output * (terms.output + self.expected.output.abs())
        edges = wide.features.abs().amax((1, 2, 3)) * pairs.sum(1).amax((1, 2))
        self._sizes["grad_features"] = abs(case.scale) * edges[:, None, None, None]

    def _allowed(self, results: _lam_inputs.Results, name: str) -> float:
        return 4 * super()._allowed(results, name)


class LossErrorBudget(_loss_inputs.ErrorBudget):
    """The error budget of the losses for arbitrary draws, four times as large for the same reason.

    Errors are relative to terms of which the results are differences:

    - gradient of a class: weight * p and -weight, which cancel in one order of summation only;
    - -log p = log(sum of exp) - difference of logits: the sum is at least 1, so its rounding is an
      absolute error;
    - BLP weight: see :func:`_weight_terms`.
    """

    def _sizes(self, truth: _loss_inputs.Results) -> dict[str, Tensor]:
        sizes = super()._sizes(truth)
        case = self.case.to(torch.float64)
        labels = case.target if truth.pseudo_labels is None else truth.pseudo_labels
        seg, annotation = case.seg_logits, case.annotation_logits
        blp = blp_loss_pixels(seg, annotation, labels, case.gamma, case.ignore_index)
        normalizer = (blp.weight.sum((1, 2), keepdim=True) + GUARD) * len(labels)
        scale = _weight_terms(blp.weight, case.gamma) / normalizer
        sizes["blp_loss"] += scale.sum()
        grad_scale = abs(_loss_inputs.GRAD_BLP) * scale
        sizes["grad_seg_logits"] = _sum_of_terms(grad_scale, blp.log_p, blp.label, seg)
        annotated = annotation_loss_pixels(
            annotation, case.target, case.unlabeled_weight, case.ignore_index
        )
        total = annotated.weight.sum()
        scale = annotated.weight / total.where(total > 0, 1)
        sizes["annotation_loss"] += scale.sum()
        grad_scale = abs(_loss_inputs.GRAD_ANNOTATION) * scale
        sizes["grad_annotation_logits"] = _sum_of_terms(
            grad_scale, annotated.log_q, annotated.label, annotation
        )
        return sizes

    def _allowed(self, plain_error: float, dtype: torch.dtype) -> float:
        return 4 * super()._allowed(plain_error, dtype)


def _weight_terms(weight: Tensor, gamma: float) -> Tensor:
    """Return the size of the BLP weight's terms.

    A rounding u of q p changes (1 - q p)^gamma by u * gamma * q p * (1 - q p)^(gamma - 1).
    """
    if gamma == 0:
        return weight
    rest = weight.pow(1 / gamma)  # 1 - q p
    slope = gamma * (1 - rest) * rest.pow(gamma - 1)
    return weight + slope.where(weight > 0, 0)


def _sum_of_terms(scale: Tensor, log_p: Tensor, label: Tensor, logits: Tensor) -> Tensor:
    """Return scale * (p + onehot(label)), resized back to the logits' size."""
    terms = scale[:, None] * log_p.exp()
    return upsample_adjoint(terms.scatter_add(1, label[:, None], scale[:, None]), logits)


def check_lam(rng: Random) -> None:
    """Check lam forward and backward, any dtype and layout."""
    lay_out, dtype = draw_layout(rng), rng.choice(DTYPES)
    case = draw_lam(rng).map(lay_out).to(torch.float32).to(dtype).map(lay_out)
    results = _lam_inputs.run_kernel(case)
    for name in ("output", "grad_features", "grad_values"):
        assert getattr(results, name).dtype == dtype, name
    if dtype == accumulate_dtype(dtype):
        if case.values.numel():
            LamErrorBudget(case).check(results)
        return
    # Inputs narrower than float32 are widened once, and results rounded once.
    wide = case.to(torch.float32)
    output, log_denominator = torch.ops.blpseg.lam(wide.features, wide.values, *wide.params)
    assert torch.equal(results.output, output.to(dtype))
    assert torch.equal(results.log_denominator, log_denominator)
    grads = torch.ops.blpseg.lam_backward(
        wide.grad_output,
        wide.features,
        wide.values,
        results.output.float(),
        log_denominator,
        *wide.params,
    )
    assert torch.equal(results.grad_features, grads[0].to(dtype))
    assert torch.equal(results.grad_values, grads[1].to(dtype))


def check_losses(rng: Random) -> None:
    """Check losses and pseudo labels, each by its op or all in one, any dtype and layout."""
    lay_out, dtype = draw_layout(rng), rng.choice(DTYPES)
    run, self_training = rng.choice(_loss_inputs.RUNS), rng.random() < 0.5
    case = draw_losses(rng).map(lay_out).to(torch.float32).to(dtype).map(lay_out)
    results = run(case, self_training)
    if dtype == accumulate_dtype(dtype):
        if len(case.target):
            LossErrorBudget(case).check(results)
        else:
            assert results.blp_loss == results.annotation_loss == 0
        return
    expected = run(case.to(torch.float32), self_training)
    rounded = replace(
        expected,
        grad_seg_logits=expected.grad_seg_logits.to(dtype),
        grad_annotation_logits=expected.grad_annotation_logits.to(dtype),
    )
    _loss_inputs.assert_equal(results, rounded)


def check_upsample_argmax(rng: Random) -> None:
    """Check that labels are a class of the largest logit; without resizing, the lowest one."""
    lay_out, dtype = draw_layout(rng), rng.choice(DTYPES)
    logits, size = draw_upsample_argmax(rng)
    logits = lay_out(lay_out(logits).to(dtype))
    labels = blpseg_ops.upsample_argmax(logits, size)
    assert labels.shape == (len(logits), *size)
    assert labels.dtype == label_dtype(logits.shape[1])
    if size == logits.shape[2:]:
        assert torch.equal(labels.long(), logits.argmax(1))
        return
    # If two resized logits differ by rounding alone, either class may win. The rounding comes from
    # the sum and from the position between the logits, which grows with the image size.
    wide = upsample(logits.double(), size)
    chosen = wide.gather(1, labels.long()[:, None])[:, 0]
    rounding = (2**-53 if dtype == torch.float64 else 2**-24) * (16 + 2 * max(logits.shape[2:]))
    largest = upsample(logits.double().abs(), size).amax(1)
    assert (wide.amax(1) - chosen <= rounding * largest).all()


test_lam = drawn(500)(check_lam)
test_losses = drawn(500)(check_losses)
test_upsample_argmax = drawn(500)(check_upsample_argmax)


# --- What follows from the definitions ------------------------------------------------------------


def _lam(case: _lam_inputs.Case) -> Tensor:
    return torch.ops.blpseg.lam(case.features, case.values, *case.params)[0]


@drawn(100)
def test_lam_of_constant_values_is_constant(rng: Random) -> None:
    case = replace(draw_lam(rng), eps=0.0)
    constant = draw_tensor(rng, case.values.shape[1])[:, None, None].expand(case.values.shape)
    output = _lam(replace(case, values=constant))
    torch.testing.assert_close(output, constant.contiguous(), rtol=1e-12, atol=0)


@drawn(100)
def test_lam_stays_within_the_values(rng: Random) -> None:
    case = draw_lam(rng)
    low, high = (edge((2, 3), keepdim=True) for edge in (case.values.amin, case.values.amax))
    slack = 1e-12 * case.values.abs().amax((1, 2, 3), keepdim=True)
    if case.eps > 0:  # eps moves the mean towards 0
        low, high = low.clamp(max=0), high.clamp(min=0)
    output = _lam(case)
    assert ((low - slack <= output) & (output <= high + slack)).all()


@drawn(100)
def test_lam_is_linear_in_the_values(rng: Random) -> None:
    case = draw_lam(rng)
    other = draw_tensor(rng, *case.values.shape)
    together = _lam(replace(case, values=2 * case.values - 3 * other))
    apart = 2 * _lam(case) - 3 * _lam(replace(case, values=other))
    size = float(case.values.abs().max()) if case.values.numel() else 0.0
    torch.testing.assert_close(together, apart, rtol=0, atol=1e-12 * (size + 1))


@drawn(100)
def test_lam_mirrors(rng: Random) -> None:
    axis = rng.choice((2, 3))
    case = draw_lam(rng)
    mirrored = _lam(case.map(lambda x: x.flip(axis))).flip(axis)
    size = float(case.values.abs().max()) if case.values.numel() else 0.0
    torch.testing.assert_close(mirrored, _lam(case), rtol=0, atol=1e-10 * size)


@drawn(100)
def test_images_of_a_batch_know_nothing_of_each_other(rng: Random) -> None:
    case = draw_lam(rng).to(rng.choice(DTYPES))
    order = list(range(len(case.values)))
    rng.shuffle(order)
    assert torch.equal(_lam(case.map(lambda x: x[order])), _lam(case)[order])


@drawn(100)
def test_classes_have_no_order(rng: Random) -> None:
    case = draw_losses(rng)
    k = case.classes
    order = list(range(k))
    rng.shuffle(order)
    rank = torch.tensor(order).argsort()
    classed = (case.target >= 0) & (case.target < k)
    renamed = rank[case.target.long().where(classed, 0)].where(classed, case.target.long())
    shuffled = replace(
        case,
        seg_logits=case.seg_logits[:, order],
        annotation_logits=case.annotation_logits[:, [*order, k]],
        target=renamed,
    )
    results = _loss_inputs.run_objective(case, False)
    others = _loss_inputs.run_objective(shuffled, False)
    back = replace(
        others,
        grad_seg_logits=others.grad_seg_logits[:, rank],
        grad_annotation_logits=others.grad_annotation_logits[:, [*rank.tolist(), k]],
    )
    _loss_inputs.assert_close(back, results, rtol=1e-11)


@drawn(100)
def test_gamma_0_is_the_partial_cross_entropy(rng: Random) -> None:
    case = replace(draw_losses(rng), gamma=0.0)
    k = case.classes
    labeled = (case.target >= 0) & (case.target < k)
    target = case.target.long().where(labeled, -100)
    resized = upsample(case.seg_logits, case.target.shape[1:])
    sums = F.cross_entropy(resized, target, reduction="none").sum((1, 2))
    expected = (sums / (labeled.sum((1, 2)).double() + 1e-7)).sum() / max(len(sums), 1)
    loss = blpseg_ops.blp_loss(
        case.seg_logits,
        case.annotation_logits,
        case.target,
        gamma=0.0,
        ignore_index=case.ignore_index,
    )
    torch.testing.assert_close(loss, expected, rtol=1e-11, atol=1e-13)


@drawn(100)
def test_what_the_scribbles_say_stays(rng: Random) -> None:
    case = draw_losses(rng)
    labels = blpseg_ops.pseudo_labels(
        case.seg_logits,
        case.target,
        case.class_present,
        threshold=case.threshold,
        ignore_index=case.ignore_index,
    ).long()
    given = case.target != case.classes
    assert torch.equal(labels[given], case.target.long()[given])
    assert not (labels == case.classes).any()
    assert case.threshold > 0 or (labels != case.ignore_index)[~given].all()
