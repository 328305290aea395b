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
from blpseg.crf import require_crf
from blpseg.data.folder import Sample, ScribbleFolder, choose_evaluation_split, open_folder
from blpseg.devices import choose_device
from blpseg.errors import UserError
from blpseg.inference import Prediction, predict_image
from blpseg.metrics import (
    BOUNDARY_RATIO,
    DistanceBin,
    Scores,
    SegmentationScores,
    image_miou,
)
from blpseg.model import BLPSeg
from blpseg.page import Pictured, evaluation_page
from blpseg.views import SINGLE_VIEW, Views

_WORST, _BEST = 6, 3  # images to picture


@dataclass
class ImageScore:
    """How one image came out."""

    name: str
    miou: float | None
    """Mean IoU over the classes of its mask and its prediction; None where all is void."""


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

    views: Views
    """How the images were shown to the model."""

    crf: bool
    """Whether a dense CRF refined the labels."""

    boundary_ratio: float
    """Width of boundary IoU's band, as a share of a picture's diagonal."""

    scores: Scores
    """The scores."""

    images: list[ImageScore]
    """Each image, in the order of the list."""

    def as_plain_data(self) -> dict[str, Any]:
        """Turn into nested dicts and lists, fit for JSON."""
        return asdict(self)


def score_model(
    model: BLPSeg,
    samples: ScribbleFolder,
    *,
    views: Views = SINGLE_VIEW,
    crf: bool = False,
    distances: bool = True,
    boundary_ratio: float = BOUNDARY_RATIO,
    watch: Callable[[Iterable[Sample]], Iterable[Sample]] = iter,
    on_image: Callable[[Sample, Prediction], None] = lambda sample, prediction: None,
) -> Scores:
    """Predict every image of a folder opened with its masks, and score the predictions.

    Args:
        model: The model, in evaluation mode.
        samples: The images; they may be of any size.
        views: Scales, mirrored views and windows.
        crf: Refine the labels by a dense CRF.
        distances: Measure boundary IoU and accuracy by distance too.
        boundary_ratio: Width of boundary IoU's band, as a share of a picture's diagonal.
        watch: Wraps the samples as they are gone through, e.g. in a progress bar.
        on_image: Called with each image and its prediction.

    Returns:
        The scores.
    """
    scores = SegmentationScores(samples.classes, distances=distances, boundary_ratio=boundary_ratio)
    for sample in watch(samples[index] for index in range(len(samples))):
        found = predict_image(model, sample.image, views, crf=crf)
        scores.update(found.labels, sample.mask, sample.target)
        on_image(sample, found)
    return scores.compute()


def evaluate(
    checkpoint: Path,
    split: str | None = None,
    *,
    data: Mapping[str, Any] | None = None,
    views: Views = SINGLE_VIEW,
    crf: bool = False,
    boundary_ratio: float = BOUNDARY_RATIO,
    output: Path | None = None,
    overwrite: bool = False,
    device: str = "auto",
    quiet: bool = False,
) -> Evaluation:
    """Score a checkpoint on a folder with masks; write the scores to a JSON file and an HTML page.

    Args:
        checkpoint: File that `blpseg train` wrote.
        split: Name of the list splits/NAME.txt; None takes splits/val.txt where it exists, else
            every image.
        data: Fields of `DataConfig` that differ from those of the training, e.g. the root.
        views: Scales, mirrored views and windows.
        crf: Refine the labels by a dense CRF.
        boundary_ratio: Width of boundary IoU's band, as a share of a picture's diagonal.
        output: The JSON file; None takes `default_output`. The page goes beside it.
        overwrite: Replace the two files if they exist.
        device: A torch device, or "auto" for the accelerator where there is one.
        quiet: Show no progress bar.

    Returns:
        The scores and what they were measured on.

    Raises:
        UserError: If a file is missing or does not fit, or one of the two files exists.
    """
    output = output or default_output(checkpoint)
    _check_outputs(output, overwrite)
    if not 0 < boundary_ratio < 1:
        raise UserError(
            f"boundary_ratio: expected more than 0 and less than 1, got {boundary_ratio}"
        )
    if crf:
        require_crf()
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

    images: list[ImageScore] = []

    def on_image(sample: Sample, found: Prediction) -> None:
        images.append(ImageScore(sample.name, image_miou(found.labels, sample.mask)))

    model = trained.model.to(choose_device(device))
    scores = score_model(
        model,
        samples,
        views=views,
        crf=crf,
        boundary_ratio=boundary_ratio,
        watch=watch,
        on_image=on_image,
    )
    evaluation = Evaluation(
        checkpoint=str(checkpoint),
        iteration=trained.iteration,
        root=str(folder.root),
        split=split,
        views=views,
        crf=crf,
        boundary_ratio=boundary_ratio,
        scores=scores,
        images=images,
    )
    pictured = {
        title: [
            Pictured(
                images[index],
                samples[index],
                predict_image(model, samples[index].image, views, crf=crf),
            )
            for index in indices
        ]
        for title, indices in _extremes(images).items()
    }
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(evaluation.as_plain_data(), indent=2) + "\n")
    page_of(output).write_text(evaluation_page(evaluation, pictured), encoding="utf-8")
    return evaluation


