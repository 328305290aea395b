"""Inputs of the losses, functions that run them, and the errors that are allowed."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

import blpseg_ops
from blpseg_ops._dtypes import label_dtype
from blpseg_ops.reference.resize import upsample

from ._common import randn

OPS = ("blp_loss", "annotation_loss", "pseudo_labels", "blp_objective")
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
WIDE = (torch.float64, torch.float32)

# From h, w to H, W.
SIZES = [
    ((9, 11), (36, 44)),
    ((11, 13), (37, 100)),
    ((7, 9), (7, 9)),
    ((20, 23), (7, 9)),
    ((40, 50), (1, 3)),
    ((1, 13), (5, 40)),
    ((12, 1), (37, 6)),
    ((1, 1), (40, 40)),
    ((9, 20), (31, 7)),
    ((16, 16), (64, 63)),
    ((3, 2), (420, 300)),  # more rows and columns per gap than a CUDA block takes at once
]


@dataclass(frozen=True)
class Case:
    """The arguments of all losses."""

    seg_logits: Tensor  # [N, K, h, w]
    annotation_logits: Tensor  # [N, K + 1, h, w]
    target: Tensor  # [N, H, W]
    class_present: Tensor  # [N, K] bool
    gamma: float = 2.0
    unlabeled_weight: float = 0.02
    threshold: float = 0.9
    ignore_index: int = 255

    @property
    def classes(self) -> int:
        """K."""
        return self.seg_logits.shape[1]

    def map(self, change: Callable[[Tensor], Tensor]) -> Case:
        """Return this case with both logits changed."""
        seg, annotation = map(change, (self.seg_logits, self.annotation_logits))
        return replace(self, seg_logits=seg, annotation_logits=annotation)

    def to(self, dtype: torch.dtype) -> Case:
        """Return this case with logits of another dtype."""
        return self.map(lambda x: x.to(dtype))

    def on(self, device: torch.device | str) -> Case:
        """Return this case on another device."""
        tensors = ("seg_logits", "annotation_logits", "target", "class_present")
        return replace(self, **{name: getattr(self, name).to(device) for name in tensors})


@dataclass(frozen=True)
class Results:
    """The results of all losses for a case."""

    blp_loss: Tensor  # []
    annotation_loss: Tensor  # []
    grad_seg_logits: Tensor  # [N, K, h, w]
    grad_annotation_logits: Tensor  # [N, K + 1, h, w]
    pseudo_labels: Tensor | None  # [N, H, W]; the target of the BLP loss

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors that are not None, by name."""
        named = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: tensor for name, tensor in named.items() if tensor is not None}

    def cpu(self) -> Results:
        """Return these results on the CPU."""
        return Results(**{"pseudo_labels": None, **{k: v.cpu() for k, v in self.tensors().items()}})


# Upstream gradients; a backward that ignores them fails.
GRAD_BLP, GRAD_ANNOTATION = 1.75, -0.375


def run_singly(case: Case, self_training: bool, backend: str = "auto") -> Results:
    """Run each loss by its own op."""
    seg, annotation = (x.detach().requires_grad_() for x in _logits(case))
    labels = None
    if self_training:
        labels = blpseg_ops.pseudo_labels(
            seg,
            case.target,
            case.class_present,
            threshold=case.threshold,
            ignore_index=case.ignore_index,
            backend=backend,
        )
    blp = blpseg_ops.blp_loss(
        seg,
        annotation.detach(),
        case.target if labels is None else labels,
        gamma=case.gamma,
        ignore_index=case.ignore_index,
        backend=backend,
    )
    annotated = blpseg_ops.annotation_loss(
        annotation,
        case.target,
        unlabeled_weight=case.unlabeled_weight,
        ignore_index=case.ignore_index,
        backend=backend,
    )
    (grad_seg,) = torch.autograd.grad(GRAD_BLP * blp, seg)
    (grad_annotation,) = torch.autograd.grad(GRAD_ANNOTATION * annotated, annotation)
    return Results(blp.detach(), annotated.detach(), grad_seg, grad_annotation, labels)


def run_objective(case: Case, self_training: bool, backend: str = "auto") -> Results:
    """Run all losses by blp_objective."""
    seg, annotation = (x.detach().requires_grad_() for x in _logits(case))
    blp, annotated, labels = blpseg_ops.blp_objective(
        seg,
        annotation,
        case.target,
        gamma=case.gamma,
        unlabeled_weight=case.unlabeled_weight,
        class_present=case.class_present if self_training else None,
        threshold=case.threshold,
        ignore_index=case.ignore_index,
        backend=backend,
    )
    total = GRAD_BLP * blp + GRAD_ANNOTATION * annotated
    grads = torch.autograd.grad(total, (seg, annotation))
    return Results(blp.detach(), annotated.detach(), *grads, labels)


