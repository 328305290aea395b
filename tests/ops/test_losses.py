"""The losses against their float64 references: values, gradients, hostile inputs.

The tests run the backend that "auto" takes: the kernels, or the references without kernels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor

import blpseg_ops

from ._common import LAYOUTS, randn
from ._loss_inputs import (
    DTYPES,
    LABELS,
    OPS,
    RUNS,
    SIZES,
    WIDE,
    Case,
    ErrorBudget,
    Results,
    assert_close,
    assert_equal,
    check_labels,
    poisoned,
    random_case,
    run_objective,
    run_singly,
)

NARROW = [torch.bfloat16, torch.float16]
LABEL_DTYPES = [torch.uint8, torch.int16, torch.int32, torch.int64]
Run = Callable[[Case, bool], Results]

size = pytest.mark.parametrize(("low", "high"), SIZES, ids=str)
both_runs = pytest.mark.parametrize("run", RUNS)
self_training = pytest.mark.parametrize("pseudo", [False, True], ids=["scribbles", "pseudo labels"])


@pytest.mark.parametrize("name", ["blp_loss", "grad_seg_logits", "grad_annotation_logits"])
@pytest.mark.parametrize("dtype", WIDE, ids=str)
def test_the_error_budget_can_refuse(name: str, dtype: torch.dtype) -> None:
    budget = ErrorBudget(random_case(2, 5, *SIZES[1]))
    results = run_singly(budget.case.to(dtype), self_training=True, backend="reference")
    budget.check(results)
    wrong = getattr(results, name).clone()
    wrong.view(-1)[-1] += wrong.abs().max() * (1e-5 if dtype == torch.float32 else 1e-12)
    with pytest.raises(AssertionError, match=f"{name}: off by "):
        budget.check(replace(results, **{name: wrong}))
    wrong.view(-1)[-1] = math.nan
    with pytest.raises(AssertionError):
        budget.check(replace(results, **{name: wrong}))


def test_the_check_of_labels_can_refuse() -> None:
    case = random_case(2, 5, *SIZES[1])
    labels = run_singly(case, self_training=True, backend="reference").pseudo_labels
    assert labels is not None
    check_labels(labels, case, 1e-12)
    free = case.target == 5
    for there, wrong, text in (
        (free & (labels == 255), 0, "below the threshold"),
        (free & (labels == 0), 255, "a label is missing"),
        (free & (labels == 0), 1, "below the threshold|not the largest"),
        (case.target == 2, 3, None),
    ):
        spot = tuple(there.nonzero()[0].tolist())
        changed = labels.clone()
        changed[spot] = wrong
        with pytest.raises(AssertionError, match=text):
            check_labels(changed, case, 1e-12)
    with pytest.raises(AssertionError):
        check_labels(labels.int(), case, 1e-12)


@size
@pytest.mark.parametrize("dtype", WIDE, ids=str)
def test_sizes(low: tuple[int, int], high: tuple[int, int], dtype: torch.dtype) -> None:
    ErrorBudget(random_case(3, 21, low, high)).check_ops(dtype)


@pytest.mark.parametrize("classes", [1, 2, 3, 8, 16, 17, 64, 150, 254, 1000])
@pytest.mark.parametrize("dtype", WIDE, ids=str)
def test_classes(classes: int, dtype: torch.dtype) -> None:
    ignore = 255 if classes < 255 else -1
    low, high = ((5, 7), (13, 17)) if classes > 100 else ((7, 9), (19, 36))
    # The more classes there are, the larger a logit must be to reach a probability.
    case = random_case(2, classes, low, high, deviation=3 + classes / 100, ignore_index=ignore)
    ErrorBudget(case).check_ops(dtype)


@pytest.mark.parametrize("labels", LABELS)
@pytest.mark.parametrize("dtype", WIDE, ids=str)
def test_kinds_of_targets(labels: str, dtype: torch.dtype) -> None:
    budget = ErrorBudget(random_case(4, 7, (12, 15), (48, 57), labels))
    budget.check_ops(dtype)
    if labels.startswith("all "):
        results = run_objective(budget.case.to(dtype), self_training=False)
        assert results.blp_loss == 0
        assert results.grad_seg_logits.abs().max() == 0
        if labels == "all ignored":
            assert results.annotation_loss == 0
            assert results.grad_annotation_logits.abs().max() == 0


@both_runs
def test_images_without_labels_get_no_gradient(run: Run) -> None:
    case = random_case(4, 7, (12, 15), (48, 57), "every second image").to(torch.float32)
    grad = run(case, False).grad_seg_logits
    assert grad[1::2].abs().max() == 0
    assert grad[0::2].abs().amax((1, 2, 3)).min() > 0
    alone = [replace(case, **_image(case, i)) for i in range(4)]
    mean = sum(run(image, False).blp_loss for image in alone) / 4
    torch.testing.assert_close(run(case, False).blp_loss, mean)


def _image(case: Case, i: int) -> dict[str, Tensor]:
    names = ("seg_logits", "annotation_logits", "target", "class_present")
    return {name: getattr(case, name)[i : i + 1] for name in names}


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0, 5.0])
@pytest.mark.parametrize("unlabeled_weight", [0.0, 0.02, 1.0])
@pytest.mark.parametrize("dtype", WIDE, ids=str)
def test_weights(gamma: float, unlabeled_weight: float, dtype: torch.dtype) -> None:
    case = random_case(2, 6, *SIZES[1], gamma=gamma, unlabeled_weight=unlabeled_weight)
    ErrorBudget(case).check_ops(dtype)


def test_unlabeled_pixels_of_no_weight_cost_nothing() -> None:
    case = random_case(2, 6, *SIZES[1], "all unlabeled", unlabeled_weight=0.0)
    for run in RUNS:
        results = run(case, False)
        assert results.annotation_loss == 0
        assert results.grad_annotation_logits.abs().max() == 0


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.99, 1.0])
@pytest.mark.parametrize("dtype", WIDE, ids=str)
def test_thresholds(threshold: float, dtype: torch.dtype) -> None:
    ErrorBudget(random_case(2, 6, *SIZES[1], threshold=threshold)).check_ops(dtype)


@both_runs
def test_classes_that_are_not_present(run: Run) -> None:
    case = random_case(3, 6, *SIZES[1], "3 %", threshold=0.2)
    present = torch.zeros_like(case.class_present)
    present[1, 4] = True
    free = case.target == 6
    labels = run(replace(case, class_present=present), True).pseudo_labels
    assert set(labels[0][free[0]].tolist()) == {255}
    assert set(labels[1][free[1]].tolist()) == {4, 255}
    # By the definition the arg max of nothing but zeros, and 0 is not below a threshold of 0.
    labels = run(replace(case, class_present=present, threshold=0.0), True).pseudo_labels
    assert set(labels[0][free[0]].tolist()) == {0}


@both_runs
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_ties_go_to_the_lowest_class(run: Run, dtype: torch.dtype) -> None:
    case = random_case(2, 5, (3, 3), (7, 8), "all unlabeled", threshold=0.3).to(dtype)
    seg = torch.zeros_like(case.seg_logits)
    seg[:, 1:4] = 1.0
    present = torch.tensor([[True] * 5, [True, False, True, True, True]])
    labels = run(replace(case, seg_logits=seg, class_present=present), True).pseudo_labels
    assert (labels[0] == 255).all()  # 1 / (3 + 2 / e) = 0.27
    labels = run(
        replace(case, seg_logits=20 * seg, class_present=present, threshold=0.25), True
    ).pseudo_labels
    assert (labels[0] == 1).all()
    assert (labels[1] == 2).all()


@self_training
@both_runs
@pytest.mark.parametrize("dtype", NARROW, ids=str)
@pytest.mark.parametrize(
    ("classes", "low", "high"), [(21, (11, 13), (37, 100)), (5, (20, 23), (7, 9))], ids=str
)
def test_narrow_logits_are_widened_and_rounded_once(
    classes: int,
    low: tuple[int, int],
    high: tuple[int, int],
    dtype: torch.dtype,
    run: Run,
    pseudo: bool,
) -> None:
    case = random_case(2, classes, low, high).to(dtype)
    results, wide = run(case, pseudo), run(case.to(torch.float32), pseudo)
    expected = replace(
        wide,
        grad_seg_logits=wide.grad_seg_logits.to(dtype),
        grad_annotation_logits=wide.grad_annotation_logits.to(dtype),
    )
    assert_equal(results, expected)


@pytest.mark.parametrize("dtype", LABEL_DTYPES, ids=str)
@pytest.mark.parametrize("ignore", [255, -1, 300, 1000])
def test_targets_of_any_type(dtype: torch.dtype, ignore: int) -> None:
    if ignore == -1 and dtype == torch.uint8:
        pytest.skip("a uint8 holds no -1")
    case = random_case(2, 6, (11, 13), (44, 50), ignore_index=ignore)
    if ignore > 255 and dtype == torch.uint8:  # uint8 cannot hold ignore_index
        case = replace(case, target=case.target.where(case.target != ignore, 6))
    budget = ErrorBudget(replace(case, target=case.target.to(dtype)))
    for wide in WIDE:
        budget.check_ops(wide)
        same = replace(budget.case, target=case.target)
        results, expected = (run_objective(c.to(wide), True) for c in (budget.case, same))
        assert_equal(results, expected)
    labels = expected.pseudo_labels
    assert labels.dtype == (torch.uint8 if ignore == 255 else torch.int32)
    assert (labels == ignore).any()


@pytest.mark.parametrize("dtype", LABEL_DTYPES, ids=str)
def test_a_target_of_255_classes_and_more(dtype: torch.dtype) -> None:
    case = random_case(1, 255, (3, 4), (40, 50), ignore_index=-1 if dtype != torch.uint8 else 256)
    case = replace(case, target=case.target.where(case.target >= 0, 254))
    case = replace(case, target=case.target.where(case.target <= 255, 254))
    assert case.target.max() == 255  # unlabeled
    budget = ErrorBudget(replace(case, target=case.target.to(dtype)))
    for wide in WIDE:
        budget.check_ops(wide)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("low", "high"), [((11, 13), (37, 100)), ((20, 23), (7, 9))], ids=["up", "down"]
)
def test_any_layout(
    layout: str, dtype: torch.dtype, low: tuple[int, int], high: tuple[int, int]
) -> None:
    laid_out = random_case(2, 6, low, high).to(dtype).map(LAYOUTS[layout])
    contiguous = laid_out.map(Tensor.contiguous)
    rtol = {torch.float64: 1e-13, torch.float32: 2e-6, torch.bfloat16: 2**-7}[dtype]
    for run in RUNS:
        expected = run(contiguous, False)
        assert_close(run(laid_out, False), expected, rtol)
        for name in ("seg_logits", "annotation_logits"):
            tensor = getattr(laid_out, name)
            assert not tensor.is_contiguous()
            assert_close(run(replace(contiguous, **{name: tensor}), False), expected, rtol)
    if dtype != torch.bfloat16:
        ErrorBudget(laid_out).check_ops(dtype)


LABEL_LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "transposed": lambda x: x.mT.contiguous().mT,
    "batch last": lambda x: x.permute(1, 2, 0).contiguous().permute(2, 0, 1),
    "strided, with an offset": lambda x: torch.stack([x, x - x, x - x], -1)[..., 0],
    "one image for all": lambda x: x[:1].expand(x.shape),
    "one row for all": lambda x: x[:, 3:4].expand(x.shape),
    "one column for all": lambda x: x[:, :, 4:5].expand(x.shape),
}


@pytest.mark.parametrize("layout", LABEL_LAYOUTS)
@pytest.mark.parametrize("dtype", LABEL_DTYPES, ids=str)
def test_any_layout_of_the_labels(layout: str, dtype: torch.dtype) -> None:
    case = random_case(3, 6, *SIZES[1])
    target = LABEL_LAYOUTS[layout](case.target.to(dtype))
    assert not target.is_contiguous()
    present = case.class_present.mT.contiguous().mT
    case = replace(case, target=target, class_present=present)
    contiguous = replace(case, target=target.contiguous(), class_present=present.contiguous())
    for run in RUNS:
        for pseudo in (False, True):
            assert_close(run(case, pseudo), run(contiguous, pseudo), 1e-13)


@self_training
@both_runs
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_empty_batch(dtype: torch.dtype, run: Run, pseudo: bool) -> None:
    case = random_case(0, 3, (4, 5), (8, 9)).to(dtype)
    results = run(case, pseudo)
    assert results.blp_loss == results.annotation_loss == 0
    assert results.grad_seg_logits.shape == (0, 3, 4, 5)
    assert results.grad_annotation_logits.shape == (0, 4, 4, 5)
    if pseudo:
        assert results.pseudo_labels.shape == (0, 8, 9)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("size", [1e2, 1e4])
@pytest.mark.parametrize("dtype", WIDE, ids=str)
def test_large_logits(dtype: torch.dtype, size: float, gamma: float) -> None:
    case = random_case(2, 5, *SIZES[1], deviation=size, gamma=gamma)
    budget = ErrorBudget(case.map(lambda x: x.clamp(-size, size)))
    budget.check_ops(dtype)


@self_training
@both_runs
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_logits_of_one_size_or_another_stay_finite(
    dtype: torch.dtype, run: Run, pseudo: bool
) -> None:
    case = random_case(2, 5, *SIZES[1], gamma=0.5)
    for changed in (
        case.map(lambda x: 1e4 * x.sign()),
        case.map(lambda x: x + 1e4),
        case.map(lambda x: x - 1e4),
        case.map(lambda x: 1e-30 * x),
        case.map(torch.zeros_like),
    ):
        results = run(changed.to(dtype), pseudo)
        assert all(tensor.isfinite().all() for tensor in results.tensors().values())


def test_sure_and_right() -> None:
    """1 - q p may round to a negative number, whose power would be NaN."""
    for dtype in DTYPES:
        case = random_case(2, 5, (11, 13), (11, 13), "all", gamma=0.5).to(dtype)
        seg, annotation = (
            torch.zeros_like(case.seg_logits),
            torch.zeros_like(case.annotation_logits),
        )
        for logits in (seg, annotation):
            logits.scatter_(1, case.target[:, None], 17.0)
        for run in RUNS:
            results = run(replace(case, seg_logits=seg, annotation_logits=annotation), False)
            assert all(tensor.isfinite().all() for tensor in results.tensors().values())
            assert 0 <= results.blp_loss < 1e-5


@both_runs
@pytest.mark.parametrize("dtype", WIDE, ids=str)
def test_a_class_that_is_impossible_at_a_pixel(dtype: torch.dtype, run: Run) -> None:
    # At this size no tap of that row or column has weight 0, which times infinity would be NaN.
    case = random_case(2, 5, (11, 13), (37, 100)).map(Tensor.clone)
    case = replace(case, target=case.target.where(case.target != 3, 5))
    case.seg_logits[:, 3, 5, 7] = -math.inf
    case.annotation_logits[:, 3, 5, 7] = -math.inf
    results = run(case.to(dtype), False)
    wide = {name: tensor.double() for name, tensor in results.tensors().items()}
    truth = run_singly(case, False, "reference")
    rtol = 1e-12 if dtype == torch.float64 else 1e-5
    assert_close(Results(**wide, pseudo_labels=None), truth, rtol)
    labels = run(case.to(dtype), True)
    assert all(tensor.isfinite().all() for tensor in labels.tensors().values())


@both_runs
@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_what_is_not_finite_shows(dtype: torch.dtype, value: float, run: Run) -> None:
    case = random_case(2, 5, (11, 13), (37, 100), "all").to(dtype)
    results = run(poisoned(case, "seg_logits", value), False)
    assert not results.blp_loss.isfinite()
    if math.isnan(value):
        assert not results.grad_seg_logits[0].isfinite().all()
    assert results.grad_seg_logits[1].isfinite().all()
    assert results.annotation_loss.isfinite()

    results = run(poisoned(case, "annotation_logits", value), False)
    assert not results.annotation_loss.isfinite()
    if math.isnan(value):
        assert not results.grad_annotation_logits[0].isfinite().all()


@both_runs
@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("threshold", [0.0, 0.4])
def test_what_is_not_finite_is_not_labeled(threshold: float, value: float, run: Run) -> None:
    case = random_case(1, 5, (11, 13), (11, 13), "all unlabeled", threshold=threshold)
    expected = run(case, True).pseudo_labels
    labels = run(poisoned(case, "seg_logits", value), True).pseudo_labels
    assert labels[0, 5, 6] == 255
    around = torch.ones(1, 11, 13, dtype=torch.bool)
    around[0, 4:7, 5:8] = False  # taps of weight 0 see it too
    assert torch.equal(labels[around], expected[around])


WRONG = [
    (torch.uint8, 4, 255),
    (torch.uint8, 254, 255),
    (torch.uint8, 255, -1),
    (torch.uint8, 255, 300),
    (torch.uint8, 44, 300),  # 300 - 256
    (torch.int16, -1, 255),
    (torch.int16, 300, 255),
    (torch.int16, 255, -1),
    (torch.int32, -7, 255),
    (torch.int32, 256 + 1, 255),
    (torch.int32, 65536 + 1, 255),
    (torch.int64, 2**40, 255),
    (torch.int64, -(2**40), 255),
    (torch.int64, 2**32 + 1, 255),
    (torch.int64, 2**32 + 255, 255),
    (torch.int64, -1, 255),
    (torch.int64, 2**32 - 1, -1),
]


def _call(op: str, target: Tensor, ignore: int, pseudo: bool = False) -> object:
    """An op on logits of 3 classes; the objective with or without pseudo labels."""
    n, h, w = target.shape
    seg, annotation = (randn(n, k, (h + 1) // 2, (w + 1) // 2) for k in (3, 4))
    present = torch.ones(n, 3, dtype=torch.bool)
    function = getattr(blpseg_ops, op)
    match op:
        case "blp_loss":
            return function(seg, annotation, target, ignore_index=ignore)
        case "annotation_loss":
            return function(annotation, target, ignore_index=ignore)
        case "pseudo_labels":
            return function(seg, target, present, ignore_index=ignore)
    return function(
        seg, annotation, target, class_present=present if pseudo else None, ignore_index=ignore
    )


@pytest.mark.parametrize("pseudo", [False, True])
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize(("dtype", "value", "ignore"), WRONG)
def test_a_wrong_label_is_named(
    dtype: torch.dtype, value: int, ignore: int, op: str, pseudo: bool
) -> None:
    text = (
        rf"^{op}: target must hold 0\.\.2 \(a class\), 3 \(unlabeled\) or {ignore} \(ignore\), "
        rf"got {value}$"
    )
    good = torch.arange(2 * 9 * 11).remainder(4).reshape(2, 9, 11).to(dtype)
    _call(op, good, ignore, pseudo)
    for spot in ((0, 0, 0), (1, 8, 10), (0, 4, 7)):
        bad = good.clone()
        bad[spot] = value
        for layout in (bad, bad.mT.contiguous().mT):
            with pytest.raises(ValueError, match=text):
                _call(op, layout, ignore, pseudo)


@pytest.mark.parametrize("op", OPS)
def test_the_first_wrong_label_is_named(restore_threads: None, op: str) -> None:
    target = torch.full((4, 40, 41), 3, dtype=torch.uint8)
    target[3], target[2, 20:] = 80, 79
    target[0, 17, 30] = 77
    target[0, 18, 2] = 78
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        with pytest.raises(ValueError, match="got 77$"):
            _call(op, target, 255)


@pytest.fixture
def deterministic() -> Iterator[None]:
    """torch.use_deterministic_algorithms(True) for the test."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@self_training
