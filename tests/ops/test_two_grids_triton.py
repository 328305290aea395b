"""LAM's Triton kernels between two grids, in Triton's interpreter: no GPU is needed.

test_triton_interpreter.py starts a process for this file, as for test_lam_triton.py. Maps are as
small as shows what they are here for: the interpreter takes 20 ms per pair of tiles and kernel.
"""

from __future__ import annotations

import math
import os
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from ._common import LAYOUTS
from ._two_grids_inputs import (
    HOSTILE,
    RESULTS,
    Case,
    ErrorBudget,
    Results,
    assert_equal,
    hot,
    normal_case,
    run_fallback,
    smooth,
)

pytest.importorskip("triton", reason="no Triton for this platform")
if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("test_triton_interpreter.py runs this file", allow_module_level=True)

from . import _triton_interpreter

_triton_interpreter.prepare()


def _run(case: Case) -> Results:
    from blpseg_ops.triton.lam_two_grids import lam_two_grids, lam_two_grids_backward

    return case.run(lam_two_grids, lam_two_grids_backward)


def check(case: Case, family: str | None = None) -> None:
    """Assert that errors in float32 are within the error budget."""
    budget = ErrorBudget(case)
    if family is None:
        results = _run(budget.case)
    else:
        with _triton_interpreter.emulate(family):
            results = _run(budget.case)
    assert all(getattr(results, name).dtype == torch.float32 for name in RESULTS)
    budget.check(results)


# Keys, queries, D, C and what else differs; each runs exactly or with the rounding of a family.
CASES: dict[str, tuple[str | None, Case]] = {
    "one key": ("sm_80", normal_case((1, 1), (3, 5), 3, 1, n=2)),
    "odd, eps": ("sm_90", normal_case((5, 9), (9, 7), 50, 21, n=1, eps=1e-3, scale=0.7)),
    "radius 0.5": (None, normal_case((9, 3), (7, 5), 3, 1, n=1, radius=0.5)),
    "radius 3.5, eps": ("sm_80", normal_case((5, 10), (10, 7), 5, 3, n=1, radius=3.5, eps=1e-2)),
    "D 70, no Gaussian": (None, normal_case((4, 5), (7, 8), 70, 3, n=1, inv=0.0)),
    "C 200, fewer queries": ("sm_90", normal_case((4, 5), (2, 3), 5, 200, n=1, inv=0.3)),
    "nearest key only": ("sm_90", normal_case((4, 5), (8, 8), 4, 3, n=1, inv=1e20)),
    "all parameters": (
        None,
        normal_case((4, 3), (7, 8), n=1, inv=0.2, eps=0.2, scale=-0.7, radius=2.2),
    ),
    "negative scale": (None, smooth(normal_case((4, 9), (8, 16), 12, 3, n=1, scale=-1.0), 20.0)),
}


@pytest.mark.parametrize("name", CASES)
def test_float32(name: str) -> None:
    family, case = CASES[name]
    check(case, family)


@pytest.mark.parametrize("name", ["hot key", "hot value", "few gradients"])
def test_hostile_inputs(name: str) -> None:
    case = normal_case((8, 9), (16, 8) if "gradients" in name else (8, 9), 16, n=1)
    check(HOSTILE[name](case), "sm_80")