RUNS = (run_singly, run_objective)


def _logits(case: Case) -> tuple[Tensor, Tensor]:
    return case.seg_logits, case.annotation_logits


def _largest(x: Tensor) -> float:
    return float(x.abs().max()) if x.numel() else 0.0


def assert_equal(results: Results, expected: Results) -> None:
    """Assert that all tensors have the same bits."""
    ours, theirs = results.tensors(), expected.tensors()
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert tensor.dtype == theirs[name].dtype, name
        assert torch.equal(tensor, theirs[name]), name


def assert_close(results: Results, expected: Results, rtol: float) -> None:
    """Assert errors below rtol * the largest value of each tensor; label maps must be equal."""
    ours, theirs = results.tensors(), expected.tensors()
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        largest = _largest(theirs[name]) if tensor.is_floating_point() else 0.0
        torch.testing.assert_close(tensor, theirs[name], rtol=0, atol=rtol * largest, msg=name)


class ErrorBudget:
    """A case, its float64 results, and the error that float32 or float64 results may have.

    An error is relative to the largest value of the image; the largest error counts. In float32 it
    may be twice the error of the float32 reference plus a few roundings. A rounding grows with the
    logits, since exponentials turn an absolute error into a relative one. In float64 results agree
    up to rounding. Pseudo labels are checked first; then the references learn the same pseudo
    labels, since a near tie may go either way.
    """

    def __init__(self, case: Case) -> None:
        self.case = case.to(torch.float32)
        self._largest = max(_largest(x) for x in _logits(self.case))

    def check_ops(
        self, dtype: torch.dtype, self_training: tuple[bool, ...] = (False, True)
    ) -> None:
        """Run the ops in a dtype and check the results."""
        for run in RUNS:
            for pseudo in self_training:
                self.check(run(self.case.to(dtype), pseudo))

    def check(self, results: Results) -> None:
        """Assert that no error exceeds what is allowed."""
        dtype = results.grad_seg_logits.dtype
        case = self.case
        if results.pseudo_labels is not None:
            check_labels(results.pseudo_labels, case, self._rounding(dtype))
        truth = _reference(case.to(torch.float64), results.pseudo_labels)
        plain = truth
        if dtype == torch.float32:
            plain = _reference(case, results.pseudo_labels)
        for name, size in self._sizes(replace(truth, pseudo_labels=results.pseudo_labels)).items():
            tensor, plain_tensor, true = (getattr(x, name) for x in (results, plain, truth))
            assert tensor.dtype == dtype, name
            error = self._error(tensor, true, size)
            allowed = self._allowed(self._error(plain_tensor, true, size), dtype)
            assert error <= allowed, f"{name}: off by {error:.1e}, allowed {allowed:.1e}"

    def _sizes(self, truth: Results) -> dict[str, Tensor]:
        """Return what errors are relative to; of a gradient, each image's largest number counts."""
        return {name: x.abs() for name, x in truth.tensors().items() if name != "pseudo_labels"}

    def _error(self, tensor: Tensor, truth: Tensor, size: Tensor) -> float:
        error = (tensor.double() - truth.double()).abs()
        if error.dim() == 4:
            size = size.amax((1, 2, 3), keepdim=True)
        # If all expected values are 0, only 0 is right. NaN and infinity are always wrong.
        relative = (error / size).where(error != 0, 0)
        assert tensor.isfinite().all()
        return float(relative.max()) if relative.numel() else 0.0

    def _allowed(self, plain_error: float, dtype: torch.dtype) -> float:
        return 2 * plain_error + self._rounding(dtype)

    def _rounding(self, dtype: torch.dtype) -> float:
        if dtype == torch.float64:
            return 2**-46 * max(16.0, self._largest)
        return 2**-24 * max(8.0, self._largest)


def _reference(case: Case, pseudo_labels: Tensor | None) -> Results:
    """Run the references in the case's dtype, with the given pseudo labels if any."""
    own = run_singly(case, False, "reference")
    if pseudo_labels is None:
        return own
    blp = run_singly(replace(case, target=pseudo_labels), False, "reference")
    return replace(own, blp_loss=blp.blp_loss, grad_seg_logits=blp.grad_seg_logits)


