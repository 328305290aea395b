"""What the segmenter says about an image, compressed to be kept for thousands of images."""

from __future__ import annotations

import gzip
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter

_CLEARLY_UNSURE = 0.25  # an image that is nowhere as unsure stays dark
_REGION = 60  # part of the longer side over which uncertainty is averaged
_SMALL_SIDE = 160  # pixels: the label map of a thumbnail


@dataclass(frozen=True)
class Result:
    """The segmentation of one image by one version of the segmenter."""

    version: int
    """Counts the segmenter's trainings."""

    shape: tuple[int, int]
    """(height, width) of the maps, which may be smaller than the image."""

    labels: bytes
    """Gzipped label map [H, W] uint8."""

    hints: bytes
    """Gzipped map [H, W] uint8: how much a scribble here would teach, 0 to 255."""

    small_shape: tuple[int, int]
    """(height, width) of `small_labels`."""

    small_labels: bytes
    """Gzipped label map for the thumbnail."""


def make_result(version: int, probability: np.ndarray, annotation: np.ndarray) -> Result:
    """Sum up a prediction.

    Args:
        version: Version of the segmenter.
        probability: Class probabilities [K, H, W] float32.
        annotation: Annotation probabilities [H, W] float32.
    """
    labels = probability.argmax(0).astype(np.uint8)
    small = _shrink(labels)
    hints = teaching_value(probability, annotation)
    return Result(
        version,
        labels.shape,
        gzip.compress(labels.tobytes(), 1),
        gzip.compress(np.round(hints * 255).astype(np.uint8).tobytes(), 1),
        small.shape,
        gzip.compress(small.tobytes(), 1),
    )


def teaching_value(probability: np.ndarray, annotation: np.ndarray) -> np.ndarray:
    """Compute where a scribble would teach most.

    The value is the mean uncertainty around a pixel times one minus the annotation probability,
    divided by the larger of 0.25 and its largest value in the image. Uncertainty is
    ``1 - (p1 - p2)``, p1 and p2 the two largest class probabilities. Every border is uncertain in a
    thin line, which the mean (Gaussian, sigma = longer side / 60) keeps low; regions stay high. The
    annotation probability is high on pixels of the kinds that are scribbled already.

    Args:
        probability: Class probabilities [K, H, W] float32.
        annotation: Annotation probabilities [H, W] float32.

    Returns:
        [H, W] float32, 0 to 1.
    """
    largest = np.partition(probability, -2, axis=0)[-2:]
    uncertainty = np.clip(1 - (largest[1] - largest[0]), 0, 1)
    around = gaussian_filter(uncertainty, max(uncertainty.shape) / _REGION)
    value = around * (1 - np.clip(annotation, 0, 1))
    return value / max(float(value.max()), _CLEARLY_UNSURE)


def _shrink(labels: np.ndarray) -> np.ndarray:
    step = max(1, -(-max(labels.shape) // _SMALL_SIDE))
    return np.ascontiguousarray(labels[step // 2 :: step, step // 2 :: step])
