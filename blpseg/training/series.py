"""Several training runs, one after the other, with a progress bar each."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from rich.console import Console
from rich.progress import TaskID

from blpseg.config import TrainConfig
from blpseg.training.display import Step, progress_bars
from blpseg.training.run import TrainResult, train


def train_all(
    configs: Mapping[str, TrainConfig],
    console: Console,
    on_trained: Callable[[str, TrainResult], None] = lambda name, result: None,
) -> None:
    """Train one run after the other.

    Args:
        configs: Name of a run to its configuration.
        console: Shows the progress bars.
        on_trained: Called after each run, with its name and its result.
    """
    progress = progress_bars(console)
    tasks = {
        name: progress.add_task(name, total=config.optim.iterations, start=False, detail="")
        for name, config in configs.items()
    }

    def report(task: TaskID) -> Callable[[Step], None]:
        def on_step(step: Step) -> None:
            detail = f"loss {step.blp:.3f}, lr {step.learning_rate:.1e}"
            progress.update(task, completed=step.iteration, total=step.iterations, detail=detail)

        return on_step

    with progress:
        for name, config in configs.items():
            progress.start_task(tasks[name])
            on_trained(name, train(config, on_step=report(tasks[name])))
