"""The losses on a CUDA device: against float64 references, and CUDA's own properties."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor

import blpseg_ops
from blpseg_ops import backends

from ._common import LAYOUTS, randn, run_program
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
    poisoned,
    random_case,
    run_objective,
)

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
kernel = pytest.mark.skipif(
    any("cuda" not in backends.available(op, "cuda") for op in OPS), reason="no kernel is loaded"
)

DEVICE = "cuda"
Run = Callable[..., Results]

both_runs = pytest.mark.parametrize("run", RUNS)
self_training = pytest.mark.parametrize("pseudo", [False, True], ids=["scribbles", "pseudo labels"])


def _check(case: Case, dtype: torch.dtype) -> None:
    """Check the results of the device by the rule for those of the CPU."""
    budget = ErrorBudget(case)
    for run in RUNS:
        for pseudo in (False, True):
            budget.check(run(budget.case.to(dtype).on(DEVICE), pseudo).cpu())


@pytest.mark.parametrize(("low", "high"), SIZES, ids=str)
@pytest.mark.parametrize("dtype", WIDE, ids=str)
def test_sizes(low: tuple[int, int], high: tuple[int, int], dtype: torch.dtype) -> None:
    _check(random_case(3, 21, low, high), dtype)


@pytest.mark.parametrize("classes", [1, 2, 31, 32, 33, 150, 254, 1000])
@pytest.mark.parametrize("dtype", WIDE, ids=str)
def test_classes(classes: int, dtype: torch.dtype) -> None:
    ignore = 255 if classes < 255 else -1
    low, high = ((5, 7), (13, 17)) if classes > 100 else ((7, 9), (19, 36))
    _check(
        random_case(2, classes, low, high, deviation=3 + classes / 100, ignore_index=ignore), dtype
    )


@pytest.mark.parametrize("labels", LABELS)
@pytest.mark.parametrize("dtype", WIDE, ids=str)
def test_kinds_of_targets(labels: str, dtype: torch.dtype) -> None:
    _check(random_case(4, 7, (12, 15), (48, 57), labels), dtype)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0, 5.0])
@pytest.mark.parametrize("unlabeled_weight", [0.0, 0.02])
def test_weights(gamma: float, unlabeled_weight: float) -> None:
    numbers = {"gamma": gamma, "unlabeled_weight": unlabeled_weight}
    _check(random_case(2, 6, *SIZES[1], **numbers), torch.float32)


@pytest.mark.parametrize("size", [1e2, 1e4])
def test_large_logits(size: float) -> None:
    case = random_case(2, 5, *SIZES[1], deviation=size).map(lambda x: x.clamp(-size, size))
    _check(case, torch.float32)


@pytest.mark.parametrize("which", ["seg_logits", "annotation_logits"])
def test_what_is_not_finite_shows(which: str) -> None:
    case = random_case(2, 5, (11, 13), (37, 100), "all").to(torch.float32).on(DEVICE)
    for run in RUNS:
        results = run(poisoned(case, which), False)
        loss = results.blp_loss if which == "seg_logits" else results.annotation_loss
        assert not loss.isfinite()


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64], ids=str)
@pytest.mark.parametrize("ignore", [255, 1000])
def test_targets_of_any_type(dtype: torch.dtype, ignore: int) -> None:
    case = random_case(2, 6, *SIZES[1], ignore_index=ignore)
    if ignore > 255 and dtype == torch.uint8:  # nothing is ignored in what comes
        case = replace(case, target=case.target.where(case.target != ignore, 6))
    _check(replace(case, target=case.target.to(dtype)), torch.float32)
    transposed = case.target.to(dtype).mT.contiguous().mT
    _check(replace(case, target=transposed), torch.float32)


@kernel
@self_training
@both_runs
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_narrow_logits_are_widened_and_rounded_once(
    dtype: torch.dtype, run: Run, pseudo: bool
) -> None:
    case = random_case(2, 21, *SIZES[1]).to(dtype).on(DEVICE)
    results, wide = run(case, pseudo), run(case.to(torch.float32), pseudo)
    grads = wide.grad_seg_logits.to(dtype), wide.grad_annotation_logits.to(dtype)
    expected = replace(wide, grad_seg_logits=grads[0], grad_annotation_logits=grads[1])
    assert_equal(results, expected)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_any_layout(layout: str, dtype: torch.dtype) -> None:
    laid_out = random_case(2, 6, *SIZES[1]).to(dtype).on(DEVICE).map(LAYOUTS[layout])
    contiguous = laid_out.map(Tensor.contiguous)
    rtol = 2e-6 if dtype == torch.float32 else 2**-7
    for run in RUNS:
        assert_close(run(laid_out, False), run(contiguous, False), rtol)


@self_training
@both_runs
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_empty_batch(dtype: torch.dtype, run: Run, pseudo: bool) -> None:
    results = run(random_case(0, 3, (4, 5), (8, 9)).to(dtype).on(DEVICE), pseudo)
    assert results.blp_loss == results.annotation_loss == 0
    assert results.grad_seg_logits.shape == (0, 3, 4, 5)
    assert results.grad_annotation_logits.shape == (0, 4, 4, 5)


@self_training
@pytest.mark.parametrize("labels", ["lines", "half"])
def test_the_objective_is_the_sum_of_its_parts(labels: str, pseudo: bool) -> None:
    case = random_case(2, 9, *SIZES[1], labels).to(torch.float32).on(DEVICE)
    singly, at_once = (run(case, pseudo) for run in RUNS)
    assert_close(at_once, singly, 1e-6)


def test_autocast() -> None:
    case = random_case(2, 5, *SIZES[1]).to(torch.bfloat16).on(DEVICE)
    mixed = replace(case, seg_logits=case.seg_logits.float())
    with torch.autocast(DEVICE, torch.bfloat16):
        results = run_objective(mixed, True)
    assert results.blp_loss.dtype == torch.float32
    assert results.grad_annotation_logits.dtype == torch.bfloat16
    expected = run_objective(case.to(torch.float32), True)
    assert_close(
        replace(results, grad_annotation_logits=results.grad_annotation_logits.float()),
        expected,
        2**-7,
    )


@pytest.fixture
def deterministic() -> Iterator[None]:
    """torch.use_deterministic_algorithms(True) for the test."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@kernel
