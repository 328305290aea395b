"""Training: from a configuration to a run folder with checkpoints, scores and TensorBoard files."""

from __future__ import annotations

import math
import os
import time
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs, gather_object, send_to_device, set_seed
from torch import Tensor, nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import PolynomialLR
from torch.utils.data import DataLoader, Dataset
from torch.utils.tensorboard import SummaryWriter

from blpseg.checkpoints import build_model, save_checkpoint
from blpseg.config import AugmentConfig, DataConfig, OptimConfig, TrainConfig
from blpseg.data.folder import Sample, ScribbleFolder, choose_splits, open_folder
from blpseg.data.transforms import augment
from blpseg.devices import choose_device
from blpseg.display import Display, Step
from blpseg.distributed import ShareOfBatches, synchronise, weigh_share
from blpseg.errors import UserError
from blpseg.evaluation import score_model
from blpseg.inference import predict_image
from blpseg.interruption import StopRequest, TrainingStopped, outlive_sigterm
from blpseg.memory import peak_memory
from blpseg.metrics import Scores
from blpseg.model import BLPSeg
from blpseg.pictures import comparison_sheet
from blpseg.run_folder import RunFolder, fingerprint

_PREVIEW_IMAGES = 3
_RATE_WINDOW = 20  # iterations that the images per second are averaged over
_LONGEST_VALIDATION = timedelta(hours=6)  # that the other processes wait for the main one


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
            torch.manual_seed(_seed(self.seed, 1, position))
            image, target = self._augment(sample.image, sample.target)
        return Batch(
            image.as_subclass(Tensor), target.as_subclass(Tensor), sample.class_present, sample.name
        )


class _Losses(nn.Module):
    """The model's losses as a forward pass, which is what wrappers such as DDP act on."""

    def __init__(self, model: BLPSeg) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch, self_training: bool) -> Tensor:  # [2]: blp, annotation
        model = self.model
        found = model.losses(
            batch.image, batch.target, batch.class_present, self_training=self_training
        )
        annotation = weigh_share(
            found["annotation"],
            batch.target,
            model.num_classes,
            model.unlabeled_weight,
            model.ignore_index,
        )
        return torch.stack([found["blp"], annotation])


def train(config: TrainConfig, *, on_step: Callable[[Step], None] | None = None) -> TrainResult:
    """Train a model as configured.

    Under `accelerate launch` every process calls this, and the main one writes. Their group is left
    to the caller, who ends it by `blpseg.distributed.leave_group`.

    Args:
        config: The run.
        on_step: Called after every iteration, in the main process; with it nothing is printed and
            no progress bar shown.

    Returns:
        The run's checkpoints and scores; scores are the main process's.

    Raises:
        UserError: Before any work is done, if the data does not fit, the run folder exists or
            cannot be continued, or processes that were launched together would train apart; during
            the run, if the loss stops being finite.
        OSError: If a file cannot be written; last.pt stays the one written before.
        TrainingStopped: If SIGTERM came; the run is saved and can be resumed.
    """
    accelerator = _accelerator(config)
    shown = on_step is None and accelerator.is_main_process
    run = _Run(config, accelerator, quiet=not shown)
    display = Display(run.iteration, run.iterations) if shown else nullcontext()
    with display, StopRequest() as stop:
        if shown:
            display.announce(config.optim)
            return run.train(display.on_step, display.watch, stop)
        return run.train(on_step or (lambda step: None), iter, stop)


