"""Train and score every variant with every seed; continue after an interruption."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from blpseg.ablation.results import Ablation, Run
from blpseg.ablation.variants import BASELINE, VARIANTS, Variant, choose_variants
from blpseg.checkpoints import load_model
from blpseg.config import PER_RUN, TrainConfig
from blpseg.crf import require_crf
from blpseg.crf_constants import CRF, DEEPLAB
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
    config: TrainConfig,
    seeds: Sequence[int] = (0, 1, 2),
    variants: Iterable[str] = ("parts",),
    *,
    quiet: bool = False,
) -> Ablation:
    """Train variants with every seed, score the runs, and write scores and curves.

    Call it again after an interruption: finished runs are kept, the unfinished run is resumed.
    Seeds and variants can be added later, or at the same time by another process. It writes to
    `config.output`: ``ablation.yaml``, the settings; ``runs/VARIANT/SEED``, a run folder per run;
    and after every run ``ablation.json`` and ``ablation.png``, of all runs that are finished.

    Args:
        config: The run with all parts. Its seed, overwrite and resume are ignored.
        seeds: Seeds of the initial weights, the order of the images and the augmentation.
        variants: Names of variants, see `choose_variants`. The baseline is always among them.
        quiet: Show no progress.

    Returns:
        All finished runs in the folder, those of earlier calls too.

    Raises:
        UserError: Before any training: there is no such variant, the configuration lacks a part
            under test, there are no images with masks to score on, or the output folder has other
            content.
    """
    chosen = choose_variants(variants)
    if not seeds or len(set(seeds)) < len(seeds):
        raise UserError(f"seeds: expected different numbers, at least one; got {list(seeds)}")
    training, validation = open_data(config.data, quiet)
    if validation is None:
        raise UserError(
            f"{config.data.root}: expected masks and a list of images to score on; add masks/ and "
            "splits/val.txt, or name the list with data.val_split"
        )
    if any(variant.crf for variant in chosen):
        require_crf()
    _check_parts(config, config.optim.total_iterations(len(training)))
    settings = _settings(config)
    _claim(config.output, settings)

    runs = [(variant, seed) for seed in seeds for variant in chosen]
    configs = {
        f"{variant.name}, seed {seed}": replace(
            variant.of(config),
            output=_folder(config, variant, seed),
            seed=seed,
            overwrite=False,
            resume=True,
        )
        for variant, seed in runs
        if not variant.crf and not _finished(config, variant, seed).exists()
    }

    def finish(name: str, trained: TrainResult) -> None:
        run = configs[name]
        _score(run.output, trained.last, run, trained.seconds, validation)
        _write_results(config.output, settings)

    train_all(configs, Console(stderr=True, quiet=quiet), finish)
    for variant, seed in runs:
        if variant.crf and not _finished(config, variant, seed).exists():
            network = _folder(config, variant.trained, seed) / "last.pt"
            run = replace(config, seed=seed)
            _score(_folder(config, variant, seed), network, run, 0.0, validation, crf=DEEPLAB)
    return _write_results(config.output, settings)


def read_ablation(folder: Path, settings: dict[str, Any]) -> Ablation:
    """Read all finished runs in the folder of an ablation."""
    runs = {
        variant.name: [
            _read(path) for path in (folder / "runs" / variant.folder).glob(f"*/{_FINISHED}")
        ]
        for variant in VARIANTS
    }
    by_seed = {name: sorted(found, key=lambda run: run.seed) for name, found in runs.items()}
    return Ablation(settings, {name: found for name, found in by_seed.items() if found})


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


def _folder(config: TrainConfig, variant: Variant, seed: int) -> Path:
    return config.output / "runs" / variant.folder / str(seed)


def _finished(config: TrainConfig, variant: Variant, seed: int) -> Path:
    return _folder(config, variant, seed) / _FINISHED


def _score(
    folder: Path,
    checkpoint: Path,
    config: TrainConfig,
    seconds: float,
    validation: ScribbleFolder,
    *,
    crf: CRF | None = None,
) -> None:
    """Score a run's last checkpoint with all metrics; the file of the scores marks it finished."""
    model = load_model(checkpoint).model.to(choose_device(config.device))
    run = Run(config.seed, round(seconds, 1), score_model(model, validation, crf=crf))
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / _FINISHED, asdict(run))


def _write_results(folder: Path, settings: dict[str, Any]) -> Ablation:
    ablation = read_ablation(folder, settings)
    write_json(folder / _RESULT, ablation.as_plain_data())
    # Gains need the baseline's run of the same seed: draw the seeds that all variants have.
    seeds = set.intersection(*({run.seed for run in runs} for runs in ablation.runs.values()))
    if BASELINE.name in ablation.runs and seeds:
        curves = {
            name: [run.scores for run in runs if run.seed in seeds]
            for name, runs in ablation.runs.items()
        }
        distance_curves(curves, BASELINE.name).savefig(folder / _CHART, dpi=120)
    return ablation


def _read(path: Path) -> Run:
    content = json.loads(path.read_text())
    return Run(content["seed"], content["seconds"], Scores.from_plain_data(content["scores"]))
