"""Compute frozen features of an image: all levels of a backbone, joined at stride 4.

The backbone sees the image at its own size and at twice the size. Its features are those of coarse
things in a picture of ImageNet's size; the larger image has them on finer cells.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blpseg.pretrained import create_backbone, normalization_of
from blpseg.segmenter.inputs import Picture
from blpseg.segmenter.windows import STRIDE, Window

_SMALLEST = 32  # pixels; a backbone's coarsest level needs as many


class FrozenFeatures(nn.Module):
    """The levels of a timm backbone at several scales of the image, resized to stride 4 and joined.

    Gray and RGB images pass through the backbone once. Of other images each channel does, as gray,
    and the features of all channels are joined.

    Args:
        backbone: Name of a timm model that returns features.
        pretrained: Its weights, see :func:`blpseg.pretrained.create_backbone`.
        scales: Factors of the image's size.

    Raises:
        UserError, ValueError, RuntimeError, OSError: See there.
    """

    def __init__(
        self, backbone: str, pretrained: bool | str | Path, scales: Sequence[float]
    ) -> None:
        super().__init__()
        self.scales = list(scales)
        self.backbone = create_backbone(backbone, pretrained).eval().requires_grad_(False)
        self.channels = self.backbone.feature_info.channels() * len(self.scales)  # of each level
        config = self.backbone.pretrained_cfg
        # A transformer of fixed size takes whole patches only.
        self.multiple = (
            max(self.backbone.feature_info.reduction()) if config.get("fixed_input_size") else 1
        )
        self.channels_last = str(getattr(self.backbone, "output_fmt", "NCHW")).endswith("NHWC")
        mean, std = normalization_of(self.backbone)
        self.register_buffer("mean", torch.tensor(mean)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(std)[:, None, None], persistent=False)

    @torch.no_grad()
    def forward(
        self,
        image: Tensor,  # [1, 3, H, W], from 0 to 1
    ) -> Tensor:  # [C, ceil(H / 4), ceil(W / 4)]
        """Return the joined levels."""
        height, width = image.shape[2:]
        bottom, right = (max(_SMALLEST - side, -side % STRIDE) for side in (height, width))
        padded = F.pad(image, (0, right, 0, bottom), mode="replicate")
        size = [side // STRIDE for side in padded.shape[2:]]
        levels = [level for scale in self.scales for level in self._levels(padded, scale)]
        joined = torch.cat([_resize(level, size) for level in levels], 1)[0]
        return joined[:, : -(-height // STRIDE), : -(-width // STRIDE)]

    def _levels(self, image: Tensor, scale: float) -> list[Tensor]:
        size = [
            max(1, round(side * scale / self.multiple)) * self.multiple for side in image.shape[2:]
        ]
        if size != list(image.shape[2:]):
            image = F.interpolate(image, size, mode="bicubic", antialias=scale < 1).clamp(0, 1)
        levels = self.backbone((image - self.mean) / self.std)
        return [level.permute(0, 3, 1, 2) for level in levels] if self.channels_last else levels


def _resize(level: Tensor, size: list[int]) -> Tensor:
    if list(level.shape[2:]) == size:
        return level
    if level.shape[2] > size[0]:
        return F.interpolate(level, size, mode="area")
    return F.interpolate(level, size, mode="bilinear", align_corners=False)


def window_image(picture: Picture, window: Window) -> Tensor:  # [C, H, W] float32
    """Return a window's pixels, scaled to 0 to 1."""
    part = torch.from_numpy(picture.pixels[window.rows, window.columns].astype("float32"))
    low, high = picture.ranges()
    return ((part - low) / (high - low)).clamp(0, 1).permute(2, 0, 1)


def as_photos(image: Tensor) -> Tensor:  # [C, H, W] -> [G, 3, H, W]
    """Arrange channels as three-channel images: RGB as it is, other channels as gray."""
    return image[None] if image.shape[0] == 3 else image[:, None].expand(-1, 3, -1, -1)


class FeatureCache:
    """Keep the most recently used features, up to a number of bytes.

    Args:
        max_bytes: Bytes of features to keep at most.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.bytes = 0
        self._entries: OrderedDict[tuple[str, int], Tensor] = OrderedDict()

    def get(self, key: tuple[str, int]) -> Tensor | None:
        """Return the features of an image's window, None if they are not kept."""
        if key not in self._entries:
            return None
        self._entries.move_to_end(key)
        return self._entries[key]

    def put(self, key: tuple[str, int], features: Tensor) -> None:
        """Keep features, and drop those that have not been used for longest."""
        if features.nbytes > self.max_bytes:
            return
        self._entries[key] = features
        self.bytes += features.nbytes
        while self.bytes > self.max_bytes:
            _, dropped = self._entries.popitem(last=False)
            self.bytes -= dropped.nbytes
