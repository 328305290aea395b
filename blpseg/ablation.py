"""``blpseg ablate``: measure the gain of each part of the method, over seeds, on any data set.

All runs of a seed start from the same weights and use the same crops in the same order; only the
parts under test differ. Gains are therefore computed per seed.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from rich import box
from rich.console import Console
from rich.table import Table

from blpseg.checkpoints import load_model, write_whole
from blpseg.config import PER_RUN, TrainConfig
from blpseg.curves import distance_curves
from blpseg.data.folder import ScribbleFolder
from blpseg.devices import choose_device
from blpseg.errors import UserError
from blpseg.evaluation.scores import score_model
from blpseg.metrics import Scores
from blpseg.training.run import TrainResult, open_data
from blpseg.training.run_folder import check_same
from blpseg.training.series import train_all

_SETTINGS, _RESULT, _CHART = "ablation.yaml", "ablation.json", "ablation.png"
_FINISHED = "finished.json"  # the last file that a run writes


@dataclass(frozen=True)
class Variant:
    """Which parts of the method a run uses."""

    name: str
    lam: bool = False
    blp: bool = False
    self_training: bool = False

    @property
    def folder(self) -> str:
        """The name, as the name of a folder."""
        return self.name.replace(" + ", "+").replace(" ", "-").lower()

    def of(self, config: TrainConfig) -> TrainConfig:
        """Switch the other parts off, in a configuration that has all of them."""
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
    """Mean and sample standard deviation; a single value has no deviation."""

    mean: float
    deviation: float | None

    @classmethod
    def of(cls, values: Sequence[float | None]) -> Spread | None:
        """Compute them over the values that are not None; None if there is no value."""
        known = [value for value in values if value is not None]
        if not known:
            return None
        return cls(statistics.mean(known), statistics.stdev(known) if len(known) > 1 else None)

    def percent(self, *, signed: bool = False) -> str:
        """Format as percentage points with one decimal."""
        mean = f"{100 * self.mean:{'+' if signed else ''}.1f}"
        return mean if self.deviation is None else f"{mean} ± {100 * self.deviation:.1f}"


@dataclass
class Run:
    """A finished run of a variant."""

    seed: int
    seconds: float
    """Duration of the training, in seconds, since it was last resumed."""
    scores: Scores


@dataclass
class Ablation:
    """The runs of every variant, and their common settings."""

    settings: dict[str, Any]
    """The configuration with all parts, as plain data."""

    runs: dict[str, list[Run]]
    """Name of a variant to its runs, one per seed."""

    def miou(self, name: str) -> Spread | None:
        """Compute mean and deviation of a variant's mIoU, 0 to 1."""
        return Spread.of([run.scores.miou for run in self.runs[name]])

    def boundary_miou(self, name: str) -> Spread | None:
        """Compute mean and deviation of a variant's boundary mIoU, 0 to 1."""
        return Spread.of([run.scores.boundary_miou for run in self.runs[name]])

    def gain(self, name: str) -> Spread | None:
        """Compute the difference of its mIoU to the baseline's of the same seed."""
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
        """Convert to nested dicts and lists, e.g. for JSON."""
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
    """Train every variant with every seed, score the runs, and write a table and curves.

    Call it again after an interruption: finished runs are kept, the unfinished run is resumed.
    Seeds can be added later, or at the same time by another process. It writes to `config.output`:
    ``ablation.yaml``, the settings; ``runs/VARIANT/SEED``, a run folder per run; and at the end
    ``ablation.json`` and ``ablation.png``.

    Args:
        config: The run with all parts. Its seed, overwrite and resume are ignored.
        seeds: Seeds of the initial weights, the order of the images and the augmentation.
        quiet: Show no progress.

    Returns:
        All runs with these seeds.

    Raises:
        UserError: Before any training: the configuration lacks a part under test, there are no
            images with masks to score on, or the output folder has other content.
    """
    if not seeds or len(set(seeds)) < len(seeds):
        raise UserError(f"seeds: expected different numbers, at least one; got {list(seeds)}")
    training, validation = open_data(config.data, quiet)
    if validation is None:
        raise UserError(
            f"{config.data.root}: expected masks and a list of images to score on; add masks/ and "
            "splits/val.txt, or name the list with data.val_split"
        )
    _check_parts(config, config.optim.total_iterations(len(training)))
    settings = _settings(config)
    _claim(config.output, settings)

    def run_of(variant: Variant, seed: int) -> TrainConfig:
        folder = config.output / "runs" / variant.folder / str(seed)
        return replace(variant.of(config), output=folder, seed=seed, overwrite=False, resume=True)

    configs = {(variant, seed): run_of(variant, seed) for seed in seeds for variant in VARIANTS}
    unfinished = {
        f"{variant.name}, seed {seed}": run
        for (variant, seed), run in configs.items()
        if not (run.output / _FINISHED).exists()
    }
    train_all(
        unfinished,
        Console(stderr=True, quiet=quiet),
        lambda name, trained: _finish(unfinished[name], trained, validation),
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


def ablation_table(ablation: Ablation) -> Table:
    """Format the scores for the terminal, in percent: mean and standard deviation over seeds."""
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
    """Check that no two variants are the same: every part is on and can be switched off."""
    start = config.optim.self_training_start(iterations)
    for name, value, expected, fits in (
        ("model.lam", config.model.lam, "true", config.model.lam),
        ("model.gamma", config.model.gamma, "more than 0", config.model.gamma > 0),
        (
            "optim.self_training_from",
            config.optim.self_training_from,
            f"an iteration below {iterations}, or a share of the run, e.g. 0.5",
            start is not None and start < iterations,
        ),
    ):
        if not fits:
            raise UserError(
                f"{name}: expected {expected}, as the ablation compares runs with and without it; "
                f"got {value}"
            )


def _settings(config: TrainConfig) -> dict[str, Any]:
    return {
        key: value
        for key, value in config.as_plain_data().items()
        if key not in PER_RUN | {"output"}
    }


def _claim(folder: Path, settings: dict[str, Any]) -> None:
    """Write the settings, or check that the folder has an ablation with the same settings."""
    path = folder / _SETTINGS
    if path.exists():
        check_same(path, yaml.safe_load(path.read_text()), settings)
        return
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(
            f"{folder}: exists already and is no folder of an ablation; --output names another"
        )
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(settings, sort_keys=False))


def _finish(config: TrainConfig, trained: TrainResult, validation: ScribbleFolder) -> None:
    """Score a run's last checkpoint with all metrics; the file of the scores marks it finished."""
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
