"""LAM's C++ kernel: sizes, dtypes, variants, threads, layouts, memory."""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest
import torch

import blpseg_ops

from ._common import LAYOUTS, MEASURE, far_apart, run_program
from ._lam_inputs import (
    ErrorBudget,
    assert_equal,
    hostile,
    normal_case,
    run_kernel,
)

_C = pytest.importorskip("blpseg_ops._C", reason="no native code was built")

WIDE = [torch.float32, torch.float64]
NARROW = [torch.bfloat16, torch.float16]
VARIANTS = _C.cpu_capabilities()


# N, D, C, h, w and eps
SIZES = [
    ((1, 1, 1, 1, 1), 0.0),
    ((2, 300, 60, 1, 1), 1e-7),
    ((2, 3, 2, 1, 700), 0.0),
    ((1, 300, 60, 500, 1), 1e-7),
    ((3, 5, 7, 7, 9), 0.0),
    ((1, 2, 4, 3, 50), 1e-7),
    ((2, 33, 21, 33, 31), 1e-7),
    ((1, 64, 1, 40, 43), 0.0),
    ((1, 9, 5, 10, 129), 1e-7),
    ((1, 17, 2, 129, 10), 0.0),
    ((1, 8, 3, 65, 17), 0.0),
]


@pytest.mark.parametrize(("size", "eps"), SIZES, ids=str)
def test_odd_sizes(
    size: tuple[int, int, int, int, int], eps: float, both_ways_to_sum_t: None
) -> None:
    budget = ErrorBudget(normal_case(*size, sigma=2.5, eps=eps, scale=0.7))
    for dtype in WIDE:
        budget.check_kernel(dtype)


@pytest.mark.parametrize("name", ["smooth", "two clusters", "scale -1"])
@pytest.mark.parametrize("eps", [0.0, 1e-3])
def test_the_denominator_that_backward_is_given(
    name: str, eps: float, both_ways_to_sum_t: None
) -> None:
    budget = hostile(name, eps)
    log_denominator = run_kernel(budget.case.to(torch.float64)).log_denominator
    torch.testing.assert_close(log_denominator, budget.expected.log_denominator, rtol=0, atol=1e-11)


@pytest.mark.parametrize("dtype", WIDE + NARROW, ids=str)
def test_empty_batch(dtype: torch.dtype) -> None:
    results = run_kernel(normal_case(0, 4, 3, 20, 20).to(dtype))
    assert results.output.shape == results.grad_values.shape == (0, 3, 20, 20)
    assert results.grad_features.shape == (0, 4, 20, 20)
    assert results.grad_features.dtype == results.output.dtype == dtype


@pytest.mark.parametrize("eps", [0.0, 1e-3])
@pytest.mark.parametrize("dtype", NARROW, ids=str)
@pytest.mark.parametrize("size", [(2, 9, 5, 7, 9), (2, 40, 3, 23, 31)], ids=str)
def test_narrow_inputs_are_widened_and_rounded_once(
    size: tuple[int, int, int, int, int], dtype: torch.dtype, eps: float
) -> None:
    case = normal_case(*size, sigma=3.0, eps=eps).to(dtype)
    wide = case.to(torch.float32)
    results, expected = run_kernel(case), run_kernel(wide)
    assert torch.equal(results.output, expected.output.to(dtype))
    assert results.log_denominator.dtype == torch.float32
    assert torch.equal(results.log_denominator, expected.log_denominator)

    forward = results.output.float(), results.log_denominator
    grads = torch.ops.blpseg.lam_backward(
        wide.grad_output, wide.features, wide.values, *forward, *wide.params
    )
    assert torch.equal(results.grad_features, grads[0].to(dtype))
    assert torch.equal(results.grad_values, grads[1].to(dtype))


