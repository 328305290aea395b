"""``lam`` on a GPU: time, peak memory and error, with a batch as in training.

Peers stand in bench_lam_cuda_peers.py, so that their compilers' time cannot cost these results.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.lam_cases import Run
from benchmarks.lam_cuda_cases import TRAINING, Case, call, make_inputs, our_cases
from benchmarks.lam_peers import OURS, PEERS

if not torch.cuda.is_available():
    pytest.skip("no CUDA device", allow_module_level=True)

CASES = our_cases()


@pytest.mark.parametrize("case", CASES, ids=str)
def test_lam_cuda(benchmark: Any, case: Case) -> None:
    measure(benchmark, OURS, PEERS[OURS], case, rounds=10)


def test_matrix_rate(benchmark: Any) -> None:
    """The rate that matrix units reach on a plain product, to hold others against."""
    size = 8192
    a, b = (torch.randn(size, size, device="cuda", dtype=torch.bfloat16) for _ in range(2))

    def timed() -> None:
        torch.mm(a, b)
        torch.cuda.synchronize()

    benchmark.group = "bfloat16 matrix product"
    benchmark.extra_info["operations"] = 2 * size**3
    benchmark.pedantic(timed, rounds=20, warmup_rounds=5)


def measure(
    benchmark: Any, peer: str, make_run: Callable[[Case], Run], case: Case, rounds: int
) -> None:
    """Measure one peer on one case; the first call compiles and is not timed."""
    inputs = make_inputs(case, "cuda")
    with torch.device("cuda"):
        run = partial(call, make_run(case), case, inputs)
    run()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    results = run()
    torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated() - before - sum(x.nbytes for x in results)
    benchmark.extra_info.update(case._asdict(), peer=peer, peak_bytes=peak)
    if case.pixels <= TRAINING.pixels:
        benchmark.extra_info["errors"] = _errors(case, inputs, results)
    if peer == OURS:
        benchmark.extra_info["kernels"] = _seconds_per_kernel(run)

    def timed() -> None:
        run()
        torch.cuda.synchronize()

    benchmark.group = f"lam on the GPU: {case}"
    benchmark.pedantic(timed, rounds=rounds, warmup_rounds=2)


def _errors(
    case: Case, inputs: tuple[Tensor, Tensor, Tensor], results: tuple[Tensor, ...]
) -> dict[str, float]:
    """Largest difference from float64 on the first image, relative to the largest number."""
    one = case._replace(n=1, dtype="float64")
    first = tuple(x.detach()[:1].double().requires_grad_(x.requires_grad) for x in inputs)
    reference = partial(PEERS[OURS](case), backend="reference")
    truth = call(reference, one, first)
    names = ("output", "grad_features", "grad_values")
    return {
        name: float((got[:1].double() - wanted).abs().max() / wanted.abs().max())
        for name, got, wanted in zip(names, results, truth, strict=False)
    }


def _seconds_per_kernel(run: Callable[[], object]) -> dict[str, float]:
    """Device time of each kernel in one call, as the profiler sees it; empty if it sees none."""
    try:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            run()
            torch.cuda.synchronize()
    except (AssertionError, RuntimeError):  # a machine where CUPTI is missing or not permitted
        return {}
    return {
        event.key: event.self_device_time_total / 1e6
        for event in profile.key_averages()
        if event.self_device_time_total > 0
    }
