"""The training images as one endless shuffled sequence of augmented crops."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from blpseg.config import AugmentConfig
from blpseg.data.folder import ScribbleFolder, classes_in
from blpseg.data.transforms import augment


class Batch(NamedTuple):
    """Training crops: one, or a batch of B."""

    image: Tensor  # [B, 3, H, W] float32, from 0 to 1
    target: Tensor  # [B, H, W] uint8, K = unlabeled, 255 = ignore
    class_present: Tensor  # [B, K] bool
    name: list[str]  # B names; one str in a single crop


class TrainingStream(Dataset[Batch]):
    """The training images as one long shuffled sequence of augmented crops.

    The crop at a position depends only on the seed and the position. The number of loader
    processes, the batch size and the position of the first read do not change it.

    Args:
        samples: The training images. Opened with labels="masks", their masks are the target.
        config: The augmentation.
        length: Number of crops; it may exceed the number of images.
        seed: Seed of the order and of the augmentation.
        mean: Color of the pixels outside an image, from 0 to 1; see `augment`.
    """

    def __init__(
        self,
        samples: ScribbleFolder,
        config: AugmentConfig,
        length: int,
        seed: int,
        mean: Sequence[float],
    ) -> None:
        self.samples = samples
        self.length = length
        self.seed = seed
        self._augment = augment(config.flip, config.scale, config.crop, mean)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, position: int) -> Batch:
        epoch, rank = divmod(position, len(self.samples))
        order = np.random.default_rng((self.seed, 0, epoch)).permutation(len(self.samples))
        sample = self.samples[int(order[rank])]
        labels, present = sample.target, sample.class_present
        if self.samples.labels == "masks":
            labels, present = sample.mask, classes_in(sample.mask, len(self.samples.classes))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(self.seed, 1, position))
            image, target = self._augment(sample.image, labels)
        return Batch(image.as_subclass(Tensor), target.as_subclass(Tensor), present, sample.name)


def derive_seed(*key: int) -> int:
    """Derive a separate seed for each key, e.g. (run seed, purpose, iteration)."""
    return int(np.random.SeedSequence(key).generate_state(1)[0])
