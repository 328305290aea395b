"""Scores of a trained model on a folder with masks."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console, Group, RenderableType
from rich.progress import track
from rich.table import Table

from blpseg.checkpoints import load_model
from blpseg.config import DataConfig
from blpseg.data.folder import Sample, ScribbleFolder, choose_evaluation_split, open_folder
from blpseg.errors import UserError
from blpseg.metrics import DistanceBin, Scores, SegmentationScores
from blpseg.model import BLPSeg
from blpseg.prediction import choose_device, predict_image


@dataclass
class Evaluation:
    """Scores and what they were measured on."""

    checkpoint: str
    """Path of the checkpoint."""

    iteration: int
    """Iterations that its model was trained for."""

    root: str
    """Folder of the data set."""

    split: str | None
    """Name of the list of images; None: every image."""

    scales: list[float]
    """Factors of the images' size that were averaged over."""

    flip: bool
    """Whether the mirrored images were averaged over too."""

    scores: Scores
    """The scores."""

    def as_plain_data(self) -> dict[str, Any]:
        """Turn into nested dicts and lists, fit for JSON."""
        return asdict(self)


def score_model(
    model: BLPSeg,
    samples: ScribbleFolder,
    *,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
    distances: bool = True,
    watch: Callable[[Iterable[Sample]], Iterable[Sample]] = iter,
) -> Scores:
    """Predict every image of a folder opened with its masks, and score the predictions.

    Args:
        model: The model, in evaluation mode.
        samples: The images; they may be of any size.
        scales: Factors of the images' size to average over.
        flip: Average over the mirrored images too.
        distances: Measure accuracy by distance too.
        watch: Wraps the samples as they are gone through, e.g. in a progress bar.

    Returns:
        The scores.
    """
    scores = SegmentationScores(samples.classes, distances=distances)
    for sample in watch(samples[index] for index in range(len(samples))):
        found = predict_image(model, sample.image, scales=scales, flip=flip)
        scores.update(found.labels, sample.mask, sample.target)
    return scores.compute()


def evaluate(
    checkpoint: Path,
    split: str | None = None,
    *,
    data: Mapping[str, Any] | None = None,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
    output: Path | None = None,
    overwrite: bool = False,
    device: str = "auto",
    quiet: bool = False,
) -> Evaluation:
    """Score a checkpoint on a folder with masks and write the scores to a JSON file.

    Args:
        checkpoint: File that `blpseg train` wrote.
        split: Name of the list splits/NAME.txt; None takes splits/val.txt where it exists, else
            every image.
        data: Fields of `DataConfig` that differ from those of the training, e.g. the root.
        scales: Factors of the images' size to average over.
        flip: Average over the mirrored images too.
        output: The JSON file; None takes `default_output`.
        overwrite: Replace the JSON file if it exists.
        device: A torch device, or "auto" for the accelerator where there is one.
        quiet: Show no progress bar.

    Returns:
        The scores and what they were measured on.

    Raises:
        UserError: If a file is missing or does not fit, or the JSON file exists.
    """
    output = output or default_output(checkpoint)
    if output.exists() and not overwrite:
        raise UserError(
            f"{output}: exists already; --overwrite true replaces it, --output names another"
        )
    trained = load_model(checkpoint)
    folder = _data_config(trained.config["data"] | dict(data or {}))
    split = split or choose_evaluation_split(folder)
    samples = open_folder(folder, split, labels="masks", quiet=quiet)
    if samples.classes != trained.classes:
        raise UserError(
            f"{folder.root / 'classes.txt'}: expected the checkpoint's classes "
            f"{', '.join(trained.classes)}; got {', '.join(samples.classes)}"
        )

    def watch(items: Iterable[Sample]) -> Iterable[Sample]:
        console = Console(stderr=True)
        return track(items, "Evaluating", total=len(samples), console=console, disable=quiet)

    model = trained.model.to(choose_device(device))
    scores = score_model(model, samples, scales=scales, flip=flip, watch=watch)
    evaluation = Evaluation(
        str(checkpoint), trained.iteration, str(folder.root), split, list(scales), flip, scores
    )
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(evaluation.as_plain_data(), indent=2) + "\n")
    return evaluation


def default_output(checkpoint: Path) -> Path:
    """Where the scores of a checkpoint go unless told otherwise: beside it."""
    return checkpoint.with_suffix(".evaluation.json")


def scores_table(scores: Scores) -> RenderableType:
    """Lay scores out for the terminal: IoU per class, and accuracy by distance where measured."""
    iou = _table("class", "IoU %")
    for name, value in scores.iou.items():
        iou.add_row(name, _percent(value))
    parts = [f"mIoU {_percent(scores.miou)} % over {scores.images} images", iou]
    for title, bins in (
        ("Accuracy by distance to the nearest scribble", scores.by_scribble_distance),
        ("Accuracy by distance to the region's border", scores.by_border_distance),
    ):
        if bins:
            parts += [title, _distance_table(bins)]
    return Group(*parts)


def _data_config(fields: dict[str, Any]) -> DataConfig:
    paths = {name: Path(fields[name]) for name in ("root", "scribbles") if fields.get(name)}
    return DataConfig(**fields | paths)


def _distance_table(bins: list[DistanceBin]) -> Table:
    table = _table("distance, px", "accuracy %", "pixels")
    for part in bins:
        span = f"{part.start:g} to {part.end:g}" if part.end is not None else f"{part.start:g} on"
        table.add_row(span, _percent(part.accuracy), str(part.pixels))
    return table


def _table(first: str, *numbers: str) -> Table:
    table = Table(first, box=box.SIMPLE_HEAD)
    for name in numbers:
        table.add_column(name, justify="right")
    return table


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.2f}"
