"""Predict the labels of one image: scales, mirrored views and windows.

Logits stay at the model's stride until the end. They are then resized a band of rows at a
time, so that no tensor of K channels at the image's size exists.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2.functional import resize

import blpseg_ops
from blpseg.crf import dense_crf
from blpseg.crf_constants import CRF
from blpseg.model import BLPSeg
from blpseg.views import SINGLE_VIEW, Views

_BAND_SIZE = 2**22  # logits in a band of rows at the image's size


class View(NamedTuple):
    """One view's logits at the model's stride; logits of a mirrored view are mirrored back."""

    segmentation: Tensor  # [K, h, w] float32
    annotation: Tensor  # [K + 1, h, w] float32
    size: tuple[int, int]  # of the scaled image, in pixels


class Prediction(NamedTuple):
    """The model's results for one image."""

    labels: Tensor
    """[H, W] uint8, the most probable class of each pixel."""

    annotation_probability: Tensor
    """[H, W] float32, the probability that people annotate the pixel, with any class."""

    probabilities: Tensor | None
    """[K, H, W] float32, the probability of each class; None if they were not requested."""


@torch.inference_mode()
def predict_image(
    model: BLPSeg,
    image: Tensor,  # [3, H, W] uint8
    views: Views = SINGLE_VIEW,
    *,
    crf: CRF | None = None,
    probabilities: bool = False,
) -> Prediction:
    """Label one image by the mean logits of its views.

    The image is scaled by bicubic interpolation, as in training. Logits of overlapping windows are
    averaged at the model's stride. The logits of each scale are resized to the image with
    align_corners=True and then averaged, as published.

    Args:
        model: The model, in evaluation mode; its device is used.
        image: [3, H, W] uint8, RGB.
        views: Scales, mirrored views and windows.
        crf: Label by a dense CRF on the class probabilities, with these constants; None: no CRF.
        probabilities: Return the class probabilities too, those before any CRF. They and the CRF
            need memory for K numbers per pixel; nothing else does.

    Returns:
        The label map and the probabilities, on the CPU.

    Raises:
        UserError: `crf` is given, but the library is not installed.
    """
    results = run_views(model, image, views)
    size = tuple(image.shape[-2:])
    p = None
    if crf is not None or probabilities:
        p = average_views(results, "segmentation", size, _probabilities)
    if crf is not None:
        labels = dense_crf(image, p, crf)
    elif len(results) == 1 and results[0].size == size:
        labels = blpseg_ops.upsample_argmax(results[0].segmentation[None], size)[0].cpu()
    else:
        labels = average_views(results, "segmentation", size, _most_probable)
    annotation = average_views(results, "annotation", size, _annotation_probability)
    return Prediction(labels, annotation, p if probabilities else None)


def run_views(model: BLPSeg, image: Tensor, views: Views) -> list[View]:
    """Compute the logits of every view; see `predict_image` for the arguments."""
    photo = tv_tensors.Image(image.to(next(model.parameters()).device))
    results = []
    for scale in views.scales:
        scaled = _scaled(photo, scale).as_subclass(Tensor)
        for mirrored in (False, True) if views.flip else (False,):
            segmentation, annotation = (
                part.flip(-1) if mirrored else part
                for part in _run_windows(model, scaled.flip(-1) if mirrored else scaled, views)
            )
            results.append(View(segmentation, annotation, tuple(scaled.shape[-2:])))
    return results


