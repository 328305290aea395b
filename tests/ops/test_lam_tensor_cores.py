"""LAM's Triton kernels with the rounding of tensor cores, checked as test_cuda.py checks a device.

Runs in Triton's interpreter, as test_lam_triton.py does, with the launches of the family emulated.
"""

from __future__ import annotations

import os

import pytest
import torch

from ._lam_inputs import (
    CHECKED,
    HOSTILE,
    Case,
    ErrorBudget,
    Results,
    assert_scores_agree,
    far_clusters,
    hostile,
    normal_case,
    probabilities,
    run_with,
)

pytest.importorskip("triton", reason="no Triton for this platform")
if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("test_triton_interpreter.py runs this file", allow_module_level=True)

from . import _triton_interpreter

_triton_interpreter.prepare()

FAMILIES = pytest.mark.parametrize("family", ["sm_80", "sm_90"])
# Maps of hostile inputs have 4 tiles, since the interpreter takes 20 ms per pair of tiles. Two have
# 6: what they are compared with, the plain formulation's error, is small by luck on 90 pixels.
SMALL = (9, 10)
LARGER = {"all features equal": (11, 18), "scale -1": (11, 18)}

# Each hostile input runs on one family and with one eps, in turn. BLPSEG_TEST_ALL=1 runs all four
# combinations, which takes three minutes more.
COMBINATIONS = [(0.0, "sm_80"), (1e-7, "sm_90"), (1e-7, "sm_80"), (0.0, "sm_90")]
if os.environ.get("BLPSEG_TEST_ALL") == "1":
    HOSTILE_CASES = [(name, *combination) for name in HOSTILE for combination in COMBINATIONS]
else:
    HOSTILE_CASES = [(name, *COMBINATIONS[i % 4]) for i, name in enumerate(HOSTILE)]

# N, D, C, h, w, eps: the widths of test_cuda.py's, on smaller maps
SIZES = [
    (1, 1, 1, 1, 1, 0.0),
    (1, 300, 60, 1, 11, 1e-7),
    (3, 5, 7, 7, 9, 1e-3),
    (2, 64, 21, 9, 7, 0.0),
    (1, 128, 171, 7, 10, 1e-7),
    (1, 256, 21, 7, 10, 0.0),
    (1, 512, 256, 5, 9, 1e-3),
    (1, 50, 21, 9, 17, 1e-7),
]


def _run(case: Case, family: str) -> Results:
    from blpseg_ops.triton.lam import lam, lam_backward

    with _triton_interpreter.emulate(family):
        return run_with(lam, lam_backward, case)


@FAMILIES
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_float32(size: tuple[int, int, int, int, int, float], family: str) -> None:
    *shape, eps = size
    budget = ErrorBudget(normal_case(*shape, sigma=2.5, eps=eps, scale=0.7))
    budget.check(_run(budget.case, family))


@FAMILIES
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_halves(
    size: tuple[int, int, int, int, int, float], dtype: torch.dtype, family: str
) -> None:
    *shape, eps = size
    case = normal_case(*shape, sigma=2.5, eps=eps, scale=0.7).to(dtype)
    results = _run(case, family)
    assert all(getattr(results, name).dtype == dtype for name in CHECKED)
    ErrorBudget(case).check_halves(results)


@pytest.mark.parametrize(("name", "eps", "family"), HOSTILE_CASES)
def test_hostile_inputs(name: str, eps: float, family: str) -> None:
    budget = hostile(name, eps, None, *LARGER.get(name, SMALL))
    budget.check(_run(budget.case, family))


@FAMILIES
@pytest.mark.parametrize("dims", [50, 200])
def test_forward_and_backward_have_the_same_scores(dims: int, family: str) -> None:
    from blpseg_ops.triton.lam import lam, lam_backward

    features = far_clusters(9, 10, dims).to(torch.float32)
    with _triton_interpreter.emulate(family):
        assert_scores_agree(*probabilities(lam, lam_backward, features, 6.0, 0.0, 1.0, None))
