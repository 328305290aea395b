"""``blpseg ablate``: what each part of the method is worth, over seeds, on any data set.

All runs of a seed see the same crops in the same order and start from the same weights; only the
parts under test differ. So gains are taken seed by seed.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from rich import box
from rich.console import Console
from rich.progress import TaskID
from rich.table import Table

from blpseg.checkpoints import load_model, write_whole
from blpseg.config import TrainConfig
from blpseg.curves import distance_curves
from blpseg.data.folder import ScribbleFolder
from blpseg.devices import choose_device
from blpseg.display import Step, progress_bars
from blpseg.errors import UserError
from blpseg.evaluation import score_model
from blpseg.metrics import Scores
from blpseg.run_folder import check_same
from blpseg.training import TrainResult, open_data, train

_SETTINGS, _RESULT, _CHART = "ablation.yaml", "ablation.json", "ablation.png"
_FINISHED = "finished.json"  # the last file that a run writes
_PER_RUN = ("output", "overwrite", "resume", "seed")  # settings that the ablation chooses itself


@dataclass(frozen=True)
class Variant:
    """Which parts of the method a training has."""

    name: str
    lam: bool = False
    blp: bool = False
    self_training: bool = False

    @property
    def folder(self) -> str:
        """The name, fit for a folder."""
        return self.name.replace(" + ", "+").replace(" ", "-").lower()

    def of(self, config: TrainConfig) -> TrainConfig:
        """Switch the other parts off in a configuration that has them all."""
        optim, model = config.optim, config.model
        return replace(
            config,
            model=replace(model, lam=self.lam, gamma=model.gamma if self.blp else 0.0),
            optim=replace(
                optim, self_training_from=optim.self_training_from if self.self_training else None
            ),
        )


VARIANTS = (
    Variant("partial cross entropy"),
    Variant("LAM", lam=True),
    Variant("BLP", blp=True),
    Variant("LAM + BLP", lam=True, blp=True),
    Variant("LAM + BLP + self-training", lam=True, blp=True, self_training=True),
)
BASELINE = VARIANTS[0]


class Spread(NamedTuple):
    """Mean and sample standard deviation; no deviation of a single value."""

    mean: float
    deviation: float | None

    @classmethod
    def of(cls, values: Sequence[float | None]) -> Spread | None:
        """Of the values that there are; None where there are none."""
        known = [value for value in values if value is not None]
        if not known:
            return None
        return cls(statistics.mean(known), statistics.stdev(known) if len(known) > 1 else None)

    def percent(self, *, signed: bool = False) -> str:
        """Write as percentage points with one decimal."""
        mean = f"{100 * self.mean:{'+' if signed else ''}.1f}"
        return mean if self.deviation is None else f"{mean} ± {100 * self.deviation:.1f}"


@dataclass
class Run:
    """A finished training of a variant."""

    seed: int
    seconds: float
    """Time of the training, in seconds, since it was last resumed."""
    scores: Scores


@dataclass
class Ablation:
    """The runs of every variant, and what they were made of."""

    settings: dict[str, Any]
    """The configuration with all parts on, as plain data."""

    runs: dict[str, list[Run]]
    """Name of a variant to its runs, one per seed."""

    def miou(self, name: str) -> Spread | None:
        """Mean and deviation of a variant's mIoU, 0 to 1."""
        return Spread.of([run.scores.miou for run in self.runs[name]])

    def boundary_miou(self, name: str) -> Spread | None:
        """Mean and deviation of a variant's boundary IoU, averaged over classes, 0 to 1."""
        return Spread.of([run.scores.boundary_miou for run in self.runs[name]])

    def gain(self, name: str) -> Spread | None:
        """How much of its mIoU lies above the baseline's of the same seed."""
        pairs = zip(self.runs[name], self.runs[BASELINE.name], strict=True)
        return Spread.of(
            [
                None
                if None in (ours.scores.miou, base.scores.miou)
                else ours.scores.miou - base.scores.miou
                for ours, base in pairs
            ]
        )

    def as_plain_data(self) -> dict[str, Any]:
        """Turn into nested dicts and lists, fit for JSON."""
        statistics = {
            "miou": self.miou,
            "miou_gain": self.gain,
            "boundary_miou": self.boundary_miou,
        }
        return {
            "settings": self.settings,
            "machine": {"torch": torch.__version__, "threads": torch.get_num_threads()},
            "training_seconds": round(
                sum(run.seconds for runs in self.runs.values() for run in runs)
            ),
            "variants": {
                name: {
                    **{key: _plain(value(name)) for key, value in statistics.items()},
                    "runs": [asdict(run) for run in runs],
                }
                for name, runs in self.runs.items()
            },
        }


