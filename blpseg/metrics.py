"""Scores of label maps: IoU per class, boundary IoU per class, and accuracy by distance."""

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
    """Start of the next bin, in pixels; None in the last bin."""

    accuracy: float | None
    """Share of correctly labeled pixels; None without pixels."""

    pixels: int
    """Number of pixels."""

    @property
    def span(self) -> str:
        """The distances as text: "3 to 6", or "48+" in the last bin."""
        return f"{self.start:g}+" if self.end is None else f"{self.start:g} to {self.end:g}"


@dataclass
class Scores:
    """The scores of a set of label maps."""

    miou: float | None
    """Mean of `iou` over the classes that occur; None if all pixels are void."""

    iou: dict[str, float | None]
    """Intersection over union per class, over the whole set; None for a class that never occurs."""

    boundary_miou: float | None
    """Mean of `boundary_iou` over the classes that have one; None if no class has one."""

    boundary_iou: dict[str, float | None]
    """Boundary IoU per class, over the whole set; empty if it was not measured."""

    by_scribble_distance: list[DistanceBin]
    """Accuracy by the distance to the nearest scribbled pixel, over images with scribbles; empty
    without such images, or if distances were not measured."""

    by_border_distance: list[DistanceBin]
    """Accuracy by the distance to the nearest pixel of another label or void; empty if distances
    were not measured."""

    images: int
    """Number of images."""

    @property
    def foreground_dice(self) -> float | None:
        """Mean of Dice, 2 IoU / (1 + IoU), over the classes but the first, the background.

        Each class's pixels are counted over the whole set, as for `iou`. None if no class occurs.
        """
        known = [iou for iou in [*self.iou.values()][1:] if iou is not None]
        return sum(2 * iou / (1 + iou) for iou in known) / len(known) if known else None

    def as_plain_data(self) -> dict[str, Any]:
        """Convert to nested dicts and lists, e.g. for JSON."""
        return asdict(self)

    @classmethod
    def from_plain_data(cls, content: dict[str, Any]) -> Scores:
        """Make scores of the result of `as_plain_data`."""
        bins = {
            field: [DistanceBin(**part) for part in content[field]]
            for field in ("by_scribble_distance", "by_border_distance")
        }
        return cls(**content | bins)


class AccuracyByDistance(Metric):
    """Measure the share of correctly labeled pixels, in bins of a distance.

    Args:
        starts: Starts of the bins in pixels, ascending from 0; the last bin has no end.
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
        correct: np.ndarray,  # [P] bool
        distance: np.ndarray,  # [P], pixels
    ) -> None:
        """Count pixels, given whether each is labeled correctly and its distance."""
        bins = np.digitize(distance, self.starts) - 1
        counts = [np.bincount(part, minlength=len(self.starts)) for part in (bins[correct], bins)]
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
    """Measure the IoU per class of the bands along the regions' inner borders, over many images.

    Void pixels and pixels beyond the image belong to no region, in the prediction and in the mask.

    Args:
        num_classes: K.
        ratio: Width of the band, as a share of the image's diagonal.

    Source: Cheng et al., "Boundary IoU: Improving Object-Centric Image Segmentation Evaluation",
    CVPR 2021; they use 0.02, and 0.005 for Cityscapes.
    """

    intersection: Tensor
    union: Tensor

    def __init__(self, num_classes: int, ratio: float = BOUNDARY_RATIO) -> None:
        super().__init__()
        self.num_classes, self.ratio = num_classes, ratio
        zeros = torch.zeros(num_classes, dtype=torch.int64)
        self.add_state("intersection", zeros, dist_reduce_fx="sum")
        self.add_state("union", zeros.clone(), dist_reduce_fx="sum")

    def update(
        self,
        prediction: np.ndarray,  # [H, W] integers 0..K-1
        mask: np.ndarray,  # [H, W] integers 0..K-1, 255 = void
    ) -> None:
        """Count the pixels of an image's bands."""
        width = band_width(mask.shape, self.ratio)
        prediction = np.where(mask == IGNORE, IGNORE, prediction)
        bands = [np.where(border_band(part, width), part, IGNORE) for part in (prediction, mask)]
        intersection = self._count(bands[0][bands[0] == bands[1]])
        self.intersection += intersection
        self.union += self._count(bands[0]) + self._count(bands[1]) - intersection

    def compute(self) -> Tensor:
        """Return the boundary IoU of each class, [K]; NaN for a class without a border."""
        return self.intersection / self.union

    def _count(self, labels: np.ndarray) -> Tensor:
        counts = np.bincount(labels.ravel(), minlength=self.num_classes)[: self.num_classes]
        return torch.from_numpy(counts).to(self.union)