def default_output(checkpoint: Path) -> Path:
    """Where the scores of a checkpoint go unless told otherwise: beside it."""
    return checkpoint.with_suffix(".evaluation.json")


def page_of(output: Path) -> Path:
    """Where the page of a JSON file goes."""
    return output.with_suffix(".html")


def scores_table(scores: Scores) -> RenderableType:
    """Lay scores out for the terminal: IoU per class, and accuracy by distance where measured."""
    summary = f"mIoU {_percent(scores.miou)} % over {scores.images} images"
    numbers = [scores.iou]
    if scores.boundary_iou:
        summary += f"; boundary IoU {_percent(scores.boundary_miou)} %"
        numbers.append(scores.boundary_iou)
    iou = _table("class", *("IoU %", "boundary IoU %")[: len(numbers)])
    for name in scores.iou:
        iou.add_row(name, *(_percent(values[name]) for values in numbers))
    parts = [summary, iou]
    for title, bins in (
        ("Accuracy by distance to the nearest scribble", scores.by_scribble_distance),
        ("Accuracy by distance to the region's border", scores.by_border_distance),
    ):
        if bins:
            parts += [title, _distance_table(bins)]
    return Group(*parts)


def _check_outputs(output: Path, overwrite: bool) -> None:
    if output.suffix == ".html":
        raise UserError(f"{output}: expected a JSON file to write; the page goes beside it")
    for path in (output, page_of(output)):
        if path.exists() and not overwrite:
            raise UserError(
                f"{path}: exists already; --overwrite true replaces it, --output names another"
            )


def _extremes(images: Sequence[ImageScore]) -> dict[str, list[int]]:
    """Title to the indices of the images with the least and the greatest IoU."""
    ranked = sorted(
        (index for index, image in enumerate(images) if image.miou is not None),
        key=lambda index: images[index].miou,
    )
    worst, rest = ranked[:_WORST], ranked[_WORST:]
    return {"Worst images": worst, "Best images": rest[::-1][:_BEST]}


def _data_config(fields: dict[str, Any]) -> DataConfig:
    paths = {name: Path(fields[name]) for name in ("root", "scribbles") if fields.get(name)}
    return DataConfig(**fields | paths)


def _distance_table(bins: list[DistanceBin]) -> Table:
    table = _table("distance, px", "accuracy %", "pixels")
    for part in bins:
        table.add_row(part.span, _percent(part.accuracy), str(part.pixels))
    return table


def _table(first: str, *numbers: str) -> Table:
    table = Table(first, box=box.SIMPLE_HEAD)
    for name in numbers:
        table.add_column(name, justify="right")
    return table


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.2f}"
