"""``blpseg demo``: train with and without BLPSeg, on built-in scenes and photographs, and compare.

The same small pretrained network is trained with partial cross entropy and with BLPSeg (LAM and the
BLP loss): on procedural scenes with simulated scribbles, which have exact masks to score on, and on
three photographs with scribbles drawn by hand. Nothing is downloaded. The scores are printed as
measured, whichever network wins.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich import box
from rich.console import Console
from rich.table import Table

from blpseg.ablation.results import Spread
from blpseg.ablation.variants import BASELINE as BASELINE_VARIANT
from blpseg.checkpoints import load_model
from blpseg.config import TrainConfig, read_config
from blpseg.curves import DISTANCES, distance_curves
from blpseg.data.folder import ScribbleFolder
from blpseg.data.photographs import CLASSES as PHOTOGRAPH_CLASSES
from blpseg.data.photographs import PHOTOGRAPHS, load_photograph, write_photographs
from blpseg.data.scenes import write_scenes
from blpseg.errors import UserError
from blpseg.evaluation.scores import score_model
from blpseg.files import write_json
from blpseg.inference import predict_image
from blpseg.metrics import Scores
from blpseg.model import BLPSeg
from blpseg.pictures import (
    comparison_sheet,
    contact_sheet,
    draw_box,
    draw_scribbles,
    overlay,
    save_picture,
)
from blpseg.training.series import train_all

BASELINE, METHOD = BASELINE_VARIANT.name, "BLPSeg"
PICTURES = ("photos.png", "scenes.png", "accuracy.png")
_SHOWN_SCENES = 5
_OPACITY = 0.65  # of labels over a photograph
_CELL = 200  # side of a photograph in its picture, in pixels

# What photos.png shows of each photograph: x, y, side of a square, and of the part to enlarge.
_FRAMES = {"astronaut": (0, 0, 512), "chelsea": (140, 0, 300), "coffee": (85, 0, 400)}
_ENLARGED = {"astronaut": (205, 5, 130), "chelsea": (325, 2, 90), "coffee": (85, 180, 130)}


@dataclass(frozen=True)
class DemoSize:
    """The sizes of the demo's data sets and runs."""

    scenes: int  # for training
    val_scenes: int
    iterations: int  # of each run on the scenes
    photo_iterations: int  # of each run on the photographs


FULL = DemoSize(scenes=400, val_scenes=60, iterations=160, photo_iterations=100)
QUICK = DemoSize(scenes=24, val_scenes=8, iterations=20, photo_iterations=10)