def check_labels(labels: Tensor, case: Case, rounding: float) -> None:
    """Assert that pseudo labels are right, up to rounding at near ties and at the threshold."""
    classes, ignore = case.classes, case.ignore_index
    assert labels.dtype == label_dtype(classes, ignore)
    assert labels.shape == case.target.shape
    labels, target = labels.long(), case.target.long()
    given = target != classes
    assert torch.equal(labels[given], target[given])

    p = upsample(case.seg_logits.double(), target.shape[1:]).softmax(1)
    p = p * case.class_present[:, :, None, None]
    largest = p.amax(1)
    ignored = labels == ignore
    assert (largest[~given & ignored] <= case.threshold + rounding).all(), "a label is missing"
    labeled = ~given & ~ignored
    assert ((labels >= 0) & (labels < classes))[labeled].all()
    chosen = p.gather(1, labels.where(labeled, 0)[:, None]).squeeze(1)[labeled]
    assert (chosen >= case.threshold - rounding).all(), "a label is below the threshold"
    assert (chosen >= largest[labeled] - rounding).all(), "a label is not the largest"


def random_case(
    n: int,
    classes: int,
    low: tuple[int, int],
    high: tuple[int, int],
    labels: str = "half",
    deviation: float = 3.0,
    **numbers: float,
) -> Case:
    """Return random logits and a target of one of the kinds in LABELS.

    With deviation 3 and 21 classes the probabilities have all sizes, also near 1.
    """
    ignore = int(numbers.get("ignore_index", 255))
    target = LABELS[labels](n, classes, *high)
    rng = torch.Generator().manual_seed(3)
    present = torch.rand(n, classes, generator=rng) < 0.7
    present[:, 0] = True
    return Case(
        deviation * randn(n, classes, *low, seed=1),
        deviation * randn(n, classes + 1, *low, seed=2),
        target.where(target <= classes, ignore),
        present,
        **numbers,
    )


# Kinds of target [N, H, W], int64: 0..K-1 a class, K unlabeled, K + 1 ignored.
def _density(share: float, ignored: float = 0.1) -> Callable[[int, int, int, int], Tensor]:
    def make(n: int, classes: int, h: int, w: int) -> Tensor:
        rng = torch.Generator().manual_seed(4)
        chance = torch.rand(n, h, w, generator=rng)
        target = torch.randint(0, classes, (n, h, w), generator=rng)
        target[chance >= share] = classes
        target[chance >= 1 - ignored * (1 - share)] = classes + 1
        return target

    return make


def _one_pixel(n: int, classes: int, h: int, w: int) -> Tensor:
    target = torch.full((n, h, w), classes)
    target[:, h // 3, w - 1] = torch.arange(n) % classes
    return target


def _lines(n: int, classes: int, h: int, w: int) -> Tensor:
    """Return straight scribbles, 3 pixels wide, and a border that is ignored."""
    target = torch.full((n, h, w), classes)
    rng = torch.Generator().manual_seed(5)
    for image in target:
        image[-(h // 8) :] = classes + 1 if h >= 8 else classes
        for _ in range(4):
            label = int(torch.randint(0, classes, (), generator=rng))
            (y0, y1), (x0, x1) = torch.rand(2, 2, generator=rng).tolist()
            for step in torch.linspace(0, 1, 2 * max(h, w)).tolist():
                y, x = int((y0 + step * (y1 - y0)) * h), int((x0 + step * (x1 - x0)) * w)
                image[max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2] = label
    return target


def _some_images(n: int, classes: int, h: int, w: int) -> Tensor:
    """Return labels in every second image; the others are unlabeled or ignored."""
    target = _density(0.3)(n, classes, h, w)
    target[1::4] = classes
    target[3::4] = classes + 1
    return target


LABELS: dict[str, Callable[[int, int, int, int], Tensor]] = {
    "none": _density(0.0),
    "one pixel": _one_pixel,
    "3 %": _density(0.03),
    "half": _density(0.5),
    "all": _density(1.0),
    "lines": _lines,
    "every second image": _some_images,
    "all unlabeled": lambda n, classes, h, w: torch.full((n, h, w), classes),
    "all ignored": lambda n, classes, h, w: torch.full((n, h, w), classes + 1),
}


def poisoned(case: Case, which: str, value: float = math.nan) -> Case:
    """Return the case with one logit in the middle of the first image replaced."""
    logits = getattr(case, which).clone()
    logits[0, 0, logits.shape[2] // 2, logits.shape[3] // 2] = value
    return replace(case, **{which: logits})
