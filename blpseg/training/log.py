"""The record of a run in TensorBoard: scalars, and pictures of predictions."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter

import blpseg_ops
from blpseg.data.folder import Sample, ScribbleFolder
from blpseg.inference import predict_image
from blpseg.memory import peak_memory
from blpseg.model import BLPSeg
from blpseg.pictures import comparison_sheet
from blpseg.training.display import Step

_PREVIEW_IMAGES = 3
_PSEUDO_LABELS = ("pseudo labels", "annotation head's")


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
        if step.regularizer:
            scalars["loss/regularizer"] = step.regularizer
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

    def add_pseudo_labels(self, model: BLPSeg, images: ScribbleFolder, iteration: int) -> None:
        """Record the pseudo labels that both heads give the first few training images.

        Those of the class head are the target in self-training. Those of the annotation head, over
        its K classes without "unlabeled", show what it takes the pixels for. Pixels below the
        threshold are ivory.
        """
        samples: list[Sample] = [images[i] for i in range(min(_PREVIEW_IMAGES, len(images)))]
        device = next(model.parameters()).device
        columns: dict[str, list[np.ndarray]] = {title: [] for title in _PSEUDO_LABELS}
        annotation = []
        for sample in samples:
            batch = sample.image.as_subclass(Tensor)[None].to(device) / 255
            with evaluation_mode(model), torch.no_grad():
                heads = model.logits(batch)
            for title, logits in zip(columns, heads, strict=True):
                labels = blpseg_ops.pseudo_labels(
                    logits[:, : model.num_classes].float().contiguous(),
                    sample.target.as_subclass(Tensor)[None].to(device),
                    sample.class_present[None].to(device),
                    threshold=model.threshold,
                    ignore_index=model.ignore_index,
                )
                columns[title].append(labels[0].cpu().numpy())
            unlabeled = heads[1].softmax(1)[0, -1].cpu().numpy()
            annotation.append(1 - unlabeled)
        sheet = comparison_sheet(samples, columns, annotation, images.classes)
        self._writer.add_image("pseudo labels", sheet, iteration, dataformats="HWC")


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put a model that trains into evaluation mode for the duration of a block."""
    model.eval()
    try:
        yield
    finally:
        model.train()
