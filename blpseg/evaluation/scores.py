"""Score a model on a folder with masks."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from blpseg.crf_constants import CRF
from blpseg.data.folder import Sample, ScribbleFolder
from blpseg.inference import Prediction, predict_image
from blpseg.metrics import BOUNDARY_RATIO, Scores, SegmentationScores
from blpseg.model import BLPSeg
from blpseg.views import SINGLE_VIEW, Views


@dataclass
class ImageScore:
    """The score of one image."""

    name: str
    miou: float | None
    """Mean IoU over the classes of its mask and its prediction; None if all pixels are void."""


class ImageExample(NamedTuple):
    """An image with its prediction, to show on the page."""

    score: ImageScore
    sample: Sample
    prediction: Prediction


@dataclass
class Evaluation:
    """The scores of a checkpoint, and what they were measured on."""

    checkpoint: str
    """Path of the checkpoint."""

    iteration: int
    """Iterations that its model was trained for."""

    root: str
    """Folder of the data set."""

    split: str | None
    """Name of the list of images; None: every image."""

    views: Views
    """Scales, mirrored views and windows."""

    stride: int
    """Image pixels per pixel of the logits."""

    crf: CRF | None
    """Constants of the dense CRF that refined the labels; None: no CRF."""

    boundary_ratio: float
    """Width of boundary IoU's band, as a share of an image's diagonal."""

    scores: Scores
    """The scores."""

    images: list[ImageScore]
    """Score of each image, in the order of the list."""

    def as_plain_data(self) -> dict[str, Any]:
        """Convert to nested dicts and lists, e.g. for JSON."""
        return asdict(self)


def score_model(
    model: BLPSeg,
    samples: ScribbleFolder,
    *,
    views: Views = SINGLE_VIEW,
    crf: CRF | None = None,
    distances: bool = True,
    boundary_ratio: float = BOUNDARY_RATIO,
    progress: Callable[[Iterable[Sample]], Iterable[Sample]] = iter,
    on_image: Callable[[Sample, Prediction], None] = lambda sample, prediction: None,
) -> Scores:
    """Predict every image of a folder and score the predictions.

    Args:
        model: The model, in evaluation mode.
        samples: The images, opened with their masks; their sizes may differ.
        views: Scales, mirrored views and windows.
        crf: Refine the labels by a dense CRF with these constants; None: no CRF.
        distances: Measure boundary IoU and accuracy by distance too.
        boundary_ratio: Width of boundary IoU's band, as a share of an image's diagonal.
        progress: Wraps the iterable of samples, e.g. in a progress bar.
        on_image: Called with each image and its prediction.

    Returns:
        The scores.
    """
    scores = SegmentationScores(samples.classes, distances=distances, boundary_ratio=boundary_ratio)
    for sample in progress(samples[index] for index in range(len(samples))):
        prediction = predict_image(model, sample.image, views, crf=crf)
        scores.update(prediction.labels, sample.mask, sample.target)
        on_image(sample, prediction)
    return scores.compute()
