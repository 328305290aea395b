"""LAM's Triton kernels with the rounding of tensor cores, checked as test_cuda.py checks a device.

Runs in Triton's interpreter, as test_lam_triton.py does, with the launches of the family emulated.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Any

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
)

pytest.importorskip("triton", reason="no Triton for this platform")
if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("test_triton_interpreter.py runs this file", allow_module_level=True)

from . import _triton_interpreter

_triton_interpreter.prepare()

# Each input runs on one family of chips, in turn, and each hostile one with one eps.
# BLPSEG_TEST_ALL=1 runs all combinations, on larger maps, which takes minutes more.
ALL = os.environ.get("BLPSEG_TEST_ALL") == "1"

# Maps of hostile inputs have 2 tiles, or 4, since the interpreter takes 20 ms per pair of tiles.
# Some have more: what they are compared with, the plain formulation's error, is small by luck on
# fewer pixels.
SMALL = (9, 10) if ALL else (8, 12)
LARGER = {"all features equal": (11, 18), "scale -1": (11, 18)}
if not ALL:
    LARGER |= dict.fromkeys(("far pixel 1e3", "far pixels", "unseen hot value"), (9, 10))
FAMILIES = ("sm_80", "sm_90")
EPS_AND_FAMILY = [(0.0, "sm_80"), (1e-7, "sm_90"), (1e-7, "sm_80"), (0.0, "sm_90")]

# N, D, C, h, w, eps: the widths of test_cuda.py's, on smaller maps. Three of the widest have one
# tile by default; "rank 5" and "the module's embedding" have several tiles at D 128 and 256.
SIZES = [
    (1, 1, 1, 1, 1, 0.0),
    (1, 300, 60, 1, 11, 1e-7),
    (3, 5, 7, 7, 9, 1e-3),
    (2, 64, 21, 9, 7, 0.0),
    (1, 128, 171, 7, 10 if ALL else 8, 1e-7),
    (1, 256, 21, 7, 10 if ALL else 8, 0.0),
    (1, 512, 256, 5, 9 if ALL else 8, 1e-3),
    (1, 50, 21, 9, 17, 1e-7),
]
HALF_DTYPES = (torch.bfloat16, torch.float16)


def _in_turn(cases: Iterable[Any], others: Sequence[Any]) -> list[tuple[Any, Any]]:
    """Return each case with one of the others, in turn; with all of them if ALL."""
    if ALL:
        return [(case, other) for case in cases for other in others]
    return [(case, others[i % len(others)]) for i, case in enumerate(cases)]


def _run(case: Case, family: str) -> Results:
    from blpseg_ops.triton.lam import lam, lam_backward

    with _triton_interpreter.emulate(family):
        return case.run(lam, lam_backward)


@pytest.mark.parametrize(("size", "family"), _in_turn(SIZES, FAMILIES[::-1]), ids=str)
def test_float32(size: tuple[int, int, int, int, int, float], family: str) -> None:
    *shape, eps = size
    budget = ErrorBudget(normal_case(*shape, sigma=2.5, eps=eps, scale=0.7))
    budget.check(_run(budget.case, family))


HALVES = _in_turn(SIZES, HALF_DTYPES)
# Two sizes in a row run on one family, so that each dtype runs on both.
HALVES_AND_FAMILY = (
    _in_turn(HALVES, FAMILIES)
    if ALL
    else [(half, FAMILIES[i // 2 % 2]) for i, half in enumerate(HALVES)]
)


@pytest.mark.parametrize(("half", "family"), HALVES_AND_FAMILY, ids=str)
def test_halves(
    half: tuple[tuple[int, int, int, int, int, float], torch.dtype], family: str
) -> None:
    (*shape, eps), dtype = half
    case = normal_case(*shape, sigma=2.5, eps=eps, scale=0.7).to(dtype)
    results = _run(case, family)
    assert all(getattr(results, name).dtype == dtype for name in CHECKED)
    ErrorBudget(case).check_halves(results)


@pytest.mark.parametrize(("name", "eps_and_family"), _in_turn(HOSTILE, EPS_AND_FAMILY), ids=str)
def test_hostile_inputs(name: str, eps_and_family: tuple[float, str]) -> None:
    eps, family = eps_and_family
    budget = hostile(name, eps, None, *LARGER.get(name, SMALL))
    budget.check(_run(budget.case, family))


@pytest.mark.parametrize(("dims", "family"), _in_turn((50, 200), FAMILIES))
def test_forward_and_backward_have_the_same_scores(dims: int, family: str) -> None:
    from blpseg_ops.triton.lam import lam, lam_backward

    features = far_clusters(*SMALL, dims).to(torch.float32)
    with _triton_interpreter.emulate(family):
        assert_scores_agree(*probabilities(lam, lam_backward, features, 6.0, 0.0, 1.0, None))
