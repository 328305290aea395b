"""Training: from a configuration to a run folder with checkpoints, scores and TensorBoard files."""

from __future__ import annotations

import json
import math
import time
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import yaml
from accelerate import Accelerator
from accelerate.utils import set_seed
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from torch import Tensor, nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import PolynomialLR
from torch.utils.data import DataLoader, Dataset
from torch.utils.tensorboard import SummaryWriter

from blpseg.checkpoints import build_model, save_checkpoint
from blpseg.config import AugmentConfig, DataConfig, OptimConfig, TrainConfig
from blpseg.data.folder import Sample, ScribbleFolder, has_split, open_folder
from blpseg.data.transforms import augment
from blpseg.errors import UserError
from blpseg.evaluation import score_model
from blpseg.inference import predict_image
from blpseg.metrics import Scores
from blpseg.model import BLPSeg
from blpseg.pictures import comparison_sheet

_PREVIEW_IMAGES = 3
_RATE_WINDOW = 20  # iterations that the images per second are averaged over
_CONFIG, _SCORES, _LAST, _BEST = "config.yaml", "scores.json", "last.pt", "best.pt"
_TENSORBOARD = "tensorboard"
_OWN_FILES = (_CONFIG, _SCORES, _LAST, _BEST, f"{_TENSORBOARD}/events.out.tfevents.*")


class Step(NamedTuple):
    """One iteration, as told to whoever watches."""

    iteration: int
    """Iterations done, this one among them."""

    iterations: int
    """Iterations of the whole run."""

    blp: float
    """The segmentation's loss."""

    annotation: float
    """The annotation head's loss."""

    learning_rate: float
    """Learning rate of this iteration."""

    images_per_second: float
    """Training images per second over the last iterations; 0 until it can be told."""

    miou: float | None
    """mIoU on the validation images, where this iteration was followed by a validation."""


class TrainResult(NamedTuple):
    """What a training run came to."""

    output: Path
    """The run folder."""

    last: Path
    """Checkpoint of the last iteration."""

    best: Path | None
    """Checkpoint of the validation with the best mIoU; None where there was no validation."""

    scores: Scores | None
    """Scores of the last iteration on the validation images, where there are any."""

    seconds: float
    """Time of the training loop, validations among it."""


class Batch(NamedTuple):
    """Training crops, one or a batch of B."""

    image: Tensor  # [B, 3, H, W] float32, normalised
    target: Tensor  # [B, H, W] uint8, K = unlabelled, 255 = ignore
    class_present: Tensor  # [B, K] bool
    name: list[str]  # B names; one str in a single crop


class TrainingStream(Dataset[Batch]):
    """The training images as one long shuffled sequence of augmented crops.

    What stands at a position depends on the seed and the position alone: not on the number of
    loader processes, the batch size, or where reading began.

    Args:
        samples: The training images.
        config: The augmentation.
        length: Number of crops; it may exceed the number of images.
        seed: Seed of order and augmentation.
    """

    def __init__(
        self, samples: ScribbleFolder, config: AugmentConfig, length: int, seed: int
    ) -> None:
        self.samples = samples
        self.length = length
        self.seed = seed
        self._augment = augment(config.flip, config.scale, config.crop)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, position: int) -> Batch:
        epoch, place = divmod(position, len(self.samples))
        order = np.random.default_rng((self.seed, 0, epoch)).permutation(len(self.samples))
        sample = self.samples[int(order[place])]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(
                int(np.random.SeedSequence((self.seed, 1, position)).generate_state(1)[0])
            )
            image, target = self._augment(sample.image, sample.target)
        return Batch(
            image.as_subclass(Tensor), target.as_subclass(Tensor), sample.class_present, sample.name
        )


class _Losses(nn.Module):
    """The model's losses as a forward pass, which is what wrappers such as DDP act on."""

    def __init__(self, model: BLPSeg) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch, self_training: bool) -> dict[str, Tensor]:
        return self.model.losses(
            batch.image, batch.target, batch.class_present, self_training=self_training
        )


def train(config: TrainConfig, *, on_step: Callable[[Step], None] | None = None) -> TrainResult:
    """Train a model as configured.

    Args:
        config: The run.
        on_step: Called after every iteration; with it nothing is printed and no progress bar shown.

    Returns:
        The run's checkpoints and scores.

    Raises:
        UserError: Before any work is done, if the data does not fit or the run folder exists;
            during the run, if the loss stops being finite.
    """
    run = _Run(config, quiet=on_step is not None)
    display = _Display(run.iterations) if on_step is None else nullcontext()
    with display:
        if on_step is None:
            display.announce(config.optim)
            return run.train(display.on_step, display.watch)
        return run.train(on_step, iter)


