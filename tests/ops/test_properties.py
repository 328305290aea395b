"""Properties of every op on inputs that hypothesis draws.

Results are compared with the float64 reference, within the error budgets of ``_lam_inputs.py`` and
``_loss_inputs.py``. The examples are the same in each run; ``fuzz.py`` runs the same checks on new
ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from random import Random
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import blpseg_ops
from blpseg_ops._dtypes import accumulate_dtype, label_dtype
from blpseg_ops.fallback.annotation_loss import _pixels as annotation_loss_pixels
from blpseg_ops.fallback.blp_loss import _pixels as blp_loss_pixels
from blpseg_ops.fallback.resize import upsample_adjoint
from blpseg_ops.ops.lam_two_grids import LARGEST_INV_TWO_SIGMA_SQ
from blpseg_ops.reference.blp_loss import GUARD
from blpseg_ops.reference.resize import upsample

from . import _lam_inputs, _loss_inputs, _two_grids_inputs
from ._draws import (
    DTYPES,
    Bilateral,
    draw_joint_bilateral,
    draw_lam,
    draw_layout,
    draw_losses,
    draw_sigma,
    draw_tensor,
    draw_two_grids,
    draw_upsample_argmax,
    draw_vector_layout,
    inv_two_sigma_sq,
)
from ._two_grids_inputs import bilateral_formula

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


class ForAnyDraw:
    """Makes an error budget four times as large.

    With few pixels the plain formulation's own error is luck.
    """

    def _allowed(self, *arguments: Any) -> float:
        return 4 * super()._allowed(*arguments)  # type: ignore[misc]


class LamErrorBudget(ForAnyDraw, _lam_inputs.ErrorBudget):
    """The error budget of LAM for arbitrary draws.

    Errors are relative to the terms of the sums, since sums may cancel to 0.
    """

    def _find_sizes(self, wide: _lam_inputs.Case) -> dict[str, Tensor]:
        sizes = replace(wide, values=wide.values.abs(), grad_output=wide.grad_output.abs())
        terms = _lam_inputs.run_reference(sizes)
        pairs = sizes.grad_output * (terms.output + self.expected.output.abs())
        edges = wide.features.abs().amax((1, 2, 3)) * pairs.sum(1).amax((1, 2))
        return {
            "output": terms.output.amax((2, 3), keepdim=True),
            "grad_features": abs(wide.scale) * edges[:, None, None, None],
            "grad_values": terms.grad_values.amax((2, 3), keepdim=True),
        }


class TwoGridsErrorBudget(ForAnyDraw, _two_grids_inputs.ErrorBudget):
    """The error budget of LAM between two grids for arbitrary draws."""


class OneSigmaErrorBudget(TwoGridsErrorBudget):
    """The same if one sigma serves the batch: its gradient is the sum over the images."""

    def _run_reference(self, case: _two_grids_inputs.Case) -> _two_grids_inputs.Results:
        results = super()._run_reference(case)
        total = results.grad_inv_two_sigma_sq.sum(0, keepdim=True)
        return replace(results, grad_inv_two_sigma_sq=total)

    def _find_sizes(self, wide: _two_grids_inputs.Case) -> dict[str, Tensor]:
        sizes = super()._find_sizes(wide)
        name = "grad_inv_two_sigma_sq"
        return {**sizes, name: sizes[name].sum(0, keepdim=True)}


class LossErrorBudget(ForAnyDraw, _loss_inputs.ErrorBudget):
    """The error budget of the losses for arbitrary draws.

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
    if dtype != accumulate_dtype(dtype):
        _lam_inputs.assert_equal(results, _lam_inputs.run_rounded("lam", case))
    elif case.values.numel():
        LamErrorBudget(case).check(results)


def check_lam_two_grids(rng: Random) -> None:
    """Check lam_two_grids forward and backward, any dtype and layout."""
    lay_out, dtype = draw_layout(rng), rng.choice(DTYPES)
    case = draw_two_grids(rng).map(lay_out).to(torch.float32).to(dtype).map(lay_out)
    case = replace(case, inv_two_sigma_sq=draw_vector_layout(rng)(case.inv_two_sigma_sq))
    results = _two_grids_inputs.run_kernel(case)
    for name in ("output", "grad_queries", "grad_features", "grad_values"):
        assert getattr(results, name).dtype == dtype, name
    if dtype != accumulate_dtype(dtype):
        rounded = _lam_inputs.run_rounded("lam_two_grids", case)
        _two_grids_inputs.assert_equal(results, rounded)
    elif case.values.numel():
        TwoGridsErrorBudget(case).check(results)


def check_lam_with_queries(rng: Random) -> None:
    """Check the public function with queries and its gradients, sigma's too if it is a tensor."""
    lay_out, dtype = draw_layout(rng), rng.choice(DTYPES)
    wide = accumulate_dtype(dtype)
    case = draw_two_grids(rng).map(lay_out).to(torch.float32).to(dtype).map(lay_out)
    sigma = draw_sigma(rng, wide)
    inv = inv_two_sigma_sq(torch.as_tensor(sigma)).to(wide).expand(len(case.values))
    case = replace(case, inv_two_sigma_sq=inv)
    results = _run_public(case, sigma)
    for name in ("output", "grad_queries", "grad_features", "grad_values"):
        assert getattr(results, name).dtype == dtype, name
    if dtype != wide:
        rounded = _run_public(case.to(torch.float32), sigma).output.to(dtype)
        assert torch.equal(results.output, rounded)
    elif case.values.numel():
        OneSigmaErrorBudget(case).check(results)


