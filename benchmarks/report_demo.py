"""The tables of `blpseg demo`: mean and standard deviation over its seeds."""

from __future__ import annotations

from typing import Any

from benchmarks import tables
from blpseg.ablation.results import Spread
from blpseg.metrics import DistanceBin


def report(result: dict[str, Any]) -> str:
    """Return mIoU, boundary IoU and accuracy near borders as markdown."""
    rows = [
        _row("mIoU", _values(result, "miou")),
        _row("boundary IoU", _values(result, "boundary_miou")),
        _row("accuracy within 3 px of a border", _accuracies(result, 0)),
    ]
    return f"{tables.table(_heads(result), rows)}\n\n{_command(result)}"


def by_distance(result: dict[str, Any]) -> str:
    """Return mIoU, boundary IoU and accuracy by the distance to a border as markdown."""
    rows = [
        _row("mIoU", _values(result, "miou")),
        _row("boundary IoU", _values(result, "boundary_miou")),
    ]
    one, *_ = next(iter(result["scores"].values()))
    for index, content in enumerate(one["by_border_distance"]):
        span = DistanceBin(**content).span
        rows.append(_row(f"accuracy, {span} px from a border", _accuracies(result, index)))
    return f"{tables.table(_heads(result), rows)}\n\n{_command(result)}"


def _command(result: dict[str, Any]) -> str:
    seeds = result["seeds"]
    given = "" if seeds == [0] else f" --seeds=[{','.join(map(str, seeds))}]"
    return f"Made by `blpseg demo{given}`; ± is the standard deviation over the seeds."


def _heads(result: dict[str, Any]) -> list[str]:
    seeds = len(result["seeds"])
    runs = f"{seeds} seeds" if seeds > 1 else "one run"
    return [f"{result['val_scenes']} built-in scenes, {runs}, in %", *result["scores"], "gain"]


def _values(result: dict[str, Any], field: str) -> dict[str, list[float]]:
    return {name: [one[field] for one in of] for name, of in result["scores"].items()}


def _accuracies(result: dict[str, Any], index: int) -> dict[str, list[float]]:
    return {
        name: [one["by_border_distance"][index]["accuracy"] for one in of]
        for name, of in result["scores"].items()
    }


def _row(title: str, values: dict[str, list[float]]) -> tuple[str, ...]:
    baseline, method = values.values()
    gain = Spread.of([ours - theirs for ours, theirs in zip(method, baseline, strict=True)])
    return (
        title,
        *(Spread.of(of).percent() for of in (baseline, method)),
        gain.percent(signed=True),
    )
