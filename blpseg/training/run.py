"""One training run: check everything, build everything, then loop over the iterations."""

from __future__ import annotations

import math
import os
import time
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs, gather_object, send_to_device, set_seed
from torch import nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import PolynomialLR
from torch.utils.data import DataLoader

from blpseg.checkpoints import (
    build_model,
    model_content,
    normalization_in,
    save_checkpoint,
    start_from,
)
from blpseg.config import DataConfig, OptimConfig, TrainConfig
from blpseg.data.folder import Sample, ScribbleFolder, choose_splits
from blpseg.data.stream import Batch, TrainingStream, derive_seed
from blpseg.devices import choose_device
from blpseg.errors import TrainingStopped, UserError
from blpseg.evaluation.scores import score_model
from blpseg.metrics import Scores
from blpseg.training.display import Display, Step
from blpseg.training.distributed import PartOfBatches, synchronize
from blpseg.training.interruption import StopRequest, ignore_sigterm
from blpseg.training.log import RunLog, evaluation_mode
from blpseg.training.loss import TrainingLosses
from blpseg.training.run_folder import RunFolder, fingerprint

_SPEED_WINDOW = 20  # iterations that images_per_second is averaged over
_LONGEST_VALIDATION = timedelta(hours=6)  # how long the other processes wait for the main one

Progress = Callable[[Iterable[Sample]], Iterable[Sample]]


class TrainResult(NamedTuple):
    """The outcome of a training run."""

    output: Path
    """The run folder."""

    last: Path
    """Checkpoint of the last iteration."""

    best: Path | None
    """Checkpoint of the validation with the best mIoU; None without validation."""

    scores: Scores | None
    """Scores of the last iteration on the validation images; None without validation."""

    seconds: float
    """Duration of the training loop, with its validations."""


def train(config: TrainConfig, *, on_step: Callable[[Step], None] | None = None) -> TrainResult:
    """Train a model as configured.

    Under `accelerate launch`, call this in every process; the main process writes the files. The
    processes stay in their group: the caller ends it with
    `blpseg.training.distributed.leave_group`.

    Args:
        config: The run.
        on_step: Called after every iteration, in the main process. If given, nothing is printed
            and no progress bar is shown.

    Returns:
        The run's checkpoints and scores. Only the main process has scores.

    Raises:
        UserError: Before any work is done: the data have problems, the run folder exists or cannot
            be resumed, or the launched processes would train separately. During the run: the loss
            is not finite.
        OSError: A file cannot be written; the earlier last.pt is kept.
        TrainingStopped: SIGTERM came; the run is saved and can be resumed.
    """
    accelerator = _accelerator(config)
    shown = on_step is None and accelerator.is_main_process
    run = TrainingRun(config, accelerator, quiet=not shown)
    display = Display(run.iteration, run.iterations) if shown else nullcontext()
    with display, StopRequest() as stop:
        if shown:
            display.announce(
                run.start, config.optim.self_training_start(run.iterations), run.validations()
            )
            return run.train(display.on_step, display.progress, stop)
        return run.train(on_step or (lambda step: None), iter, stop)


def open_data(config: DataConfig, quiet: bool) -> tuple[ScribbleFolder, ScribbleFolder | None]:
    """Open the training images and, if the data set has them, the validation images."""
    train_split, val_split = choose_splits(config)
    samples = ScribbleFolder(config, train_split, labels=config.train_labels, quiet=quiet)
    if val_split is None:
        return samples, None
    return samples, ScribbleFolder(config, val_split, labels="masks", quiet=quiet)