@self_training
@both_runs
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_run_is_the_same(
    request: pytest.FixtureRequest, dtype: torch.dtype, run: Run, pseudo: bool
) -> None:
    case = random_case(4, 21, (48, 48), (192, 192), "lines").to(dtype).on(DEVICE)
    expected = run(case, pseudo)
    for _ in range(5):
        assert_equal(run(case, pseudo), expected)
    request.getfixturevalue("deterministic")
    assert_equal(run(case, pseudo), expected)


@kernel
@self_training
@both_runs
def test_nothing_waits_for_the_device(run: Run, pseudo: bool) -> None:
    case = random_case(2, 21, (24, 24), (96, 96)).to(torch.float32).on(DEVICE)
    run(case, pseudo)
    torch.cuda.set_sync_debug_mode("error")
    try:
        run(case, pseudo)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@kernel
@self_training
@both_runs
def test_runs_under_a_cuda_graph(run: Run, pseudo: bool) -> None:
    case = random_case(2, 21, (24, 24), (96, 96)).to(torch.float32).on(DEVICE)
    other = case.map(lambda x: x.flip(0).neg())
    expected = [run(inputs, pseudo) for inputs in (case, other)]
    static = case.map(Tensor.clone)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # warm up autograd before the capture
        run(static, pseudo)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = run(static, pseudo)
    for inputs, wanted in zip((case, other), expected, strict=True):
        static.seg_logits.copy_(inputs.seg_logits)
        static.annotation_logits.copy_(inputs.annotation_logits)
        graph.replay()
        torch.cuda.synchronize()
        assert_equal(results, wanted)