def test_sums_over_bands_and_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bands of 8 rows and two parts of the list; the window keeps most tiles out of most lists."""
    from blpseg_ops.triton import lam_two_grids

    monkeypatch.setattr(lam_two_grids, "BAND", 1)
    monkeypatch.setattr(lam_two_grids, "KEY_PROGRAMS", 8)
    check(normal_case((9, 5), (12, 6), n=1, radius=2.0))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_halves_are_multiplied_as_given(dtype: torch.dtype) -> None:
    case = normal_case((5, 9), (9, 7), 20, 5, n=1, norm=2.0, eps=1e-3).to(dtype)
    results = _run(case)
    assert results.output.dtype == results.grad_queries.dtype == dtype
    assert results.grad_features.dtype == results.grad_values.dtype == dtype
    ErrorBudget(case).check_halves(results)


def test_channels_last() -> None:
    case = normal_case((3, 4), (7, 8), n=1).to(torch.float32)
    laid_out = case.map(LAYOUTS["channels_last"])
    results = _run(laid_out)
    assert_equal(results, _run(case))
    for name in ("queries", "features", "values"):
        grad = getattr(results, "grad_" + name)
        assert grad.stride() == torch.empty_like(getattr(laid_out, name)).stride()
    assert results.output.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("tensor", ["features", "grad_output"])
def test_non_finite_numbers_show(tensor: str) -> None:
    finite = normal_case((2, 9), (3, 9), n=1, inv=2.0).to(torch.float32)
    changed = hot(getattr(finite, tensor), math.nan)
    case = replace(finite, **{tensor: changed})
    results, expected = _run(case), run_fallback(case)
    for name in RESULTS:
        hidden = getattr(results, name).isfinite() & ~getattr(expected, name).isfinite()
        assert not hidden.any(), name


def test_what_the_kernels_do_not_take_goes_to_the_fallback() -> None:
    for case in (
        normal_case((2, 2), (3, 3)),  # float64
        normal_case((2, 2), (3, 3), c=1025, n=1).to(torch.float32),
        normal_case((2, 2), (3, 3), d=513, n=1).to(torch.float32),
    ):
        assert_equal(_run(case), run_fallback(case))


def test_empty_batch() -> None:
    results = _run(normal_case((9, 7), (20, 31), n=0).to(torch.float32))
    assert results.output.shape == (0, 3, 20, 31)
    assert results.grad_queries.shape == (0, 5, 20, 31)


def _lists(case: Case, of_keys: bool) -> tuple[Tensor, Tensor]:  # of the first image
    from blpseg_ops.triton.lam_two_grids import Keys

    case = case.to(torch.float32)
    maps = case.features, case.values, case.queries
    keys = Keys.of(*maps, case.inv_two_sigma_sq, case.eps, case.scale, case.radius)
    band = keys.describe_band(case.queries, 0, case.queries.shape[2], 1)
    lists = keys.list_other_tiles(band, 1, of_keys=of_keys, bands=1)
    return lists.tile_lists[0], lists.list_lengths[0]


def _alike(keys: tuple[int, int], queries: tuple[int, int], **params: Any) -> Case:
    """Return a case in which all features are 1, so that positions alone decide."""
    case = normal_case(keys, queries, n=1, d=4, **params)
    ones = {name: torch.ones_like(getattr(case, name)) for name in ("features", "queries")}
    return replace(case, **ones)


@pytest.mark.parametrize("of_keys", [False, True])
def test_lists_hold_what_a_window_reaches(of_keys: bool) -> None:
    """Keys are 2 queries apart; a window of 4.75 keys reaches 9.5 queries."""
    keys, queries = torch.arange(32.0), (torch.arange(64) + 0.5) / 2 - 0.5
    own, other = (keys, queries) if of_keys else (queries, keys)
    lists, lengths = _lists(_alike((8, 32), (16, 64), inv=0.0, radius=4.75), of_keys)
    other_columns, other_rows = len(other) // 8, 2 if of_keys else 1
    assert lists.shape[1] < other_columns * other_rows
    for block in range(len(lengths)):
        places = own.reshape(-1, 8)[block % (len(own) // 8)]
        sees = ((other[:, None] - places).abs() <= 4.75).any(1).reshape(-1, 8).any(1)
        columns = sees.nonzero().flatten().tolist()
        assert lists[block, : lengths[block]].tolist() == [
            row * other_columns + column for row in range(other_rows) for column in columns
        ]


@pytest.mark.parametrize("of_keys", [False, True])
def test_far_tiles_are_skipped(of_keys: bool) -> None:
    """With sigma 1, all beyond 8 keys add up to less than 2^-24 of the nearest key's weight."""
    lists, lengths = _lists(_alike((8, 64), (8, 64), inv=0.5), of_keys)
    for block in range(8):
        listed = lists[block, : lengths[block]].tolist()
        assert listed == list(range(max(block - 1, 0), min(block + 2, 8)))
