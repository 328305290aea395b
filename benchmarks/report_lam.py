"""``lam`` in docs/performance.md, and its goals."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from benchmarks import plot_lam, tables
from benchmarks.lam_cases import (
    CITYSCAPES,
    DOUBLE,
    HOSTILE,
    SECOND_PHOTO,
    TRAINING,
    WINDOWS,
    Case,
)
from benchmarks.lam_peers import (
    COMPILED,
    EAGER,
    KEEPS_MATRIX,
    OURS,
    SDPA,
    WHOLE,
    WINDOWED,
    bytes_kept,
)
from benchmarks.measured import Results, read

_time, _memory = partial(tables.time, ours=OURS), partial(tables.memory, ours=OURS)


def report(result: dict[str, Any]) -> str:
    """Return all tables as markdown."""
    results = read(result, "lam", Case)
    parts = [
        "### At training size",
        _training(results),
        "With eps = 1e-7, as published:",
        _eps(results),
        "### Other features",
        "Forward at 96 x 96, eps 0. |f| is the length of a feature vector.",
        _features(results),
        "### Large images",
        _large(results),
        f"![Time and peak memory against the number of pixels]({plot_lam.PICTURE})",
        plot_lam.why_peers_stop(results),
        "### In a window",
        "A pixel sees the pixels at most `radius` rows and columns away. eps 0.",
        _windows(results, _time),
        "Peak memory:",
        _windows(results, _memory),
        "### Error",
        "Largest difference from float64, relative to the largest number of that tensor.",
        _error(results),
    ]
    return "\n\n".join(parts)


def goals(result: dict[str, Any]) -> str:
    """Return the table of goals as markdown."""
    results = read(result, "lam", Case)

    def seconds(peer: str, case: Case) -> float:
        return results[peer, case].seconds

    def faster(peer: str, case: Case) -> float:
        return seconds(peer, case) / seconds(OURS, case)

    both = TRAINING._replace(backward=True)
    worst_error = max(
        error / results[EAGER, case].errors[name]
        for case in (both, both._replace(source=SECOND_PHOTO.source), both._replace(eps=1e-7))
        for name, error in results[OURS, case].errors.items()
    )
    eps_cost = seconds(OURS, both._replace(eps=1e-7)) / seconds(OURS, both)
    memory = results[EAGER, both].peak_bytes / results[OURS, both].peak_bytes
    growth = seconds(OURS, DOUBLE) / seconds(OURS, CITYSCAPES)
    at_least = [
        ("forward, faster than published", 30, faster(EAGER, TRAINING)),
        ("forward, faster than SDPA", 10, faster(SDPA, TRAINING)),
        ("forward + backward, faster than published", 25, faster(EAGER, both)),
        ("forward + backward, faster than SDPA", 8, faster(SDPA, both)),
        ("random features, faster than SDPA", 1.5, min(faster(SDPA, case) for case in HOSTILE)),
        ("forward + backward, less peak memory than published", 50, memory),
    ]
    at_most = [
        ("forward + backward, eps 1e-7 over eps 0", 2.5, eps_cost),
        ("256 x 512, forward, seconds", 4.0, seconds(OURS, CITYSCAPES)),
        ("256 x 512, forward, peak memory in GB", 1.0, results[OURS, CITYSCAPES].peak_bytes / 1e9),
        ("512 x 512 over 256 x 512, forward", 2.5, growth),
        ("error over the error of published, worst tensor", 2.0, worst_error),
    ]
    return tables.goals(at_least, at_most)


def _training(results: Results) -> str:
    both = TRAINING._replace(backward=True)
    rows = [
        (
            peer,
            _time(results, peer, TRAINING),
            _time(results, peer, both),
            _memory(results, peer, TRAINING),
            _memory(results, peer, both),
            f"{bytes_kept(peer, both) / 1e6:.0f} MB" if peer in KEEPS_MATRIX else "",
        )
        for peer in WHOLE
    ]
    heads = ["", "forward", "forward + backward"]
    heads += ["peak, forward", "peak, forward + backward", "kept for all calls"]
    return tables.table(heads, rows)


def _eps(results: Results) -> str:
    cases = [TRAINING._replace(eps=1e-7, backward=backward) for backward in (False, True)]
    rows = [
        (peer, *(_time(results, peer, case) for case in cases)) for peer in (OURS, EAGER, COMPILED)
    ]
    return tables.table(["", "forward", "forward + backward"], rows)


def _features(results: Results) -> str:
    rows = [
        (
            f"{case.source}, sigma {case.sigma:g}",
            *(_time(results, peer, case) for peer in (OURS, SDPA, EAGER)),
        )
        for case in (TRAINING, SECOND_PHOTO, *HOSTILE)
    ]
    return tables.table(["features", OURS, SDPA, EAGER], rows)


def _large(results: Results) -> str:
    rows = []
    for case in (CITYSCAPES, DOUBLE, CITYSCAPES._replace(eps=1e-7)):
        both = case._replace(backward=True)
        rows.append(
            (
                f"{case.h} x {case.w}, eps {case.eps:g}",
                _time(results, OURS, case),
                _time(results, OURS, both),
                _memory(results, OURS, case),
                _memory(results, OURS, both),
            )
        )
    heads = ["", "forward", "forward + backward", "peak, forward", "peak, forward + backward"]
    return tables.table(heads, rows)


def _windows(results: Results, written: Callable[[Results, str, Case], str]) -> str:
    rows = []
    for case in (
        size._replace(backward=backward) for backward in (False, True) for size in WINDOWS
    ):
        what = "forward + backward" if case.backward else "forward"
        name = f"{case.h} x {case.w}, radius {case.radius}, {what}"
        rows.append((name, *(written(results, peer, case) for peer in WINDOWED)))
    return tables.table(["", *WINDOWED], rows)


def _error(results: Results) -> str:
    both = TRAINING._replace(backward=True)
    cases = (both, both._replace(eps=1e-7), both._replace(source=SECOND_PHOTO.source))
    found = [
        (f"{peer}, {case.source}, eps {case.eps:g}", results[peer, case].errors.values())
        for case in cases
        for peer in WHOLE
        if (peer, case) in results
    ]
    rows = [(name, *(f"{error:.1e}" for error in errors)) for name, errors in found]
    return tables.table(["", "output", "gradient of features", "gradient of values"], rows)
