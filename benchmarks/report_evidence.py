"""Fill the tables of docs/evidence.md from the result files of the evidence, and draw its curves.

``python -m benchmarks.report_evidence`` reads benchmarks/results/evidence-SET.json and
self-training-acdc.json, the ``ablation.json`` of `blpseg ablate`, and pseudo-labels-acdc.json. It
fills the tables and writes docs/images/evidence-SET.png. ``--check`` writes nothing and fails if
the page differs from the files.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

from benchmarks.report import ROOT, _fill
from benchmarks.tables import table
from blpseg.curves import distance_curves
from blpseg.metrics import Scores

RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "evidence.md"
PICTURES = ROOT / "docs" / "images"
SETS = ("acdc", "animals")
DRAWN = ("partial cross entropy", "LAM + BLP", "full supervision")
_SHOWN_THRESHOLDS = ("0.7", "0.9", "0.99")


def scores(result: dict[str, Any]) -> str:
    """Return the scores of all variants, mean and deviation over their seeds, in percent."""
    rows = [
        (
            name,
            ", ".join(str(run["seed"]) for run in variant["runs"]),
            _percent(variant["miou"]),
            _percent(variant["miou_gain"], signed=True),
            _percent(variant["boundary_miou"]),
            _percent(variant["boundary_miou_gain"], signed=True),
            _percent(variant["foreground_dice"]),
            _percent(variant["miou_gap_closed"]),
            _percent(variant["miou_share_of_full"]),
        )
        for name, variant in result["variants"].items()
    ]
    heads = ["in %", "seeds", "mIoU", "gain", "boundary IoU", "gain", "Dice", "gap closed"]
    iterations = result["settings"]["optim"]["iterations"]
    return f"{iterations} iterations.\n\n{table([*heads, 'of full'], rows)}"


def distances(result: dict[str, Any], field: str) -> str:
    """Return accuracy by a distance, mean over the seeds, in percent."""
    bins = next(iter(result["variants"].values()))["runs"][0]["scores"][field]
    heads = [
        f"{part['start']:g}+" if part["end"] is None else f"{part['start']:g} to {part['end']:g}"
        for part in bins
    ]
    rows = []
    for name, variant in result["variants"].items():
        runs = [run["scores"][field] for run in variant["runs"]]
        columns = [[part["accuracy"] for part in column] for column in zip(*runs, strict=True)]
        means = [
            "" if None in column else f"{100 * sum(column) / len(column):.1f}" for column in columns
        ]
        rows.append((name, *means))
    return table(["accuracy, %, pixels away", *heads], rows)


def read(name: str) -> dict[str, Any]:
    """Read the result file of a set."""
    return json.loads((RESULTS / f"evidence-{name}.json").read_text())


def evidence(name: str) -> str:
    """Return all tables of a set, and its curves."""
    result = read(name)
    parts = [
        scores(result),
        f"![Accuracy by distance to scribbles and borders](images/{_picture(name)})",
        "By distance to the nearest border:",
        distances(result, "by_border_distance"),
        "By distance to the nearest scribble:",
        distances(result, "by_scribble_distance"),
    ]
    return "\n\n".join(parts)


def draw(name: str) -> None:
    """Draw accuracy by distance over the seeds that all drawn variants have."""
    runs = {
        variant: {run["seed"]: Scores.from_plain_data(run["scores"]) for run in content["runs"]}
        for variant, content in read(name)["variants"].items()
        if variant in DRAWN
    }
    seeds = set.intersection(*(set(by_seed) for by_seed in runs.values()))
    curves = {
        variant: [by_seed[seed] for seed in sorted(seeds)] for variant, by_seed in runs.items()
    }
    distance_curves(curves, DRAWN[0]).savefig(PICTURES / _picture(name), dpi=120)


def pseudo_labels() -> str:
    """Return coverage and accuracy of pseudo labels by class, at some thresholds, in percent."""
    result = json.loads((RESULTS / "pseudo-labels-acdc.json").read_text())
    rows = [
        (
            name,
            *(
                f"{100 * quality['coverage']:.0f} / {100 * quality['accuracy']:.0f} / "
                f"{100 * quality['accuracy_near_border']:.0f}"
                for quality in (result["thresholds"][t][name] for t in _SHOWN_THRESHOLDS)
            ),
        )
        for name in result["thresholds"]["0.9"]
    ]
    return table(["", *(f"threshold {threshold}" for threshold in _SHOWN_THRESHOLDS)], rows)


def self_training() -> str:
    """Return mIoU and boundary IoU without self-training, with one mean, and with two."""
    one_mean = json.loads((RESULTS / "self-training-acdc.json").read_text())["variants"]
    two_means = read("acdc")["variants"]
    compared = {
        "without": two_means["LAM + BLP"],
        "one mean, as published": one_mean["LAM + BLP + self-training"],
        "a mean of their own, times 0.1": two_means["LAM + BLP + self-training"],
    }
    seeds = [run["seed"] for run in compared["without"]["runs"]]
    rows = [
        (
            name,
            _percent(variant["miou"]),
            _percent(variant["boundary_miou"]),
            ", ".join(f"{100 * run['scores']['miou']:.1f}" for run in variant["runs"]),
        )
        for name, variant in compared.items()
    ]
    numbers = ", ".join(map(str, seeds))
    return table(["pseudo labels", "mIoU", "boundary IoU", f"mIoU, seeds {numbers}"], rows)


def _picture(name: str) -> str:
    return f"evidence-{name}.png"


def _percent(spread: dict[str, float | None] | None, *, signed: bool = False) -> str:
    if spread is None:
        return ""
    mean = f"{100 * spread['mean']:{'+' if signed else ''}.1f}"
    deviation = spread["deviation"]
    return mean if deviation is None else f"{mean} ± {100 * deviation:.1f}"


def main() -> None:
    """Fill or check the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="Fail if the page differs.")
    options = parser.parse_args()
    page = PAGE.read_text()
    filled = _fill(page, PAGE.name, "pseudo-labels", pseudo_labels())
    filled = _fill(filled, PAGE.name, "self-training", self_training())
    for name in SETS:
        filled = _fill(filled, PAGE.name, name, evidence(name))
    if not options.check:
        PAGE.write_text(filled)
        for name in SETS:
            draw(name)
    elif page != filled:
        parser.exit(1, f"{PAGE}: not the figures of benchmarks/results/evidence-*.json\n")


if __name__ == "__main__":
    main()
