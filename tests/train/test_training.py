"""Training: schedule, self-training, order, checkpoints, run folder, and what stops a run."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.data import DataLoader

from blpseg.checkpoints import build_model, load_model
from blpseg.config import (
    AugmentConfig,
    DataConfig,
    LogConfig,
    ModelConfig,
    OptimConfig,
    TrainConfig,
)
from blpseg.data.folder import ScribbleFolder
from blpseg.data.stream import TrainingStream
from blpseg.errors import UserError
from blpseg.metrics import Scores
from blpseg.model import BLPSeg
from blpseg.training import Step, TrainResult, run, train
from blpseg.training.display import in_words

MakeConfig = Callable[..., TrainConfig]


def steps_of(config: TrainConfig) -> list[Step]:
    steps: list[Step] = []
    train(config, on_step=steps.append)
    return steps


def losses_of(config: TrainConfig) -> list[tuple[float, float]]:
    return [(step.blp, step.annotation) for step in steps_of(config)]


def stream_of(shapes: Path, seed: int = 0) -> TrainingStream:
    return TrainingStream(
        ScribbleFolder(DataConfig(shapes), "train"), AugmentConfig(crop=32), 20, seed, (0.5,) * 3
    )


def test_training_learns_the_shapes(trained_once: TrainResult) -> None:
    assert trained_once.scores.miou > 0.45
    assert trained_once.scores.images == 2


def test_learning_rate_follows_the_poly_schedule(make_config: MakeConfig) -> None:
    steps = steps_of(make_config())
    assert [step.iteration for step in steps] == [1, 2, 3, 4]
    assert [step.iterations for step in steps] == [4] * 4
    expected = [3e-3 * (1 - i / 5) ** 0.9 for i in range(4)]
    assert [step.learning_rate for step in steps] == pytest.approx(expected, rel=1e-9)


def test_self_training_begins_at_its_iteration(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = []
    original = BLPSeg.losses

    def losses(model: BLPSeg, *args: torch.Tensor, self_training: bool) -> dict:
        flags.append(self_training)
        return original(model, *args, self_training=self_training)

    monkeypatch.setattr(BLPSeg, "losses", losses)
    config = make_config()
    train(replace(config, optim=replace(config.optim, self_training_from=2)), on_step=flags.count)
    assert flags == [False, False, True, True]


def test_training_is_reproducible_and_depends_on_the_seed(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    config = make_config()
    first, again, other = (
        losses_of(replace(config, output=tmp_path / name, seed=seed))
        for name, seed in (("first", 3), ("again", 3), ("other", 4))
    )
    assert first == again
    assert first != other


def test_stream_takes_every_image_once_an_epoch(shapes: Path) -> None:
    stream = stream_of(shapes)
    names = [stream[position].name for position in range(20)]
    epochs = [names[start : start + 5] for start in range(0, 20, 5)]
    assert all(sorted(epoch) == [f"shape{i}" for i in range(5)] for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1


def test_stream_depends_on_seed_and_position_alone(shapes: Path) -> None:
    stream = stream_of(shapes)
    torch.manual_seed(1)
    first = stream[7]
    torch.manual_seed(2)
    state = torch.get_rng_state()
    again = stream[7]
    assert torch.equal(torch.get_rng_state(), state)
    assert first.name == again.name and torch.equal(first.image, again.image)
    assert not torch.equal(first.image, stream_of(shapes, seed=1)[7].image)


def test_stream_is_the_same_from_loader_processes(shapes: Path) -> None:
    batches = [list(DataLoader(stream_of(shapes), 10, num_workers=workers)) for workers in (0, 2)]
    for here, there in zip(*batches, strict=True):
        assert here.name == there.name
        assert torch.equal(here.image, there.image) and torch.equal(here.target, there.target)
    assert batches[0][0].image.shape == (10, 3, 32, 32)
    assert batches[0][0].class_present.shape == (10, 3)


def test_run_folder_holds_what_it_should(make_config: MakeConfig) -> None:
    config = make_config()
    result = train(config, on_step=lambda step: None)
    assert result.last == config.output / "last.pt" and result.best == config.output / "best.pt"
    written = {path.name for path in config.output.iterdir()}
    assert written == {"config.yaml", "scores.json", "last.pt", "best.pt", "tensorboard"}
    assert yaml.safe_load((config.output / "config.yaml").read_text()) == config.as_plain_data()
    content = torch.load(result.last, weights_only=True)
    assert content["iteration"] == 4 and content["config"] == config.as_plain_data()
    assert content["classes"] == ["background", "disc", "square"]
    assert content["schedule"]["last_epoch"] == 4
    assert content["optimizer"]["param_groups"][0]["weight_decay"] == 0.01


def test_tensorboard_gets_losses_rates_scores_and_pictures(make_config: MakeConfig) -> None:
    config = make_config(
        model=ModelConfig("test_resnet", False, width=16, embedding_dim=8, regularizer="gated_crf"),
        optim=OptimConfig(3e-3, batch_size=2, iterations=4, self_training_from=3),
        log=LogConfig(scalars_every=3, validate_every=2, preview_every=1),
    )
    steps = steps_of(config)
    events = EventAccumulator(str(config.output / "tensorboard"))
    events.Reload()
    tags = events.Tags()
    assert set(tags["scalars"]) == {
        "loss/blp",
        "loss/annotation",
        "loss/regularizer",
        "training/learning_rate",
        "training/images_per_second",
        "training/peak_memory_MiB",
        "validation/mIoU",
    }
    points = [(point.step, point.value) for point in events.Scalars("loss/blp")]
    assert points == [(3, pytest.approx(steps[2].blp)), (4, pytest.approx(steps[3].blp))]
    assert [point.step for point in events.Scalars("validation/mIoU")] == [2, 4]
    assert [step.miou is not None for step in steps] == [False, True, False, True]
    for pictures in ("preview", "pseudo labels"):
        assert [point.step for point in events.Images(pictures)] == [1, 2, 3, 4]
    assert steps[-1].images_per_second > 0


def test_best_checkpoint_is_the_one_with_the_best_miou(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    mious = iter([0.2, 0.5, 0.4, 0.5])
    monkeypatch.setattr(
        run, "score_model", lambda *_, **__: Scores(next(mious), {}, None, {}, [], [], 2)
    )
    result = train(make_config(log=LogConfig(validate_every=1)), on_step=lambda step: None)
    assert load_model(result.best).iteration == 2
    assert load_model(result.last).iteration == 4
    assert result.scores.miou == 0.5


@pytest.mark.parametrize("missing", ["val.txt", "masks"])
def test_training_without_masks_has_no_scores(
    own_shapes: Path, make_config: MakeConfig, missing: str
) -> None:
    if missing == "masks":
        shutil.rmtree(own_shapes / "masks")
        (own_shapes / "splits").mkdir()
        (own_shapes / "splits/val.txt").write_text("shape0\n")
    result = train(make_config(data=DataConfig(own_shapes, workers=0)), on_step=lambda step: None)
    assert result.scores is None and result.best is None
    assert {path.name for path in result.output.iterdir()} == {
        "config.yaml",
        "last.pt",
        "tensorboard",
    }


def test_loaded_model_answers_as_the_trained_one(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = []
    original = run.build_model

    def build_model(*args: object, **options: object) -> BLPSeg:
        built.append(original(*args, **options))
        return built[-1]

    monkeypatch.setattr(run, "build_model", build_model)
    result = train(make_config(), on_step=lambda step: None)
    loaded = load_model(result.last)
    assert not loaded.model.training
    assert loaded.classes == ["background", "disc", "square"] and loaded.iteration == 4
    image = torch.rand(1, 3, 40, 50)
    assert torch.equal(loaded.model(image), built[0].eval()(image))


def test_both_losses_are_learnt_from(make_config: MakeConfig) -> None:
    config = make_config()
    torch.manual_seed(config.seed)
    start = build_model(config.model, 3).state_dict()
    train(config, on_step=lambda step: None)
    end = load_model(config.output / "last.pt").model.state_dict()
    for head in ("seg_head", "annotation_head"):
        weights = [name for name in start if name.startswith(head)]
        assert weights and all(not torch.equal(start[name], end[name]) for name in weights)


def test_existing_run_is_refused(make_config: MakeConfig) -> None:
    config = make_config()
    config.output.mkdir()
    (config.output / "last.pt").write_text("precious")
    with pytest.raises(UserError, match="exists already and is not empty; --resume"):
        train(config)
    assert (config.output / "last.pt").read_text() == "precious"


def test_a_file_in_the_place_of_the_run_folder_is_refused(make_config: MakeConfig) -> None:
    config = make_config(overwrite=True)
    config.output.write_text("precious")
    with pytest.raises(UserError, match="expected the path of a run folder, but it is a file"):
        train(config)
    assert config.output.read_text() == "precious"


def test_overwriting_replaces_the_run_and_nothing_else(make_config: MakeConfig) -> None:
    config = make_config(overwrite=True)
    (config.output / "tensorboard").mkdir(parents=True)
    replaced = ["config.yaml", "best.pt", "tensorboard/events.out.tfevents.1.host"]
    kept = ["notes.txt", "tensorboard/notes.txt"]
    for name in replaced + kept:
        (config.output / name).write_text("old")
    train(config, on_step=lambda step: None)
    assert all((config.output / name).read_text() == "old" for name in kept)
    assert yaml.safe_load((config.output / "config.yaml").read_text())["seed"] == 0
    assert load_model(config.output / "best.pt").iteration == 4
    assert not (config.output / replaced[2]).exists()


def test_bad_data_and_bad_models_leave_no_run_folder(
    own_shapes: Path, make_config: MakeConfig
) -> None:
    config = make_config(model=ModelConfig("no_such_model", pretrained=False))
    with pytest.raises(UserError, match="model: cannot build 'no_such_model': Unknown model"):
        train(config)
    (own_shapes / "scribbles/shape0.png").unlink()
    with pytest.raises(UserError, match=r"scribbles/shape0\.png: missing"):
        train(make_config(data=DataConfig(own_shapes)))
    assert not config.output.exists()


def test_validation_images_are_not_trained_on(own_shapes: Path, make_config: MakeConfig) -> None:
    (own_shapes / "splits").mkdir()
    (own_shapes / "splits/val.txt").write_text("shape0\n")
    with pytest.raises(UserError, match=r"expected a list train\.txt beside val\.txt"):
        train(make_config(data=DataConfig(own_shapes)))


@pytest.mark.parametrize("loss", ["blp", "annotation"])
def test_a_loss_that_is_not_finite_names_iteration_and_images(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, loss: str
) -> None:
    original = BLPSeg.losses
    calls = []

    def losses(model: BLPSeg, *args: torch.Tensor, **options: bool) -> dict:
        calls.append(1)
        found = original(model, *args, **options)
        return found | {loss: found[loss] * float("nan")} if len(calls) == 3 else found

    monkeypatch.setattr(BLPSeg, "losses", losses)
    config = make_config()
    with pytest.raises(UserError) as caught:
        train(config, on_step=lambda step: None)
    stream = TrainingStream(
        ScribbleFolder(config.data, "train"), config.augment, 8, config.seed, (0.5,) * 3
    )
    names = ", ".join(stream[position].name for position in (4, 5))
    message = str(caught.value)
    assert (
        message.startswith("iteration 3 of 4: the loss is not finite") and f"{loss} nan" in message
    )
    assert message.endswith(f"images of the batch: {names}")


def test_terminal_shows_scores_and_a_run_too_short_for_self_training(
    make_config: MakeConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    config = make_config(optim=OptimConfig(3e-3, batch_size=2, iterations=2))
    result = train(config)
    shown = capsys.readouterr().err
    assert f"Iteration 2: mIoU {100 * result.scores.miou:.2f} %" in shown
    assert "Self-training is not reached: it would start at iteration 10000" in shown


def test_terminal_says_how_long_the_run_takes(
    make_config: MakeConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    optim = OptimConfig(3e-3, batch_size=2, iterations=14, self_training_from=0.5)
    train(make_config(optim=optim))
    shown = capsys.readouterr().err
    assert "Self-training starts at iteration 7 of 14." in shown
    (line,) = re.findall("About .*", shown)
    assert re.fullmatch(
        r"About \d+ s for 14 iterations \([\d.e-]+ s each, measured on the first 11\), "
        r"plus 1 validation of 2 images\.",
        line,
    )


@pytest.mark.parametrize(
    ("seconds", "text"), [(3, "3 s"), (99, "99 s"), (720, "12 min"), (12_600, "3.5 h")]
)
def test_durations_in_words(seconds: float, text: str) -> None:
    assert in_words(seconds) == text
