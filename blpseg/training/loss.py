"""The training losses as one module, so that wrappers such as DDP can act on its forward pass."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from blpseg.data.stream import Batch
from blpseg.model import BLPSeg
from blpseg.training.distributed import rescale_annotation_loss


class TrainingLosses(nn.Module):
    """Compute the losses of a batch; the training loss is their sum.

    Args:
        model: The network.
    """

    def __init__(self, model: BLPSeg) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch, self_training: bool) -> Tensor:  # [3]
        """Return the BLP, annotation and regularizer losses of this process's part of the batch."""
        model = self.model
        losses = model.losses(
            batch.image, batch.target, batch.class_present, self_training=self_training
        )
        annotation = rescale_annotation_loss(
            losses["annotation"],
            batch.target,
            model.num_classes,
            model.unlabeled_weight,
            model.ignore_index,
        )
        regularizer = losses["regularizer"]
        if regularizer is None:
            regularizer = torch.zeros_like(annotation)
        return torch.stack([losses["blp"], annotation, regularizer])
