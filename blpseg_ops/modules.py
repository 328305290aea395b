"""The ops as modules, with the parameters they need."""

from __future__ import annotations

import math

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

    It wraps any segmentation network, ``aggregate(images, network(images))``: ``patch`` is the
    stride of the network's logits, and the image need not be a multiple of it. sigma and radius
    are in pixels of the logits, so a coarser stride asks for smaller ones.

    Whatever ``dim`` is, the embedding spans ``in_channels * patch**2 + 2`` dimensions at most, 50
    as published. GPUs therefore get its coordinates in those, with the same output and the same
    gradients; :meth:`embed` always returns the embedding itself.

    Args:
        dim: Channels D of the embedding.
        patch: Pixels of the image a side that make one pixel of the logits.
        in_channels: Channels of the image.
        sigma: Standard deviation of the Gaussian, in pixels of the logits, > 0.
        radius: Half the side of the window that pixels see, in pixels of the logits, >= 0; None:
            the whole image.
        eps: Guard of the published program, >= 0; see :func:`blpseg_ops.lam`.
        scale: Factor on the scores.
        backend: As for :func:`blpseg_ops.lam`.

    Raises:
        ValueError: sigma, radius, eps or scale does not fit.

    Examples:
        Around logits at a quarter of the image's size, rounded up:

        >>> aggregate = blpseg_ops.LocalAggregation(dim=16, patch=4)
        >>> images, logits = torch.randn(2, 3, 30, 41), torch.randn(2, 21, 8, 11)
        >>> aggregate(images, logits).shape
        torch.Size([2, 21, 8, 11])

    Source: Wang et al. 2023 (IEEE TIP 32), local aggregation module.
    """

    def __init__(
        self,
        dim: int = 256,
        patch: int = 4,
        in_channels: int = 3,
        *,
        sigma: float = 6.0,
        radius: int | None = None,
        eps: float = 0.0,
        scale: float = 1.0,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        _checks.require_positive("LocalAggregation", "sigma", sigma)
        _checks.require_radius("LocalAggregation", radius)
        _checks.require_not_negative("LocalAggregation", "eps", eps)
        _checks.require_finite("LocalAggregation", "scale", scale)
        self.patch, self.sigma, self.radius = patch, sigma, radius
        self.eps, self.scale, self.backend = eps, scale, backend
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
        features: Tensor = self.conv(self._normed(images))
        return features

    def coordinates(
        self,
        images: Tensor,  # [N, 3, H, W]
    ) -> Tensor:  # [N, in_channels * patch^2 + 2, ceil(H / patch), ceil(W / patch)]
        """The embedding f as Q^T f, in an orthonormal basis Q of all that it can be.

        Products of features are the same, and so is the gradient of what depends on f by them, with
        Q taken as constant: it is a sum of features and hence Q times the gradient of Q^T f.
        """
        basis = self._basis()
        weight = torch.einsum("dr,dkyx->rkyx", basis, self.conv.weight)
        return F.conv2d(self._normed(images), weight, _bias(self.conv) @ basis)

    def _normed(self, images: Tensor) -> Tensor:  # [N, 3, H, W] -> [N, D, h, w]
        height, width = images.shape[2:]
        padded = F.pad(images, (0, -width % self.patch, 0, -height % self.patch))
        patches = self.proj(padded)
        normed: Tensor = self.norm(patches.permute(0, 2, 3, 1))
        return normed.permute(0, 3, 1, 2)

    @torch.no_grad()
    def _basis(self) -> Tensor:  # [D, in_channels * patch^2 + 2]
        """An orthonormal basis of the embedding's span, coordinates that vary most coming first.

        LayerNorm takes the mean off, divides by a number a pixel and applies gain and bias, so the
        embedding is a combination of what the rest makes of proj's columns and its bias, plus one
        constant. Photos vary smoothly: a patch's columns are taken by frequency.
        """
        gain = self.conv.weight[:, :, 0, 0] * self.norm.weight
        gain = gain - gain.mean(1, keepdim=True)
        place = torch.arange(self.patch, dtype=gain.dtype, device=gain.device)
        waves = torch.cos(math.pi / self.patch * (place + 0.5) * place[:, None])  # [k, place]
        columns = torch.einsum("dcyx,ky,lx->dklc", self.proj.weight, waves, waves).flatten(1, 2)
        columns = columns[:, (place[:, None] + place).flatten().argsort(stable=True)].flatten(1)
        constant = self.conv.weight[:, :, 0, 0] @ self.norm.bias + _bias(self.conv)
        average, rest = columns.tensor_split([self.proj.in_channels], 1)
        span = torch.cat([gain @ average, (gain @ _bias(self.proj))[:, None], gain @ rest], 1)
        span = torch.cat([span, constant[:, None]], 1)
        basis: Tensor = torch.linalg.qr(span.double())[0]
        return basis.to(span.dtype)

    def forward(
        self,
        images: Tensor,  # [N, 3, H, W]
        logits: Tensor,  # [N, C, ceil(H / patch), ceil(W / patch)]
        *,
        sigma: float | None = None,
    ) -> Tensor:  # as logits
        """Aggregate logits over near pixels that look alike in the image.

        Args:
            images: [N, in_channels, H, W], floating point, normalised as for the network.
            logits: [N, C, ceil(H / patch), ceil(W / patch)], on the device of images.
            sigma: For this call, instead of the module's.

        Returns:
            The shape of logits, and their dtype (under autocast: float32).

        Raises:
            TypeError: An input is not a floating-point tensor.
            ValueError: The shapes do not fit each other, or sigma is not > 0.
        """
        sigma = self.sigma if sigma is None else sigma
        _checks.require_positive("LocalAggregation", "sigma", sigma)
        _checks.require_maps("LocalAggregation", "images", images, "[N, 3, H, W]")
        _checks.require_maps("LocalAggregation", "logits", logits, "[N, C, h, w]")
        n, _, height, width = images.shape
        grid = (-(-height // self.patch), -(-width // self.patch))
        if logits.shape[0] != n or tuple(logits.shape[2:]) != grid:
            raise ValueError(
                f"LocalAggregation: logits must have batch, height and width {[n, *grid]} for "
                f"images {list(images.shape)} and patch {self.patch}, got {list(logits.shape)}"
            )
        with torch.autocast(images.device.type, enabled=False):
            images = images.to(self.proj.weight.dtype)
            features = self.coordinates(images) if self._gains() else self.embed(images)
        return lam(
            features,
            logits,
            sigma,
            radius=self.radius,
            eps=self.eps,
            scale=self.scale,
            backend=self.backend,
        )

    def _gains(self) -> bool:
        """Whether coordinates are worth their making: the CPU's kernel finds them by itself."""
        return self.proj.weight.is_cuda and self.proj.out_channels > max(64, self._rank())

    def _rank(self) -> int:
        return self.proj.in_channels * self.patch**2 + 2

    def extra_repr(self) -> str:
        """The numbers, for print(module)."""
        names = ("patch", "sigma", "radius", "eps", "scale")
        return ", ".join(f"{name}={getattr(self, name)}" for name in names)


def _bias(layer: nn.Conv2d) -> Tensor:
    assert layer.bias is not None
    return layer.bias


class BLPLoss(nn.Module):
    """:func:`blpseg_ops.blp_loss` as a module.

    Args:
        gamma: Exponent of the weight, >= 0.
        ignore_index: Value of pixels to leave out; outside 0..K.
        backend: As for :func:`blpseg_ops.blp_loss`.

    Raises:
        ValueError: gamma does not fit.

    Examples:
        >>> loss = blpseg_ops.BLPLoss(gamma=2.0)
        >>> loss
        BLPLoss(gamma=2.0, ignore_index=255)
        >>> target = torch.tensor([[[0, 2], [2, 2]]])
        >>> round(loss(torch.zeros(1, 2, 1, 1), torch.zeros(1, 3, 1, 1), target).item(), 3)
        0.693

    Source: Wang et al. 2023 (IEEE TIP 32), BLP loss.
    """

    def __init__(
        self, gamma: float = 2.0, ignore_index: int = 255, *, backend: str = "auto"
    ) -> None:
        super().__init__()
        _checks.require_not_negative("BLPLoss", "gamma", gamma)
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
