"""Reads the result files of benchmarks."""

from __future__ import annotations

from math import nan
from typing import Any, NamedTuple


class Measured(NamedTuple):
    """One peer on one case."""

    seconds: float  # median
    peak_bytes: float  # nan where it was not measured
    errors: dict[str, float]  # by tensor, relative to its largest number
    kernels: dict[str, float]  # device seconds by kernel, where a profiler has seen them


Results = dict[tuple[str, Any], Measured]  # by peer and case


def read(result: dict[str, Any], name: str, case_type: Any) -> Results:
    """Return all measurements of the benchmark test_NAME."""
    results: Results = {}
    for benchmark in result["benchmarks"]:
        if benchmark["name"].startswith(f"test_{name}["):
            info = benchmark["extra_info"]
            fields = {**case_type._field_defaults, **info}  # older files lack newer fields
            case = case_type(*(fields[field] for field in case_type._fields))
            results[info["peer"], case] = Measured(
                benchmark["stats"]["median"],
                info.get("peak_bytes", nan),
                info.get("errors", {}),
                info.get("kernels", {}),
            )
    return results