def demo(
    quick: bool = False, output: Path = Path("blpseg-demo"), seeds: Sequence[int] = (0,)
) -> dict[str, Any]:
    """Train, score, print and draw; under 5 minutes on 2 CPU cores with one seed.

    Args:
        quick: Train a few iterations only, to check that everything works.
        output: Folder for the data, the runs, ``demo.json`` and the pictures; new or empty.
        seeds: Seeds of the runs on the scenes; the pictures show the first.

    Returns:
        The content of ``demo.json``.

    Raises:
        UserError: ``output`` is a file, or a folder that is not empty; or there is no seed.
    """
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f"{output}: exists already and is not empty; --output names another folder")
    if not seeds:
        raise UserError("seeds: expected one or more, got none")
    start = time.monotonic()
    size, console = QUICK if quick else FULL, Console()
    console.print(f"Making {size.scenes + size.val_scenes} scenes with simulated scribbles ...")
    write_scenes(output / "scenes", size.scenes, val_count=size.val_scenes)
    write_photographs(output / "photos")

    on_photos = _pair(_photo_config(output, size, seeds[0]))
    on_scenes = {seed: _pair(_scene_config(output, size, seed)) for seed in seeds}
    runs = {f"photos, {name}": config for name, config in on_photos.items()}
    for seed, pair in on_scenes.items():
        suffix = f", seed {seed}" if len(seeds) > 1 else ""
        runs |= {f"scenes, {name}{suffix}": config for name, config in pair.items()}
    train_all(runs, console)

    console.print("Scoring ...")
    scores: dict[str, list[Scores]] = {BASELINE: [], METHOD: []}
    scenes = ScribbleFolder(on_scenes[seeds[0]][METHOD].data, "val", labels="masks", quiet=True)
    for pair in on_scenes.values():
        for name, config in pair.items():
            scores[name].append(score_model(_trained(config), scenes))

    pictures = [output / name for name in PICTURES]
    save_picture(pictures[0], _photo_sheet(on_photos))
    save_picture(pictures[1], _scene_sheet(on_scenes[seeds[0]], scenes))
    distance_curves(scores).savefig(pictures[2], dpi=120)
    result = {
        "quick": quick,
        "scenes": size.scenes,
        "val_scenes": size.val_scenes,
        "iterations": {"scenes": size.iterations, "photos": size.photo_iterations},
        "seeds": list(seeds),
        "summary": _summary(scores),
        "scores": {name: [one.as_plain_data() for one in of] for name, of in scores.items()},
        "machine": {"torch": torch.__version__, "threads": torch.get_num_threads()},
        "seconds": round(time.monotonic() - start, 1),
    }
    write_json(output / "demo.json", result)
    console.print(_table(scores))
    console.print(_verdict(scores, quick))
    console.print(f"Done in {result['seconds']:.0f} s. Look at:")
    for file in [*pictures, output / "demo.json"]:
        console.print(f"  {file}", soft_wrap=True)
    return result


def _scene_config(output: Path, size: DemoSize, seed: int) -> TrainConfig:
    """Take the configuration `demo`, a network that two CPU cores can train."""
    config = read_config(files("blpseg").joinpath("configs", "demo.yaml").read_text())
    return replace(
        config,
        data=replace(config.data, root=output / "scenes"),
        output=output / "runs" / f"scenes-{seed}",
        optim=replace(config.optim, iterations=size.iterations, self_training_from=None),
        log=replace(config.log, validate_every=size.iterations, save_every=size.iterations),
        seed=seed,
    )


def _photo_config(output: Path, size: DemoSize, seed: int) -> TrainConfig:
    """Change the scenes' configuration: objects are larger in photographs, and so are the crops."""
    config = _scene_config(output, size, seed)
    iterations = size.photo_iterations
    return replace(
        config,
        data=replace(config.data, root=output / "photos"),
        output=output / "runs" / "photos",
        model=replace(config.model, sigma=6.0),
        augment=replace(config.augment, crop=192),
        optim=replace(config.optim, iterations=iterations, batch_size=4),
        log=replace(config.log, save_every=iterations),
    )


def _pair(method: TrainConfig) -> dict[str, TrainConfig]:
    """Give both networks the same data, crops, schedule and seed; only losses and LAM differ."""
    baseline = BASELINE_VARIANT.of(method)
    return {
        BASELINE: replace(baseline, output=Path(f"{method.output}-{BASELINE_VARIANT.folder}")),
        METHOD: replace(method, output=Path(f"{method.output}-blpseg")),
    }


def _trained(config: TrainConfig) -> BLPSeg:
    return load_model(config.output / "last.pt").model


def _scene_sheet(pair: dict[str, TrainConfig], scenes: ScribbleFolder) -> np.ndarray:
    shown = [scenes[index] for index in range(min(_SHOWN_SCENES, len(scenes)))]
    found = {}
    for name, config in pair.items():
        model = _trained(config)
        found[name] = [predict_image(model, sample.image) for sample in shown]
    return comparison_sheet(
        shown,
        {name: [one.labels.numpy() for one in predictions] for name, predictions in found.items()},
        [one.annotation_probability.numpy() for one in found[METHOD]],
        scenes.classes,
        cell=160,
    )


