"""The record of a run in TensorBoard: scalars, and pictures of predictions."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn
from torch.utils.tensorboard import SummaryWriter

from blpseg.data.folder import Sample, ScribbleFolder
from blpseg.inference import predict_image
from blpseg.memory import peak_memory
from blpseg.model import BLPSeg
from blpseg.pictures import comparison_sheet
from blpseg.training.display import Step

_PREVIEW_IMAGES = 3


class RunLog:
    """Write the event file of one process that trains.

    Args:
        folder: Folder of the event files.
        iteration: Iterations that an earlier part of the run has done. Points after it, which the
            resumed run will write again, are purged.
    """

    def __init__(self, folder: Path, iteration: int) -> None:
        # TensorBoard identifies event files by their start second; wait for an unused one.
        while list(folder.glob(f"events.out.tfevents.*{int(time.time())}.*")):
            time.sleep(0.05)
        self._writer = SummaryWriter(folder, purge_step=iteration + 1 if iteration else None)

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, *_: object) -> None:
        self._writer.close()

    def flush(self) -> None:
        """Write all points to disk; a run that resumes after this call finds all of them."""
        self._writer.flush()

    def add_scalars(self, step: Step, device: torch.device) -> None:
        """Record the losses, the learning rate, the speed and the peak memory of an iteration."""
        scalars = {
            "loss/blp": step.blp,
            "loss/annotation": step.annotation,
            "training/learning_rate": step.learning_rate,
            "training/images_per_second": step.images_per_second,
            "training/peak_memory_MiB": peak_memory(device) / 2**20,
        }
        for name, value in scalars.items():
            self._writer.add_scalar(name, value, step.iteration)

    def add_miou(self, miou: float, iteration: int) -> None:
        """Record the mIoU of a validation."""
        self._writer.add_scalar("validation/mIoU", miou, iteration)

    def add_preview(self, model: BLPSeg, images: ScribbleFolder, iteration: int) -> None:
        """Predict the first few images and record a picture of the predictions."""
        samples: list[Sample] = [images[i] for i in range(min(_PREVIEW_IMAGES, len(images)))]
        with evaluation_mode(model):
            predictions = [predict_image(model, sample.image) for sample in samples]
        sheet = comparison_sheet(
            samples,
            {"prediction": [prediction.labels.numpy() for prediction in predictions]},
            [prediction.annotation_probability.numpy() for prediction in predictions],
            images.classes,
        )
        self._writer.add_image("preview", sheet, iteration, dataformats="HWC")


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put a model that trains into evaluation mode for the duration of a block."""
    model.eval()
    try:
        yield
    finally:
        model.train()