def _run_public(case: _two_grids_inputs.Case, sigma: float | Tensor) -> _two_grids_inputs.Results:
    leaves = [x.detach().requires_grad_() for x in case.arguments[:3]]
    if isinstance(sigma, Tensor):
        leaves.append(sigma.detach().requires_grad_())
    queries, features, values, *_ = leaves
    output = blpseg_ops.lam(
        features,
        values,
        leaves[3] if isinstance(sigma, Tensor) else sigma,
        queries=queries,
        radius=case.radius,
        eps=case.eps,
        scale=case.scale,
    )
    *grads, grad_sigma = *torch.autograd.grad(output, leaves, case.grad_output), None
    grad_inv = None
    if isinstance(sigma, Tensor):
        grad_sigma = grads.pop()
        clamped = inv_two_sigma_sq(sigma) == LARGEST_INV_TWO_SIGMA_SQ
        if clamped or sigma.isinf():
            assert grad_sigma == 0
        else:  # d(1 / (2 sigma^2)) = -d sigma / sigma^3
            grad_inv = -(grad_sigma * sigma**3)[None]
    return _two_grids_inputs.Results(output.detach(), None, *grads, grad_inv)


def check_joint_bilateral(rng: Random) -> None:
    """Check joint_bilateral and its gradients, any dtype and layout."""
    lay_out, dtype = draw_layout(rng), rng.choice(DTYPES)
    case = draw_joint_bilateral(rng).map(lay_out).to(torch.float32).to(dtype).map(lay_out)
    results = _run_bilateral(_public_bilateral, case)
    assert all(result.dtype == dtype for result in results[:3])
    if dtype != accumulate_dtype(dtype):
        wide = _run_bilateral(_public_bilateral, case.to(torch.float32))
        for result, expected in zip(results, wide, strict=True):
            assert torch.equal(result, expected.to(result.dtype))
    elif case.values.numel():
        wide, (sizes, max_score) = case.to(torch.float64), _bilateral_sizes(case.to(torch.float64))
        expected = _run_bilateral(_bilateral_formula, wide)
        rounding = (2**-46 if dtype == torch.float64 else 2**-21) * max(16, max_score)
        names = ("output", "grad_guide", "grad_values", "grad_sigma_space", "grad_sigma_color")
        for name, result, exact, size in zip(names, results, expected, sizes, strict=True):
            error, allowed = (result - exact).abs().max(), rounding * size
            assert error <= allowed, f"{name}: off by {error:.1e}, allowed {allowed:.1e}"


def _bilateral_formula(
    guide: Tensor, values: Tensor, sigma_space: Tensor, sigma_color: Tensor, case: Bilateral
) -> Tensor:
    guide = _resized(guide, case)
    means = F.adaptive_avg_pool2d(guide, values.shape[2:])
    return bilateral_formula(guide, means, values, sigma_space, sigma_color, case.radius)


def _resized(guide: Tensor, case: Bilateral) -> Tensor:
    if case.size is None:
        return guide
    return F.interpolate(guide, case.size, mode="bilinear", antialias=True)


def _public_bilateral(
    guide: Tensor, values: Tensor, sigma_space: Tensor, sigma_color: Tensor, case: Bilateral
) -> Tensor:
    return blpseg_ops.joint_bilateral(
        guide, values, sigma_space, sigma_color, case.size, radius=case.radius
    )


def _run_bilateral(function: Callable[..., Tensor], case: Bilateral) -> tuple[Tensor, ...]:
    """Return the output and the gradients of guide, values, sigma_space and sigma_color."""
    sigmas = torch.tensor(
        [case.sigma_space, case.sigma_color], dtype=accumulate_dtype(case.values.dtype)
    )
    leaves = [x.detach().requires_grad_() for x in (case.guide, case.values, *sigmas)]
    output = function(*leaves, case)
    return output.detach(), *torch.autograd.grad(output, leaves, case.grad_output)


def _bilateral_sizes(case: Bilateral) -> tuple[tuple[Tensor, ...], float]:
    """Return the sizes of the terms that _run_bilateral's results sum, and the largest score."""
    output = _run_bilateral(_bilateral_formula, case)[0].abs()
    positive = replace(case, values=case.values.abs(), grad_output=case.grad_output.abs())
    mean, _, grad_values, *_ = _run_bilateral(_bilateral_formula, positive)
    of_query = (positive.grad_output * (mean + output)).sum(1)
    of_key = (grad_values * (positive.values + output.amax((2, 3), keepdim=True))).sum(1)
    guide = _resized(case.guide, case)
    largest = guide.norm(dim=1).max() / case.sigma_color  # its rounding stays after centering
    color = (guide - guide.mean((2, 3), keepdim=True)) / case.sigma_color
    max_score = largest * color.norm(dim=1).max()
    pairs_per_pixel = max(of_query[0].numel(), of_key[0].numel()) / case.guide[0, 0].numel()
    edges = (of_query.max() + of_key.max()) * max(1, pairs_per_pixel)
    reach = math.inf if case.radius is None else case.radius
    sq_distance = sum(min(side, reach) ** 2 for side in case.values.shape[2:])
    sizes = (
        mean.max(),
        largest * edges / case.sigma_color,
        grad_values.max(),
        sq_distance * of_query.sum() / case.sigma_space**3,
        largest**2 * (of_query.sum() + of_key.sum()) / case.sigma_color,
    )
    return sizes, max_score.item()


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
test_lam_two_grids = drawn(200)(check_lam_two_grids)
test_lam_with_queries = drawn(100)(check_lam_with_queries)
test_joint_bilateral = drawn(100)(check_joint_bilateral)
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