class _Run:
    """One training run: everything checked and built on construction, trained by `train`."""

    def __init__(self, config: TrainConfig, accelerator: Accelerator, *, quiet: bool) -> None:
        self.config, self.accelerator = config, accelerator
        self.folder = RunFolder(config.output)
        if not config.resume:
            self.folder.check_new(config.overwrite)
        _check_shares(config.optim.batch_size, accelerator.num_processes)
        self.samples, self.validation = open_data(config.data, quiet)
        saved = self.folder.check_unfinished(config, self.samples.names) if config.resume else None
        self.classes = self.samples.classes
        self.iterations = config.optim.total_iterations(len(self.samples))
        set_seed(config.seed)
        network = config.model if saved is None else replace(config.model, pretrained=False)
        model = build_model(network, len(self.classes))
        self.model = synchronise(model, accelerator.state)
        optimizer, self.schedule = _optimizer(self.model, config.optim, self.iterations)
        self.losses, self.optimizer = accelerator.prepare(_Losses(self.model).train(), optimizer)
        self.iteration = 0
        self.validated = 0
        self.scores: Scores | None = None
        self.best_miou = -math.inf
        if saved is not None:
            self._restore(saved)
        accelerator.wait_for_everyone()  # all have looked at the folder before one changes it
        if accelerator.is_main_process:
            self.folder.make(config, keep=saved is not None)
        self.writer = self._writer()

    def train(
        self,
        on_step: Callable[[Step], None],
        watch: Callable[[Iterable[Sample]], Iterable[Sample]],
        stop: StopRequest,
    ) -> TrainResult:
        """Run all iterations that are left."""
        log, batch_size = self.config.log, self.config.optim.batch_size
        start = time.monotonic()
        with self.writer or nullcontext():
            if self.iteration > self.validated and self._due(log.validate_every):
                self._validate(watch)  # the run was stopped before it
                self._save(self.folder.last)
            rate = _Rate(batch_size)
            for batch in self._loader():
                learning_rate = self.schedule.get_last_lr()[0]
                blp, annotation, stopping = self._step(batch, stop)
                speed = rate.tick()
                miou = None
                if self._due(log.validate_every) and not stopping:
                    miou = self._validate(watch)
                    rate = _Rate(batch_size)
                elif self._due(log.preview_every):
                    self._draw_preview()
                step = Step(
                    self.iteration, self.iterations, blp, annotation, learning_rate, speed, miou
                )
                if self._due(log.scalars_every):
                    self._log(step)
                if self._due(log.save_every) or stopping:
                    self._save(self.folder.last)
                if self.accelerator.is_main_process:
                    on_step(step)
                if stopping:
                    self.accelerator.wait_for_everyone()
                    raise TrainingStopped(
                        f"stopped after iteration {self.iteration} of {self.iterations}, which "
                        f"{self.folder.last} holds; --resume true continues"
                    )
        return self._result(time.monotonic() - start)

    def _loader(self) -> DataLoader[Batch]:
        """The process's share of the batches that are left."""
        config, state = self.config, self.accelerator.state
        batch_size = config.optim.batch_size
        stream = TrainingStream(
            self.samples, config.augment, self.iterations * batch_size, config.seed
        )
        return DataLoader(
            stream,
            batch_sampler=ShareOfBatches(
                range(self.iteration, self.iterations),
                batch_size,
                state.process_index,
                state.num_processes,
            ),
            num_workers=config.data.workers,
            pin_memory=state.device.type == "cuda",
            worker_init_fn=outlive_sigterm,
        )

    def _step(self, batch: Batch, stop: StopRequest) -> tuple[float, float, bool]:
        """Learn from one batch; returns the two losses, and whether a process is asked to stop."""
        begins = self.config.optim.self_training_from
        # What an iteration draws depends on its number alone, as what stands in the data does.
        torch.manual_seed(_seed(self.config.seed, 2, self.iteration))
        names = batch.name
        batch = send_to_device(batch, self.accelerator.device, non_blocking=True)
        losses = self.losses(batch, begins is not None and self.iteration >= begins)
        told = torch.cat([losses.detach(), losses.new_tensor([stop.made])])
        blp, annotation, stopping = self.accelerator.reduce(told, "mean").tolist()
        if not math.isfinite(blp + annotation):
            raise UserError(
                f"iteration {self.iteration + 1} of {self.iterations}: the loss is not finite (blp "
                f"{blp}, annotation {annotation}); images of the batch: "
                f"{', '.join(gather_object(names))}"
            )
        self.optimizer.zero_grad()
        self.accelerator.backward(losses.sum())
        self.optimizer.step()
        self.schedule.step()
        self.iteration += 1
        return blp, annotation, stopping > 0

    def _due(self, every: int) -> bool:
        return self.iteration % every == 0 or self.iteration == self.iterations

    def _validate(self, watch: Callable[[Iterable[Sample]], Iterable[Sample]]) -> float | None:
        """Draw a preview and, where there are validation images, score them and keep the best.

        The main process does; the others wait for it in their next iteration.
        """
        self.validated = self.iteration
        if self.writer is None:
            return None
        self._draw_preview()
        if self.validation is not None:
            self.model.eval()
            self.scores = score_model(self.model, self.validation, distances=False, watch=watch)
            self.model.train()
        if self.scores is None or self.scores.miou is None:
            return None
        self.writer.add_scalar("validation/mIoU", self.scores.miou, self.iteration)
        if self.scores.miou > self.best_miou:
            self.best_miou = self.scores.miou
            self._save(self.folder.best)
        return self.scores.miou

    def _draw_preview(self) -> None:
        """Show predictions on a few images, in TensorBoard."""
        if self.writer is None:
            return
        shown = self.validation or self.samples
        samples = [shown[index] for index in range(min(_PREVIEW_IMAGES, len(shown)))]
        self.model.eval()
        found = [predict_image(self.model, sample.image) for sample in samples]
        self.model.train()
        sheet = comparison_sheet(
            samples,
            {"prediction": [one.labels.numpy() for one in found]},
            [one.annotation_probability.numpy() for one in found],
            self.classes,
        )
        self.writer.add_image("preview", sheet, self.iteration, dataformats="HWC")

    def _writer(self) -> SummaryWriter | None:
        """Where the main process logs; points that a resumed run will write again are purged."""
        if not self.accelerator.is_main_process:
            return None
        purge = self.iteration + 1 if self.iteration else None
        # Readers take a run's files by the second that they were begun in: a new one for this.
        while list(self.folder.tensorboard.glob(f"events.out.tfevents.*{int(time.time())}.*")):
            time.sleep(0.05)
        return SummaryWriter(self.folder.tensorboard, purge_step=purge)

    def _log(self, step: Step) -> None:
        if self.writer is None:
            return
        for name in ("blp", "annotation"):
            self.writer.add_scalar(f"loss/{name}", getattr(step, name), step.iteration)
        for name in ("learning_rate", "images_per_second"):
            self.writer.add_scalar(f"training/{name}", getattr(step, name), step.iteration)
        peak = peak_memory(self.accelerator.device) / 2**20
        self.writer.add_scalar("training/peak_memory_MiB", peak, step.iteration)

    def _save(self, path: Path) -> None:
        if self.writer is None:
            return
        self.writer.flush()  # a run that resumes here shall find all its points before
        scaler = self.accelerator.scaler
        content = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "scaler": None if scaler is None else scaler.state_dict(),
            "iteration": self.iteration,
            "validated": self.validated,
            "best_miou": self.best_miou,
            "scores": None if self.scores is None else self.scores.as_plain_data(),
            "images": fingerprint(self.samples.names),
            "classes": self.classes,
            "config": self.config.as_plain_data(),
        }
        save_checkpoint(path, content)

    def _restore(self, content: dict[str, Any]) -> None:
        """Go back to where `_save` was called."""
        self.model.load_state_dict(content["model"])
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


