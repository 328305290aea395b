"""Pairs of near pixels, and images and labels at the resolution of the logits."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor


def half_window(radius: int) -> Iterator[tuple[int, int]]:
    """List the offsets (dy, dx) of a square window that name each pair of pixels once."""
    for dy in range(radius + 1):
        for dx in range(-radius, radius + 1):
            if (dy, dx) > (0, 0):
                yield dy, dx


def pairs(
    x: Tensor,  # [..., h, w]
    dy: int,
    dx: int,
) -> tuple[Tensor, Tensor]:  # [..., max(h - dy, 0), max(w - |dx|, 0)], both
    """Return the values at all pixels that have a neighbor at (dy, dx), and at these neighbors.

    Args:
        x: [..., h, w].
        dy: Rows down to the neighbor, >= 0.
        dx: Columns to the neighbor; negative ones go left.
    """
    h, w = x.shape[-2:]
    rows, columns = max(h - dy, 0), max(w - abs(dx), 0)
    first = x.narrow(-2, 0, rows).narrow(-1, min(max(-dx, 0), w), columns)
    second = x.narrow(-2, min(dy, h), rows).narrow(-1, min(max(dx, 0), w), columns)
    return first, second


def contrast_weight(
    images: Tensor,  # [N, 3, h, w]
    dy: int,
    dx: int,
    sigma_rgb: float,
) -> Tensor:  # [N, max(h - dy, 0), max(w - |dx|, 0)]
    """Compute exp(-|I_a - I_b|^2 / (2 sigma_rgb^2)) of each pair of pixels a, b at an offset."""
    first, second = pairs(images, dy, dx)
    return torch.exp(-(first - second).square().sum(1) / (2 * sigma_rgb**2))


def reduce_images(
    images: Tensor,  # [N, 3, H, W]
    size: tuple[int, int],
) -> Tensor:  # [N, 3, h, w]
    """Average an image's pixels over the cells of a smaller grid."""
    return F.adaptive_avg_pool2d(images, size)


def reduce_labels(
    target: Tensor,  # [N, H, W]
    num_classes: int,
    size: tuple[int, int],
) -> tuple[Tensor, Tensor]:  # [N, K, h, w], [N, h, w]
    """Reduce labels to a smaller grid.

    Args:
        target: [N, H, W] integers: 0..K-1 (a class), K (unlabeled), other values are ignored.
        num_classes: K.
        size: h, w.

    Returns:
        The share of each class among a cell's labeled pixels, 0 in cells without any; and whether
        some pixel of the cell is not ignored.
    """
    classes = torch.arange(num_classes, device=target.device)[:, None, None]
    votes = F.adaptive_avg_pool2d((target[:, None] == classes).float(), size)
    counted = F.adaptive_avg_pool2d((target <= num_classes).float()[:, None], size)[:, 0] > 0
    return votes / votes.sum(1, keepdim=True).clamp(min=1e-12), counted