@both_runs
def test_runs_on_the_current_stream(run: Run) -> None:
    case = random_case(2, 21, (24, 24), (96, 96)).to(torch.float32).on(DEVICE)
    expected = run(case, True)
    late = case.map(torch.zeros_like)
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        torch.cuda._sleep(100_000_000)  # a kernel on another stream would see zeros
        late.seg_logits.copy_(case.seg_logits)
        late.annotation_logits.copy_(case.annotation_logits)
        results = run(late, True)
    torch.cuda.synchronize()
    assert_close(results, expected, 1e-6)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="no second CUDA device")
@both_runs
def test_runs_on_a_device_that_is_not_the_current_one(run: Run) -> None:
    case = random_case(2, 21, (24, 24), (96, 96)).to(torch.float32)
    expected = run(case.on("cuda:0"), True)
    results = run(case.on("cuda:1"), True)
    assert torch.cuda.current_device() == 0
    assert all(tensor.device.index == 1 for tensor in results.tensors().values())
    assert_close(results.cpu(), expected.cpu(), 1e-6)


@kernel
@self_training
@both_runs
def test_three_numbers_per_pixel_are_held(run: Run, pseudo: bool) -> None:
    """Forward keeps 2 numbers per pixel for the BLP loss and 1 for the annotation loss."""
    case = random_case(10, 21, (96, 96), (384, 384), "3 %").to(torch.float32).on(DEVICE)
    run(case, pseudo)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    results = run(case, pseudo)
    made = sum(tensor.nbytes for tensor in results.tensors().values())
    saved = 3 * 4 * case.target.numel()  # 17.7 MB; [N, K, H, W] would take 124
    sums_of_pixel_blocks = 10 * 3 * 97 * 6 * 4
    small = 2**16  # scalars, weight sums, sums of images: 512 bytes each at least
    assert torch.cuda.max_memory_allocated() - before - made < saved + sums_of_pixel_blocks + small


@kernel
def test_more_than_2_to_the_31_elements() -> None:
    seg, annotation = (randn(1, k, 1, 1).float().to(DEVICE) for k in (1000, 1001))
    target = torch.arange(16, dtype=torch.int16, device=DEVICE).reshape(1, 4, 4)
    results = []
    for side in (1, 1500):
        logits = tuple(x.expand(-1, -1, side, side) for x in (seg, annotation))
        objective = blpseg_ops.blp_objective(*logits, target, ignore_index=-1)
        results.append(torch.stack(objective[:2]))
    assert logits[0].numel() > 2**31
    torch.testing.assert_close(*results, rtol=1e-6, atol=0)


WRONG_LABEL = """
import torch, blpseg_ops
seg, annotation = (torch.zeros(1, k, 4, 4, device="cuda") for k in (3, 4))
target = torch.full((1, 16, 16), 3, device="cuda")
target[0, 8, 8] = 77
present = torch.ones(1, 3, dtype=torch.bool, device="cuda")
calls = {
    "blp_loss": lambda: blpseg_ops.blp_loss(seg, annotation, target),
    "annotation_loss": lambda: blpseg_ops.annotation_loss(annotation, target),
    "pseudo_labels": lambda: blpseg_ops.pseudo_labels(seg, target, present),
    "blp_objective": lambda: blpseg_ops.blp_objective(seg, annotation, target),
}
"""


@kernel
@pytest.mark.parametrize("op", OPS)
def test_a_wrong_label_is_a_device_assertion(op: str) -> None:
    done = run_program(f"{WRONG_LABEL}\ncalls[{op!r}]()\ntorch.cuda.synchronize()")
    assert done.returncode != 0
    assert "device-side assert" in done.stderr


CHECKED = """
for op, call in calls.items():
    try:
        with blpseg_ops.checked_targets():
            call()
    except ValueError as error:
        assert str(error).startswith(f"{op}: target must hold 0..2 (a class), 3 (unlabeled)")
        assert str(error).endswith("got 77")
    else:
        raise AssertionError(op)
torch.cuda.synchronize()  # the device has come to no harm
"""


def test_a_wrong_label_is_named_under_checked_targets() -> None:
    done = run_program(WRONG_LABEL + CHECKED)
    assert done.returncode == 0, done.stderr