@pytest.mark.parametrize("wanted", ["features", "values", "both"])
def test_autograd_hands_on_what_the_operators_make(wanted: str) -> None:
    case = normal_case(2, 12, 5, 19, 21, sigma=3.5, eps=1e-3, scale=0.4).to(torch.float32)
    expected = run_kernel(case)
    features, values = case.features.clone(), case.values.clone()
    features.requires_grad_(wanted != "values")
    values.requires_grad_(wanted != "features")
    output = blpseg_ops.lam(features, values, case.sigma, eps=case.eps, scale=case.scale)
    output.backward(case.grad_output)
    assert torch.equal(output, expected.output)
    for tensor, grad in ((features, expected.grad_features), (values, expected.grad_values)):
        assert (tensor.grad is not None) == tensor.requires_grad
        assert tensor.grad is None or torch.equal(tensor.grad, grad)


# What there is to compute differently: full and low rank, few and many tiles, the guard.
REPRESENTATIVE = [
    ("smooth", 0.0),
    ("the module's embedding", 0.0),
    ("the module's embedding", 1e-7),
    ("rank 5, 40 own directions", 0.0),
    ("norm 1", 1e-7),
    ("scale -1", 0.0),
    ("D 7", 1e-7),
    ("few gradients", 1e-7),
]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", WIDE, ids=str)
def test_every_variant(
    restore_variant: None, variant: str, dtype: torch.dtype, both_ways_to_sum_t: None
) -> None:
    _C.set_cpu_capability(variant)
    assert _C.cpu_capability() == variant
    for name, eps in REPRESENTATIVE:
        hostile(name, eps).check_kernel(dtype)


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_at_odd_sizes(restore_variant: None, variant: str) -> None:
    _C.set_cpu_capability(variant)
    for size in ((1, 1, 1, 1, 1), (3, 5, 7, 7, 9), (1, 70, 6, 19, 23)):
        budget = ErrorBudget(normal_case(*size, eps=1e-7))
        for dtype in WIDE:
            budget.check_kernel(dtype)


def test_the_operators_refuse_a_negative_radius() -> None:
    case = normal_case(1, 3, 2, 9, 9).to(torch.float32)
    for radius in (-1, -(2**63)):  # the latter has no opposite
        with pytest.raises(RuntimeError, match="expected radius >= 0"):
            run_kernel(replace(case, radius=radius))


def test_an_unknown_variant_is_refused(restore_variant: None) -> None:
    before = _C.cpu_capability()
    with pytest.raises(ValueError, match=f"one of {', '.join(VARIANTS)} .*, got 'mmx'"):
        _C.set_cpu_capability("mmx")
    assert _C.cpu_capability() == before


USE_A_VARIANT = """
import torch, blpseg_ops
x = torch.ones(1, 2, 3, 3)
assert torch.allclose(blpseg_ops.lam(x, x), x)
from blpseg_ops import _C
print(_C.cpu_capability())
"""


def test_the_environment_chooses_the_variant() -> None:
    variant = VARIANTS[0]  # the best, which is what is taken unasked, stands last
    done = run_program(USE_A_VARIANT, BLPSEG_CPU_CAPABILITY=variant)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [variant]


def test_the_environment_names_an_unknown_variant() -> None:
    done = run_program(USE_A_VARIANT, BLPSEG_CPU_CAPABILITY="mmx")
    assert done.returncode == 1
    said = done.stderr.splitlines()[-1]
    assert "BLPSEG_CPU_CAPABILITY" in said
    assert f"one of {', '.join(VARIANTS)} " in said
    assert said.endswith("got 'mmx'")


