"""The training step in docs/performance.md: its parts, with our ops and with plain PyTorch."""

from __future__ import annotations

from typing import Any

from benchmarks import tables
from benchmarks.measured import read
from benchmarks.step_cases import OURS, PARTS, PEERS, Case


def report(result: dict[str, Any]) -> str:
    """Return the table as markdown."""
    results = read(result, "step", Case)
    rows = [
        (part, *(tables.time(results, peer, Case(part), ours=OURS) for peer in PEERS))
        for part in PARTS
    ]
    return tables.table(["part of the step", *PEERS], rows)
