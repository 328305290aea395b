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
from .test_lam_two_grids import RESULTS, Case, by_reference, draw, hot, smooth

pytest.importorskip("triton", reason="no Triton for this platform")
if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("test_triton_interpreter.py runs this file", allow_module_level=True)

from . import _triton_interpreter

_triton_interpreter.prepare()


def _run(case: Case) -> dict[str, Tensor]:
    from blpseg_ops.triton.lam_two_grids import lam_two_grids, lam_two_grids_backward

    return case.run(lam_two_grids, lam_two_grids_backward)


def _errors(case: Case, found: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, float]:
    """Return errors relative to the largest number, or to the terms that a gradient sums.

    The nearest key's term of a score gradient is proportional to its value minus the output.
    """
    sizes = {name: expected[name].abs().max().item() for name in RESULTS}
    nearest_prob = (-expected["log_denominator"]).exp().clamp(max=1)
    values = case.values.abs().amax((2, 3), keepdim=True) + expected["output"].abs()
    term = (nearest_prob * (case.grad_output.abs() * values).sum(1)).max().item()
    length = {
        name: getattr(case, name).norm(dim=1).max().item() for name in ("queries", "features")
    }
    scale = abs(case.scale)
    terms = {
        "log_denominator": max(1.0, scale * length["queries"] * length["features"]),
        "grad_queries": scale * length["features"] * term,
        "grad_features": scale * length["queries"] * term,
        "grad_inv_two_sigma_sq": term * sum(side**2 for side in case.features.shape[2:]),
    }
    return {
        name: (found[name].double() - expected[name]).abs().max().item()
        / max(size, terms.get(name, 0.0))
        for name, size in sizes.items()
    }


def check(case: Case, family: str | None = None) -> None:
    """Assert that errors are at most twice those of plain float32, plus a few roundings."""
    case = case.to(torch.float32)
    expected = case.to(torch.float64).fallback()
    plain = _errors(case, case.fallback(), expected)
    if family is None:
        results = _run(case)
    else:
        with _triton_interpreter.emulate(family):
            results = _run(case)
    for name, error in _errors(case, results, expected).items():
        allowed = 2 * plain[name] + 1e-6
        assert results[name].dtype == torch.float32
        assert error <= allowed, f"{name}: off by {error:.1e}, allowed {allowed:.1e}"


# Keys, queries, D, C and what else differs; each runs exactly or with the rounding of a family.
CASES: dict[str, tuple[str | None, Case]] = {
    "one key": ("sm_80", draw((1, 1), (3, 5), 3, 1, n=2)),
    "odd, eps": ("sm_90", draw((5, 9), (9, 7), 50, 21, n=1, eps=1e-3, scale=0.7)),
    "radius 0.5": (None, draw((9, 3), (7, 5), 3, 1, n=1, radius=0.5)),
    "radius 3.5, eps": ("sm_80", draw((5, 10), (10, 7), 5, 3, n=1, radius=3.5, eps=1e-2)),
    "D 70, no Gaussian": (None, draw((4, 5), (7, 8), 70, 3, n=1, inv=0.0)),
    "C 200, fewer queries": ("sm_90", draw((4, 5), (2, 3), 5, 200, n=1, inv=0.3)),
    "nearest key only": ("sm_90", draw((4, 5), (8, 8), 4, 3, n=1, inv=1e20)),
    "negative scale": (None, smooth(draw((4, 9), (8, 16), 12, 3, n=1, scale=-1.0), 20.0)),
}


@pytest.mark.parametrize("name", CASES)
def test_float32(name: str) -> None:
    family, case = CASES[name]
    check(case, family)


def _hot_key() -> Case:
    case = draw((8, 9), (8, 9), 16, n=1)
    return replace(case, features=hot(case.features, 50.0))


def _hot_value() -> Case:
    case = smooth(draw((8, 9), (8, 9), 16, n=1), 20.0)
    return replace(case, values=hot(case.values, 1e6))


def _few_gradients() -> Case:
    case = smooth(draw((8, 9), (16, 8), 16, n=1), 20.0)
    return replace(case, grad_output=hot(case.grad_output * 0, 1.0))


HOSTILE = {"hot key": _hot_key, "hot value": _hot_value, "few gradients": _few_gradients}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_inputs(name: str) -> None:
    check(HOSTILE[name](), "sm_80")


def test_sums_over_bands_and_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bands of 8 rows and two parts of the list; the window keeps most tiles out of most lists."""
    from blpseg_ops.triton import lam_two_grids

    monkeypatch.setattr(lam_two_grids, "BAND", 1)
    monkeypatch.setattr(lam_two_grids, "KEY_PROGRAMS", 8)
    check(draw((9, 5), (12, 6), n=1, radius=2.0))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_halves_are_multiplied_as_given(dtype: torch.dtype) -> None:
    case = draw((5, 9), (9, 7), 20, 5, n=1, norm=2.0, eps=1e-3).to(dtype)
    results, expected = _run(case), case.to(torch.float64).fallback()
    for name in ("output", "grad_queries", "grad_features", "grad_values"):
        assert results[name].dtype == dtype
        allowed = 4 * torch.finfo(dtype).eps * expected[name].abs().max()
        error = (results[name].double() - expected[name]).abs().max()
        assert error <= allowed, f"{name}: off by {error:.1e}, allowed {allowed:.1e}"


def test_channels_last() -> None:
    case = draw((3, 4), (7, 8), n=1).to(torch.float32)
    maps = ("queries", "features", "values", "grad_output")
    laid_out = {name: LAYOUTS["channels_last"](getattr(case, name)) for name in maps}
    contiguous = {name: x.contiguous() for name, x in laid_out.items()}
    found, expected = _run(replace(case, **laid_out)), _run(replace(case, **contiguous))
    for name in RESULTS:
        assert torch.equal(found[name], expected[name]), name
    for name in maps[:3]:
        assert found["grad_" + name].stride() == torch.empty_like(laid_out[name]).stride()
    assert found["output"].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("tensor", ["features", "grad_output"])
def test_non_finite_numbers_show(tensor: str) -> None:
    finite = draw((2, 9), (3, 9), n=1, inv=2.0).to(torch.float32)
    changed = hot(getattr(finite, tensor), math.nan)
    case = replace(finite, **{tensor: changed})
    results, expected = _run(case), case.fallback()
    for name in RESULTS:
        hidden = results[name].isfinite() & ~expected[name].isfinite()
        assert not hidden.any(), name


def test_what_the_kernels_do_not_take_goes_to_the_fallback() -> None:
    for case in (
        draw((2, 2), (3, 3)),  # float64
        draw((2, 2), (3, 3), c=1025, n=1).to(torch.float32),
        draw((2, 2), (3, 3), d=513, n=1).to(torch.float32),
    ):
        results, expected = _run(case), case.fallback()
        for name in RESULTS:
            assert torch.equal(results[name], expected[name]), name


def test_empty_batch() -> None:
    results = _run(draw((9, 7), (20, 31), n=0).to(torch.float32))
    assert results["output"].shape == (0, 3, 20, 31)
    assert results["grad_queries"].shape == (0, 5, 20, 31)


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
    case = draw(keys, queries, n=1, d=4, **params)
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


def test_gradients_are_the_references() -> None:
    case = draw((4, 3), (7, 8), n=1, inv=0.2, eps=0.2, scale=-0.7, radius=2.2)
    expected = by_reference(case)
    found = _run(case.to(torch.float32))
    for name in ("grad_queries", "grad_features", "grad_values"):
        torch.testing.assert_close(found[name].double(), expected[name], rtol=1e-4, atol=1e-4)