@pytest.mark.parametrize("dtype", WIDE, ids=str)
@pytest.mark.parametrize("name", ["smooth", "the module's embedding", "norms of all sizes"])
def test_the_number_of_threads_does_not_matter(
    restore_threads: None, name: str, dtype: torch.dtype
) -> None:
    case = replace(hostile(name, 0.0).case, eps=1e-7).to(dtype)
    case = case.map(lambda x: torch.cat([x, x.flip(2), x.flip(3)]))
    expected = run_kernel(case)
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        for _ in range(2):
            assert_equal(run_kernel(case), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("size", [(2, 9, 5, 7, 9), (2, 40, 3, 18, 23)], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_layout(layout: str, size: tuple[int, int, int, int, int], dtype: torch.dtype) -> None:
    laid_out = normal_case(*size, eps=1e-7).to(dtype).map(LAYOUTS[layout])
    contiguous = laid_out.map(torch.Tensor.contiguous)
    expected = run_kernel(contiguous)
    assert_equal(run_kernel(laid_out), expected)
    for name in ("features", "values", "grad_output"):
        tensor = getattr(laid_out, name)
        assert not tensor.is_contiguous()
        assert_equal(run_kernel(replace(contiguous, **{name: tensor})), expected)


def test_saved_tensors_of_any_layout() -> None:
    case = normal_case(2, 9, 5, 18, 23, eps=1e-7)
    forward = torch.ops.blpseg.lam(case.features, case.values, *case.params)
    inputs = case.grad_output, case.features, case.values
    expected = torch.ops.blpseg.lam_backward(*inputs, *forward, *case.params)
    transposed = (x.mT.contiguous().mT for x in forward)
    grads = torch.ops.blpseg.lam_backward(*inputs, *transposed, *case.params)
    assert torch.equal(grads[0], expected[0])
    assert torch.equal(grads[1], expected[1])


@pytest.mark.parametrize("axis", range(4), ids=["batch", "channels", "rows", "columns"])
def test_offsets_beyond_32_bits(axis: int) -> None:
    case = normal_case(2, 3, 3, 11, 10).to(torch.bfloat16)
    expected = run_kernel(case)
    for tensor in ("features", "values", "grad_output"):
        far = far_apart(getattr(case, tensor), axis)
        assert_equal(run_kernel(replace(case, **{tensor: far})), expected)


MEASURE_MEMORY = (
    MEASURE
    + """
from blpseg_ops import lam
def step(h, w):
    rng = torch.Generator().manual_seed(0)
    features = torch.randn(1, 256, h, w, generator=rng, requires_grad=True)
    values = torch.randn(1, 21, h, w, generator=rng, requires_grad=True)
    gradient = torch.randn(1, 21, h, w, generator=rng)
    def call():
        output = lam(features, values, eps=1e-7)
        output.backward(gradient)
        return output, features.grad, values.grad
    return beyond(call)
step(32, 32)
print(step(96, 96))
"""
)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_nothing_of_the_size_of_all_pairs_is_held() -> None:
    done = run_program(MEASURE_MEMORY)
    assert done.returncode == 0, done.stderr
    beyond = float(done.stdout)  # MiB; a float32 matrix of all pairs takes 324
    assert 0 < beyond < 57  # a fiftieth of what the published formulation takes


RUN_OUT_OF_MEMORY = """
import resource, torch
from blpseg_ops import lam
torch.set_num_threads(1)
def inputs(h, w):
    rng = torch.Generator().manual_seed(0)
    features = torch.randn(1, 256, 1, w, generator=rng).expand(-1, -1, h, -1)
    return features, features[:, :1]
small = inputs(12, 17)
expected = lam(*small)
pages = int(open("/proc/self/statm").read().split()[0])
limit = pages * resource.getpagesize() + 48 * 2**20
large = inputs(320, 320)  # 102400 pixels of 256 numbers: 100 MiB to compute with, 4 KiB to hold
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
for _ in range(2):
    try:
        lam(*large)
    except (MemoryError, RuntimeError) as error:
        print("refused:", error)
assert torch.equal(lam(*small), expected)
print("alive")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_too_little_memory_is_an_exception() -> None:
    done = run_program(RUN_OUT_OF_MEMORY)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("refused:") == 2
    assert done.stdout.endswith("alive\n")
