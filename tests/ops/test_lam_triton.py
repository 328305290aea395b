"""LAM's Triton kernels, forward and backward, in Triton's interpreter: no GPU is needed.

Triton decides at import whether it interprets, so test_triton_interpreter.py starts a process for
this file. To work on it: ``TRITON_INTERPRET=1 pytest tests/ops/test_lam_triton.py``. Dot products
are exact and rounded once here; test_lam_tensor_cores.py has tests with a chip's rounding.
"""

from __future__ import annotations

import math
import os
from dataclasses import replace

import pytest
import torch

from ._common import LAYOUTS
from ._lam_inputs import (
    CHECKED,
    RESULTS,
    Case,
    ErrorBudget,
    Results,
    assert_scores_agree,
    far_clusters,
    hostile,
    normal_case,
    probabilities,
    random_case,
    run_reference,
)

pytest.importorskip("triton", reason="no Triton for this platform")
if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("test_triton_interpreter.py runs this file", allow_module_level=True)

from . import _triton_interpreter

_triton_interpreter.prepare()


def _run(case: Case) -> Results:
    from blpseg_ops.triton.lam import lam, lam_backward

    return case.run(lam, lam_backward)


# By default most maps are as small as shows what they are here for, since the interpreter takes
# 20 ms per pair of tiles of 8 x 8 pixels.
ALL = os.environ.get("BLPSEG_TEST_ALL") == "1"


def _far_pixel() -> Case:
    case = normal_case(1, 16, 3, 9, 13, eps=1e-7)
    case.features[..., 0, 0] *= 1e5
    return case


# N, D, C, h, w and what else differs
CASES: dict[str, Case] = {
    "one pixel": normal_case(1, 5, 3, 1, 1),
    "one pixel, eps": normal_case(2, 1, 1, 1, 1, eps=1e-3),
    "one row": normal_case(1, 48, 3, 1, 37, sigma=2.0, eps=1e-7),
    "one column": normal_case(1, 5, 1, 35, 1, sigma=2.0),
    "odd": normal_case(3, 5, 7, 7, 9, sigma=2.5, scale=0.7),
    "odd, eps": normal_case(2, 64, 21, *((13, 17) if ALL else (9, 10)), sigma=2.5, eps=1e-3),
    "D 100, C 60": normal_case(
        1, 100, 60, *((16, 24) if ALL else (9, 10)), sigma=3.0, eps=1e-7, scale=1.3
    ),
    "D 300, C 130": normal_case(1, 300, 130, *((7, 9) if ALL else (7, 8)), sigma=3.0),
    "D 1": normal_case(1, 1, 3, 9, 23 if ALL else 14, sigma=2.0),
    "negative scale": normal_case(1, 16, 3, 9, 12, scale=-1.0, eps=1e-3),
    "large guard": normal_case(1, 9, 2, 10, 11, eps=3.0),
    "many tiles": normal_case(1, 3, 2, *((9, 57) if ALL else (5, 57)), sigma=0.7),
    "far pixel": _far_pixel(),
    "radius 0": normal_case(1, 5, 3, 9, 11, radius=0, eps=1e-3),
    "radius 3": normal_case(1, 40, 3, *((11, 19) if ALL else (9, 15)), sigma=2.5, radius=3),
    "radius 3, eps": normal_case(
        1, 5, 3, *((13, 27) if ALL else (9, 19)), sigma=9.0, radius=3, eps=1e-2, scale=-0.7
    ),
    "radius 9, eps": normal_case(
        1, 70, 3, *((3, 41) if ALL else (3, 33)), sigma=1e4, radius=9, eps=1e-2
    ),
    "radius 100, eps": normal_case(1, 5, 3, *((13, 17) if ALL else (9, 10)), radius=100, eps=1e-2),
}


@pytest.mark.parametrize("name", CASES)
def test_float32(name: str) -> None:
    budget = ErrorBudget(CASES[name])
    results = _run(budget.case)
    assert all(getattr(results, result).dtype == torch.float32 for result in RESULTS)
    budget.check(results)
    log_denominator = budget.expected.log_denominator.to(torch.float32)
    torch.testing.assert_close(results.log_denominator, log_denominator, rtol=1e-6, atol=1e-5)


HOSTILE = [
    ("unseen hot gradient", 1e-7),
    ("sigma 1e-20", 0.0),
]


