"""The gated CRF loss: near pixels of similar color should have the same class.

Source: Obukhov, Georgoulis, Dai and Van Gool, "Gated CRF Loss for Weakly Supervised Semantic Image
Segmentation", 2019, arXiv:1906.04651.
"""

from __future__ import annotations

import torch
from torch import Tensor

from blpseg.regularizers.neighbors import (
    contrast_weight,
    half_window,
    pairs,
    reduce_images,
    reduce_labels,
)


def gated_crf_loss(
    logits: Tensor,  # [N, K, h, w]
    images: Tensor,  # [N, 3, H, W]
    target: Tensor,  # [N, H, W]
    *,
    radius: int = 5,
    sigma_xy: float = 6.0,
    sigma_rgb: float = 0.1,
) -> Tensor:  # []
    """Penalize different classes at near pixels of similar color.

    With p the softmax over classes, x the position and I the color of a pixel:

        w_ab = exp(-|x_a - x_b|^2 / (2 sigma_xy^2) - |I_a - I_b|^2 / (2 sigma_rgb^2))
        loss_n = (sum over pixels a and b of the window around a, b != a) w_ab (1 - <p_a, p_b>)
                 / (number of pixels)

    The mean over images is returned. The gates close at ignored pixels: these enter no pair, and
    are not counted.

    Args:
        logits: [N, K, h, w], floating point.
        images: [N, 3, H, W], RGB from 0 to 1; averaged over the cells of the logits.
        target: [N, H, W] integers, as for training; only ignored pixels matter.
        radius: Half the side of the window, in pixels of the logits.
        sigma_xy: Standard deviation of the distance, in pixels of the logits.
        sigma_rgb: Standard deviation of the color, from 0 to 1.

    Returns:
        A scalar of the logits' dtype.
    """
    size = (logits.shape[2], logits.shape[3])
    colors = reduce_images(images, size).to(logits.dtype)
    _, counted = reduce_labels(target, logits.shape[1], size)
    gates = counted.to(logits.dtype)
    probs = logits.softmax(1)
    total = logits.new_zeros(len(logits))
    for dy, dx in half_window(radius):
        gate_a, gate_b = pairs(gates, dy, dx)
        prob_a, prob_b = pairs(probs, dy, dx)
        near = torch.exp(torch.tensor(-(dy**2 + dx**2) / (2 * sigma_xy**2))).item()
        weight = near * contrast_weight(colors, dy, dx, sigma_rgb) * gate_a * gate_b
        # The sum of the formula has each pair twice.
        total = total + 2 * (weight * (1 - (prob_a * prob_b).sum(1))).sum((1, 2))
    return (total / gates.sum((1, 2)).clamp(min=1)).mean()
