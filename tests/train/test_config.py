"""The configuration: its defaults, its checks and its way through YAML."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest
import torch
import yaml

from blpseg.config import (
    AugmentConfig,
    DataConfig,
    LogConfig,
    OptimConfig,
    TrainConfig,
    evaluation_fields,
    fixed_settings,
)
from blpseg.data.layouts.base import Numbering
from blpseg.errors import UserError


def test_defaults_are_the_published_recipe() -> None:
    config = TrainConfig(DataConfig(Path("voc")), Path("run"))
    assert config.optim == OptimConfig(3e-5, 0.01, 0.9, 10, 40, None, 10_000, "fp16")
    assert config.augment == AugmentConfig(0.5, (0.75, 1.25), 384)
    assert (config.model.sigma, config.model.eps, config.model.gamma) == (6, 0, 2)
    assert (config.model.unlabeled_weight, config.model.threshold) == (0.02, 0.9)
    assert (config.model.backbone, config.model.width, config.model.embedding_dim) == (
        "resnet101s",
        256,
        256,
    )


def test_iterations_follow_from_epochs_unless_given() -> None:
    assert OptimConfig().total_iterations(10_582) == 42_328
    assert OptimConfig(batch_size=4, epochs=3).total_iterations(5) == 4
    assert OptimConfig(iterations=7).total_iterations(10_582) == 7


def test_self_training_starts_at_an_iteration_or_at_a_share_of_the_run() -> None:
    assert OptimConfig(self_training_from=10).self_training_start(300) == 10
    assert OptimConfig(self_training_from=0.6).self_training_start(300) == 180
    assert OptimConfig(self_training_from=None).self_training_start(300) is None


def test_plain_data_survives_yaml_and_a_checkpoint(tmp_path: Path) -> None:
    config = TrainConfig(DataConfig(Path("voc"), unlabeled_value=0), Path("run"))
    plain = config.as_plain_data()
    assert yaml.safe_load(yaml.safe_dump(plain)) == plain
    torch.save(plain, tmp_path / "plain.pt")
    assert torch.load(tmp_path / "plain.pt", weights_only=True) == plain
    assert plain["data"]["root"] == "voc" and plain["data"]["unlabeled_value"] == 0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: DataConfig(Path(), scribble_width=0),
            "data.scribble_width: expected at least 1, got 0",
        ),
        (lambda: DataConfig(Path(), workers=-1), "data.workers: expected at least 0, got -1"),
        (lambda: AugmentConfig(flip=1.5), "augment.flip: expected 0 to 1, got 1.5"),
        (
            lambda: AugmentConfig(scale=(2, 1)),
            "augment.scale: expected 0 < smallest <= largest, got 2 and 1",
        ),
        (lambda: AugmentConfig(crop=0), "augment.crop: expected at least 1, got 0"),
        (lambda: OptimConfig(batch_size=1), "optim.batch_size: expected at least 2, got 1"),
        (lambda: OptimConfig(iterations=0), "optim.iterations: expected at least 1, got 0"),
        (lambda: OptimConfig(float("nan")), "optim.learning_rate: expected at least 0, got nan"),
        (
            lambda: OptimConfig(self_training_from=-1),
            "optim.self_training_from: expected at least 0, got -1",
        ),
        (
            lambda: OptimConfig(self_training_from=1.0),
            "optim.self_training_from: expected an iteration (a whole number), or a share of the "
            "run (more than 0 and less than 1), got 1.0",
        ),
        (lambda: LogConfig(save_every=0), "log.save_every: expected at least 1, got 0"),
        (
            lambda: TrainConfig(DataConfig(Path()), Path(), seed=-1),
            "seed: expected at least 0, got -1",
        ),
    ],
)
def test_values_out_of_range_are_named(make: object, message: str) -> None:
    with pytest.raises(UserError) as caught:
        make()
    assert str(caught.value) == message


def test_every_data_option_is_declared_once() -> None:
    """The layouts' values and the options of `blpseg evaluate` are fields of `DataConfig`."""
    names = {part.name for part in fields(DataConfig)}
    assert {part.name for part in fields(Numbering)} < names
    assert {part.name for part in evaluation_fields()} == names - {
        "train_labels",
        "train_split",
        "val_split",
        "workers",
    }


def test_what_a_run_may_be_resumed_with() -> None:
    """Where the files are and how the run is recorded; nothing that the result depends on."""
    config = TrainConfig(DataConfig(Path("voc")), Path("run"))
    fixed = dict(fixed_settings(config.as_plain_data()))
    assert {"optim.learning_rate", "seed", "data.layout", "data.unlabeled_value"} <= fixed.keys()
    changeable = {"output", "device", "resume", "data.root", "data.workers", "log.save_every"}
    assert not changeable & fixed.keys()
