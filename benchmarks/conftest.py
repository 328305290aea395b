"""Settings that all benchmarks share.

With ``--benchmark-json=benchmarks/results/NAME.json`` the medians and the machine's description are
written; the raw samples, the host's name and the like are left out.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from blpseg_ops import __version__, _native

_KEPT = ("min", "median", "iqr", "rounds")


def pytest_benchmark_update_json(
    config: pytest.Config, benchmarks: list[Any], output_json: dict[str, Any]
) -> None:
    """Reduce the result file to what a reader can use."""
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
def _forget_compiled_graphs() -> Iterator[None]:
    """Give every peer that torch.compile makes a cache of its own."""
    torch.compiler.reset()
    yield