@pytest.mark.parametrize(("name", "eps"), HOSTILE)
def test_hostile_inputs(name: str, eps: float) -> None:
    budget = hostile(name, eps, None, *((17, 24) if ALL else (9, 10)))
    budget.check(_run(budget.case))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_halves_are_multiplied_as_given(dtype: torch.dtype) -> None:
    case = normal_case(2, 20, 5, 11, 13, sigma=2.5, eps=1e-3).to(dtype)
    results = _run(case)
    assert all(getattr(results, name).dtype == dtype for name in CHECKED)
    assert results.log_denominator.dtype == torch.float32
    ErrorBudget(case).check_halves(results)


@pytest.mark.parametrize("dims", [16, 100] if ALL else [100])
def test_forward_and_backward_have_the_same_scores(dims: int) -> None:
    from blpseg_ops.triton.lam import lam, lam_backward

    features = far_clusters(*((9, 10) if ALL else (8, 12)), dims).to(torch.float32)
    assert_scores_agree(*probabilities(lam, lam_backward, features, 6.0, 0.0, 1.0, None))


# These differ in what the pack kernel has to do; test_layouts.py has all layouts of all ops.
PACKED_LAYOUTS = ("transposed", "channels_last", "strided, with an offset", "one image for all")


@pytest.mark.parametrize("layout", PACKED_LAYOUTS)
def test_any_layout(layout: str) -> None:
    laid_out = normal_case(2, 9, 5, 7, 9, eps=1e-7).to(torch.float32).map(LAYOUTS[layout])
    results, expected = _run(laid_out), _run(laid_out.map(torch.Tensor.contiguous))
    for name in RESULTS:
        assert torch.equal(getattr(results, name), getattr(expected, name)), name
    for name, like in zip(
        CHECKED, (laid_out.values, laid_out.features, laid_out.values), strict=True
    ):
        assert getattr(results, name).stride() == torch.empty_like(like).stride(), name


# GPUs make this one: a sum of its bits overflows.
NAN_OF_ALL_ONES = torch.tensor(2**31 - 1, dtype=torch.int32).view(torch.float32)


@pytest.mark.parametrize(
    ("tensor", "number"),
    [
        ("features", math.nan),
        ("features", NAN_OF_ALL_ONES),
        ("features", math.inf),
        ("values", math.inf),
        ("grad_output", math.nan),
    ],
)
def test_non_finite_numbers_show(tensor: str, number: float | torch.Tensor) -> None:
    # sigma is so small that the pixel's tile is skipped by all but its neighbors.
    finite = normal_case(2, 6, 3, 5, 24, sigma=0.5).to(torch.float32)
    changed = getattr(finite, tensor).clone()
    changed[1, 1, 3, 4] = number
    case = replace(finite, **{tensor: changed})
    results, expected = _run(case), run_reference(case)
    for name in RESULTS:
        hidden = getattr(results, name).isfinite() & ~getattr(expected, name).isfinite()
        assert not hidden.any(), name
        assert getattr(results, name)[0].isfinite().all(), name


def test_what_the_kernels_do_not_take_goes_to_the_fallback() -> None:
    for case in (
        normal_case(1, 3, 2, 4, 5),  # float64
        normal_case(1, 3, 257, 2, 2).to(torch.float32),
        normal_case(1, 513, 2, 2, 2).to(torch.float32),
    ):
        results, expected = _run(case), run_reference(case)
        for name in RESULTS:
            assert torch.equal(getattr(results, name), getattr(expected, name)), name


def test_empty_batch() -> None:
    results = _run(normal_case(0, 4, 3, 20, 20).to(torch.float32))
    assert results.output.shape == results.grad_values.shape == (0, 3, 20, 20)
    assert results.grad_features.shape == (0, 4, 20, 20)


@pytest.mark.parametrize("symmetric", [False, True])
def test_list_capacity_follows_the_window(symmetric: bool) -> None:
    from blpseg_ops.triton.lam_describe import describe
    from blpseg_ops.triton.lam_math import LamParams
    from blpseg_ops.triton.lam_pack import TileGrid, pack
    from blpseg_ops.triton.lam_tile_lists import list_tiles

    case = random_case(torch.ones(1, 4, 40, 48), sigma=1e3, eps=1.0, radius=9).to(torch.float32)
    grid, params = TileGrid.of(case.features, 1), LamParams.of(*case.params)
    packed = pack(case.features, grid, 64), pack(case.values, grid, 32)
    tiles = describe(*packed, grid, params, "sm_90", window=True)
    lists, lengths = list_tiles(tiles, grid, params, 1, "sm_90", window=True, symmetric=symmetric)
    assert lists.shape == (1, 30, 25)
    for query_tile in (0, 14, 17, 29):
        listed = lists[0, query_tile, : lengths[:, 0, query_tile].sum()].tolist()
        y, x = divmod(query_tile, 6)
        assert listed == [
            6 * row + column
            for row in range(max(y - 2, 0), min(y + 3, 5))
            for column in range(max(x - 2, 0), min(x + 3, 6))
        ]


