"""The losses' C++ kernels: registration, variants, threads, memory, sizes beyond 2^31."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

import blpseg_ops
from blpseg_ops import backends

from ._common import LAYOUTS, MEASURE, far_apart, randn, run_program
from ._loss_inputs import (
    DTYPES,
    OPS,
    RUNS,
    SIZES,
    WIDE,
    Case,
    ErrorBudget,
    Results,
    assert_equal,
    random_case,
)

_C = pytest.importorskip("blpseg_ops._C", reason="no native code was built")
pytestmark = pytest.mark.skipif(
    any("cpp" not in backends.available(op, "cpu") for op in OPS), reason="no kernel is registered"
)

VARIANTS = _C.cpu_capabilities()
Run = Callable[..., Results]

both_runs = pytest.mark.parametrize("run", RUNS)
self_training = pytest.mark.parametrize("pseudo", [False, True], ids=["scribbles", "pseudo labels"])


@pytest.mark.parametrize("op", OPS)
def test_the_kernel_is_what_runs(op: str) -> None:
    has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
    assert has_kernel(f"blpseg::{op}", "CPU")
    if op != "pseudo_labels":
        assert has_kernel(f"blpseg::{op}_backward", "CPU")


@self_training
@both_runs
def test_the_kernel_can_be_named(run: Run, pseudo: bool) -> None:
    case = random_case(2, 5, *SIZES[1]).to(torch.float32)
    assert_equal(run(case, pseudo, "cpp"), run(case, pseudo))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", WIDE, ids=str)
def test_every_variant(restore_variant: None, variant: str, dtype: torch.dtype) -> None:
    _C.set_cpu_capability(variant)
    assert _C.cpu_capability() == variant
    for low, high in SIZES:
        ErrorBudget(random_case(2, 21, low, high)).check_ops(dtype)
    for classes in (1, 2, 15, 33, 150):
        for labels in ("lines", "3 %", "all"):
            ErrorBudget(random_case(2, classes, (5, 7), (20, 29), labels)).check_ops(dtype)


@self_training
@both_runs
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("n", "low", "high"),
    [
        (3, (24, 25), (96, 100)),
        (1, (31, 17), (101, 90)),
        (1, (60, 60), (7, 9)),
        (5, (1, 1), (9, 9)),
    ],
    ids=str,
)
def test_the_number_of_threads_does_not_matter(
    restore_threads: None,
    n: int,
    low: tuple[int, int],
    high: tuple[int, int],
    dtype: torch.dtype,
    run: Run,
    pseudo: bool,
) -> None:
    for labels in ("lines", "half"):
        case = random_case(n, 21, low, high, labels).to(dtype)
        torch.set_num_threads(1)
        expected = run(case, pseudo)
        for threads in (1, 2, 3, 5):
            torch.set_num_threads(threads)
            assert_equal(run(case, pseudo), expected)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", WIDE, ids=str)
def test_saved_tensors_and_gradients_of_any_layout(layout: str, dtype: torch.dtype) -> None:
    """Call backward as autograd may: with an expanded gradient and strided weight sums."""
    case = random_case(3, 6, *SIZES[1]).to(dtype)
    logits = case.seg_logits, case.annotation_logits
    target, numbers = case.target, (case.gamma, case.unlabeled_weight, case.ignore_index)
    forward = torch.ops.blpseg.blp_objective(*logits, target, None, 2.0, 0.02, 0.9, 255)
    grads = forward[0].new_ones(2)[0], forward[0].new_ones(1).expand(3)[1]
    laid_out = tuple(map(LAYOUTS[layout], logits))
    contiguous = tuple(x.contiguous() for x in laid_out)
    apart = torch.stack([forward[2]] * 2, 1)[:, 0]
    saved_pixels = forward[5:]
    results = torch.ops.blpseg.blp_objective_backward(
        *grads, *laid_out, target, target, apart, forward[3], *saved_pixels, *numbers
    )
    expected = torch.ops.blpseg.blp_objective_backward(
        *grads, *contiguous, target, target, *forward[2:4], *saved_pixels, *numbers
    )
    for result, wanted in zip(results, expected, strict=True):
        torch.testing.assert_close(result, wanted)


@pytest.mark.parametrize("axis", range(4), ids=["batch", "channels", "rows", "columns"])
def test_offsets_beyond_32_bits(axis: int) -> None:
    case = random_case(2, 3, (5, 6), (11, 13)).to(torch.bfloat16)
    expected = [run(case, True) for run in RUNS]
    for name in ("seg_logits", "annotation_logits"):
        far = replace(case, **{name: far_apart(getattr(case, name), axis)})
        for run, wanted in zip(RUNS, expected, strict=True):
            assert_equal(run(far, True), wanted)
    if axis < 3:
        far = replace(case, target=far_apart(case.target.byte(), axis))
        for run, wanted in zip(RUNS, expected, strict=True):
            assert_equal(run(far, True), wanted)


def test_more_than_2_to_the_31_elements() -> None:
    """1000 stored values are expanded to 2.25 billion; all pixels are the same."""
    seg, annotation = (randn(1, k, 1, 1).float() for k in (1000, 1001))
    target = torch.arange(16, dtype=torch.int16).reshape(1, 4, 4)
    target[0, 0, :2] = 1000
    present = torch.ones(1, 1000, dtype=torch.bool)
    numbers = {"ignore_index": -1, "threshold": 0.0}
    results = []
    for side in (1, 1500):
        logits = (x.expand(-1, -1, side, side) for x in (seg, annotation))
        case = Case(*logits, target, present, **numbers)
        results.append(_forward(case))
    assert case.seg_logits.numel() > 2**31
    for result, wanted in zip(*results, strict=True):
        torch.testing.assert_close(result, wanted, rtol=1e-6, atol=0)


def _forward(case: Case) -> tuple[torch.Tensor, ...]:
    seg, annotation, ignore = case.seg_logits, case.annotation_logits, case.ignore_index
    both = blpseg_ops.blp_objective(
        seg,
        annotation,
        case.target,
        class_present=case.class_present,
        threshold=case.threshold,
        ignore_index=ignore,
    )
    return (
        *both,
        blpseg_ops.blp_loss(seg, annotation, case.target, ignore_index=ignore),
        blpseg_ops.annotation_loss(annotation, case.target, ignore_index=ignore),
    )


MEASURE_MEMORY = (
    MEASURE
    + """
