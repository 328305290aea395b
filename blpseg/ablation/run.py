"""Train and score every variant with every seed; continue after an interruption."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from blpseg.ablation.results import Ablation, Run
from blpseg.ablation.variants import BASELINE, VARIANTS, Variant
from blpseg.checkpoints import load_model
from blpseg.config import PER_RUN, TrainConfig
from blpseg.curves import distance_curves
from blpseg.data.folder import ScribbleFolder
from blpseg.devices import choose_device
from blpseg.errors import UserError
from blpseg.evaluation.scores import score_model
from blpseg.files import write_json
from blpseg.metrics import Scores
from blpseg.training.run import TrainResult, open_data
from blpseg.training.run_folder import check_same
from blpseg.training.series import train_all

_SETTINGS, _RESULT, _CHART = "ablation.yaml", "ablation.json", "ablation.png"
_FINISHED = "finished.json"  # the last file that a run writes


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
    write_json(config.output / _RESULT, ablation.as_plain_data())
    curves = {name: [run.scores for run in runs] for name, runs in ablation.runs.items()}
    distance_curves(curves, BASELINE.name).savefig(config.output / _CHART, dpi=120)
    return ablation


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
    write_json(config.output / _FINISHED, asdict(run))


def _read(folder: Path, seed: int) -> Run:
    content = json.loads((folder / _FINISHED).read_text())
    return Run(seed, content["seconds"], Scores.from_plain_data(content["scores"]))
