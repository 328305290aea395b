"""Interrupted runs: after any stop, a resumed run has the same losses, bit for bit."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import random
import resource
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from blpseg import cli
from blpseg.checkpoints import load_checkpoint, save_checkpoint
from blpseg.config import AugmentConfig, DataConfig, LogConfig, OptimConfig, TrainConfig
from blpseg.errors import TrainingStopped, UserError
from blpseg.files import write_whole
from blpseg.training import Step, train
from blpseg.training.run_folder import RunFolder

from .conftest import small_config

MakeConfig = Callable[..., TrainConfig]

OPTIM = OptimConfig(3e-3, batch_size=2, iterations=8, self_training_from=4)
LOG = LogConfig(scalars_every=1, validate_every=3, save_every=1)


def scalars(run: Path) -> dict[str, list[tuple[int, float]]]:
    """Return all TensorBoard points, except those that depend on time."""
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    return {
        tag: [(point.step, point.value) for point in events.Scalars(tag)]
        for tag in ("loss/blp", "loss/annotation", "training/learning_rate", "validation/mIoU")
    }


def same(one: Any, other: Any) -> bool:
    """Return whether two checkpoints are equal bit for bit, except their configurations."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(
            key == "config" or same(value, other[key]) for key, value in one.items()
        )
    return one == other


def assert_same_run(run: Path, expected: Path) -> None:
    assert scalars(run) == scalars(expected)
    for name in ("last.pt", "best.pt"):
        assert same(load_checkpoint(run / name), load_checkpoint(expected / name)), name
    assert json.loads((run / "scores.json").read_text()) == json.loads(
        (expected / "scores.json").read_text()
    )
    assert not list(run.glob("*.part"))


def run_until(config: TrainConfig, iteration: int, act: Callable[[], None]) -> None:
    """Train, and call `act` once after this many iterations."""

    def on_step(step: Step) -> None:
        if step.iteration == iteration:
            act()

    train(config, on_step=on_step)