def open_data(config: DataConfig, quiet: bool) -> tuple[ScribbleFolder, ScribbleFolder | None]:
    """Open the training images and, where a list of them is found, the validation images."""
    train_split, val_split = choose_splits(config)
    samples = open_folder(config, train_split, quiet=quiet)
    if val_split is None:
        return samples, None
    return samples, open_folder(config, val_split, labels="masks", quiet=quiet)


def _accelerator(config: TrainConfig) -> Accelerator:
    # Told nothing, accelerate makes no group of a CPU's processes: each would train alone.
    on_cpu = choose_device(config.device).type == "cpu"
    half = torch.cuda.is_available() and not on_cpu
    accelerator = Accelerator(
        mixed_precision=config.optim.mixed_precision if half else "no",
        cpu=on_cpu,
        kwargs_handlers=[InitProcessGroupKwargs(timeout=_LONGEST_VALIDATION)],
    )
    launched = int(os.environ.get("WORLD_SIZE", 1))
    if accelerator.num_processes != launched:
        raise UserError(
            f"device: expected {launched} processes to train together, as WORLD_SIZE says, got "
            f"{accelerator.num_processes}; several processes need CUDA GPUs, or --device cpu"
        )
    return accelerator


def _check_shares(batch_size: int, processes: int) -> None:
    if batch_size % processes:
        raise UserError(
            f"optim.batch_size: expected a multiple of the {processes} processes that share the "
            f"batch, got {batch_size}"
        )


def _optimizer(
    model: nn.Module, config: OptimConfig, iterations: int
) -> tuple[AdamW, PolynomialLR]:
    optimizer = AdamW(model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
    return optimizer, PolynomialLR(optimizer, total_iters=iterations + 1, power=config.power)


def _seed(*key: int) -> int:
    """A seed of its own for every key."""
    return int(np.random.SeedSequence(key).generate_state(1)[0])


class _Rate:
    """Images per second over the last iterations."""

    def __init__(self, batch_size: int) -> None:
        self._batch_size = batch_size
        self._times = deque([time.monotonic()], maxlen=_RATE_WINDOW + 1)

    def tick(self) -> float:
        """Note that an iteration ended."""
        self._times.append(time.monotonic())
        return self._batch_size * (len(self._times) - 1) / (self._times[-1] - self._times[0])
