"""Soft self-labeling: soft labels that agree with the network and with their neighbors.

Source: Zhang and Boykov, "Soft Self-labeling and Potts Relaxations for Weakly-Supervised
Segmentation", CVPR 2025, arXiv:2507.01721: collision cross entropy between labels and predictions,
collision divergence between the labels of near neighbors.
"""

from __future__ import annotations

import torch
from torch import Tensor

from blpseg.regularizers.neighbors import contrast_weight, pairs, reduce_images, reduce_labels

_NEIGHBORS = ((0, 1), (1, -1), (1, 0), (1, 1))  # each of the 8 neighbors' pairs once
_TINY = 1e-8  # keeps logarithms and norms finite


def soft_label_loss(
    logits: Tensor,  # [N, K, h, w]
    images: Tensor,  # [N, 3, H, W]
    target: Tensor,  # [N, H, W]
    *,
    potts_weight: float = 6.0,
    unary_weight: float = 0.3,
    sigma_rgb: float = 0.05,
    steps: int = 20,
    step_size: float = 0.1,
) -> Tensor:  # []
    """Compute the collision cross entropy between the predictions and soft labels.

    `soft_labels` computes the labels y from the predictions p; they are constants in the backward
    pass. The loss is the mean of -ln <y_a, p_a> over the unlabeled pixels a, per image and then
    over images; `blp_loss` acts on the labeled ones.

    Args:
        logits: [N, K, h, w], floating point.
        images: [N, 3, H, W], RGB from 0 to 1; averaged over the cells of the logits.
        target: [N, H, W] integers: 0..K-1 the scribbled class, K unlabeled, other values ignored.
        potts_weight: lambda, see `soft_labels`.
        unary_weight: eta, see `soft_labels`.
        sigma_rgb: Standard deviation of the contrast weight's color difference, from 0 to 1.
        steps: Gradient steps for the labels.
        step_size: Their size.

    Returns:
        A scalar of the logits' dtype.
    """
    size = (logits.shape[2], logits.shape[3])
    colors = reduce_images(images, size).to(logits.dtype)
    seeds, counted = reduce_labels(target, logits.shape[1], size)
    probs = logits.softmax(1)
    labels = soft_labels(
        probs.detach(),
        colors,
        seeds.to(logits.dtype),
        counted,
        potts_weight=potts_weight,
        unary_weight=unary_weight,
        sigma_rgb=sigma_rgb,
        steps=steps,
        step_size=step_size,
    )
    free = (counted & (seeds.sum(1) == 0)).to(logits.dtype)
    per_pixel = collision_cross_entropy(labels, probs)
    return ((per_pixel * free).sum((1, 2)) / free.sum((1, 2)).clamp(min=1)).mean()


def soft_labels(
    probs: Tensor,  # [N, K, h, w]
    colors: Tensor,  # [N, 3, h, w]
    seeds: Tensor,  # [N, K, h, w]
    counted: Tensor,  # [N, h, w] bool
    *,
    potts_weight: float,
    unary_weight: float,
    sigma_rgb: float,
    steps: int,
    step_size: float,
) -> Tensor:  # [N, K, h, w]
    """Minimize `label_energy` over the labels of unlabeled pixels by gradient descent.

    The labels are softmax(u). u starts from the logarithm of the predictions.

    Args:
        probs: Predictions.
        colors: RGB from 0 to 1.
        seeds: Labels of the scribbled pixels, which stay; 0 at all other pixels.
        counted: Whether a pixel is not ignored.
        potts_weight: lambda in the energy.
        unary_weight: eta in the energy.
        sigma_rgb: Standard deviation of the contrast weight's color difference.
        steps: Gradient steps.
        step_size: Their size.
    """
    fixed = seeds.sum(1, keepdim=True) > 0
    u = probs.clamp(min=_TINY).log()
    with torch.enable_grad():
        for _ in range(steps):
            u = u.detach().requires_grad_()
            labels = torch.where(fixed, seeds, u.softmax(1))
            energy = label_energy(
                labels,
                probs,
                colors,
                seeds,
                counted,
                potts_weight=potts_weight,
                unary_weight=unary_weight,
                sigma_rgb=sigma_rgb,
            )
            u = u - step_size * torch.autograd.grad(energy, u)[0]
    return torch.where(fixed, seeds, u.detach().softmax(1))


def label_energy(
    labels: Tensor,  # [N, K, h, w]
    probs: Tensor,  # [N, K, h, w]
    colors: Tensor,  # [N, 3, h, w]
    seeds: Tensor,  # [N, K, h, w]
    counted: Tensor,  # [N, h, w] bool
    *,
    potts_weight: float,
    unary_weight: float,
    sigma_rgb: float,
) -> Tensor:  # []
    """Compute the energy of soft labels y, summed over images.

        E = eta (sum over unlabeled a) -ln <y_a, p_a>
          + lambda (sum over pairs a, b of 8-neighbors) w_ab -ln(<y_a, y_b> / (|y_a| |y_b|))
        w_ab = exp(-|I_a - I_b|^2 / (2 sigma_rgb^2))

    Ignored pixels enter no term. See `soft_labels` for the arguments.
    """
    free = (counted & (seeds.sum(1) == 0)).to(labels.dtype)
    energy = unary_weight * (collision_cross_entropy(labels, probs) * free).sum()
    unit = labels / labels.norm(dim=1, keepdim=True).clamp(min=_TINY)
    gates = counted.to(labels.dtype)
    for dy, dx in _NEIGHBORS:
        gate_a, gate_b = pairs(gates, dy, dx)
        weight = contrast_weight(colors, dy, dx, sigma_rgb) * gate_a * gate_b
        divergence = collision_cross_entropy(*pairs(unit, dy, dx))
        energy = energy + potts_weight * (weight * divergence).sum()
    return energy


def collision_cross_entropy(
    first: Tensor,  # [N, K, h, w]
    second: Tensor,  # [N, K, h, w]
) -> Tensor:  # [N, h, w]
    """Compute -ln <y_a, p_a>, the negative log probability that two draws agree."""
    return -(first * second).sum(1).clamp(min=_TINY).log()