@both_runs
def test_deterministic_algorithms_change_nothing(
    request: pytest.FixtureRequest, run: Run, pseudo: bool
) -> None:
    case = random_case(3, 21, (24, 25), (96, 100)).to(torch.float32)
    expected = run(case, pseudo)
    request.getfixturevalue("deterministic")
    assert_equal(run(case, pseudo), expected)


@self_training
@pytest.mark.parametrize("dtype", WIDE, ids=str)
@pytest.mark.parametrize("labels", ["lines", "half"])
@size
def test_the_objective_is_the_sum_of_its_parts(
    low: tuple[int, int], high: tuple[int, int], labels: str, dtype: torch.dtype, pseudo: bool
) -> None:
    case = random_case(2, 9, low, high, labels).to(dtype)
    results, expected = run_objective(case, pseudo), run_singly(case, pseudo)
    if pseudo:
        assert torch.equal(results.pseudo_labels, expected.pseudo_labels)
    assert_close(results, expected, 1e-6 if dtype == torch.float32 else 1e-13)


def test_under_autocast_the_objective_is_in_float32() -> None:
    case = random_case(2, 5, *SIZES[1]).to(torch.bfloat16)
    mixed = replace(case, seg_logits=case.seg_logits.float())
    expected = run_objective(case.to(torch.float32), True)
    with torch.autocast("cpu", torch.bfloat16):
        results = run_objective(mixed, True)
    assert results.blp_loss.dtype == torch.float32
    grad = expected.grad_annotation_logits.bfloat16()
    assert_equal(results, replace(expected, grad_annotation_logits=grad))
