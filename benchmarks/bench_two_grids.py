"""``lam`` with queries beside what projects write by hand: time, peak memory and error.

``pytest benchmarks/bench_two_grids.py --benchmark-json=benchmarks/results/two-grids.json``; without
``--benchmark-json`` the table is printed alone.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch

from benchmarks.memory import measure_peaks
from benchmarks.two_grids_cases import CASES, STREET, Case, call, make_inputs
from benchmarks.two_grids_peers import COMPILES, FILL, FLEX, OURS, PEERS, UNFOLD

LARGEST = 2**33  # pairs up to which peers that visit all of them run: a minute
# Plain PyTorch saves the weights of all pairs for its backward: 822 MB at 448 x 448 from 32 x 32.
# FlexAttention fails to allocate its buffers at 384 x 384 from 96 x 96, with 24 GB of memory.
LARGEST_STORED = 2**28


def _runs(peer: str, case: Case) -> bool:
    if peer == OURS:
        return True
    if peer == UNFOLD:  # with backward it keeps all windows: more than 24 GB
        return case.radius is not None and not case.backward
    if peer == FLEX:  # no backward on the CPU
        return not case.backward and case.pairs <= LARGEST_STORED
    return case.pairs <= (LARGEST_STORED if case.backward else LARGEST)


def _pairs(smoke: bool) -> list[tuple[str, Case]]:
    """Peers and cases; for a smoke test two cases, shrunk."""
    cases = [case._replace(backward=backward) for case in CASES for backward in (False, True)]
    pairs = [(peer, case) for case in cases for peer in PEERS if _runs(peer, case)]
    if not smoke:
        return pairs
    return [(peer, case.shrunk()) for peer, case in pairs if case[:6] == CASES[0][:6]]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One benchmark for each peer and case."""
    if "peer" not in metafunc.fixturenames:
        metafunc.parametrize("case", CASES, ids=map(str, CASES))
        return
    pairs = _pairs(smoke=metafunc.config.getoption("benchmark_disable"))
    metafunc.parametrize("peer, case", pairs, ids=[f"{peer}: {case}" for peer, case in pairs])


def test_output_alone(benchmark: Any, case: Case) -> None:
    """What no implementation avoids: new memory for the output, written once."""
    benchmark.group = f"two grids: {case}"
    benchmark.extra_info.update(case._asdict(), peer=FILL)
    size = (1, case.c, case.height, case.width)
    benchmark.pedantic(lambda: torch.empty(size).fill_(1), rounds=5, warmup_rounds=1)


def test_two_grids(benchmark: Any, peer: str, case: Case) -> None:
    benchmark.group = f"two grids: {case}"
    benchmark.extra_info.update(case._asdict(), peer=peer)
    if not benchmark.disabled and (peaks := measure_peaks("two_grids", peer, [case])):
        benchmark.extra_info["peak_bytes"] = peaks[case]  # beyond inputs and outputs
        output = 4 * case.c * case.height * case.width
        benchmark.extra_info["peak_per_output"] = 1 + peaks[case] / output
    inputs = make_inputs(case)
    run = partial(call, PEERS[peer](case), case, inputs)
    rounds = 5 if peer == OURS and case[:6] != STREET[:6] else 1
    result = benchmark.pedantic(
        run, rounds=rounds, warmup_rounds=int(peer in COMPILES or rounds > 1)
    )
    if peer != OURS:
        expected = call(PEERS[OURS](case), case, inputs)
        for found, ours in zip(result, expected, strict=True):
            assert (found - ours).abs().max() <= 1e-3 * ours.abs().max()
