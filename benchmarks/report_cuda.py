"""Tables of what ran on a GPU: ``python -m benchmarks.report_cuda RESULTS.json... > TABLES.md``.

Several files of one device, ours and the peers', make one table per case.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def tables(results: list[dict[str, Any]]) -> Iterator[str]:
    """Markdown, line by line: a table per case; of dense cases the fraction of the matrix rate."""
    info = results[0]["machine_info"]
    yield f"{info['gpu']}; torch {info['torch']}, blpseg {info['blpseg']}"
    groups: dict[str, list[dict[str, Any]]] = {}
    for benchmark in (benchmark for result in results for benchmark in result["benchmarks"]):
        groups.setdefault(benchmark["group"], []).append(benchmark)
    products = groups.pop("bfloat16 matrix product", [])
    rate = max((_rate(b) for b in products), default=0.0)
    if rate:
        yield f"\nPlain bfloat16 matrix product: {rate / 1e12:.0f} TFLOP/s"
    for group, benchmarks in groups.items():
        yield f"\n{group}\n\n| | ms | peak MB | errors |\n|---|---|---|---|"
        for benchmark in benchmarks:
            extra, seconds = benchmark["extra_info"], benchmark["stats"]["median"]
            errors = ", ".join(f"{error:.1e}" for error in extra.get("errors", {}).values())
            peak = f"{extra['peak_bytes'] / 1e6:.4g}" if "peak_bytes" in extra else ""
            name = extra.get("peer", benchmark["name"])
            if rate and group.startswith("lam") and _is_dense(extra):
                done = 2 * extra["n"] * (extra["h"] * extra["w"]) ** 2
                fraction = done * (extra["dims"] + extra["channels"]) / seconds / rate
                name += f" ({fraction:.0%} of the matrix rate)"
            yield f"| {name} | {1e3 * seconds:.3g} | {peak} | {errors} |"


def _is_dense(case: dict[str, Any]) -> bool:
    """Whether a case is a forward pass of LAM in which no pair of pixels can be left out."""
    return not case["backward"] and case["sigma"] > case["w"] / 2


def _rate(benchmark: dict[str, Any]) -> float:
    return benchmark["extra_info"]["operations"] / benchmark["stats"]["median"]


if __name__ == "__main__":
    for line in tables([json.loads(Path(file).read_text()) for file in sys.argv[1:]]):
        print(line)
