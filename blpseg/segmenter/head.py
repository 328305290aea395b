"""The trained part of a segmenter: two small heads on frozen features."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blpseg.segmenter.samples import Samples

_BATCH = 4096  # samples per step
_UNLABELED_WEIGHT = 0.02  # of a cell without a label in the annotation loss, as published
_DEVIATION = 5.0  # of the features that the heads take


class Heads(nn.Module):
    """Two heads of two 1x1 convolutions: logits of the classes, and of being annotated.

    Args:
        channels: C, channels of the features.
        num_classes: K.
        width: Channels between the two convolutions.
    """

    def __init__(self, channels: int, num_classes: int, width: int) -> None:
        super().__init__()
        self.classes = _head(channels, num_classes, width)
        self.annotation = _head(channels, num_classes + 1, width)
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("scale", torch.ones(()))

    def set_normalization(self, features: Tensor) -> None:  # [n, C]
        """Normalize features from now on by each channel's mean and one deviation of all channels.

        A deviation per channel would amplify the many channels in which an image hardly varies.
        """
        self.mean.copy_(features.float().mean(0))
        deviation = (features.float() - self.mean).square().mean().sqrt()
        self.scale.copy_(_DEVIATION / deviation.clamp(min=1e-6))

    def normalize(self, features: Tensor) -> Tensor:  # [n, C] -> [n, C] float32
        """Return the features as the two heads take them."""
        return (features.float() - self.mean) * self.scale


def _head(channels: int, outputs: int, width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(channels, width), nn.ReLU(), nn.Linear(width, outputs))


def train(heads: Heads, samples: Samples, steps: int, lr: float, seed: int) -> None:
    """Train both heads on samples, in place; they go on from their weights.

    Args:
        heads: The heads.
        samples: At least one with a label.
        steps: Iterations.
        lr: Largest learning rate.
        seed: Chooses the samples of each iteration, where there are more than a batch.
    """
    features = heads.normalize(samples.features)
    labeled = samples.labeled
    num_classes = heads.classes[-1].out_features
    labels, weights = samples.labels[labeled], samples.weights[labeled]
    # Every class weighs the same, however long its strokes are.
    totals = weights.new_zeros(num_classes).index_add_(0, labels, weights)
    _train_head(heads.classes, features[labeled], labels, weights / totals[labels], steps, lr, seed)
    labels = torch.where(labeled, samples.labels, num_classes)
    weights = samples.weights * torch.where(labeled, 1, _UNLABELED_WEIGHT)
    _train_head(heads.annotation, features, labels, weights, steps, lr, seed)


def _train_head(
    head: nn.Module,
    features: Tensor,  # [n, C]
    labels: Tensor,  # [n]
    weights: Tensor,  # [n]
    steps: int,
    lr: float,
    seed: int,
) -> None:
    optimizer = torch.optim.AdamW(head.parameters(), lr, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps, pct_start=0.1)
    rng = torch.Generator().manual_seed(seed)
    batch: slice | Tensor = slice(None)
    for _ in range(steps):
        if len(features) > _BATCH:
            batch = torch.randperm(len(features), generator=rng)[:_BATCH]
        loss = _weighted_cross_entropy(head(features[batch]), labels[batch], weights[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()


def _weighted_cross_entropy(logits: Tensor, target: Tensor, weights: Tensor) -> Tensor:
    losses = F.cross_entropy(logits, target, reduction="none")
    return (losses * weights).sum() / weights.sum().clamp(min=1e-9)
