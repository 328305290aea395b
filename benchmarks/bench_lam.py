"""``lam`` beside what one would run in PyTorch: time, peak memory and error.

Features are what the model's embedding makes of photos, or random. All peers but ours look at every
pair of pixels, or of a window's, so that their time hardly depends on the features: they run on one
photo in full.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache, partial
from typing import Any

import pytest
from torch import Tensor

from benchmarks.lam_cases import (
    CITYSCAPES,
    DOUBLE,
    HOSTILE,
    RANDOM,
    SECOND_PHOTO,
    TRAINING,
    WINDOWS,
    Case,
    call,
    make_inputs,
)
from benchmarks.lam_peers import (
    COMPILED,
    COMPILES,
    EAGER,
    FLEX,
    OURS,
    PEERS,
    SDPA,
    UNFOLD,
    UNFOLD_COMPILED,
    WHOLE,
)
from benchmarks.memory import measure_peaks

# Ours runs at every size, the others where a call takes less than about 5 s. FlexAttention has no
# backward on the CPU. What compiles takes 10 s to do so, each time: two small sizes less.
SMALL = tuple(TRAINING._replace(h=side, w=side) for side in (32, 48, 64))
SQUARES = tuple(TRAINING._replace(h=side, w=side) for side in (128, 192, 256))
FORWARD = {
    OURS: (*SMALL, TRAINING, *SQUARES, CITYSCAPES, DOUBLE),
    EAGER: (*SMALL, TRAINING, SQUARES[0]),
    COMPILED: (SMALL[1], TRAINING, SQUARES[0]),
    SDPA: (*SMALL, TRAINING, SQUARES[0]),
    FLEX: (SMALL[1], TRAINING),
}
BACKWARD = {
    OURS: FORWARD[OURS],
    EAGER: (*SMALL, TRAINING),
    COMPILED: (SMALL[1], TRAINING),
    SDPA: (*SMALL, TRAINING),
    FLEX: (),
}
# A window of radius 6 unfolded takes 1.6 GB at 96 x 96 and 22 GB at 256 x 512.
IN_WINDOWS = {
    OURS: WINDOWS,
    UNFOLD: WINDOWS[:2],
    UNFOLD_COMPILED: WINDOWS[1:2],
    FLEX: WINDOWS[1::2],
}


@lru_cache
def _cases(smoke: bool) -> list[tuple[str, Case]]:
    """Peers and what they are measured on; for a smoke test the training size alone, shrunk."""
    pairs = sorted(_all(), key=lambda pair: str(pair[1]))  # equal cases in a row, and ours first
    if not smoke:
        return pairs
    return [(peer, case.shrunk()) for peer, case in pairs if case.pixels == TRAINING.pixels]


def _all() -> Iterator[tuple[str, Case]]:
    for peer in WHOLE:
        for case in FORWARD[peer]:
            yield peer, case
        for case in BACKWARD[peer]:
            yield peer, case._replace(backward=True)
    for peer, cases in IN_WINDOWS.items():
        for case in cases:
            yield peer, case
            if peer != FLEX:
                yield peer, case._replace(backward=True)
    for backward in (False, True):
        for peer in (OURS, EAGER, COMPILED):  # an additive bias can't express eps > 0
            yield peer, TRAINING._replace(eps=1e-7, backward=backward)
        for peer in (OURS, EAGER):
            yield peer, SECOND_PHOTO._replace(backward=backward)
    yield OURS, CITYSCAPES._replace(eps=1e-7)
    for case in HOSTILE:
        yield OURS, case
        yield SDPA, case


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One benchmark for each peer and case."""
    pairs = _cases(smoke=metafunc.config.getoption("benchmark_disable"))
    metafunc.parametrize("peer, case", pairs, ids=[f"{peer}: {case}" for peer, case in pairs])


def test_lam(benchmark: Any, peer: str, case: Case) -> None:
    if case.source not in RANDOM:
        pytest.importorskip("skimage")
    benchmark.group = f"lam: {case}"
    benchmark.extra_info.update(case._asdict(), peer=peer)
    if _wants_memory(case) and (peaks := _peaks(peer, benchmark.disabled)):
        benchmark.extra_info["peak_bytes"] = peaks[case]

    inputs = make_inputs(case)
    run = partial(call, PEERS[peer](case), case, inputs)
    if case.pixels > TRAINING.pixels:
        rounds = 3 if peer == OURS else 1
    else:
        rounds = 20 if peer == OURS else 3
    # What compiles does so in its first call; other first calls differ little, and medians forget.
    result = benchmark.pedantic(run, rounds=rounds, warmup_rounds=int(peer in COMPILES))

    # Scores near 500 in float32 move weights by 1e-4; anything more is a bug in one of the two.
    if peer != OURS:
        assert max(_errors(result, call(PEERS[OURS](case), case, inputs))) < 1e-3
    if case.backward and case.pixels <= TRAINING.pixels:
        errors = _errors(result, _truth(case))
        assert max(errors) < 1e-3
        names = ("output", "grad_features", "grad_values")
        benchmark.extra_info["errors"] = dict(zip(names, errors, strict=True))


def _wants_memory(case: Case) -> bool:
    return (case.source, case.eps) == (TRAINING.source, 0)


@lru_cache
def _peaks(peer: str, smoke: bool) -> dict[Case, int]:
    """Peak memory over all sizes, from one process for each peer."""
    cases = [case for p, case in _cases(smoke) if p == peer and _wants_memory(case)]
    cases.sort(key=lambda case: (case.pixels, case.backward))
    return measure_peaks("lam", peer, cases)


@lru_cache(maxsize=1)
def _truth(case: Case) -> tuple[Tensor, ...]:
    run = partial(PEERS[OURS](case), backend="reference")
    features, values, grad_output = (tensor.detach().double() for tensor in make_inputs(case))
    return call(run, case, (features.requires_grad_(), values.requires_grad_(), grad_output))


def _errors(result: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> list[float]:
    """Largest difference of each tensor, relative to the largest number that is expected."""
    return [
        float((a - b).abs().max() / b.abs().max()) for a, b in zip(result, expected, strict=True)
    ]
