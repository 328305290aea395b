"""A training step and its parts, as they are measured."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.optim import AdamW
from torch.utils.data import default_collate

import blpseg_ops
from blpseg.config import AugmentConfig, DataConfig
from blpseg.data.folder import ScribbleFolder
from blpseg.data.stream import Batch, TrainingStream
from blpseg.model import BLPSeg

OURS, REFERENCE = "blpseg_ops", "plain PyTorch"
PEERS = {OURS: "auto", REFERENCE: "reference"}

DATA, LAM, LOSSES = "data", "`lam`, forward + backward", "losses, forward + backward"
FORWARD, BACKWARD, OPTIMIZER = "forward", "backward", "optimizer"
STEP = "forward, backward, optimizer"
PARTS = (DATA, FORWARD, BACKWARD, OPTIMIZER, STEP, LAM, LOSSES)


class Case(NamedTuple):
    """One part of a step."""

    part: str
    backbone: str = "resnet18"
    n: int = 4
    crop: int = 192
    width: int = 64
    embedding_dim: int = 256

    def shrunk(self) -> Case:
        """The same on small images and a small network, to try it out."""
        return self._replace(backbone="test_resnet", n=2, crop=32, width=16, embedding_dim=16)

    def __str__(self) -> str:
        """As in the names of benchmarks."""
        return f"{self.part}, {self.backbone}, {self.n} images of {self.crop} x {self.crop}"


class Training:
    """A model in training on one batch, with every part of a step as a call of its own.

    Args:
        case: Sizes; its part does not matter.
        peer: Name of the ops that the model takes.
        scenes: Folder of a data set.
    """

    def __init__(self, case: Case, peer: str, scenes: Path) -> None:
        torch.manual_seed(0)
        samples = ScribbleFolder(DataConfig(scenes))
        self.case = case
        self.model = BLPSeg(
            len(samples.classes),
            case.backbone,
            pretrained=False,
            width=case.width,
            embedding_dim=case.embedding_dim,
            eps=1e-7,
            backend=PEERS[peer],
        )
        self.stream = TrainingStream(
            samples,
            AugmentConfig(crop=case.crop),
            10**6,
            seed=0,
            mean=self.model.backbone.normalization.mean,
        )
        self.optimizer = AdamW(self.model.parameters(), lr=1e-5)
        self.position = 0
        self.batch = self.data()

    def call(self, part: str) -> tuple[Callable[[], None], Callable[[], object]]:
        """What is done before a part of the step is timed, and that part."""
        nothing = self.optimizer.zero_grad
        return {
            DATA: (nothing, self.data),
            FORWARD: (nothing, self.forward),
            BACKWARD: (self.forward, self.backward),
            OPTIMIZER: (self._gradients, self.optimizer.step),
            STEP: (nothing, self.step),
            LAM: (nothing, self.lam),
            LOSSES: (nothing, self.losses),
        }[part]

    def data(self) -> Batch:
        """Load and augment a batch in this process."""
        start, self.position = self.position, self.position + self.case.n
        return default_collate([self.stream[start + image] for image in range(self.case.n)])

    def forward(self) -> None:
        """Both losses of the batch, by a forward pass of the whole network."""
        batch = self.batch
        found = self.model.losses(batch.image, batch.target, batch.class_present)
        self.loss = found["blp"] + found["annotation"]

    def backward(self) -> None:
        """Gradients of all parameters."""
        self.loss.backward()

    def step(self) -> None:
        """All of a step but the data."""
        self.forward()
        self.backward()
        self.optimizer.step()

    def lam(self) -> tuple[Tensor, ...]:
        """LAM with its embedding, and the gradients of its parameters and the logits."""
        seg, _ = self._logits
        out = self.model.lam(self.model.backbone.normalize(self.batch.image), seg)
        return torch.autograd.grad(out.sum(), [seg, *self.model.lam.parameters()])

    def losses(self) -> tuple[Tensor, ...]:
        """Both losses and the logits' gradients."""
        objective = blpseg_ops.blp_objective(
            *self._logits, self.batch.target, backend=self.model.backend
        )
        return torch.autograd.grad(objective.blp_loss + objective.annotation_loss, self._logits)

    def _gradients(self) -> None:
        if next(self.model.parameters()).grad is None:
            self.forward()
            self.backward()

    @cached_property
    def _logits(self) -> tuple[Tensor, ...]:
        with torch.no_grad():
            found = self.model.logits(self.batch.image)
        return tuple(logits.requires_grad_() for logits in found)
