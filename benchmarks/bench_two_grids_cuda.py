"""``lam`` with queries on a GPU beside what projects write by hand: time, peak memory and error.

The cases and peers are those of bench_two_grids.py. **No GPU has run this yet.**
"""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch

from benchmarks.two_grids_cases import CASES, Case, call, make_inputs
from benchmarks.two_grids_peers import FLEX, OURS, PEERS, UNFOLD

if not torch.cuda.is_available():
    pytest.skip("no CUDA device", allow_module_level=True)

LARGEST = 2**36  # pairs up to which peers that visit all of them run
LARGEST_BACKWARD = 2**31  # plain PyTorch saves the weights of all pairs: 8 GiB


def _runs(peer: str, case: Case) -> bool:
    if peer == OURS:
        return True
    if peer == UNFOLD and case.radius is None:
        return False
    all_saved = case.backward and peer != FLEX
    return case.pairs <= (LARGEST_BACKWARD if all_saved else LARGEST)


BOTH = [case._replace(backward=backward) for case in CASES for backward in (False, True)]
PAIRS = [(peer, case) for case in BOTH for peer in PEERS if _runs(peer, case)]


@pytest.mark.parametrize(("peer", "case"), PAIRS, ids=[f"{peer}: {case}" for peer, case in PAIRS])
def test_two_grids_cuda(benchmark: Any, peer: str, case: Case) -> None:
    inputs = make_inputs(case, "cuda")
    with torch.device("cuda"):  # the peers' positions
        run = partial(call, PEERS[peer](case), case, inputs)

        def timed() -> tuple[torch.Tensor, ...]:
            results = run()
            torch.cuda.synchronize()
            return results

        timed()  # compiles
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        results = timed()
        peak = torch.cuda.max_memory_allocated() - before - sum(x.nbytes for x in results)
        benchmark.group = f"two grids on the GPU: {case}"
        benchmark.extra_info.update(case._asdict(), peer=peer, peak_bytes=peak)
        if peer != OURS:
            ours = call(PEERS[OURS](case), case, inputs)
            names = ("output", "grad_features", "grad_values", "grad_queries")
            benchmark.extra_info["errors"] = {
                name: float((found - expected).abs().max() / expected.abs().max())
                for name, found, expected in zip(names, results, ours, strict=False)
            }
        benchmark.pedantic(timed, rounds=10 if peer == OURS else 3, warmup_rounds=1)
