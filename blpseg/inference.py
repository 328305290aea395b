"""From one image to what the model says of each pixel: scales, mirrored views and windows.

Logits stay at the model's stride of 4 until the end, and are then resized in strips of rows: no
tensor of K channels at the image's size exists, however many views are averaged.
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
from blpseg.data.transforms import normalize
from blpseg.model import BLPSeg
from blpseg.views import CELL, SINGLE_VIEW, Views

_STRIP = 2**22  # numbers in a strip of resized logits


class View(NamedTuple):
    """Logits of a view of the image, at stride 4, mirrored back."""

    segmentation: Tensor  # [K, h, w] float32
    annotation: Tensor  # [K + 1, h, w] float32
    size: tuple[int, int]  # of the scaled image, pixels


class Prediction(NamedTuple):
    """What the model says about one image."""

    labels: Tensor
    """[H, W] uint8, the most probable class of each pixel."""

    annotation_probability: Tensor
    """[H, W] float32, the probability that somebody annotates here, whatever the class."""


@torch.inference_mode()
def predict_image(
    model: BLPSeg,
    image: Tensor,  # [3, H, W] uint8
    views: Views = SINGLE_VIEW,
    *,
    crf: bool = False,
) -> Prediction:
    """Label one image, as an average over views.

    The image is scaled as in training, bicubically. Where windows overlap, their logits count
    alike; they are averaged at stride 4. The logits of each scale are resized to the image with
    align_corners=True and then averaged, as published.

    Args:
        model: The model, in evaluation mode; the work is done on its device.
        image: [3, H, W] uint8, RGB.
        views: Scales, mirrored views and windows.
        crf: Label by a dense CRF over the class probabilities, see `blpseg.crf`; it alone needs all
            of them at once, K numbers a pixel.

    Returns:
        The label map and the annotation probability, on the CPU.

    Raises:
        UserError: The dense CRF is wanted but not installed.
    """
    seen = see(model, image, views)
    size = tuple(image.shape[-2:])
    if crf:
        labels = dense_crf(image, blend(seen, "segmentation", size, _probabilities))
    elif len(seen) == 1 and seen[0].size == size:
        labels = blpseg_ops.upsample_argmax(seen[0].segmentation[None], size)[0].cpu()
    else:
        labels = blend(seen, "segmentation", size, _most_probable)
    return Prediction(labels, blend(seen, "annotation", size, _annotated))


def see(model: BLPSeg, image: Tensor, views: Views) -> list[View]:
    """Show the image to the model in every view; arguments of `predict_image`."""
    photo = tv_tensors.Image(image.to(next(model.parameters()).device))
    seen = []
    for scale in views.scales:
        scaled = _scaled(photo, scale).as_subclass(Tensor)
        for mirrored in (False, True) if views.flip else (False,):
            segmentation, annotation = (
                part.flip(-1) if mirrored else part
                for part in _through_windows(model, scaled.flip(-1) if mirrored else scaled, views)
            )
            seen.append(View(segmentation, annotation, tuple(scaled.shape[-2:])))
    return seen


def blend(
    seen: Sequence[View],
    part: str,
    size: tuple[int, int],  # H, W
    finish: Callable[[Tensor], Tensor],
) -> Tensor:
    """Average a part of the views' logits at full size, strip by strip.

    Args:
        seen: The views.
        part: "segmentation" or "annotation".
        size: H, W of the image.
        finish: Makes of averaged logits [C, r, W] what is to be kept, [..., r, W].

    Returns:
        What is kept, [..., H, W], on the CPU.
    """
    channels = getattr(seen[0], part).shape[0]
    rows = max(1, _STRIP // (channels * size[1]))
    strips = []
    for strip in torch.arange(size[0]).split(rows):
        total = sum(_resized(getattr(view, part), view.size, size, strip) for view in seen)
        strips.append(finish(total / len(seen)).cpu())
    return torch.cat(strips, -2)


def _through_windows(model: BLPSeg, photo: Tensor, views: Views) -> tuple[Tensor, Tensor]:
    """Logits of a photo [3, H, W] uint8 at stride 4, averaged over the windows that see a cell."""
    height, width = photo.shape[-2:]
    if (windows := list(_windows(height, width, views))) == [(slice(0, height), slice(0, width))]:
        segmentation, annotation = model.logits(_normalized(photo))
        return segmentation[0].float(), annotation[0].float()
    grid = (-(-height // CELL), -(-width // CELL))
    totals: list[Tensor] = []
    seen = torch.zeros(grid, device=photo.device)
    for rows, columns in windows:
        found = [part[0].float() for part in model.logits(_normalized(photo[:, rows, columns]))]
        totals = totals or [part.new_zeros(len(part), *grid) for part in found]
        top, left = rows.start // CELL, columns.start // CELL
        for total, part in zip((*totals, seen[None]), (*found, torch.ones(1, 1, 1)), strict=True):
            bottom, right = top + found[0].shape[1], left + found[0].shape[2]
            total[:, top:bottom, left:right] += part.to(total.device)
    for total in totals:
        total /= seen
    return totals[0], totals[1]


def _windows(height: int, width: int, views: Views) -> Iterator[tuple[slice, slice]]:
    for top in views.starts(height):
        for left in views.starts(width):
            bottom, right = (
                side if views.window is None else min(side, start + views.window)
                for start, side in ((top, height), (left, width))
            )
            yield slice(top, bottom), slice(left, right)


def _normalized(photo: Tensor) -> Tensor:  # [3, H, W] uint8 -> [1, 3, H, W] float32
    return normalize()(tv_tensors.Image(photo)).as_subclass(Tensor)[None]


def _scaled(photo: tv_tensors.Image, scale: float) -> tv_tensors.Image:
    if scale == 1:
        return photo
    size = [max(1, round(side * scale)) for side in photo.shape[-2:]]
    return resize(photo, size, InterpolationMode.BICUBIC, antialias=True)


def _resized(
    logits: Tensor,  # [C, h, w]
    scaled: tuple[int, int],
    size: tuple[int, int],
    rows: Tensor,  # [r] integers
) -> Tensor:  # [C, r, W]
    """Some rows of logits resized as the model does, then to the image with corners aligned."""
    found = _along(logits, 1, scaled[0], size[0], rows)
    return _along(found, 2, scaled[1], size[1], torch.arange(size[1]))


def _along(values: Tensor, dim: int, scaled: int, side: int, places: Tensor) -> Tensor:
    """Resize a dimension to `scaled` with half-pixel centres, then to `side`, corners aligned.

    `torch.nn.functional.interpolate` does the same in two calls, for all places at once.
    """
    place = places.double() * ((scaled - 1) / (side - 1) if side > 1 else 0.0)
    low = place.floor()
    corners = [_interpolated(values, dim, scaled, low)]
    if scaled != side:
        corners.append(_interpolated(values, dim, scaled, (low + 1).clamp(max=scaled - 1)))
        return _lerp(*corners, place - low, dim)
    return corners[0]


def _interpolated(values: Tensor, dim: int, scaled: int, places: Tensor) -> Tensor:
    """Values at places of a dimension, were it resized to `scaled` with half-pixel centres."""
    cells = values.shape[dim]
    place = ((places + 0.5) * (cells / scaled) - 0.5).clamp(0, cells - 1)
    low = place.floor()
    ends = (low, (low + 1).clamp(max=cells - 1))
    corners = (values.index_select(dim, end.long().to(values.device)) for end in ends)
    return _lerp(*corners, place - low, dim)


def _lerp(start: Tensor, end: Tensor, weight: Tensor, dim: int) -> Tensor:
    shape = [-1 if axis == dim else 1 for axis in range(start.ndim)]
    return start.lerp(end, weight.to(start).view(shape))


def _most_probable(logits: Tensor) -> Tensor:  # [K, r, W] -> [r, W]
    return logits.argmax(0).to(torch.uint8)


def _annotated(logits: Tensor) -> Tensor:  # [K + 1, r, W] -> [r, W]
    return 1 - logits.softmax(0)[-1]


def _probabilities(logits: Tensor) -> Tensor:  # [K, r, W] -> [K, r, W]
    return logits.softmax(0)
