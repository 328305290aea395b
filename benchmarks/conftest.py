"""Settings that all benchmarks share.

``--benchmark-json=benchmarks/results/NAME.json`` writes medians and a description of the machine,
without raw samples, the host's name and the like. pytest-benchmark writes that file at the end and
not at all if it is interrupted, so ``BENCH_SECONDS=100`` skips all benchmarks that would start more
than 100 seconds after the first.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from blpseg_ops import __version__, _native

_KEPT = ("min", "median", "iqr", "rounds")
_START = time.monotonic()


def pytest_benchmark_update_json(
    config: pytest.Config, benchmarks: list[Any], output_json: dict[str, Any]
) -> None:
    """Keep of the result file what a reader can use."""
    cpu = output_json["machine_info"].get("cpu", {})
    output_json["machine_info"] = {
        "cpu": cpu.get("brand_raw", platform.processor()),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "blpseg": __version__,
        "native": _native.build_info(),
    }
    output_json.pop("commit_info", None)
    for benchmark in output_json["benchmarks"]:
        benchmark["stats"] = {key: benchmark["stats"][key] for key in _KEPT}
        benchmark.pop("options", None)


@pytest.fixture(autouse=True)
def _stop_in_time() -> None:
    limit = float(os.environ.get("BENCH_SECONDS", "inf"))
    if time.monotonic() - _START > limit:
        pytest.skip(f"BENCH_SECONDS={limit:g} have passed")


@pytest.fixture(autouse=True)
def _forget_compiled_graphs() -> Iterator[None]:
    """Give every compiled peer an empty cache of torch.compile."""
    torch.compiler.reset()
    yield
