"""LAM on the logits of a window: pixels that are near and look alike get similar logits."""

from __future__ import annotations

import torch
from torch import Tensor

import blpseg_ops
from blpseg.segmenter.windows import STRIDE

_DIM = 256  # channels of the embedding
_SEED = 0  # of the embedding's weights, which are not trained


class Aggregation:
    """LAM with the embedding of an image; its random weights are fixed.

    Args:
        channels: Channels of the image.
        sigma: Standard deviation of LAM's Gaussian, in cells.
    """

    def __init__(self, channels: int, sigma: float) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(_SEED)
            self._lam = blpseg_ops.LocalAggregation(_DIM, STRIDE, channels, sigma=sigma)

    @torch.no_grad()
    def __call__(
        self,
        image: Tensor,  # [C, H, W] from 0 to 1
        logits: Tensor,  # [K, h, w]
    ) -> Tensor:  # [K, h, w]
        """Return the logits' local means."""
        return self._lam((image[None] - 0.5) / 0.25, logits[None])[0]
