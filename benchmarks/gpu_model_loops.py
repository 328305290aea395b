"""Which loop of the source a loop of machine code is, and how often each of them runs.

Machine code has the source line of each instruction, so a loop of machine code is the source loop
that most of its instructions come from.
"""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from benchmarks.gpu_model_sass import Chain, Cost, Loop, cost

COVERED = 0.6  # share of a loop's instructions that come from the source loop


class SourceLoop(NamedTuple):
    """A loop as it is written."""

    first: int  # line of the header
    last: int
    header: str
    unrolled: bool


# Iterations per program of the loop with this chain (its header's line in place of the innermost
# line); None where that is not known. The second argument is the iterations of the loop around it.
Trips = Callable[[Chain, float], float | None]


# How often an instruction with this chain is executed per iteration of the loop around it: less
# than 1 in code behind a condition.
Share = Callable[[Chain], float]


def total_cost(whole: Loop, trips: Trips, share: Share = lambda chain: 1.0) -> Cost:
    """What one warp does in all of a kernel."""
    total = Cost()
    _add(total, whole, 1.0, (), trips, share)
    return total


def _add(
    total: Cost,
    loop: Loop,
    iterations: float,
    around: tuple[Chain, ...],
    trips: Trips,
    share: Share,
) -> None:
    shares = [share(one.chain) for one in loop.own]
    for value in set(shares):
        part = [one for one, of_one in zip(loop.own, shares, strict=True) if of_one == value]
        total.add(cost(part), value * iterations)
    chains = [identify(inner, around) for inner in loop.inner]
    for inner, chain in zip(loop.inner, chains, strict=True):
        found = trips(chain, iterations) if chain else None
        if found is None:
            found = iterations  # a loop that waits, or that runs once
        elif chains.count(chain) > 1:  # unrolled by the compiler, and what is left over
            found = _split(loop, inner, chains, chain, found)
        _add(total, inner, found, (*around, chain) if chain else around, trips, share)


def _split(
    loop: Loop, inner: Loop, chains: list[Chain | None], chain: Chain, iterations: float
) -> float:
    """Iterations of one of several machine loops that were made of one source loop."""
    sizes = [len(other.own) for other, key in zip(loop.inner, chains, strict=True) if key == chain]
    factor = max(1, round(max(sizes) / min(sizes)))
    return iterations // factor if len(inner.own) == max(sizes) else iterations % factor


def identify(loop: Loop, around: tuple[Chain, ...]) -> Chain | None:
    """Find the outermost source loop, not one of those around, that most instructions come from."""
    counts: Counter[Chain] = Counter()
    for one in loop.own:
        for depth, (file, line) in enumerate(one.chain):
            for source in _source_loops(file):
                if source.first <= line <= source.last and not source.unrolled:
                    counts[((file, source.first), *one.chain[depth + 1 :])] += 1
    enough = [
        chain
        for chain, count in counts.items()
        if count >= COVERED * len(loop.own) and chain not in around
    ]
    # The outermost: called from fewest functions, and beginning first.
    return min(enough, key=lambda chain: (len(chain), chain[0][1]), default=None)


def header(chain: Chain) -> str:
    """The loop's header and, behind it, the lines of the calls that lead to it."""
    return " <- ".join(_lines(file)[line - 1].strip() for file, line in chain)


def is_behind(chain: Chain, condition: str) -> bool:
    """Whether a line follows, in its block, one that matches and skips the rest (``continue``)."""
    return any(
        first < line <= last for file, line in chain for first, last in _skipped(file, condition)
    )


@lru_cache
def _skipped(file: str, condition: str) -> list[tuple[int, int]]:
    lines = _lines(file)
    found = [i for i, line in enumerate(lines) if re.search(condition, line)]
    return [(i + 1, _end_of_block(lines, i) + 1) for i in found]


def _end_of_block(lines: list[str], start: int) -> int:
    """The last line of the block that a line of C++ stands in."""
    indent = len(lines[start]) - len(lines[start].lstrip())
    for i in range(start + 1, len(lines)):
        blank = not lines[i].strip() or lines[i].startswith("#")
        if not blank and len(lines[i]) - len(lines[i].lstrip()) < indent:
            return i - 1
    return len(lines) - 1


@lru_cache
def _lines(file: str) -> list[str]:
    return Path(file).read_text().splitlines() if Path(file).exists() else []


@lru_cache
def _source_loops(file: str) -> list[SourceLoop]:
    lines = _lines(file)
    if file.endswith(".py"):
        nodes = [
            node for node in ast.walk(ast.parse("\n".join(lines))) if isinstance(node, ast.For)
        ]
        return [
            SourceLoop(
                node.lineno,
                node.end_lineno or node.lineno,
                lines[node.lineno - 1].strip(),
                "static_range" in lines[node.lineno - 1],
            )
            for node in nodes
            if "blpseg" in file
        ]
    if "csrc" not in file:
        return []
    found = [i for i, line in enumerate(lines) if re.match(r"\s*(for|while) \(", line)]
    return [
        SourceLoop(
            i + 1,
            _end(lines, i) + 1,
            lines[i].strip(),
            lines[i - 1].strip() == "#pragma unroll",  # with a number behind it, a loop is left
        )
        for i in found
    ]


def _end(lines: list[str], start: int) -> int:
    """The last line of a statement of C++ that is indented as clang-format does."""
    indent = len(lines[start]) - len(lines[start].lstrip())
    end = start
    for i in range(start + 1, len(lines)):
        if not lines[i].strip() or lines[i].startswith("#"):
            continue
        if len(lines[i]) - len(lines[i].lstrip()) <= indent:
            return i if lines[i].strip().startswith("}") else end
        end = i
    return end
