"""Collect the training data of one image: features of labeled cells, and of some others."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from blpseg.segmenter.inputs import UNLABELED
from blpseg.segmenter.windows import STRIDE, Window

_MAX_LABELED = 8192  # labeled cells of a window; as many as strokes on a whole photo have


class Samples(NamedTuple):
    """Cells of a grid of features with what a person drew on them."""

    features: Tensor  # [n, C] float16
    labels: Tensor  # [n] int64: class 0..K-1; -1 for no label
    weights: Tensor  # [n] float32: cells that a sample stands for

    @property
    def labeled(self) -> Tensor:  # [n] bool
        """Which samples have a label."""
        return self.labels >= 0


def has_labels(scribbles: np.ndarray, window: Window) -> bool:
    """Return whether there are scribbles in the core of a window."""
    return bool((scribbles[window.core_rows, window.core_columns] != UNLABELED).any())


def sample_window(
    features: Tensor,  # [C, h, w] float16, of the window
    scribbles: np.ndarray,  # [H, W] uint8, of the image
    window: Window,
    unlabeled: int,
    rng: np.random.Generator,
) -> Samples:
    """Take the labeled cells of a window's core, and some cells without labels.

    A cell with pixels of several classes becomes one sample per class, weighted by their shares.

    Args:
        features: [C, h, w] float16, the window's features.
        scribbles: [H, W] uint8, classes and 255 for unlabeled, of the whole image.
        window: The window.
        unlabeled: Number of cells without labels to take, at most.
        rng: Chooses these cells.
    """
    top, left = window.core_in_window[0].start, window.core_in_window[1].start
    core = scribbles[window.core_rows, window.core_columns]
    width = features.shape[2]
    y, x = np.nonzero(core != UNLABELED)
    cell = (y + top) // STRIDE * width + (x + left) // STRIDE
    pairs, counts = np.unique(cell * 256 + core[y, x].astype(np.int64), return_counts=True)
    cell, label = np.divmod(pairs, 256)
    shares = counts / np.bincount(cell, counts)[cell]

    rows = np.arange(top // STRIDE, -(-(top + core.shape[0]) // STRIDE))
    columns = np.arange(left // STRIDE, -(-(left + core.shape[1]) // STRIDE))
    free = np.setdiff1d((rows[:, None] * width + columns).ravel(), cell)
    chosen = rng.choice(free, min(unlabeled, free.size), replace=False)

    kept = _thin_out(label, rng)
    cell, label, shares = cell[kept], label[kept], shares[kept] * (label.size / kept.size)
    index = torch.from_numpy(np.concatenate([cell, chosen]))
    return Samples(
        features.flatten(1)[:, index].T.contiguous(),
        torch.cat([torch.from_numpy(label), torch.full((chosen.size,), -1)]),
        torch.cat(
            [
                torch.from_numpy(shares).float(),
                torch.full((chosen.size,), free.size / max(1, chosen.size)),
            ]
        ),
    )


def with_fewer_unlabeled(samples: Samples, count: int) -> Samples:
    """Keep at most `count` of the cells without labels, which are in random order."""
    free = (~samples.labeled).nonzero()[:, 0]
    if len(free) <= count:
        return samples
    kept = torch.cat([samples.labeled.nonzero()[:, 0], free[:count]])
    features, labels, weights = (part[kept] for part in samples)
    return Samples(features, labels, weights * torch.where(labels < 0, len(free) / count, 1))


def _thin_out(label: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return the indices of at most `_MAX_LABELED` samples, chosen at random."""
    if label.size <= _MAX_LABELED:
        return np.arange(label.size)
    return np.sort(rng.choice(label.size, _MAX_LABELED, replace=False))


def join(samples: list[Samples]) -> Samples:
    """Concatenate samples."""
    return Samples(*(torch.cat(parts) for parts in zip(*samples, strict=True)))