import blpseg_ops
def steps(n, low, high):
    rng = torch.Generator().manual_seed(0)
    seg, annotation = (
        torch.randn(n, k, low, low, generator=rng).requires_grad_() for k in (21, 22)
    )
    target = torch.randint(0, 21, (n, high, high), generator=rng, dtype=torch.uint8)
    target[torch.rand(n, high, high, generator=rng) > 0.03] = 21
    present = torch.ones(n, 21, dtype=torch.bool)
    def objective(*present):
        blp, annotated, labels = blpseg_ops.blp_objective(
            seg, annotation, target, class_present=present[0] if present else None
        )
        grads = torch.autograd.grad(blp + annotated, (seg, annotation))
        return (*grads, labels) if present else grads
    yield "objective", lambda: objective()
    yield "self-training", lambda: objective(present)
    yield "blp_loss", lambda: torch.autograd.grad(
        blpseg_ops.blp_loss(seg, annotation.detach(), target), seg
    )
    yield "annotation_loss", lambda: torch.autograd.grad(
        blpseg_ops.annotation_loss(annotation, target), annotation
    )
    yield "pseudo_labels", lambda: (blpseg_ops.pseudo_labels(seg, target, present),)
for _, step in steps(1, 8, 32):
    step()
for name, step in steps(10, 96, 384):
    print(f"{name}: {beyond(step):.2f}")
