"""Evaluate a checkpoint: load it, score it, write the scores and the page."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track

from blpseg.checkpoints import load_model
from blpseg.config import DataConfig, data_config
from blpseg.crf import require_crf
from blpseg.crf_constants import CRF
from blpseg.data.folder import Sample, ScribbleFolder, choose_evaluation_split
from blpseg.devices import choose_device
from blpseg.errors import UserError
from blpseg.evaluation.outputs import check_outputs, default_output, page_of
from blpseg.evaluation.page import evaluation_page
from blpseg.evaluation.scores import Evaluation, ImageExample, ImageScore, score_model
from blpseg.files import write_json
from blpseg.inference import Prediction, predict_image
from blpseg.metrics import BOUNDARY_RATIO, image_miou
from blpseg.views import SINGLE_VIEW, Views

_WORST, _BEST = 6, 3  # images to show on the page


def evaluate(
    checkpoint: Path,
    split: str | None = None,
    *,
    data: Mapping[str, Any] | None = None,
    views: Views = SINGLE_VIEW,
    query_stride: int | None = None,
    crf: CRF | None = None,
    boundary_ratio: float = BOUNDARY_RATIO,
    output: Path | None = None,
    overwrite: bool = False,
    device: str = "auto",
    quiet: bool = False,
) -> Evaluation:
    """Score a checkpoint on a folder with masks; write the scores to a JSON file and an HTML page.

    Args:
        checkpoint: File that `blpseg train` wrote.
        split: Part of the data set to score on; None takes the layout's validation part if the
            data set has it, else every image.
        data: Fields of `DataConfig` that differ from those of the training, e.g. the root.
        views: Scales, mirrored views and windows.
        query_stride: Image pixels per pixel of the logits, 1, 2 or 4; None: as in training.
        crf: Refine the labels by a dense CRF with these constants; None: no CRF.
        boundary_ratio: Width of boundary IoU's band, as a share of an image's diagonal.
        output: The JSON file; None takes `default_output`. The page gets the same name, with .html.
        overwrite: Replace the two files if they exist.
        device: A torch device, or "auto" for the accelerator if there is one.
        quiet: Show no progress bar.

    Returns:
        The scores, and what they were measured on.

    Raises:
        UserError: A file is missing or has problems, or one of the two files exists.
    """
    output = output or default_output(checkpoint)
    check_outputs(output, overwrite)
    if not 0 < boundary_ratio < 1:
        raise UserError(
            f"boundary_ratio: expected more than 0 and less than 1, got {boundary_ratio}"
        )
    if crf is not None:
        require_crf()
    trained = load_model(checkpoint, query_stride)
    config = data_config(trained.config["data"] | dict(data or {}))
    split = split or choose_evaluation_split(config)
    samples = ScribbleFolder(config, split, labels="masks", quiet=quiet)
    _check_classes(config, samples.classes, trained.classes)

    def progress(items: Iterable[Sample]) -> Iterable[Sample]:
        console = Console(stderr=True)
        return track(items, "Evaluating", total=len(samples), console=console, disable=quiet)

    images: list[ImageScore] = []

    def on_image(sample: Sample, prediction: Prediction) -> None:
        images.append(ImageScore(sample.name, image_miou(prediction.labels, sample.mask)))

    model = trained.model.to(choose_device(device))
    scores = score_model(
        model,
        samples,
        views=views,
        crf=crf,
        boundary_ratio=boundary_ratio,
        progress=progress,
        on_image=on_image,
    )
    evaluation = Evaluation(
        checkpoint=str(checkpoint),
        iteration=trained.iteration,
        root=str(config.root),
        split=split,
        views=views,
        stride=model.stride,
        crf=crf,
        boundary_ratio=boundary_ratio,
        scores=scores,
        images=images,
    )

    def example(index: int) -> ImageExample:
        sample = samples[index]
        return ImageExample(
            images[index], sample, predict_image(model, sample.image, views, crf=crf)
        )

    examples = {
        title: [example(index) for index in indices] for title, indices in _extremes(images).items()
    }
    output.parent.mkdir(parents=True, exist_ok=True)
    write_json(output, evaluation.as_plain_data())
    page_of(output).write_text(evaluation_page(evaluation, examples), encoding="utf-8")
    return evaluation


def _check_classes(config: DataConfig, found: list[str], trained: list[str]) -> None:
    if found != trained:
        raise UserError(
            f"{config.root / 'classes.txt'}: expected the checkpoint's classes "
            f"{', '.join(trained)}; got {', '.join(found)}"
        )


def _extremes(images: Sequence[ImageScore]) -> dict[str, list[int]]:
    """Map each title to the indices of the images with the smallest and the largest IoU."""
    ranked = sorted(
        (index for index, image in enumerate(images) if image.miou is not None),
        key=lambda index: images[index].miou,
    )
    worst, rest = ranked[:_WORST], ranked[_WORST:]
    return {"Worst images": worst, "Best images": rest[::-1][:_BEST]}
