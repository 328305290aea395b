"""What a result file holds on ``lam``."""

from __future__ import annotations

from math import nan
from typing import Any, NamedTuple

from benchmarks.lam_cases import Case


class Measured(NamedTuple):
    """One peer on one case."""

    seconds: float  # median
    peak_bytes: float  # nan where it was not measured
    errors: dict[str, float]  # of each tensor, relative to its largest number


Results = dict[tuple[str, Case], Measured]


def read(result: dict[str, Any]) -> Results:
    """All measurements of ``lam`` by peer and case."""
    results: Results = {}
    for benchmark in result["benchmarks"]:
        if benchmark["name"].startswith("test_lam["):
            info = benchmark["extra_info"]
            case = Case(*(info[field] for field in Case._fields))
            results[info["peer"], case] = Measured(
                benchmark["stats"]["median"], info.get("peak_bytes", nan), info.get("errors", {})
            )
    return results
