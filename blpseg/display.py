"""Training in the terminal: progress bars, losses, and each validation's mIoU."""

from __future__ import annotations

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

from blpseg.config import OptimConfig
from blpseg.data.folder import Sample


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


class Display:
    """Progress in the terminal: losses, learning rate, time left, and each validation's mIoU."""

    def __init__(self, done: int, iterations: int) -> None:
        self._iterations = iterations
        self._progress = progress_bars(Console(stderr=True))
        self._task: TaskID = self._progress.add_task(
            "", total=iterations, completed=done, detail=""
        )

    def __enter__(self) -> Display:
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