class TrainingRun:
    """Check and build everything that a run needs; `train` then runs its iterations.

    Args:
        config: The run.
        accelerator: The processes and the device.
        quiet: Show no progress while the data are checked.

    Raises:
        UserError: See `train`; nothing has been written.
    """

    def __init__(self, config: TrainConfig, accelerator: Accelerator, *, quiet: bool) -> None:
        self.config, self.accelerator = config, accelerator
        self.folder = RunFolder(config.output)
        if not config.resume:
            self.folder.check_new(config.overwrite)
        _check_batch_divides(config.optim.batch_size, accelerator.num_processes)
        self.samples, self.validation = open_data(config.data, quiet)
        saved = self.folder.check_unfinished(config, self.samples.names) if config.resume else None
        self.classes = self.samples.classes
        self.iterations = config.optim.total_iterations(len(self.samples))
        self.self_training_start = config.optim.self_training_start(self.iterations)
        set_seed(config.seed)
        pretrained = None if saved is None and config.init is None else False
        model = build_model(config.model, len(self.classes), pretrained=pretrained)
        self.start: str | None = None  # what the weights come from, in a sentence
        if saved is None and config.init is not None:
            self.start = start_from(config.init, model, self.classes)
        self.model = synchronize(model, accelerator.state)
        optimizer, self.schedule = _optimizer(self.model, config.optim, self.iterations)
        losses = TrainingLosses(self.model).train()
        self.losses, self.optimizer = accelerator.prepare(losses, optimizer)
        self.iteration = 0  # iterations done
        self.validated = 0  # iteration of the last validation
        self.scores: Scores | None = None
        self.best_miou = -math.inf
        if saved is not None:
            self._restore(saved)
        accelerator.wait_for_everyone()  # every process reads the folder before one changes it
        self.log: RunLog | None = None  # only the main process writes
        if accelerator.is_main_process:
            self.folder.make(config, keep=saved is not None)
            self.log = RunLog(self.folder.tensorboard, self.iteration)

    def validations(self) -> tuple[int, int]:
        """Return how many validations are still due, and the number of images of each."""
        if self.validation is None:
            return 0, 0
        every = self.config.log.validate_every
        return -(-self.iterations // every) - self.iteration // every, len(self.validation)

    def train(
        self, on_step: Callable[[Step], None], progress: Progress, stop: StopRequest
    ) -> TrainResult:
        """Run the remaining iterations.

        Args:
            on_step: Called after every iteration, in the main process.
            progress: Wraps the samples of a validation, e.g. in a progress bar.
            stop: Set when the run has to stop after the current iteration.
        """
        schedule, batch_size = self.config.log, self.config.optim.batch_size
        start = time.monotonic()
        with self.log or nullcontext():
            if self.iteration > self.validated and self._due(schedule.validate_every):
                # The earlier run was stopped between this iteration and its validation.
                self._validate(progress)
                self._save(self.folder.last)
            speed = _Speed(batch_size)
            for batch in self._loader():
                learning_rate = self.schedule.get_last_lr()[0]
                blp, annotation, regularizer, stopping = self._step(batch, stop)
                images_per_second = speed.tick()
                miou = None
                if self._due(schedule.validate_every) and not stopping:
                    miou = self._validate(progress)
                    speed = _Speed(batch_size)
                elif self._due(schedule.preview_every):
                    self._add_preview()
                step = Step(
                    self.iteration,
                    self.iterations,
                    blp,
                    annotation,
                    learning_rate,
                    images_per_second,
                    miou,
                    regularizer,
                )
                if self._due(schedule.scalars_every) and self.log is not None:
                    self.log.add_scalars(step, self.accelerator.device)
                if self._due(schedule.save_every) or stopping:
                    self._save(self.folder.last)
                if schedule.keep_every is not None and self.iteration % schedule.keep_every == 0:
                    self._save(self.folder.numbered(self.iteration))
                if self.accelerator.is_main_process:
                    on_step(step)
                if stopping:
                    self.accelerator.wait_for_everyone()
                    raise TrainingStopped(
                        f"stopped after iteration {self.iteration} of {self.iterations}; "
                        f"{self.folder.last} is saved; --resume continues"
                    )
        return self._result(time.monotonic() - start)

    def _loader(self) -> DataLoader[Batch]:
        """Load this process's part of the remaining batches."""
        config, state = self.config, self.accelerator.state
        batch_size = config.optim.batch_size
        stream = TrainingStream(
            self.samples,
            config.augment,
            self.iterations * batch_size,
            config.seed,
            self.model.backbone.normalization.mean,
        )
        return DataLoader(
            stream,
            batch_sampler=PartOfBatches(
                range(self.iteration, self.iterations),
                batch_size,
                state.process_index,
                state.num_processes,
            ),
            num_workers=config.data.workers,
            pin_memory=state.device.type == "cuda",
            worker_init_fn=ignore_sigterm,
        )

    def _step(self, batch: Batch, stop: StopRequest) -> tuple[float, float, float, bool]:
        """Learn from one batch; return its losses, and whether any process was asked to stop."""
        start = self.self_training_start
        self_training = start is not None and self.iteration >= start
        # Random numbers of an iteration depend only on its index, so that a resumed run repeats
        # them. The data stream follows the same rule.
        torch.manual_seed(derive_seed(self.config.seed, 2, self.iteration))
        names = batch.name
        batch = send_to_device(batch, self.accelerator.device, non_blocking=True)
        losses = self.losses(batch, self_training)
        report = torch.cat([losses.detach(), losses.new_tensor([stop.requested])])
        blp, annotation, regularizer, stopping = self.accelerator.reduce(report, "mean").tolist()
        if not math.isfinite(blp + annotation + regularizer):
            raise UserError(
                f"iteration {self.iteration + 1} of {self.iterations}: the loss is not finite (blp "
                f"{blp}, annotation {annotation}, regularizer {regularizer}); lower "
                "optim.learning_rate, or check the images of the batch: "
                f"{', '.join(gather_object(names))}"
            )
        self.optimizer.zero_grad()
        self.accelerator.backward(losses.sum())
        self.optimizer.step()
        self.schedule.step()
        self.iteration += 1
        return blp, annotation, regularizer, stopping > 0

    def _due(self, every: int) -> bool:
        return self.iteration % every == 0 or self.iteration == self.iterations

    def _validate(self, progress: Progress) -> float | None:
        """Record a preview; score the validation images, if any, and keep the best checkpoint.

        Only the main process works; the others wait for it in their next iteration.
        """
        self.validated = self.iteration
        if self.log is None:
            return None
        self._add_preview()
        if self.validation is not None:
            with evaluation_mode(self.model):
                self.scores = score_model(
                    self.model, self.validation, distances=False, progress=progress
                )
        if self.scores is None or self.scores.miou is None:
            return None
        self.log.add_miou(self.scores.miou, self.iteration)
        if self.scores.miou > self.best_miou:
            self.best_miou = self.scores.miou
            self._save(self.folder.best)
        return self.scores.miou

    def _add_preview(self) -> None:
        if self.log is not None:
            self.log.add_preview(self.model, self.validation or self.samples, self.iteration)
            if self.self_training_start is not None:
                self.log.add_pseudo_labels(self.model, self.samples, self.iteration)

    def _save(self, path: Path) -> None:
        if self.log is None:
            return
        self.log.flush()
        scaler = self.accelerator.scaler
        content = model_content(
            self.model, self.classes, self.config.as_plain_data(), self.iteration
        ) | {
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "scaler": None if scaler is None else scaler.state_dict(),
            "validated": self.validated,
            "best_miou": self.best_miou,
            "scores": None if self.scores is None else self.scores.as_plain_data(),
            "images": fingerprint(self.samples.names),
        }
        save_checkpoint(path, content)

    def _restore(self, content: dict[str, Any]) -> None:
        """Restore the state that `_save` wrote."""
        self.model.load_state_dict(content["model"])
        self.model.backbone.set_normalization(normalization_in(content))
        self.optimizer.load_state_dict(content["optimizer"])
        self.schedule.load_state_dict(content["schedule"])
        if self.accelerator.scaler is not None and content["scaler"] is not None:
            self.accelerator.scaler.load_state_dict(content["scaler"])
        self.iteration, self.validated = content["iteration"], content["validated"]
        self.best_miou = content["best_miou"]
        if content["scores"] is not None:
            self.scores = Scores.from_plain_data(content["scores"])

    def _result(self, seconds: float) -> TrainResult:
        self.accelerator.wait_for_everyone()
        if self.scores is not None and self.accelerator.is_main_process:
            self.folder.write_scores(self.scores)
        best = self.folder.best if self.best_miou >= 0 else None
        return TrainResult(self.folder.path, self.folder.last, best, self.scores, seconds)


def _accelerator(config: TrainConfig) -> Accelerator:
    # Without cpu=True, accelerate forms no group of CPU processes: each would train alone.
    on_cpu = choose_device(config.device).type == "cpu"
    on_cuda = torch.cuda.is_available() and not on_cpu
    accelerator = Accelerator(
        mixed_precision=config.optim.mixed_precision if on_cuda else "no",
        cpu=on_cpu,
        kwargs_handlers=[InitProcessGroupKwargs(timeout=_LONGEST_VALIDATION)],
    )
    launched = int(os.environ.get("WORLD_SIZE", 1))
    if accelerator.num_processes != launched:
        raise UserError(
            f"device: expected {launched} processes to train together, as WORLD_SIZE says, got "
            f"{accelerator.num_processes}; several processes need CUDA GPUs, or --device=cpu"
        )
    return accelerator


def _check_batch_divides(batch_size: int, processes: int) -> None:
    if batch_size % processes:
        raise UserError(
            f"optim.batch_size: expected a multiple of {processes}, the number of processes that "
            f"divide the batch, got {batch_size}"
        )


def _optimizer(
    model: nn.Module, config: OptimConfig, iterations: int
) -> tuple[AdamW, PolynomialLR]:
    optimizer = AdamW(model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
    return optimizer, PolynomialLR(optimizer, total_iters=iterations + 1, power=config.power)


class _Speed:
    """Images per second over the last iterations."""

    def __init__(self, batch_size: int) -> None:
        self._batch_size = batch_size
        self._times = deque([time.monotonic()], maxlen=_SPEED_WINDOW + 1)

    def tick(self) -> float:
        """Note the end of an iteration; return the images per second."""
        self._times.append(time.monotonic())
        return self._batch_size * (len(self._times) - 1) / (self._times[-1] - self._times[0])
