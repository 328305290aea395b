"""The tables in docs/segmenter.md: scores and times of interactive segmentation."""

from __future__ import annotations

from statistics import mean
from typing import Any

from benchmarks import tables


def report(result: dict[str, Any]) -> str:
    """Return the table as markdown, and where it was made."""
    found = {(row["method"], row["strokes"]): row for row in result["results"]}
    methods = [*dict.fromkeys(method for method, _ in found)]
    strokes = sorted({count for _, count in found})
    most = strokes[-1]
    rows = [
        (
            method,
            *(f"{found[method, count]['mean_iou']:.3f}" for count in strokes),
            f"{found[method, most]['first_seconds']:.2f} s",
            f"{found[method, most]['stroke_seconds']:.2f} s",
            str(found[method, most]["photos"]),
        )
        for method in methods
    ]
    heads = [f"{count} stroke{'s' if count > 1 else ''}" for count in strokes]
    table = tables.table(["method", *heads, "first", "stroke", "photographs"], rows)
    return f"{table}\n\n{_where(result)}"


def starts(result: dict[str, Any]) -> str:
    """Return the mean IoU of networks that train from a segmenter and from a fresh start."""
    curves: dict[str, list[dict[str, float]]] = {}
    for one in result["curves"]:
        start = f"{one['start']}, learning rate {one['learning_rate']:g}"
        curves.setdefault(start, []).append(one["miou"])
    iterations = [*next(iter(curves.values()))[0]]
    rows = [
        (start, *(f"{mean(run[i] for run in runs):.3f}" for i in iterations))
        for start, runs in curves.items()
    ]
    table = tables.table(["start", *(f"{i} iterations" for i in iterations)], rows)
    return (
        f"{table}\n\n{len(result['train'])} photographs to train on, {len(result['val'])} to "
        f"score on; seeds: {len(result['curves']) // len(curves)}. The segmenter itself: "
        f"{result['segmenter']:.3f}. {_where(result)}"
    )


def next_stroke(result: dict[str, Any]) -> str:
    """Return the mean IoU after dots at the places that each rule names."""
    rows = [
        (rule, *(f"{score:.3f}" for score in scores)) for rule, scores in result["mean_iou"].items()
    ]
    table = tables.table(["next dot at", *(f"{dots} dots" for dots in result["dots"])], rows)
    return f"{table}\n\n{len(result['photos'])} photographs. {_where(result)}"


def _where(result: dict[str, Any]) -> str:
    machine = result["machine"]
    threads = machine["threads"]
    plural = "" if threads == 1 else "s"
    return f"{machine['cpu']}, {threads} thread{plural}; torch {machine['torch']}."
