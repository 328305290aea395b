"""The features of a timm model, of images from 0 to 1 and of any size."""

from __future__ import annotations

from math import lcm
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blpseg.pretrained import Normalization, create_backbone, normalization_of
from blpseg.views import LOGIT_STRIDE

PYRAMID = (4, 8, 16, 32)  # the published strides


class Backbone(nn.Module):
    """A timm model that returns its features as [N, C, h, w], finest level first.

    A model with features at strides 4, 8, 16 and 32 returns these. Any other model returns all
    features that timm lists. For a ViT these are the outputs of its last three blocks, at the
    stride of its patches. Such a model needs images of whole cells, which :meth:`pad` makes.

    It takes images from 0 to 1 and normalizes them by the mean and deviation that timm records with
    the weights: ImageNet's for most models, 0.5 and 0.5 for EfficientNet-Lite. ``mean`` and ``std``
    are buffers that move with the module. They are no part of its state dict, so that the authors'
    checkpoints fit; our checkpoints record them separately (:mod:`blpseg.checkpoints`).

    Args:
        name: Name of a timm model.
        pretrained: See :func:`blpseg.pretrained.create_backbone`.

    Raises:
        ValueError: The model takes images of one size only.
        UserError, OSError: The pretrained weights cannot be loaded.
    """

    mean: Tensor  # [3, 1, 1], for images from 0 to 1
    std: Tensor  # [3, 1, 1]

    def __init__(self, name: str, pretrained: bool | str | Path) -> None:
        super().__init__()
        body = create_backbone(name, pretrained)
        found = body.feature_info.reduction()
        if set(PYRAMID) <= set(found):
            # Of several levels at one stride, the last has passed through the most layers.
            levels = [max(i for i, s in enumerate(found) if s == stride) for stride in PYRAMID]
            multiple = 1
        else:
            levels = list(range(len(found)))
            multiple = lcm(LOGIT_STRIDE, *found)
            if not _takes(body, (2 * multiple, 3 * multiple)):
                size = " x ".join(map(str, body.pretrained_cfg["input_size"][1:]))
                raise ValueError(
                    f"BLPSeg: backbone must take images of any size, {name!r} takes {size} only; "
                    "choose another one, such as vit_small_patch14_dinov2"
                )
            _freeze_unused(body, multiple)
        channels = body.feature_info.channels()
        self.body = body
        self.levels = levels
        self.channels = [channels[i] for i in levels]
        self.stride = found[levels[0]]  # of the finest level
        self.multiple = multiple  # of which an image's sides must be
        self.channels_last = str(getattr(body, "output_fmt", "NCHW")).endswith("NHWC")
        self.set_normalization(normalization_of(body))

    @property
    def normalization(self) -> Normalization:
        """Mean and deviation of each channel."""
        return Normalization(*(tuple(part.flatten().tolist()) for part in (self.mean, self.std)))

    def set_normalization(self, normalization: Normalization) -> None:
        """Replace mean and deviation, e.g. by a checkpoint's."""
        for name, values in normalization._asdict().items():
            new = torch.tensor(values)[:, None, None]
            old = getattr(self, name, new)
            self.register_buffer(name, new.to(old), persistent=False)

    def normalize(
        self,
        images: Tensor,  # [N, 3, H, W], from 0 to 1
    ) -> Tensor:  # [N, 3, H, W]
        """Scale images as the backbone was trained: (image - mean) / std."""
        return (images - self.mean) / self.std

    def pad(
        self,
        images: Tensor,  # [N, 3, H, W]
    ) -> Tensor:  # [N, 3, H', W']
        """Repeat the last row and column until both sides are multiples of ``multiple``."""
        bottom, right = (-side % self.multiple for side in images.shape[2:])
        if not bottom and not right:
            return images
        return F.pad(images, (0, right, 0, bottom), mode="replicate")

    def forward(
        self,
        images: Tensor,  # [N, 3, H, W], from 0 to 1; sides are multiples of `multiple`
    ) -> list[Tensor]:  # levels [N, C, h, w], finest first
        """Return the features of images that are not normalized yet."""
        features = self.body(self.normalize(images))
        picked = [features[i] for i in self.levels]
        return [level.permute(0, 3, 1, 2) for level in picked] if self.channels_last else picked


@torch.no_grad()
def _takes(body: nn.Module, size: tuple[int, int]) -> bool:
    """Try an image of a size; timm's configurations do not tell."""
    image = next(body.parameters()).new_zeros(1, 3, *size)
    try:
        body.eval()(image)
    except (AssertionError, RuntimeError, ValueError):
        return False
    finally:
        body.train()
    return True


@torch.enable_grad()
def _freeze_unused(body: nn.Module, side: int) -> None:
    """Freeze parameters that no feature depends on: DistributedDataParallel refuses them.

    One is EfficientViM's weight of each classifier.
    """
    parameters = [p for p in body.parameters() if p.requires_grad]
    image = parameters[0].new_zeros(1, 3, 2 * side, 2 * side)
    total = torch.stack([level.sum() for level in body.eval()(image)]).sum()
    body.train()
    gradients = torch.autograd.grad(total, parameters, allow_unused=True)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.requires_grad_(gradient is not None)
