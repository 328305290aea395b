"""The table in docs/segmenter.md: scores and times of interactive segmentation."""

from __future__ import annotations

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
    machine = result["machine"]
    return f"{table}\n\n{machine['cpu']}, {machine['threads']} threads; torch {machine['torch']}."
