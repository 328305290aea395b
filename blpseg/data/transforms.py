"""Augmentation with torchvision's transforms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torchvision import tv_tensors
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as F

from blpseg.data.labels import IGNORE


class RandomScale(v2.Transform):
    """Scale images (bicubic) and label maps (nearest) by one random factor.

    Args:
        low: Smallest factor.
        high: Largest factor.
    """

    def __init__(self, low: float, high: float) -> None:
        super().__init__()
        self.low = low
        self.high = high

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draw the factor and compute the size."""
        factor = torch.empty(1).uniform_(self.low, self.high).item()
        height, width = F.get_size(flat_inputs[0])
        return {"size": [max(1, round(height * factor)), max(1, round(width * factor))]}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Resize one input."""
        is_labels = isinstance(inpt, tv_tensors.Mask)
        mode = InterpolationMode.NEAREST_EXACT if is_labels else InterpolationMode.BICUBIC
        return self._call_kernel(F.resize, inpt, params["size"], interpolation=mode, antialias=True)


def augment(
    flip: float, scale: tuple[float, float], crop: int, mean: Sequence[float]
) -> v2.Transform:
    """Return the published augmentation: flip, scale and crop an image and its target.

    Pixels outside the image get the color `mean`, and `IGNORE` in the target.

    Args:
        flip: Probability of a left-right flip.
        scale: Smallest and largest factor.
        crop: Side of the square crop, in pixels after scaling.
        mean: The mean that the backbone subtracts, so that it pads with zeros, as published.

    Returns:
        A transform of an image [3, H, W] uint8 and a target [H, W] uint8 into [3, crop, crop]
        float32 from 0 to 1 and [crop, crop] uint8.
    """
    outside = {tv_tensors.Image: list(mean), tv_tensors.Mask: IGNORE}
    return v2.Compose(
        [
            v2.RandomHorizontalFlip(flip),
            RandomScale(*scale),
            v2.ToDtype({tv_tensors.Image: torch.float32, "others": None}, scale=True),
            v2.RandomCrop(crop, pad_if_needed=True, fill=outside),
        ]
    )