class _Run:
    """One training run: everything checked and built on construction, trained by `train`."""

    def __init__(self, config: TrainConfig, *, quiet: bool) -> None:
        self.config = config
        _check_run_folder(config.output, config.overwrite)
        self.samples, self.validation = open_data(config.data, quiet)
        self.classes = self.samples.classes
        self.iterations = config.optim.total_iterations(len(self.samples))
        self.accelerator = _accelerator(config)
        set_seed(config.seed)
        model = build_model(config.model, len(self.classes))
        self.model = _synchronise_batch_norm(model, self.accelerator)
        self.optimizer, self.schedule = _optimizer(self.model, config.optim, self.iterations)
        _make_run_folder(config)
        self.writer = SummaryWriter(config.output / _TENSORBOARD)
        self.iteration = 0
        self.scores: Scores | None = None
        self.best_miou = -math.inf

    def train(
        self,
        on_step: Callable[[Step], None],
        watch: Callable[[Iterable[Sample]], Iterable[Sample]],
    ) -> TrainResult:
        """Run all iterations."""
        config = self.config
        losses, self.optimizer, loader = self.accelerator.prepare(
            _Losses(self.model).train(), self.optimizer, self._loader()
        )
        start, rate = time.monotonic(), _Rate(config.optim.batch_size)
        with self.writer:
            for batch in loader:
                learning_rate = self.schedule.get_last_lr()[0]
                blp, annotation = self._step(losses, batch)
                self.iteration += 1
                speed = rate.tick()
                miou = None
                if self._due(config.log.validate_every):
                    miou = self._validate(watch)
                    rate = _Rate(config.optim.batch_size)
                step = Step(
                    self.iteration, self.iterations, blp, annotation, learning_rate, speed, miou
                )
                if self._due(config.log.scalars_every):
                    self._log(step)
                if self._due(config.log.save_every):
                    self._save(_LAST)
                on_step(step)
        return self._result(time.monotonic() - start)

    def _loader(self) -> DataLoader[Batch]:
        config = self.config
        stream = TrainingStream(
            self.samples, config.augment, self.iterations * config.optim.batch_size, config.seed
        )
        return DataLoader(
            stream,
            config.optim.batch_size,
            num_workers=config.data.workers,
            pin_memory=self.accelerator.device.type == "cuda",
        )

    def _step(self, losses: nn.Module, batch: Batch) -> tuple[float, float]:
        """Learn from one batch; returns the two losses."""
        begins = self.config.optim.self_training_from
        found = losses(batch, begins is not None and self.iteration >= begins)
        blp, annotation = torch.stack([found["blp"], found["annotation"]]).tolist()
        if not math.isfinite(blp + annotation):
            raise UserError(
                f"iteration {self.iteration + 1} of {self.iterations}: the loss is not finite (blp "
                f"{blp}, annotation {annotation}); images of the batch: {', '.join(batch.name)}"
            )
        self.optimizer.zero_grad()
        self.accelerator.backward(found["blp"] + found["annotation"])
        self.optimizer.step()
        self.schedule.step()
        return blp, annotation

    def _due(self, every: int) -> bool:
        return self.iteration % every == 0 or self.iteration == self.iterations

    def _validate(self, watch: Callable[[Iterable[Sample]], Iterable[Sample]]) -> float | None:
        """Draw a preview and, where there are validation images, score them and keep the best."""
        self.model.eval()
        self._draw_preview()
        if self.validation is not None:
            self.scores = score_model(self.model, self.validation, distances=False, watch=watch)
        self.model.train()
        if self.scores is None or self.scores.miou is None:
            return None
        self.writer.add_scalar("validation/mIoU", self.scores.miou, self.iteration)
        if self.scores.miou > self.best_miou:
            self.best_miou = self.scores.miou
            self._save(_BEST)
        return self.scores.miou

    def _draw_preview(self) -> None:
        shown = self.validation or self.samples
        samples = [shown[index] for index in range(min(_PREVIEW_IMAGES, len(shown)))]
        found = [predict_image(self.model, sample.image) for sample in samples]
        sheet = comparison_sheet(
            samples,
            {"prediction": [one.labels.numpy() for one in found]},
            [one.annotation_probability.numpy() for one in found],
            self.classes,
        )
        self.writer.add_image("preview", sheet, self.iteration, dataformats="HWC")

    def _log(self, step: Step) -> None:
        for name in ("blp", "annotation"):
            self.writer.add_scalar(f"loss/{name}", getattr(step, name), step.iteration)
        for name in ("learning_rate", "images_per_second"):
            self.writer.add_scalar(f"training/{name}", getattr(step, name), step.iteration)

    def _save(self, name: str) -> None:
        content = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "iteration": self.iteration,
            "classes": self.classes,
            "config": self.config.as_plain_data(),
        }
        save_checkpoint(self.config.output / name, content)

    def _result(self, seconds: float) -> TrainResult:
        output = self.config.output
        if self.scores is not None:
            (output / _SCORES).write_text(json.dumps(self.scores.as_plain_data(), indent=2) + "\n")
        best = output / _BEST
        return TrainResult(
            output, output / _LAST, best if self.best_miou >= 0 else None, self.scores, seconds
        )


