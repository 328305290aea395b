"""The ops as modules, with the parameters they need."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blpseg_ops import _checks
from blpseg_ops.ops.blp_loss import blp_loss
from blpseg_ops.ops.lam import lam


class LocalAggregation(nn.Module):
    """LAM with its own embedding: an image and logits in, aggregated logits out.

    The embedding is made from the normalised image alone: zero-padded right and bottom to whole
    patches, a ``patch`` x ``patch`` convolution of that stride, LayerNorm over channels and a 1x1
    convolution. It stays in float32 under autocast, since |f|^2 reaches hundreds.

    Args:
        dim: Channels D of the embedding.
        patch: Pixels of the image a side that make one pixel of the logits.
        in_channels: Channels of the image.
        sigma: Standard deviation of the Gaussian, in pixels of the logits, > 0.
        eps: Guard of the published program, >= 0; see :func:`blpseg_ops.lam`.
        scale: Factor on the scores.
        backend: As for :func:`blpseg_ops.lam`.

    Raises:
        ValueError: sigma, eps or scale does not fit.

    Source: Wang et al. 2023 (IEEE TIP 32), local aggregation module.
    """

    def __init__(
        self,
        dim: int = 256,
        patch: int = 4,
        in_channels: int = 3,
        *,
        sigma: float = 6.0,
        eps: float = 0.0,
        scale: float = 1.0,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        _checks.positive("LocalAggregation", "sigma", sigma)
        _checks.not_negative("LocalAggregation", "eps", eps)
        _checks.finite("LocalAggregation", "scale", scale)
        self.patch, self.sigma, self.eps, self.scale = patch, sigma, eps, scale
        self.backend = backend
        self.proj = nn.Conv2d(in_channels, dim, patch, stride=patch)
        self.norm = nn.LayerNorm(dim)
        self.conv = nn.Conv2d(dim, dim, 1)
        for layer in (self.proj, self.conv):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out")

    def embed(
        self,
        images: Tensor,  # [N, 3, H, W]
    ) -> Tensor:  # [N, D, ceil(H / patch), ceil(W / patch)]
        """The features in which pixels are compared."""
        height, width = images.shape[2:]
        padded = F.pad(images, (0, -width % self.patch, 0, -height % self.patch))
        patches = self.proj(padded)
        normed = self.norm(patches.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        features: Tensor = self.conv(normed)
        return features

    def forward(
        self,
        images: Tensor,  # [N, 3, H, W]
        logits: Tensor,  # [N, C, ceil(H / patch), ceil(W / patch)]
    ) -> Tensor:  # as logits
        """Aggregate logits over near pixels that look alike in the image.

        Args:
            images: [N, in_channels, H, W], floating point, normalised as for the network.
            logits: [N, C, ceil(H / patch), ceil(W / patch)], on the device of images.

        Returns:
            The shape of logits, and their dtype (under autocast: float32).

        Raises:
            TypeError: An input is not a floating-point tensor.
            ValueError: The shapes do not fit each other.
        """
        _checks.maps("LocalAggregation", "images", images, "[N, 3, H, W]")
        _checks.maps("LocalAggregation", "logits", logits, "[N, C, h, w]")
        n, _, height, width = images.shape
        grid = (-(-height // self.patch), -(-width // self.patch))
        if logits.shape[0] != n or tuple(logits.shape[2:]) != grid:
            raise ValueError(
                f"LocalAggregation: logits must have batch, height and width {[n, *grid]} for "
                f"images {list(images.shape)} and patch {self.patch}, got {list(logits.shape)}"
            )
        with torch.autocast(images.device.type, enabled=False):
            features = self.embed(images.to(self.proj.weight.dtype))
        return lam(
            features, logits, self.sigma, eps=self.eps, scale=self.scale, backend=self.backend
        )

    def extra_repr(self) -> str:
        """The numbers, for print(module)."""
        return f"patch={self.patch}, sigma={self.sigma}, eps={self.eps}, scale={self.scale}"


class BLPLoss(nn.Module):
    """:func:`blpseg_ops.blp_loss` as a module.

    Args:
        gamma: Exponent of the weight, >= 0.
        ignore_index: Value of pixels to leave out; outside 0..K.
        backend: As for :func:`blpseg_ops.blp_loss`.

    Raises:
        ValueError: gamma does not fit.
    """

    def __init__(
        self, gamma: float = 2.0, ignore_index: int = 255, *, backend: str = "auto"
    ) -> None:
        super().__init__()
        _checks.not_negative("BLPLoss", "gamma", gamma)
        self.gamma, self.ignore_index, self.backend = gamma, ignore_index, backend

    def forward(
        self,
        seg_logits: Tensor,  # [N, K, h, w]
        annotation_logits: Tensor,  # [N, K + 1, h, w]
        target: Tensor,  # [N, H, W]
    ) -> Tensor:  # []
        """The loss; shapes and errors as for :func:`blpseg_ops.blp_loss`."""
        return blp_loss(
            seg_logits,
            annotation_logits,
            target,
            gamma=self.gamma,
            ignore_index=self.ignore_index,
            backend=self.backend,
        )

    def extra_repr(self) -> str:
        """The numbers, for print(module)."""
        return f"gamma={self.gamma}, ignore_index={self.ignore_index}"
