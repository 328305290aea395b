"""The tables in docs/performance.md of ``lam`` with queries."""

from __future__ import annotations

from typing import Any

from benchmarks import tables
from benchmarks.measured import Results, read
from benchmarks.two_grids_cases import CASES, Case
from benchmarks.two_grids_peers import FILL, OURS, PEERS


def report(result: dict[str, Any]) -> str:
    """Return times and peak memory as markdown, and how far ahead of the fastest peer we are."""
    results = read(result, "two_grids", Case)
    floors = read(result, "output_alone", Case)
    parts = []
    for backward in (False, True):
        cases = [case._replace(backward=backward) for case in CASES]
        heads = ["forward + backward" if backward else "forward", *map(_head, CASES)]
        peers = [p for p in PEERS if any((p, case) in results for case in cases)]
        rows = [(p, *(tables.time(results, p, case, OURS) for case in cases)) for p in peers]
        fastest = ("ahead of the fastest", *(_lead(results, case) for case in cases))
        if not backward:
            rows.append((FILL, *(tables.time(floors, FILL, case, FILL) for case in cases)))
        parts.append(tables.table(heads, [*rows, fastest]))
        heads[0] = "peak memory"
        rows = [(p, *(tables.memory(results, p, case, OURS) for case in cases)) for p in peers]
        share = ("blpseg_ops / output", *(_share(results, case) for case in cases))
        parts.append(tables.table(heads, [*rows, share]))
    info = result["machine_info"]
    parts.append(f"{info['cpu']}, {info['threads']} threads; torch {info['torch']}.")
    return "\n\n".join(parts)


def _head(case: Case) -> str:
    window = "" if case.radius is None else f", radius {case.radius:g}"
    sizes = f"{case.height} x {case.width} from {case.h} x {case.w}"
    return f"{sizes}, D {case.d}, C {case.c}{window}"


def _lead(results: Results, case: Case) -> str:
    peers = [results[p, case].seconds for p in PEERS if p != OURS and (p, case) in results]
    if not peers or (OURS, case) not in results:
        return ""
    return f"{min(peers) / results[OURS, case].seconds:.1f}x"


def _share(results: Results, case: Case) -> str:
    """Return (output + peak beyond inputs and outputs) / output."""
    if (OURS, case) not in results:
        return ""
    output = 4 * case.c * case.height * case.width
    return f"{1 + results[OURS, case].peak_bytes / output:.2f}"