def test_far_tiles_are_skipped() -> None:
    from blpseg_ops.triton.lam_describe import describe
    from blpseg_ops.triton.lam_math import LamParams
    from blpseg_ops.triton.lam_pack import TileGrid, pack
    from blpseg_ops.triton.lam_tile_lists import list_tiles

    case = random_case(torch.ones(1, 4, 8, 320), sigma=2.0).to(torch.float32)
    grid, params = TileGrid.of(case.features, 1), LamParams.of(*case.params)
    packed = pack(case.features, grid, 64), pack(case.values, grid, 32)
    tiles = describe(*packed, grid, params, "sm_90", window=False)
    lists, lengths = list_tiles(tiles, grid, params, 1, "sm_90", window=False, symmetric=False)
    # A weight is below 2^-24 / 2560 of the pixel's own beyond 2 sqrt(2 log(2^24 * 2560)) = 14.0
    # pixels, and pixels that are t tiles apart have a distance of at least 8 t - 7.
    for query_tile in range(40):
        listed = lists[0, query_tile, : lengths[:, 0, query_tile].sum()].tolist()
        assert listed == list(range(max(query_tile - 2, 0), min(query_tile + 3, 40)))


def _features_of_rank(rank: int, dims: int) -> torch.Tensor:  # [2, 9, 64, dims]
    """Return packed features; the second image has huge numbers, zeros, NaN and infinity."""
    generator = torch.Generator().manual_seed(0)
    axes = torch.linalg.qr(torch.randn(dims, rank, generator=generator))[0]
    sizes = 0.9 ** torch.arange(rank)
    features = torch.randn(2, 9, 64, rank, generator=generator) * sizes @ axes.T
    features[1] *= 1e15
    features[1, :, ::3] = 0
    features[1, 4, :, 7] = torch.tensor([math.nan, math.inf, -math.inf, 1.0]).repeat(16)
    return features


@pytest.mark.parametrize(("rank", "dims"), [(40, 128), (3, 128), (60, 384)])
def test_principal_directions(rank: int, dims: int) -> None:
    from blpseg_ops.triton.lam_directions import AXES, principal_directions

    features = _features_of_rank(rank, dims)
    directions = principal_directions(features, "sm_90")
    assert directions.shape == (2, dims, AXES)
    assert not directions[:, :, -1].any()
    products = directions.mT @ directions
    used = products.diagonal(dim1=1, dim2=2) > 0.5
    assert used[0].sum() == min(rank, AXES - 1)
    # What the bounds' proof asks for (docs/lam-gpu.md).
    torch.testing.assert_close(products, torch.diag_embed(used.float()), rtol=0, atol=2.0**-20)
    # Of the features' size, nearly as much is in these directions as in the best 15.
    pixels = features[0].flatten(0, 1)
    captured = (pixels @ directions[0]).square().sum()
    assert captured > 0.9 * torch.linalg.svdvals(pixels)[: AXES - 1].square().sum()


def test_directions_list_fewer_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pixels left and right differ in features that are not among the first 15."""
    from blpseg_ops.triton import lam, lam_config

    lists = []
    list_tiles = lam.list_tiles
    monkeypatch.setattr(
        lam,
        "list_tiles",
        lambda *args, **named: lists.append(list_tiles(*args, **named)) or lists[-1],
    )
    features = 0.3 * torch.randn(1, 100, 8, 32, generator=torch.Generator().manual_seed(0))
    features[:, 50, :, :16] += 9
    features[:, 60, :, 16:] += 9
    budget = ErrorBudget(random_case(features, sigma=1e3))
    for min_tiles in (1, 100):
        monkeypatch.setattr(lam_config, "MIN_TILES_FOR_DIRECTIONS", min_tiles)
        budget.check(_run(budget.case))
    # Forward and backward, with and without directions: 4 tiles, and all of them or half are kept.
    assert [one.list_lengths.sum().item() for one in lists] == [8, 8, 16, 16]


def test_gradients_under_loss_scaling_are_finite_where_the_result_is() -> None:
    case = normal_case(1, 64, 3, 9, 10, norm=0.5, sigma=1.0)
    case = replace(case, values=30 * case.values, grad_output=3000 * case.grad_output)
    budget = ErrorBudget(case.to(torch.float16))
    # The gradient fits in float16; the score gradients, sums over channels, exceed its 65504.
    assert 2**14 < budget.expected.grad_features.abs().max() < 2**15
    budget.check_halves(_run(case.to(torch.float16)))
