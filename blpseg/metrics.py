"""How good label maps are: IoU per class, and accuracy by distance to scribbles and borders."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from scipy.ndimage import distance_transform_edt
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.classification import MulticlassJaccardIndex

from blpseg.data.labels import IGNORE

SCRIBBLE_DISTANCES = (0, 5, 10, 20, 40, 80)
BORDER_DISTANCES = (0, 3, 6, 12, 24, 48)


@dataclass
class DistanceBin:
    """Accuracy over the pixels whose distance lies in [start, end)."""

    start: float
    """Smallest distance, in pixels."""

    end: float | None
    """Distance at which the next bin starts, in pixels; None: there is none."""

    accuracy: float | None
    """Share of the pixels labelled right; None where there are no pixels."""

    pixels: int
    """Number of pixels."""


@dataclass
class Scores:
    """The scores of a set of label maps."""

    miou: float | None
    """Mean of `iou` over the classes that occur; None where there is no pixel to score."""

    iou: dict[str, float | None]
    """Intersection over union per class, over the whole set; None where it never occurs."""

    by_scribble_distance: list[DistanceBin]
    """Accuracy by the distance to the nearest scribbled pixel, over images with scribbles."""

    by_border_distance: list[DistanceBin]
    """Accuracy by the distance to the nearest pixel of another label, void among them."""

    images: int
    """Number of images."""

    def as_plain_data(self) -> dict[str, Any]:
        """Turn into nested dicts and lists, fit for JSON."""
        return asdict(self)

    @classmethod
    def from_plain_data(cls, content: dict[str, Any]) -> Scores:
        """Undo `as_plain_data`."""
        bins = {
            field: [DistanceBin(**part) for part in content[field]]
            for field in ("by_scribble_distance", "by_border_distance")
        }
        return cls(**content | bins)


class AccuracyByDistance(Metric):
    """Share of pixels labelled right, in bins of a distance.

    Args:
        starts: Where the bins start, in pixels, ascending from 0; the last bin is open.
    """

    correct: Tensor
    total: Tensor

    def __init__(self, starts: Sequence[float]) -> None:
        super().__init__(sync_on_compute=False)
        self.starts = tuple(starts)
        zeros = torch.zeros(len(self.starts), dtype=torch.int64)
        self.add_state("correct", zeros, dist_reduce_fx="sum")
        self.add_state("total", zeros.clone(), dist_reduce_fx="sum")

    def update(
        self,
        right: np.ndarray,  # [P] bool
        distance: np.ndarray,  # [P], pixels
    ) -> None:
        """Count pixels, given whether each is labelled right and its distance."""
        which = np.digitize(distance, self.starts) - 1
        counts = [np.bincount(part, minlength=len(self.starts)) for part in (which[right], which)]
        self.correct += torch.from_numpy(counts[0]).to(self.correct)
        self.total += torch.from_numpy(counts[1]).to(self.total)

    def compute(self) -> list[DistanceBin]:
        """Return the bins, nearest first."""
        ends = (*self.starts[1:], None)
        counts = zip(self.starts, ends, self.correct.tolist(), self.total.tolist(), strict=True)
        return [
            DistanceBin(start, end, correct / total if total else None, total)
            for start, end, correct, total in counts
        ]


class SegmentationScores:
    """Collects label maps and their truth, image by image, into `Scores`.

    Args:
        classes: The K class names.
        distances: Measure accuracy by distance too, which costs a distance transform per class.
    """

    def __init__(self, classes: Sequence[str], *, distances: bool = True) -> None:
        self.classes = list(classes)
        self._iou = MulticlassJaccardIndex(
            len(self.classes),
            average=None,
            ignore_index=IGNORE,
            zero_division=math.nan,
            sync_on_compute=False,  # one process scores, in training on several
        )
        self._by_scribble = AccuracyByDistance(SCRIBBLE_DISTANCES)
        self._by_border = AccuracyByDistance(BORDER_DISTANCES)
        self._distances = distances
        self._images = 0

    def update(
        self,
        prediction: Tensor,  # [H, W]
        mask: Tensor,  # [H, W]
        target: Tensor,  # [H, W]
    ) -> None:
        """Add one image.

        Args:
            prediction: [H, W] integer, the predicted class 0..K-1.
            mask: [H, W] integer, the true class 0..K-1, 255 = void.
            target: [H, W] integer, the scribbled class 0..K-1, other values = unlabelled.
        """
        self._images += 1
        if (mask != IGNORE).any():  # torchmetrics cannot take an image without a pixel to score
            self._iou.update(prediction.to("cpu", torch.int64)[None], mask.to(torch.int64)[None])
        if self._distances:
            self._update_distances(prediction.cpu().numpy(), mask.numpy(), target.numpy())

    def _update_distances(
        self, prediction: np.ndarray, mask: np.ndarray, target: np.ndarray
    ) -> None:
        known = mask != IGNORE
        right = (prediction == mask)[known]
        self._by_border.update(right, border_distance(mask)[known])
        if (target < len(self.classes)).any():
            self._by_scribble.update(right, scribble_distance(target, len(self.classes))[known])

    def compute(self) -> Scores:
        """Return the scores of all images so far."""
        iou = (
            self._iou.compute().tolist()
            if self._iou.update_called
            else [math.nan] * len(self.classes)
        )
        occurring = [value for value in iou if not math.isnan(value)]
        return Scores(
            miou=sum(occurring) / len(occurring) if occurring else None,
            iou={c: None if math.isnan(v) else v for c, v in zip(self.classes, iou, strict=True)},
            by_scribble_distance=self._by_scribble.compute() if self._distances else [],
            by_border_distance=self._by_border.compute() if self._distances else [],
            images=self._images,
        )


def scribble_distance(target: np.ndarray, num_classes: int) -> np.ndarray:
    """Distance of each pixel to the nearest scribbled one, which there must be.

    Args:
        target: [H, W] integer, scribbled where below `num_classes`.
        num_classes: K.

    Returns:
        [H, W] float64, pixels; 0 on the scribbles.
    """
    return distance_transform_edt(target >= num_classes)


def border_distance(mask: np.ndarray) -> np.ndarray:
    """Distance of each pixel to the nearest one of another label; the picture's edge is no border.

    Args:
        mask: [H, W] integer.

    Returns:
        [H, W] float64, pixels, at least 1; infinite where the image has one label only.
    """
    labels = np.unique(mask)
    if len(labels) == 1:
        return np.full(mask.shape, np.inf)
    distance = np.zeros(mask.shape)
    for label in labels:
        region = mask == label
        distance[region] = distance_transform_edt(region)[region]
    return distance