def ablate(
    config: TrainConfig, seeds: Sequence[int] = (0, 1, 2), *, quiet: bool = False
) -> Ablation:
    """Train every variant with every seed, score them, and write a table and curves.

    A run that is finished is not made again and one that was begun is resumed, so an ablation that
    was interrupted goes on where it stopped. Seeds can be added later, or at the same time by
    another process. `config.output` gets ``ablation.yaml``, the settings; a run folder
    ``runs/VARIANT/SEED`` for each training; and, at the end, ``ablation.json`` and
    ``ablation.png``.

    Args:
        config: The training with all parts on. Its seed, overwrite and resume are not looked at.
        seeds: Seeds of the weights, the order of the images and their augmentation.
        quiet: Show no progress.

    Returns:
        All runs with these seeds.

    Raises:
        UserError: Nothing is trained if the configuration lacks a part under test, if there are no
            images with masks to score on, or if the output folder holds something else.
    """
    if not seeds or len(set(seeds)) < len(seeds):
        raise UserError(f"seeds: expected numbers that differ, at least one; got {list(seeds)}")
    training, validation = open_data(config.data, quiet)
    if validation is None:
        raise UserError(
            f"{config.data.root}: an ablation needs masks/ and a list of images to score on, "
            "splits/val.txt or data.val_split"
        )
    _check_parts(config, config.optim.total_iterations(len(training)))
    settings = _settings(config)
    _claim(config.output, settings)

    def run_of(variant: Variant, seed: int) -> TrainConfig:
        folder = config.output / "runs" / variant.folder / str(seed)
        return replace(variant.of(config), output=folder, seed=seed, overwrite=False, resume=True)

    configs = {(variant, seed): run_of(variant, seed) for seed in seeds for variant in VARIANTS}
    waiting = {
        f"{variant.name}, seed {seed}": run
        for (variant, seed), run in configs.items()
        if not (run.output / _FINISHED).exists()
    }
    train_all(
        waiting,
        Console(stderr=True, quiet=quiet),
        lambda name, trained: _finish(waiting[name], trained, validation),
    )
    ablation = Ablation(
        settings,
        {
            variant.name: [_read(configs[variant, seed].output, seed) for seed in seeds]
            for variant in VARIANTS
        },
    )
    _write(config.output / _RESULT, ablation.as_plain_data())
    curves = {name: [run.scores for run in runs] for name, runs in ablation.runs.items()}
    distance_curves(curves, BASELINE.name).savefig(config.output / _CHART, dpi=120)
    return ablation


def train_all(
    configs: Mapping[str, TrainConfig],
    console: Console,
    finish: Callable[[str, TrainResult], None] = lambda name, result: None,
) -> None:
    """Train one after the other, with a progress bar each.

    Args:
        configs: Name of a run to its configuration.
        console: Where the bars go.
        finish: Called after each run, with its name.
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
            finish(name, train(config, on_step=report(tasks[name])))


def ablation_table(ablation: Ablation) -> Table:
    """Lay the scores out for the terminal, in percent: mean and standard deviation over seeds."""
    seeds = len(ablation.runs[BASELINE.name])
    table = Table("", box=box.SIMPLE_HEAD, title=f"{seeds} seed{'s' if seeds > 1 else ''}, in %")
    columns = ("mIoU", f"above {BASELINE.name}", "boundary IoU")
    for name in columns:
        table.add_column(name, justify="right")
    for name in ablation.runs:
        gain = None if name == BASELINE.name else ablation.gain(name)
        table.add_row(
            name,
            _percent(ablation.miou(name)),
            "" if gain is None else gain.percent(signed=True),
            _percent(ablation.boundary_miou(name)),
        )
    return table


def _check_parts(config: TrainConfig, iterations: int) -> None:
    """Refuse a configuration in which two variants would be the same."""
    begins = config.optim.self_training_from
    for name, value, wanted, fits in (
        ("model.lam", config.model.lam, "true", config.model.lam),
        ("model.gamma", config.model.gamma, "more than 0", config.model.gamma > 0),
        (
            "optim.self_training_from",
            begins,
            f"an iteration of the run's {iterations}",
            begins is not None and begins < iterations,
        ),
    ):
        if not fits:
            raise UserError(
                f"{name}: expected {wanted}, for the ablation to switch off; got {value}"
            )


def _settings(config: TrainConfig) -> dict[str, Any]:
    return {key: value for key, value in config.as_plain_data().items() if key not in _PER_RUN}


def _claim(folder: Path, settings: dict[str, Any]) -> None:
    """Write the settings down, or see that the folder holds an ablation with these."""
    path = folder / _SETTINGS
    if path.exists():
        check_same(path, yaml.safe_load(path.read_text()), settings)
        return
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder}: exists already and holds no ablation to go on with")
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(settings, sort_keys=False))


def _finish(config: TrainConfig, trained: TrainResult, validation: ScribbleFolder) -> None:
    """Score a run's last checkpoint with all that there is to measure, and mark it finished."""
    model = load_model(trained.last).model.to(choose_device(config.device))
    run = Run(config.seed, round(trained.seconds, 1), score_model(model, validation))
    _write(config.output / _FINISHED, asdict(run))


def _read(folder: Path, seed: int) -> Run:
    content = json.loads((folder / _FINISHED).read_text())
    return Run(seed, content["seconds"], Scores.from_plain_data(content["scores"]))


def _write(path: Path, content: dict[str, Any]) -> None:
    text = json.dumps(content, indent=2) + "\n"
    write_whole(path, lambda file: file.write(text.encode()))


def _plain(spread: Spread | None) -> dict[str, float | None] | None:
    return None if spread is None else spread._asdict()


def _percent(spread: Spread | None) -> str:
    return "-" if spread is None else spread.percent()