def _photo_sheet(pair: dict[str, TrainConfig]) -> np.ndarray:
    """Show both networks' labels over each photograph, and a part where they differ, enlarged."""
    models = {name: _trained(config) for name, config in pair.items()}
    columns: dict[str, list[np.ndarray]] = {"scribbles": []}
    columns |= {name: [] for name in models} | {f"{name}, enlarged": [] for name in models}
    for photograph in PHOTOGRAPHS:
        image, scribbles = load_photograph(photograph)
        frame, enlarged = _FRAMES[photograph], _ENLARGED[photograph]
        drawn = draw_scribbles(image, scribbles, len(PHOTOGRAPH_CLASSES))
        columns["scribbles"].append(_cut(drawn, frame))
        for name, model in models.items():
            found = predict_image(model, torch.from_numpy(image).permute(2, 0, 1))
            picture = overlay(image, found.labels.numpy(), _OPACITY)
            columns[f"{name}, enlarged"].append(_cut(picture, enlarged))
            columns[name].append(_cut(draw_box(picture, enlarged), frame))
    return contact_sheet(columns, cell=_CELL, classes=PHOTOGRAPH_CLASSES)


def _cut(picture: np.ndarray, square: tuple[int, int, int]) -> np.ndarray:
    x, y, side = square
    return picture[y : y + side, x : x + side]


def _gains(scores: dict[str, list[Scores]], field: str) -> list[float]:
    pairs = zip(scores[METHOD], scores[BASELINE], strict=True)
    return [getattr(ours, field) - getattr(theirs, field) for ours, theirs in pairs]


def _summary(scores: dict[str, list[Scores]]) -> dict[str, Any]:
    """Compute mean and deviation over the seeds, and of the gain per seed; 0 to 1."""
    summary: dict[str, Any] = {}
    for field in ("miou", "boundary_miou"):
        values = {name: [getattr(one, field) for one in of] for name, of in scores.items()}
        values["gain"] = _gains(scores, field)
        summary[field] = {name: Spread.of(of)._asdict() for name, of in values.items()}
    return summary


def _table(scores: dict[str, list[Scores]]) -> Table:
    """Make the table of scores, in percent: means over the seeds, with their deviation."""
    table = Table("in %, on the scenes", *scores, "gain", box=box.SIMPLE_HEAD)
    table.columns[0].no_wrap = True
    for column in table.columns[1:]:
        column.justify = "right"
    for title, field in (("mIoU", "miou"), ("boundary IoU", "boundary_miou")):
        spreads = [Spread.of([getattr(one, field) for one in of]) for of in scores.values()]
        gain = Spread.of(_gains(scores, field))
        table.add_row(title, *(part.percent() for part in spreads), gain.percent(signed=True))
    for field, thing in DISTANCES.items():
        table.add_section()
        table.add_row(f"accuracy, from the {thing}")
        for index, part in enumerate(getattr(scores[METHOD][0], field)):
            values = {
                name: [getattr(one, field)[index].accuracy for one in of]
                for name, of in scores.items()
            }
            spreads = [Spread.of(of) for of in values.values()]
            if None in spreads:
                continue  # no pixel lies so far away
            pairs = zip(values[METHOD], values[BASELINE], strict=True)
            gain = Spread.of([ours - theirs for ours, theirs in pairs])
            cells = [spread.percent() for spread in spreads]
            table.add_row(f"  {part.span} px", *cells, gain.percent(signed=True))
    return table


def _verdict(scores: dict[str, list[Scores]], quick: bool) -> str:
    gain = Spread.of(_gains(scores, "miou"))
    seeds = len(scores[METHOD])
    caution = f"{seeds} seeds" if seeds > 1 else "one run each"
    if quick:
        caution = "runs this short say nothing"
    verdict = f"is ahead of {BASELINE}" if gain.mean > 0 else f"does not beat {BASELINE}"
    return (
        f"On scenes that they never saw, {METHOD} {verdict}: "
        f"{gain.percent(signed=True)} points of mIoU ({caution})."
    )
