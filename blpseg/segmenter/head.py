"""The trained part of a segmenter: linear heads on normalized features."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blpseg.segmenter.samples import Samples

TEMPERATURE = 1 / 6  # of the class probabilities; scores are about 1 for the class, else 0
_CHUNK = 2**14  # samples that are converted to float32 at once
_UNLABELED_WEIGHT = 0.02  # of a cell without a label in the annotation loss, as published
_ANNOTATION_STEPS, _ANNOTATION_BATCH, _ANNOTATION_LR = 80, 4096, 1e-2


class Heads(nn.Module):
    """Two 1x1 convolutions: scores of the classes, and logits of being annotated.

    Args:
        channels: Channels of each level of the features.
        num_classes: K.
    """

    def __init__(self, channels: Sequence[int], num_classes: int) -> None:
        super().__init__()
        self.levels = list(channels)
        self.classes = nn.Linear(sum(channels), num_classes)
        self.annotation = nn.Linear(sum(channels), num_classes + 1)
        self.register_buffer("scale", torch.ones(sum(channels)))

    def set_normalization(self, features: Tensor) -> None:  # [n, C]
        """Divide each level from now on by the root mean square of all its channels.

        One number per channel instead would amplify the many channels in which an image hardly
        varies.
        """
        mean_squares = [
            level.float().square().mean().expand(level.shape[1])
            for level in features.split(self.levels, 1)
        ]
        self.scale.copy_(torch.cat(mean_squares).clamp(min=1e-12).rsqrt())

    def normalize(self, features: Tensor) -> Tensor:  # [n, C] -> [n, C] float32
        """Return the features as the two heads take them."""
        return features.float() * self.scale


@torch.no_grad()
def fit_classes(heads: Heads, samples: Samples, ridge: float = 10.0) -> None:
    """Solve ridge regression of the classes' indicators on the labeled samples, in closed form.

    Every class weighs the same, however long its strokes are. The intercept is not penalized.

    Args:
        heads: The heads; the head of the classes is replaced.
        samples: At least one with a label.
        ridge: Penalty on the weights, per mean squared length of a sample.
    """
    keep = samples.labeled
    labels, weights = samples.labels[keep], samples.weights[keep].float()
    num_classes = heads.classes.out_features
    totals = weights.new_zeros(num_classes).index_add_(0, labels, weights)
    weights = weights / totals[labels] / (totals > 0).sum()  # of sum 1
    targets = F.one_hot(labels, num_classes).float()
    target_mean = weights @ targets

    def chunks() -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        rows = samples.features[keep].split(_CHUNK), weights.split(_CHUNK), targets.split(_CHUNK)
        for features, part, target in zip(*rows, strict=True):
            yield heads.normalize(features), part[:, None], target - target_mean

    mean = sum(weight.T @ x for x, weight, _ in chunks())[0]
    weighted = (((x - mean) * w.sqrt(), target * w.sqrt()) for x, w, target in chunks())
    if len(labels) < len(mean):  # the smaller of two equal systems
        rows, right = (torch.cat(part) for part in zip(*weighted, strict=True))
        solution = rows.T @ _solve(rows @ rows.T, right, ridge / len(labels))
    else:
        gram, right = mean.new_zeros(len(mean), len(mean)), mean.new_zeros(len(mean), num_classes)
        for rows, target in weighted:
            gram += rows.T @ rows
            right += rows.T @ target
        solution = _solve(gram, right, ridge / len(labels))
    heads.classes.weight.copy_(solution.T)
    heads.classes.bias.copy_(target_mean - mean @ solution)


def _solve(gram: Tensor, right: Tensor, share: float) -> Tensor:
    """Solve with a share of the trace as penalty; both systems have the same trace."""
    gram = gram.double()
    gram.diagonal().add_((share * gram.trace()).clamp(min=1e-12))
    return torch.linalg.solve(gram, right.double()).float()


def train_annotation(heads: Heads, samples: Samples, seed: int) -> None:
    """Train the annotation head with the annotation loss; see :func:`blpseg_ops.annotation_loss`.

    Args:
        heads: The heads; the annotation head is trained from zeros.
        samples: Labeled and other samples.
        seed: Chooses the samples of each iteration, where there are more than a batch.
    """
    head = heads.annotation
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    labels = torch.where(samples.labeled, samples.labels, head.out_features - 1)
    weights = samples.weights * torch.where(samples.labeled, 1, _UNLABELED_WEIGHT)
    optimizer = torch.optim.Adam(head.parameters(), _ANNOTATION_LR)
    rng = torch.Generator().manual_seed(seed)
    batch = torch.arange(len(labels))
    for _ in range(_ANNOTATION_STEPS):
        if len(labels) > _ANNOTATION_BATCH:
            batch = torch.randint(len(labels), (_ANNOTATION_BATCH,), generator=rng)
        index = batch.to(labels.device)
        logits = head(heads.normalize(samples.features[index]))
        losses = F.cross_entropy(logits, labels[index], reduction="none")
        optimizer.zero_grad()
        ((losses * weights[index]).sum() / weights[index].sum()).backward()
        optimizer.step()
