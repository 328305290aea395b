"""Format tables, times, sizes and goals as markdown."""

from __future__ import annotations

from collections.abc import Iterable
from math import isnan
from typing import Any

from benchmarks.measured import Results

Goal = tuple[str, float, float]  # name, goal, measured


def goals(at_least: Iterable[Goal], at_most: Iterable[Goal]) -> str:
    """Return a table of goals and a sentence that names the missed ones."""
    rows = [
        *((name, f"at least {goal:g}", f"{got:.3g}", got >= goal) for name, goal, got in at_least),
        *((name, f"at most {goal:g}", f"{got:.3g}", got <= goal) for name, goal, got in at_most),
    ]
    filled = table(
        ["", "goal", "measured"],
        [(name, goal, got if met else f"**{got}**, missed") for name, goal, got, met in rows],
    )
    missed = [name for name, *_, met in rows if not met]
    verdict = f"Missed: {'; '.join(missed)}." if missed else "All goals are reached."
    return f"{filled}\n\n{verdict}"


def time(results: Results, peer: str, case: Any, ours: str) -> str:
    """Return the median time; for a peer, also the factor to ours."""
    if (peer, case) not in results:
        return ""
    seconds = results[peer, case].seconds
    text = f"{seconds:.2f} s" if seconds >= 1 else f"{1e3 * seconds:.3g} ms"
    return text if peer == ours else f"{text} ({seconds / results[ours, case].seconds:.1f}x)"


def memory(results: Results, peer: str, case: Any, ours: str) -> str:
    """Return the peak memory; for a peer, also the factor to ours."""
    if (peer, case) not in results or isnan(peak := results[peer, case].peak_bytes):
        return ""
    text = f"{peak / 1e6:.3g} MB" if peak < 1e9 else f"{peak / 1e9:.2f} GB"
    return text if peer == ours else f"{text} ({peak / results[ours, case].peak_bytes:.0f}x)"


def table(heads: list[str], rows: Iterable[tuple[str, ...]]) -> str:
    """Return a table as markdown."""
    lines = [heads, ["---"] * len(heads), *rows]
    # A bar would end the cell.
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines
    )
