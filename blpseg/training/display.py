"""Training in the terminal: progress bar, expected duration, losses, mIoU of each validation."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable
from typing import Any, NamedTuple

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

from blpseg.data.folder import Sample

_MEASURED_ITERATIONS = 10  # that the expected duration is computed from


class Step(NamedTuple):
    """One finished iteration, as `on_step` receives it."""

    iteration: int
    """Iterations done, with this one."""

    iterations: int
    """Iterations of the whole run."""

    blp: float
    """The segmentation's loss."""

    annotation: float
    """The annotation head's loss."""

    learning_rate: float
    """Learning rate of this iteration."""

    images_per_second: float
    """Training images per second over the last iterations."""

    miou: float | None
    """mIoU on the validation images; None if no validation followed this iteration."""

    regularizer: float = 0.0
    """The regularizer's loss, with its weight; 0 without one."""


def progress_bars(console: Console) -> Progress:
    """Make progress bars of training runs; each task needs a field `detail`, a text at its end."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=12),
        MofNCompleteColumn(),
        TimeRemainingColumn(elapsed_when_finished=True),
        TextColumn("{task.fields[detail]}"),
        console=console,
    )


class Display:
    """Show a run on stderr.

    Args:
        done: Iterations that an earlier part of the run has done.
        iterations: Iterations of the whole run.
    """

    def __init__(self, done: int, iterations: int) -> None:
        self._done, self._iterations = done, iterations
        self._validations = ""
        self._durations: list[float] = []  # seconds of the first iterations
        self._last_step: float | None = None
        self._progress = progress_bars(Console(stderr=True))
        self._task: TaskID = self._progress.add_task(
            "", total=iterations, completed=done, detail=""
        )

    def __enter__(self) -> Display:
        self._progress.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._progress.stop()

    def announce(
        self,
        start: str | None,
        self_training_start: int | None,
        validations: tuple[int, int],
    ) -> None:
        """Say what the run starts from, and when self-training starts or that the run ends before.

        Args:
            start: What the weights come from, in a sentence; None: from `model.pretrained`.
            self_training_start: Its first iteration; None: the run has no self-training.
            validations: The number of validations to come, and the images of each.
        """
        if start is not None:
            self._print(start)
        count, images = validations
        if count:
            several = "s" if count > 1 else ""
            self._validations = f", plus {count} validation{several} of {images} images"
        if self_training_start is None:
            return
        if self_training_start < self._iterations:
            self._print(
                f"Self-training starts at iteration {self_training_start} of {self._iterations}."
            )
        else:
            self._print(
                f"Self-training is not reached: it would start at iteration {self_training_start}, "
                f"but the run has {self._iterations}. --optim.self_training_from=0.5 starts it at "
                "half of the run; null instead of 0.5 switches it off."
            )

    def on_step(self, step: Step) -> None:
        """Show an iteration."""
        self._measure(step)
        detail = (
            f"loss {step.blp:.4f} + {step.annotation:.4f}  "
            f"lr {step.learning_rate:.2e}  {step.images_per_second:.1f} img/s"
        )
        self._progress.update(self._task, completed=step.iteration, detail=detail)
        if step.miou is not None:
            self._print(f"Iteration {step.iteration}: mIoU {100 * step.miou:.2f} %")

    def progress(self, samples: Iterable[Sample]) -> Iterable[Sample]:
        """Count the images of a validation as they pass."""
        for count, sample in enumerate(samples, 1):
            self._progress.update(self._task, detail=f"validating, {count} images")
            yield sample

    def _measure(self, step: Step) -> None:
        """Time the first iterations, then say how long the whole run takes."""
        if len(self._durations) == _MEASURED_ITERATIONS:
            return
        now = time.monotonic()
        if self._last_step is not None:  # the first iteration loads and warms up: not counted
            self._durations.append(now - self._last_step)
        self._last_step = now
        if len(self._durations) == _MEASURED_ITERATIONS:
            seconds = statistics.median(self._durations)  # robust to a validation among them
            count = self._iterations - self._done
            self._print(
                f"About {in_words(count * seconds)} for {count} iterations ({seconds:.2g} s each, "
                f"measured on the first {step.iteration - self._done}){self._validations}."
            )

    def _print(self, text: str) -> None:
        self._progress.print(text, soft_wrap=True, highlight=False)


def in_words(seconds: float) -> str:
    """Write a duration with its largest fitting unit, e.g. "45 s", "12 min" or "3.5 h"."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 100 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
