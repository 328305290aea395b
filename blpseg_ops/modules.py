"""``lam`` and ``blp_loss`` as modules that hold their parameters and settings."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from blpseg_ops import _checks
from blpseg_ops._basis import embedding_basis
from blpseg_ops._patch_conv import PatchConv2d, patch_conv2d
from blpseg_ops._precision import matmul, no_autocast
from blpseg_ops.ops.blp_loss import blp_loss
from blpseg_ops.ops.lam import lam


class LocalAggregation(nn.Module):
    """Apply LAM with an embedding of the image: takes images and logits, returns logits.

    The embedding depends on the normalized image alone. The image is zero-padded right and bottom
    to whole patches; a ``patch`` x ``patch`` convolution of that stride, LayerNorm over channels
    and a 1x1 convolution follow. |f|^2 reaches hundreds, so the embedding is computed in float32,
    forward and backward, under autocast and whatever torch's TF32 switches allow.

    The module wraps any segmentation network: ``aggregate(images, network(images))``. ``patch`` is
    the stride of the network's logits; the image size need not be a multiple of it. sigma and
    radius count pixels of the logits, so a network with a coarser stride needs smaller ones.

    With ``query_stride`` the result is finer than the logits: queries are embedded around every
    ``query_stride``-th pixel, with the same weights, and each takes a mean of the logits of near
    pixels that look like it. Logits may then have any size; features are averaged to it.

    The embedding spans at most ``in_channels * patch**2 + 2`` dimensions, 50 as published, whatever
    ``dim`` is. On GPUs LAM gets its coordinates in those dimensions (:meth:`coordinates`); output
    and gradients are the same. :meth:`embed` always returns the embedding itself.

    Args:
        dim: Channels D of the embedding.
        patch: Side of the image patch, in pixels, that becomes one pixel of the logits.
        in_channels: Channels of the image.
        sigma: Standard deviation of the Gaussian, in pixels of the logits, > 0.
        radius: Half the side of the window around a query, in pixels of the logits: an int
            >= 0 or, with query_stride, a number >= 0.5; None for the whole image.
        query_stride: Pixels of the image per pixel of the result, a divisor of patch; None: the
            result has the size of the logits.
        eps: Weight of T_b in the denominator, >= 0; see :func:`blpseg_ops.lam`.
        scale: Factor on the scores.
        backend: See :func:`blpseg_ops.lam`.

    Raises:
        ValueError: sigma, radius, query_stride, eps or scale is out of range.

    Examples:
        Around logits at a quarter of the image's size, rounded up:

        >>> aggregate = blpseg_ops.LocalAggregation(dim=16, patch=4)
        >>> images, logits = torch.randn(2, 3, 30, 41), torch.randn(2, 21, 8, 11)
        >>> aggregate(images, logits).shape
        torch.Size([2, 21, 8, 11])

        Logits at stride 16 in, at stride 2 out:

        >>> aggregate = blpseg_ops.LocalAggregation(dim=16, patch=4, query_stride=2, radius=3)
        >>> aggregate(images, torch.randn(2, 21, 2, 3)).shape
        torch.Size([2, 21, 15, 21])

    Source: Wang et al. 2023 (IEEE TIP 32), local aggregation module.
    """

    def __init__(
        self,
        dim: int = 256,
        patch: int = 4,
        in_channels: int = 3,
        *,
        sigma: float = 6.0,
        radius: float | None = None,
        query_stride: int | None = None,
        eps: float = 0.0,
        scale: float = 1.0,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        if query_stride is not None and (query_stride < 1 or patch % query_stride):
            raise ValueError(
                f"LocalAggregation: query_stride must be None or a divisor of patch, {patch}, "
                f"got {query_stride}"
            )
        _checks.require_positive("LocalAggregation", "sigma", sigma)
        if query_stride is None:  # else lam checks it
            _checks.require_radius("LocalAggregation", radius)
        _checks.require_not_negative("LocalAggregation", "eps", eps)
        _checks.require_finite("LocalAggregation", "scale", scale)
        self.patch, self.sigma, self.radius = patch, sigma, radius
        self.eps, self.scale, self.backend = eps, scale, backend
        self.query_stride = query_stride
        self.proj = PatchConv2d(in_channels, dim, patch)
        self.norm = nn.LayerNorm(dim)
        self.conv = PatchConv2d(dim, dim, 1)
        for layer in (self.proj, self.conv):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out")

    def embed(
        self,
        images: Tensor,  # [N, 3, H, W]
        stride: int | None = None,
    ) -> Tensor:  # [N, D, ceil(H / patch), ceil(W / patch)]
        """Return the features that LAM compares.

        With ``stride``, a divisor of patch, they are those of the patches around every
        ``stride``-th pixel: patch / stride times as many on each side.
        """
        with no_autocast(images.device):
            features: Tensor = self.conv(self._normed(images, stride))
        return features

    def coordinates(
        self,
        images: Tensor,  # [N, 3, H, W]
        stride: int | None = None,
    ) -> Tensor:  # [N, in_channels * patch^2 + 2, ceil(H / patch), ceil(W / patch)]
        """Return Q^T f for the embedding f and an orthonormal basis Q of all that f can be.

        Inner products equal those of :meth:`embed`. The gradient for f is a combination of features
        and lies in the span of Q, so Q can be treated as a constant: all gradients are equal, too.
        """
        with no_autocast(images.device):
            basis = embedding_basis(self.proj, self.norm, self.conv)  # Q [D, R]
            assert self.conv.bias is not None
            weight = matmul(basis.mT, self.conv.weight.flatten(1))
            bias = matmul(basis.mT, self.conv.bias[:, None])[:, 0]
            return patch_conv2d(self._normed(images, stride), weight[:, :, None, None], bias)

    def _normed(self, images: Tensor, stride: int | None) -> Tensor:  # [N, 3, H, W]
        height, width = images.shape[2:]
        padded = F.pad(
            images.to(self.proj.weight.dtype), (0, -width % self.patch, 0, -height % self.patch)
        )
        if stride is None or stride == self.patch:
            patches = self.proj(padded)
        else:
            # The patch is centered on its stride x stride pixels, up to half a pixel.
            margin = self.patch - stride
            before, after = margin // 2, margin - margin // 2
            padded = F.pad(padded, (before, after, before, after), mode="replicate")
            assert self.proj.bias is not None
            patches = patch_conv2d(padded, self.proj.weight, self.proj.bias, stride)
        normed: Tensor = self.norm(patches.permute(0, 2, 3, 1))
        return normed.permute(0, 3, 1, 2)

    def forward(
        self,
        images: Tensor,  # [N, 3, H, W]
        logits: Tensor,  # [N, C, ceil(H / patch), ceil(W / patch)]; any h, w with query_stride
        *,
        sigma: float | None = None,
    ) -> Tensor:  # as logits; [N, C, ceil(H / query_stride), ceil(W / query_stride)]
        """Replace every pixel's logits by a mean over near pixels that look alike in the image.

        Args:
            images: [N, in_channels, H, W], floating point, normalized as the network expects.
            logits: [N, C, ceil(H / patch), ceil(W / patch)], on the device of images. With
                query_stride [N, C, h, w] of any size: they cover the image.
            sigma: Replaces the module's sigma in this call.

        Returns:
            A tensor of the shape and dtype of logits (float32 under autocast). With query_stride
            [N, C, ceil(H / query_stride), ceil(W / query_stride)].

        Raises:
            TypeError: An input is not a floating-point tensor.
            ValueError: The shapes do not match, or sigma is not > 0.
        """
        sigma = self.sigma if sigma is None else sigma
        _checks.require_positive("LocalAggregation", "sigma", sigma)
        _checks.require_maps("LocalAggregation", "images", images, "[N, 3, H, W]")
        _checks.require_maps("LocalAggregation", "logits", logits, "[N, C, h, w]")
        n, _, height, width = images.shape
        grid = (-(-height // self.patch), -(-width // self.patch))
        fits = tuple(logits.shape[2:]) == grid
        if logits.shape[0] != n or not (fits or self.query_stride):
            raise ValueError(
                f"LocalAggregation: logits must have batch size, height and width {[n, *grid]} for "
                f"images of shape {list(images.shape)} and patch {self.patch}, "
                f"got shape {list(logits.shape)}"
            )
        embed = self.coordinates if self._should_project() else self.embed
        features, queries = embed(images), None
        if self.query_stride is not None:
            queries = embed(images, self.query_stride)
            rows, columns = -(-height // self.query_stride), -(-width // self.query_stride)
            if not fits:  # such logits cover the image without its padding
                queries = queries[:, :, :rows, :columns]
                features = F.adaptive_avg_pool2d(features, (logits.shape[2], logits.shape[3]))
        output = lam(
            features,
            logits,
            sigma,
            queries=queries,
            radius=self.radius,
            eps=self.eps,
            scale=self.scale,
            backend=self.backend,
        )
        return output if queries is None else output[:, :, :rows, :columns]

    def _should_project(self) -> bool:
        """Return whether LAM gets coordinates. Without queries the CPU kernel finds a basis."""
        rank = self.proj.in_channels * self.patch**2 + 2
        needs_basis = self.proj.weight.is_cuda or self.query_stride is not None
        return needs_basis and self.proj.out_channels > max(64, rank)

    def extra_repr(self) -> str:
        """Return the settings, for print(module)."""
        names = ["patch", "sigma", "radius", "eps", "scale"]
        if self.query_stride is not None:
            names.append("query_stride")
        return ", ".join(f"{name}={getattr(self, name)}" for name in names)


class BLPLoss(nn.Module):
    """Compute :func:`blpseg_ops.blp_loss` with the settings that the module holds.

    Args:
        gamma: Exponent of the weight, >= 0.
        ignore_index: Value of pixels to ignore; outside 0..K.
        backend: See :func:`blpseg_ops.blp_loss`.

    Raises:
        ValueError: gamma is out of range.

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
        """Return the loss; shapes and errors as for :func:`blpseg_ops.blp_loss`."""
        return blp_loss(
            seg_logits,
            annotation_logits,
            target,
            gamma=self.gamma,
            ignore_index=self.ignore_index,
            backend=self.backend,
        )

    def extra_repr(self) -> str:
        """Return the settings, for print(module)."""
        return f"gamma={self.gamma}, ignore_index={self.ignore_index}"
