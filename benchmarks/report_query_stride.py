"""The table in docs/evaluation.md: what LAM at finer query strides gains, and what it costs."""

from __future__ import annotations

from typing import Any

from benchmarks import tables


def report(result: dict[str, Any]) -> str:
    """Return the table as markdown, and what was measured."""
    coarse, *_ = result["results"]
    rows = [
        (
            str(row["stride"]),
            *(_score(row, coarse, field) for field in ("miou", "boundary_miou")),
            f"{row['seconds']:.2f} s",
        )
        for row in result["results"]
    ]
    heads = ["`--query_stride`", "mIoU, %", "boundary IoU, %", "time per image"]
    machine = result["machine"]
    return (
        f"{tables.table(heads, rows)}\n\n{result['images']} images, one network on "
        f"{result['backbone']}, trained at stride {result['trained_at']}; in parentheses the gain "
        f"over stride {coarse['stride']}. Median times on {machine['cpu']}, threads: "
        f"{machine['threads']}; torch {machine['torch']}."
    )


def _score(row: dict[str, Any], coarse: dict[str, Any], field: str) -> str:
    text = f"{100 * row[field]:.1f}"
    return text if row is coarse else f"{text} ({100 * (row[field] - coarse[field]):+.1f})"
