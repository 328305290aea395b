"""The configuration: its defaults, its checks and its way through YAML."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml

from blpseg.config import AugmentConfig, DataConfig, LogConfig, OptimConfig, TrainConfig
from blpseg.errors import UserError


def test_defaults_are_the_published_recipe() -> None:
    config = TrainConfig(DataConfig(Path("voc")), Path("run"))
    assert config.optim == OptimConfig(3e-5, 0.01, 0.9, 10, 40, None, 10_000, "fp16")
    assert config.augment == AugmentConfig(0.5, (0.75, 1.25), 384)
    assert (config.model.sigma, config.model.eps, config.model.gamma) == (6, 1e-7, 2)
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