def open_data(config: DataConfig, quiet: bool) -> tuple[ScribbleFolder, ScribbleFolder | None]:
    """Open the training images and, where a list of them is found, the validation images."""
    train_split, val_split = config.train_split, config.val_split
    if val_split is None and has_split(config.root, "val") and (config.root / "masks").is_dir():
        val_split = "val"
    if train_split is None and has_split(config.root, "train"):
        train_split = "train"
    if train_split is None and val_split is not None:
        raise UserError(
            f"{config.root / 'splits'}: expected a list train.txt beside {val_split}.txt, so that "
            "its images are not trained on; data.train_split names another"
        )
    samples = open_folder(config, train_split, quiet=quiet)
    if val_split is None:
        return samples, None
    return samples, open_folder(config, val_split, labels="masks", quiet=quiet)


def _accelerator(config: TrainConfig) -> Accelerator:
    on_cpu = config.device == "cpu"
    half = torch.cuda.is_available() and not on_cpu
    return Accelerator(mixed_precision=config.optim.mixed_precision if half else "no", cpu=on_cpu)


def _synchronise_batch_norm(model: BLPSeg, accelerator: Accelerator) -> BLPSeg:
    """Take batch statistics over all GPUs, as published; torch has this for GPUs alone."""
    if accelerator.num_processes > 1 and accelerator.device.type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(model)
    return model


def _optimizer(
    model: nn.Module, config: OptimConfig, iterations: int
) -> tuple[AdamW, PolynomialLR]:
    optimizer = AdamW(model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
    return optimizer, PolynomialLR(optimizer, total_iters=iterations + 1, power=config.power)


def _check_run_folder(folder: Path, overwrite: bool) -> None:
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: expected a run folder to make, but a file of this name exists")
    if not overwrite and folder.exists() and any(folder.iterdir()):
        raise UserError(
            f"{folder}: exists already and is not empty; --overwrite true replaces the run in it"
        )


def _make_run_folder(config: TrainConfig) -> None:
    """Make the folder, less the files of an earlier run, and write the configuration down."""
    for pattern in _OWN_FILES:
        for old in config.output.glob(pattern):
            old.unlink()
    config.output.mkdir(parents=True, exist_ok=True)
    (config.output / _CONFIG).write_text(yaml.safe_dump(config.as_plain_data(), sort_keys=False))


class _Rate:
    """Images per second over the last iterations."""

    def __init__(self, batch_size: int) -> None:
        self._batch_size = batch_size
        self._times = deque([time.monotonic()], maxlen=_RATE_WINDOW + 1)

    def tick(self) -> float:
        """Note that an iteration ended."""
        self._times.append(time.monotonic())
        return self._batch_size * (len(self._times) - 1) / (self._times[-1] - self._times[0])


def progress_bars(console: Console) -> Progress:
    """Bars for training runs: description, iterations, time left and a field `detail`."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=12),
        MofNCompleteColumn(),
        TimeRemainingColumn(elapsed_when_finished=True),
        TextColumn("{task.fields[detail]}"),
        console=console,
    )


class _Display:
    """Progress in the terminal: losses, learning rate, time left, and each validation's mIoU."""

    def __init__(self, iterations: int) -> None:
        self._iterations = iterations
        self._progress = progress_bars(Console(stderr=True))
        self._task: TaskID = self._progress.add_task("", total=iterations, detail="")

    def __enter__(self) -> _Display:
        self._progress.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._progress.stop()

    def announce(self, config: OptimConfig) -> None:
        """Say so where the run ends before self-training begins."""
        begins = config.self_training_from
        if begins is not None and begins >= self._iterations:
            self._progress.print(
                "Without self-training: it would begin at iteration "
                f"{begins} of {self._iterations} (optim.self_training_from)."
            )

    def on_step(self, step: Step) -> None:
        """Show an iteration."""
        detail = (
            f"loss {step.blp:.4f} + {step.annotation:.4f}  "
            f"lr {step.learning_rate:.2e}  {step.images_per_second:.1f} img/s"
        )
        self._progress.update(self._task, completed=step.iteration, detail=detail)
        if step.miou is not None:
            self._progress.print(f"Iteration {step.iteration}: mIoU {100 * step.miou:.2f} %")

    def watch(self, samples: Iterable[Sample]) -> Iterable[Sample]:
        """Count the images of a validation."""
        for count, sample in enumerate(samples, 1):
            self._progress.update(self._task, detail=f"validating, {count} images")
            yield sample
