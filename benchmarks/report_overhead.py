"""The cost of a call on one pixel, in docs/performance.md."""

from __future__ import annotations

from typing import Any, NamedTuple

from benchmarks import tables
from benchmarks.bench_overhead import CASES, OURS, PEERS
from benchmarks.measured import read


class Call(NamedTuple):
    """A call of an op, with or without its backward pass."""

    op: str
    backward: bool


def report(result: dict[str, Any]) -> str:
    """Return the table as markdown."""
    results = read(result, "overhead", Call)

    def cell(peer: str, call: Call) -> str:
        if (peer, call) not in results:
            return ""
        microseconds = 1e6 * results[peer, call].seconds
        ours = 1e6 * results[OURS, call].seconds
        factor = "" if peer == OURS else f" (ours {ours / microseconds:.1f}x)"
        return f"{microseconds:.3g} us{factor}"

    rows = [
        (f"{op}, {'forward + backward' if backward else 'forward'}", *cells)
        for backward in (False, True)
        for op in CASES
        if any(cells := [cell(peer, Call(op, backward)) for peer in PEERS])
    ]
    return tables.table(["one pixel", *PEERS], rows)