@pytest.fixture(scope="module")
def uninterrupted(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    output = tmp_path_factory.mktemp("uninterrupted") / "run"
    train(small_config(shapes, output, optim=OPTIM, log=LOG), on_step=lambda step: None)
    return output


@pytest.mark.parametrize(("iteration", "save_every"), [(2, 3), (5, 3), (6, 1), (7, 3), (8, 1)])
def test_an_error_anywhere_is_resumed_from(
    make_config: MakeConfig, uninterrupted: Path, iteration: int, save_every: int
) -> None:
    """At 2 nothing is saved yet; at 6 a validation is just done, and 8 is the end."""
    log = replace(LOG, save_every=save_every)
    config = make_config(optim=OPTIM, log=log, resume=True)

    def fail() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run_until(config, iteration, fail)
    again: list[int] = []
    result = train(config, on_step=lambda step: again.append(step.iteration))
    saved = iteration if iteration == OPTIM.iterations else iteration // save_every * save_every
    assert again == list(range(saved + 1, 9))
    assert_same_run(config.output, uninterrupted)
    assert result.best == config.output / "best.pt"


def test_a_run_killed_at_random_times_gets_the_same_losses(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    context = multiprocessing.get_context("forkserver")  # it has imported, and torch may be forked
    context.set_forkserver_preload(["blpseg.training"])
    optim = replace(OPTIM, iterations=12)

    def start(config: TrainConfig) -> Any:
        process = context.Process(target=train, args=(config,))
        process.start()
        return process

    for name in ("first", "expected"):  # the first one warms up, the second one's time counts
        expected = replace(make_config(optim=optim, log=LOG), output=tmp_path / name)
        begun = time.monotonic()
        whole = start(expected)
        whole.join()
        assert whole.exitcode == 0
    seconds = time.monotonic() - begun
    config = make_config(optim=optim, log=LOG, resume=True)
    most_kills = 6 if os.environ.get("BLPSEG_TEST_ALL") == "1" else 3
    rng, kills = random.Random(0), 0
    for _ in range(30):
        process = start(config)
        process.join(rng.uniform(0.1, 0.6) * seconds if kills < most_kills else None)
        if process.is_alive():
            process.kill()
            process.join()
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
        kills += 1
    assert kills >= 1 and process.exitcode == 0
    assert_same_run(config.output, expected.output)


@pytest.mark.parametrize("begun", [False, True])
def test_a_folder_whose_making_is_killed_anywhere_is_begun_anew(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, begun: bool
) -> None:
    """Start in a new folder, and in that of a run killed before its first checkpoint."""

    class Killed(BaseException):
        pass

    config = make_config(resume=True)
    for calls in itertools.count():
        folder, left = RunFolder(tmp_path / str(calls)), calls
        if begun:
            folder.make(config, keep=False)
            folder.tensorboard.mkdir()
            (folder.tensorboard / "events.out.tfevents.1").touch()

        def counted(call: Callable[..., Any]) -> Callable[..., Any]:
            def either(*args: Any, **kwargs: Any) -> Any:
                nonlocal left
                left -= 1
                if left < 0:
                    raise Killed
                return call(*args, **kwargs)

            return either

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", counted(os.fsync))
            for name in ("mkdir", "replace", "unlink"):
                patch.setattr(Path, name, counted(getattr(Path, name)))
            with suppress(Killed):
                folder.make(config, keep=False)
        assert folder.check_unfinished(config, []) is None
        folder.make(config, keep=False)
        assert [file.name for file in folder.path.iterdir() if file.is_file()] == ["config.yaml"]
        if left >= 0:
            break
    assert calls > 4


def test_sigterm_saves_after_the_iteration(make_config: MakeConfig, uninterrupted: Path) -> None:
    log = replace(LOG, save_every=100)
    config = make_config(optim=OPTIM, log=log, resume=True)
    before = signal.getsignal(signal.SIGTERM)
    for iteration in (2, 5):  # the next one, where the signal shows, has a validation due
        with pytest.raises(TrainingStopped, match=f"stopped after iteration {iteration + 1} of 8"):
            run_until(config, iteration, lambda: os.kill(os.getpid(), signal.SIGTERM))
        assert load_checkpoint(config.output / "last.pt")["iteration"] == iteration + 1
    assert signal.getsignal(signal.SIGTERM) == before
    train(config, on_step=lambda step: None)
    assert_same_run(config.output, uninterrupted)


def test_sigterm_to_the_loader_processes_too_loses_nothing(
    make_config: MakeConfig, uninterrupted: Path
) -> None:
    """Signal the whole process group, as batch systems do."""
    config = make_config(optim=OPTIM, log=LOG, resume=True)
    config.data.workers = 2

    def signal_all() -> None:
        loaders = multiprocessing.active_children()
        assert len(loaders) >= 2
        for pid in (*(loader.pid for loader in loaders), os.getpid()):
            os.kill(pid, signal.SIGTERM)

    with pytest.raises(TrainingStopped, match="stopped after iteration 3"):
        run_until(config, 2, signal_all)
    train(config, on_step=lambda step: None)
    assert_same_run(config.output, uninterrupted)


def test_sigterm_has_an_exit_code_of_its_own(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped(config: TrainConfig) -> None:
        raise TrainingStopped("stopped after iteration 3 of 8")

    monkeypatch.setattr("blpseg.training.train", stopped)
    assert cli.main(["train", "--data.root=shapes", "--output=run"]) == 143
    assert capsys.readouterr().err == "blpseg: stopped after iteration 3 of 8\n"


def test_a_full_disk_leaves_the_last_checkpoint(
    make_config: MakeConfig, uninterrupted: Path
) -> None:
    config = make_config(optim=OPTIM, log=LOG, resume=True)
    last = config.output / "last.pt"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill() -> None:  # no file may grow beyond half of the checkpoint
        resource.setrlimit(resource.RLIMIT_FSIZE, (last.stat().st_size // 2, limits[1]))

    try:
        with pytest.raises(OSError, match=r"run/(last|best)\.pt: could not be written"):
            run_until(config, 5, fill)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert load_checkpoint(last)["iteration"] == 5
    assert not list(config.output.glob("*.part"))
    train(config, on_step=lambda step: None)
    assert_same_run(config.output, uninterrupted)


def test_a_process_killed_while_saving_leaves_the_file(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    save_checkpoint(path, {"iteration": 1})
    if (child := os.fork()) == 0:

        def die(file: Any) -> None:
            file.write(b"half")
            file.flush()
            os.kill(os.getpid(), signal.SIGKILL)

        write_whole(path, die)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert (tmp_path / "last.pt.part").read_bytes() == b"half"
    assert torch.load(path, weights_only=True) == {"iteration": 1}
    save_checkpoint(path, {"iteration": 2})
    assert torch.load(path, weights_only=True) == {"iteration": 2}
    assert [file.name for file in tmp_path.iterdir()] == ["last.pt"]


def test_a_finished_run_is_left_as_it_is(make_config: MakeConfig) -> None:
    config = make_config(resume=True)
    first = train(config, on_step=lambda step: None)
    written = first.last.read_bytes()
    steps: list[Step] = []
    again = train(config, on_step=steps.append)
    assert steps == [] and first.last.read_bytes() == written
    assert (again.scores, again.best) == (first.scores, first.best)


def test_another_configuration_is_refused(make_config: MakeConfig, own_shapes: Path) -> None:
    config = make_config()
    train(config, on_step=lambda step: None)
    other = replace(
        config,
        resume=True,
        optim=replace(config.optim, learning_rate=1.0, batch_size=4),
        augment=AugmentConfig(crop=48),
        log=LOG,
    )
    with pytest.raises(UserError) as caught:
        train(other, on_step=lambda step: None)
    message = str(caught.value)
    assert message.startswith("3 problems in ") and "run/config.yaml" in message
    for line in (
        "augment.crop: 32 saved, 48 requested",
        "optim.learning_rate: 0.003 saved, 1.0 requested",
        "optim.batch_size: 2 saved, 4 requested",
    ):
        assert f"\n  {line}" in message
    data = DataConfig(own_shapes, workers=0)
    with pytest.raises(UserError, match="expected the 5 training images that the run in .*, got 3"):
        train(replace(config, resume=True, data=data), on_step=lambda step: None)


def test_only_a_run_is_resumed(make_config: MakeConfig) -> None:
    config = make_config(resume=True)
    config.output.mkdir()
    (config.output / "notes.txt").write_text("precious")
    with pytest.raises(UserError, match="exists already and is not empty"):
        train(config)
    with pytest.raises(UserError, match="resume and overwrite: expected one of them"):
        replace(config, overwrite=True)
