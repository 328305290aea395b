"""How good label maps are: IoU per class, at borders too, and accuracy by distance."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from scipy.ndimage import distance_transform_edt, maximum_filter, minimum_filter
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.classification import MulticlassJaccardIndex

from blpseg.data.labels import IGNORE

SCRIBBLE_DISTANCES = (0, 5, 10, 20, 40, 80)
BORDER_DISTANCES = (0, 3, 6, 12, 24, 48)
BOUNDARY_RATIO = 0.02


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

    @property
    def span(self) -> str:
        """The distances in words: "3 to 6", or "48+" in the last bin."""
        return f"{self.start:g}+" if self.end is None else f"{self.start:g} to {self.end:g}"


@dataclass
class Scores:
    """The scores of a set of label maps."""

    miou: float | None
    """Mean of `iou` over the classes that occur; None where there is no pixel to score."""

    iou: dict[str, float | None]
    """Intersection over union per class, over the whole set; None where it never occurs."""

    boundary_miou: float | None
    """Mean of `boundary_iou` over the classes that have one; None where no class has."""

    boundary_iou: dict[str, float | None]
    """Boundary IoU per class, over the whole set; empty where it was not measured."""

    by_scribble_distance: list[DistanceBin]
    """Accuracy by the distance to the nearest scribbled pixel, over images with scribbles; empty
    where there are none, or distances were not measured."""

    by_border_distance: list[DistanceBin]
    """Accuracy by the distance to the nearest pixel of another label, void among them; empty where
    distances were not measured."""

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


class BoundaryIoU(Metric):
    """IoU per class of the bands along the regions' inner borders, over a set of images.

    Void counts as outside of every region, in the prediction as in the truth, and so does what lies
    beyond the picture.

    Args:
        num_classes: K.
        ratio: Width of the band, as a share of the picture's diagonal.

    Source: Cheng et al., "Boundary IoU: Improving Object-Centric Image Segmentation Evaluation",
    CVPR 2021; they take 0.02, and 0.005 for Cityscapes.
    """

    both: Tensor
    either: Tensor

    def __init__(self, num_classes: int, ratio: float = BOUNDARY_RATIO) -> None:
        super().__init__()
        self.num_classes, self.ratio = num_classes, ratio
        zeros = torch.zeros(num_classes, dtype=torch.int64)
        self.add_state("both", zeros, dist_reduce_fx="sum")
        self.add_state("either", zeros.clone(), dist_reduce_fx="sum")

    def update(
        self,
        prediction: np.ndarray,  # [H, W] integers 0..K-1
        mask: np.ndarray,  # [H, W] integers 0..K-1, 255 = void
    ) -> None:
        """Count the pixels of an image's bands."""
        width = band_width(mask.shape, self.ratio)
        prediction = np.where(mask == IGNORE, IGNORE, prediction)
        bands = [np.where(border_band(part, width), part, IGNORE) for part in (prediction, mask)]
        both = self._count(bands[0][bands[0] == bands[1]])
        self.both += both
        self.either += self._count(bands[0]) + self._count(bands[1]) - both

    def compute(self) -> Tensor:
        """Return the boundary IoU of each class, [K]; NaN where it has no border."""
        return self.both / self.either

    def _count(self, labels: np.ndarray) -> Tensor:
        counts = np.bincount(labels.ravel(), minlength=self.num_classes)[: self.num_classes]
        return torch.from_numpy(counts).to(self.both)


class SegmentationScores:
    """Collects label maps and their truth, image by image, into `Scores`.

    Args:
        classes: The K class names.
        distances: Measure boundary IoU and accuracy by distance too, which costs a distance
            transform per class.
        boundary_ratio: Width of boundary IoU's band, as a share of the picture's diagonal.
    """

    def __init__(
        self,
        classes: Sequence[str],
        *,
        distances: bool = True,
        boundary_ratio: float = BOUNDARY_RATIO,
    ) -> None:
        self.classes = list(classes)
        self._iou = MulticlassJaccardIndex(
            len(self.classes),
            average=None,
            ignore_index=IGNORE,
            zero_division=math.nan,
            sync_on_compute=False,  # one process scores, in training on several
        )
        self._boundary = BoundaryIoU(len(self.classes), boundary_ratio)
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
        self._boundary.update(prediction, mask)
        self._by_border.update(right, border_distance(mask)[known])
        if (target < len(self.classes)).any():
            self._by_scribble.update(right, scribble_distance(target, len(self.classes))[known])

    def compute(self) -> Scores:
        """Return the scores of all images so far."""
        nothing = torch.full((len(self.classes),), math.nan)
        iou = self._named(self._iou.compute() if self._iou.update_called else nothing)
        boundary = self._named(self._boundary.compute()) if self._distances else {}
        return Scores(
            miou=_mean(iou),
            iou=iou,
            boundary_miou=_mean(boundary),
            boundary_iou=boundary,
            by_scribble_distance=_measured(self._by_scribble),
            by_border_distance=_measured(self._by_border),
            images=self._images,
        )

    def _named(self, values: Tensor) -> dict[str, float | None]:  # [K]
        return {
            name: None if math.isnan(value) else value
            for name, value in zip(self.classes, values.tolist(), strict=True)
        }


def image_miou(
    prediction: Tensor,  # [H, W]
    mask: Tensor,  # [H, W]
) -> float | None:
    """Mean IoU of one image, over the classes that it holds or that were predicted on it.

    Args:
        prediction: [H, W] integer, the predicted class 0..K-1.
        mask: [H, W] integer, the true class 0..K-1, 255 = void.

    Returns:
        0 to 1; None where all is void.
    """
    known = mask != IGNORE
    if not known.any():
        return None
    prediction, mask = prediction[known].long(), mask[known].long()
    both = prediction[prediction == mask].bincount(minlength=IGNORE)
    either = prediction.bincount(minlength=IGNORE) + mask.bincount(minlength=IGNORE) - both
    return (both / either)[either > 0].mean().item()


def band_width(shape: Sequence[int], ratio: float) -> int:
    """Width of boundary IoU's band in a picture of [H, W], in whole pixels, at least 1."""
    return max(1, round(ratio * math.hypot(*shape)))


def border_band(
    labels: np.ndarray,  # [H, W] integers >= 0
    width: int,
) -> np.ndarray:  # [H, W] bool
    """Mark the pixels within `width` of a pixel of another label, or of the picture's edge.

    Steps to all 8 neighbours count as 1, as in repeated erosion by 3 x 3, which Boundary IoU's
    authors do class by class; here it takes one pass, whatever the number of classes.
    """
    labels, side = labels.astype(np.int16), 2 * width + 1
    least = minimum_filter(labels, side, mode="constant", cval=-1)
    return least != maximum_filter(labels, side, mode="constant", cval=-1)


def _measured(metric: AccuracyByDistance) -> list[DistanceBin]:
    return metric.compute() if metric.update_called else []


def _mean(by_class: dict[str, float | None]) -> float | None:
    values = [value for value in by_class.values() if value is not None]
    return sum(values) / len(values) if values else None


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