"""
)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_nothing_of_full_size_is_held() -> None:
    done = run_program(MEASURE_MEMORY)
    assert done.returncode == 0, done.stderr
    measured = dict(line.split(": ") for line in done.stdout.splitlines())
    assert len(measured) == 5
    for name, mebibytes in measured.items():  # [N, K, H, W] in float32 takes 118
        assert float(mebibytes) < 16, name


# Calls of the operators themselves, with sizes that do not fit together.
SEG, ANNOTATION, LABELS = (
    torch.zeros(2, 3, 4, 5),
    torch.zeros(2, 4, 4, 5),
    torch.zeros(2, 8, 9).long(),
)
PRESENT, ONE, TWO = torch.ones(2, 3, dtype=torch.bool), torch.ones(()), torch.ones(2)
NONE = torch.ones(0)  # pixels that forward saved
MISSHAPEN = [
    ("blp_loss", (SEG, ANNOTATION[:, :3], LABELS, 2.0, 255)),
    ("blp_loss", (SEG[:, :0], ANNOTATION[:, :1], LABELS, 2.0, 255)),
    ("blp_loss", (SEG, ANNOTATION[:1], LABELS, 2.0, 255)),
    ("blp_loss", (SEG, ANNOTATION[..., 1:], LABELS, 2.0, 255)),
    ("blp_loss", (SEG, ANNOTATION.double(), LABELS, 2.0, 255)),
    ("blp_loss", (SEG[0], ANNOTATION, LABELS, 2.0, 255)),
    ("blp_loss", (SEG, ANNOTATION, LABELS[:1], 2.0, 255)),
    ("blp_loss", (SEG, ANNOTATION, LABELS.float(), 2.0, 255)),
    ("blp_loss", (SEG.int(), ANNOTATION.int(), LABELS, 2.0, 255)),
    ("blp_loss_backward", (ONE, SEG, ANNOTATION, LABELS, TWO[:1], NONE, 2.0, 255)),
    ("blp_loss_backward", (ONE, SEG, ANNOTATION, LABELS[:1], TWO, NONE, 2.0, 255)),
    ("annotation_loss", (ANNOTATION, LABELS[:1], 0.02, 255)),
    ("annotation_loss", (ANNOTATION, LABELS[0], 0.02, 255)),
    ("annotation_loss_backward", (ONE, ANNOTATION, LABELS[:1], ONE, NONE, 0.02, 255)),
    ("pseudo_labels", (SEG[:, :0], LABELS, PRESENT[:, :0], 0.9, 255)),
    ("pseudo_labels", (SEG, LABELS, PRESENT[:, :2], 0.9, 255)),
    ("pseudo_labels", (SEG, LABELS, PRESENT.float(), 0.9, 255)),
    ("pseudo_labels", (SEG, LABELS[:1], PRESENT, 0.9, 255)),
    ("blp_objective", (SEG, ANNOTATION[:, :3], LABELS, None, 2.0, 0.02, 0.9, 255)),
    ("blp_objective", (SEG, ANNOTATION, LABELS[:1], None, 2.0, 0.02, 0.9, 255)),
    ("blp_objective", (SEG, ANNOTATION, LABELS, PRESENT[:1], 2.0, 0.02, 0.9, 255)),
    (
        "blp_objective_backward",
        (ONE, ONE, SEG, ANNOTATION, LABELS[:1], LABELS, TWO, ONE, NONE, NONE, 2.0, 0.02, 255),
    ),
    (
        "blp_objective_backward",
        (ONE, ONE, SEG, ANNOTATION, LABELS, LABELS[:, 1:], TWO, ONE, NONE, NONE, 2.0, 0.02, 255),
    ),
    (
        "blp_objective_backward",
        (ONE, ONE, SEG, ANNOTATION, LABELS, LABELS, TWO[:1], ONE, NONE, NONE, 2.0, 0.02, 255),
    ),
]


@pytest.mark.parametrize(("op", "arguments"), MISSHAPEN)
def test_the_kernels_guard_their_memory(op: str, arguments: tuple[object, ...]) -> None:
    with pytest.raises((RuntimeError, ValueError)):
        getattr(torch.ops.blpseg, op)(*arguments)