def average_views(
    results: Sequence[View],
    part: str,
    size: tuple[int, int],  # H, W
    reduce: Callable[[Tensor], Tensor],
) -> Tensor:
    """Average the views' logits at the image's size, a band of rows at a time.

    Args:
        results: Logits of the views.
        part: "segmentation" or "annotation".
        size: H, W of the image.
        reduce: Computes the result [..., r, W] of r rows from their mean logits [C, r, W].

    Returns:
        The results of all rows, [..., H, W], on the CPU.
    """
    channels = getattr(results[0], part).shape[0]
    height = max(1, _BAND_SIZE // (channels * size[1]))
    bands = []
    for rows in torch.arange(size[0]).split(height):
        total = sum(_resize_rows(getattr(view, part), view.size, size, rows) for view in results)
        bands.append(reduce(total / len(results)).cpu())
    return torch.cat(bands, -2)


def _run_windows(model: BLPSeg, photo: Tensor, views: Views) -> tuple[Tensor, Tensor]:
    """Compute logits of a photo [3, H, W] uint8, at the model's stride, as a mean over windows."""
    height, width = photo.shape[-2:]
    if (windows := list(_windows(height, width, views))) == [(slice(0, height), slice(0, width))]:
        segmentation, annotation = model.logits(_as_batch(photo))
        return segmentation[0].float(), annotation[0].float()
    grid = (-(-height // model.stride), -(-width // model.stride))
    totals: list[Tensor] = []
    counts = torch.zeros(grid, device=photo.device)  # windows over each pixel of the logits
    for rows, columns in windows:
        logits = [part[0].float() for part in model.logits(_as_batch(photo[:, rows, columns]))]
        totals = totals or [part.new_zeros(len(part), *grid) for part in logits]
        top, left = rows.start // model.stride, columns.start // model.stride
        for total, part in zip(
            (*totals, counts[None]), (*logits, torch.ones(1, 1, 1)), strict=True
        ):
            bottom, right = top + logits[0].shape[1], left + logits[0].shape[2]
            total[:, top:bottom, left:right] += part.to(total.device)
    for total in totals:
        total /= counts
    return totals[0], totals[1]


def _windows(height: int, width: int, views: Views) -> Iterator[tuple[slice, slice]]:
    for top in views.starts(height):
        for left in views.starts(width):
            bottom, right = (
                side if views.window is None else min(side, start + views.window)
                for start, side in ((top, height), (left, width))
            )
            yield slice(top, bottom), slice(left, right)


def _as_batch(photo: Tensor) -> Tensor:  # [3, H, W] uint8 -> [1, 3, H, W] float32, from 0 to 1
    return photo[None].float() / 255


def _scaled(photo: tv_tensors.Image, scale: float) -> tv_tensors.Image:
    if scale == 1:
        return photo
    size = [max(1, round(side * scale)) for side in photo.shape[-2:]]
    return resize(photo, size, InterpolationMode.BICUBIC, antialias=True)


def _resize_rows(
    logits: Tensor,  # [C, h, w]
    scaled: tuple[int, int],
    size: tuple[int, int],
    rows: Tensor,  # [r] integers
) -> Tensor:  # [C, r, W]
    """Compute rows of logits that are resized as the model does, then with align_corners=True."""
    resized = _resize_axis(logits, 1, scaled[0], size[0], rows)
    return _resize_axis(resized, 2, scaled[1], size[1], torch.arange(size[1]))


def _resize_axis(values: Tensor, dim: int, scaled: int, side: int, positions: Tensor) -> Tensor:
    """Resize a dimension to `scaled` with half-pixel centers, then to `side` with corners aligned.

    Equal to two calls of `torch.nn.functional.interpolate`, but only at the given positions.
    """
    position = positions.double() * ((scaled - 1) / (side - 1) if side > 1 else 0.0)
    low = position.floor()
    start = _interpolate(values, dim, scaled, low)
    if scaled == side:
        return start
    end = _interpolate(values, dim, scaled, (low + 1).clamp(max=scaled - 1))
    return _lerp(start, end, position - low, dim)


def _interpolate(values: Tensor, dim: int, scaled: int, positions: Tensor) -> Tensor:
    """Compute values at positions of a dimension resized to `scaled` with half-pixel centers."""
    length = values.shape[dim]
    position = ((positions + 0.5) * (length / scaled) - 0.5).clamp(0, length - 1)
    low = position.floor()
    start, end = (
        values.index_select(dim, index.long().to(values.device))
        for index in (low, (low + 1).clamp(max=length - 1))
    )
    return _lerp(start, end, position - low, dim)


def _lerp(start: Tensor, end: Tensor, weight: Tensor, dim: int) -> Tensor:
    shape = [-1 if axis == dim else 1 for axis in range(start.ndim)]
    return start.lerp(end, weight.to(start).view(shape))


def _most_probable(logits: Tensor) -> Tensor:  # [K, r, W] -> [r, W]
    return logits.argmax(0).to(torch.uint8)


def _annotation_probability(logits: Tensor) -> Tensor:  # [K + 1, r, W] -> [r, W]
    return 1 - logits.softmax(0)[-1]


def _probabilities(logits: Tensor) -> Tensor:  # [K, r, W] -> [K, r, W]
    return logits.softmax(0)