class SegmentationScores:
    """Collect predictions and masks, image by image, and compute their `Scores`.

    Args:
        classes: The K class names.
        distances: Measure boundary IoU and accuracy by distance too; this takes a distance
            transform per class.
        boundary_ratio: Width of boundary IoU's band, as a share of the image's diagonal.
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
            sync_on_compute=False,  # in training on several processes, only the main one scores
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
            target: [H, W] integer, the scribbled class 0..K-1, other values = unlabeled.
        """
        self._images += 1
        if (mask != IGNORE).any():  # torchmetrics fails on an image without a pixel to score
            self._iou.update(prediction.to("cpu", torch.int64)[None], mask.to(torch.int64)[None])
        if self._distances:
            self._update_distances(prediction.cpu().numpy(), mask.numpy(), target.numpy())

    def _update_distances(
        self, prediction: np.ndarray, mask: np.ndarray, target: np.ndarray
    ) -> None:
        known = mask != IGNORE
        correct = (prediction == mask)[known]
        self._boundary.update(prediction, mask)
        self._by_border.update(correct, border_distance(mask)[known])
        if (target < len(self.classes)).any():
            self._by_scribble.update(correct, scribble_distance(target, len(self.classes))[known])

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
    """Compute the mean IoU of one image, over the classes of its mask and its prediction.

    Args:
        prediction: [H, W] integer, the predicted class 0..K-1.
        mask: [H, W] integer, the true class 0..K-1, 255 = void.

    Returns:
        0 to 1; None if all pixels are void.
    """
    known = mask != IGNORE
    if not known.any():
        return None
    prediction, mask = prediction[known].long(), mask[known].long()
    intersection = prediction[prediction == mask].bincount(minlength=IGNORE)
    union = prediction.bincount(minlength=IGNORE) + mask.bincount(minlength=IGNORE) - intersection
    return (intersection / union)[union > 0].mean().item()


def percent(share: float | None, decimals: int = 2) -> str:
    """Format a share, 0 to 1, in percent; "-" for None."""
    return "-" if share is None else f"{100 * share:.{decimals}f}"


def band_width(shape: Sequence[int], ratio: float) -> int:
    """Compute the width of boundary IoU's band in an image of [H, W], in whole pixels >= 1."""
    return max(1, round(ratio * math.hypot(*shape)))


def border_band(
    labels: np.ndarray,  # [H, W] integers >= 0
    width: int,
) -> np.ndarray:  # [H, W] bool
    """Mark the pixels within `width` of a pixel of another label, or of the image's edge.

    The distance counts a step to any of the 8 neighbors as 1. Boundary IoU's authors get the same
    band by `width` erosions with a 3 x 3 element per class; this takes one pass for all classes.
    """
    labels, side = labels.astype(np.int16), 2 * width + 1
    smallest = minimum_filter(labels, side, mode="constant", cval=-1)
    return smallest != maximum_filter(labels, side, mode="constant", cval=-1)


def _measured(metric: AccuracyByDistance) -> list[DistanceBin]:
    return metric.compute() if metric.update_called else []


def _mean(by_class: dict[str, float | None]) -> float | None:
    values = [value for value in by_class.values() if value is not None]
    return sum(values) / len(values) if values else None


def scribble_distance(target: np.ndarray, num_classes: int) -> np.ndarray:
    """Compute each pixel's distance to the nearest scribbled pixel; there must be one.

    Args:
        target: [H, W] integer, scribbled where below `num_classes`.
        num_classes: K.

    Returns:
        [H, W] float64, pixels; 0 on the scribbles.
    """
    return distance_transform_edt(target >= num_classes)


def border_distance(mask: np.ndarray) -> np.ndarray:
    """Compute each pixel's distance to the nearest pixel of another label; edges are no border.

    Args:
        mask: [H, W] integer.

    Returns:
        [H, W] float64, pixels, at least 1; infinite if the image has a single label.
    """
    labels = np.unique(mask)
    if len(labels) == 1:
        return np.full(mask.shape, np.inf)
    distance = np.zeros(mask.shape)
    for label in labels:
        region = mask == label
        distance[region] = distance_transform_edt(region)[region]
    return distance
