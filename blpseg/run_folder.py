"""The folder of a training run: what it holds, when one may be written, and what continues it."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from blpseg.checkpoints import aside_of, load_checkpoint, write_whole
from blpseg.config import TrainConfig
from blpseg.errors import UserError, raise_problems
from blpseg.metrics import Scores

# What a run may be continued with another value of: where things lie, and how it is watched.
_MAY_DIFFER = (
    ("output",),
    ("overwrite",),
    ("resume",),
    ("device",),
    ("log",),
    ("data", "root"),
    ("data", "scribbles"),
    ("data", "workers"),
)
_STATE = {"optimizer", "schedule", "scaler", "best_miou", "scores", "validated", "images"}


class RunFolder:
    """The files of a run.

    Args:
        path: The folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.yaml"
        self.last = path / "last.pt"
        self.best = path / "best.pt"
        self.scores = path / "scores.json"
        self.tensorboard = path / "tensorboard"

    def check_new(self, overwrite: bool) -> None:
        """Refuse what a new run would spoil.

        Raises:
            UserError: If the folder is a file, or holds anything and may not be overwritten.
        """
        if self.path.exists() and not self.path.is_dir():
            raise UserError(
                f"{self.path}: expected a run folder to make, but a file of this name exists"
            )
        # All that a run leaves which is killed while it writes its first file.
        begun = {aside_of(self.config)}
        if not overwrite and self.path.exists() and set(self.path.iterdir()) - begun:
            raise UserError(
                f"{self.path}: exists already and is not empty; --overwrite true replaces the run "
                "in it, --resume true continues it"
            )

    def check_unfinished(self, config: TrainConfig, images: Sequence[str]) -> dict[str, Any] | None:
        """Find where a run continues.

        Args:
            config: What it is to be continued with.
            images: Names of its training images.

        Returns:
            The content of last.pt, or None where the run begins: nothing was saved yet.

        Raises:
            UserError: If the folder holds no run, or another one.
        """
        if not self.config.is_file():
            self.check_new(overwrite=False)
            return None
        check_same(self.config, yaml.safe_load(self.config.read_text()), config.as_plain_data())
        if not self.last.is_file():
            return None
        content = load_checkpoint(self.last)
        if not content.keys() >= _STATE:
            raise UserError(f"{self.last}: holds a model, but not the state of a training run")
        if content["images"] != fingerprint(images):
            raise UserError(
                f"{config.data.root}: expected the {content['images']['count']} training images "
                f"that the run in {self.path} began with, got {len(images)}, some of them others"
            )
        return content

    def make(self, config: TrainConfig, *, keep: bool) -> None:
        """Make the folder and write the configuration down.

        Args:
            config: The run.
            keep: Leave the files of an earlier run; else they are deleted, and no others.
        """
        if not keep:
            points = self.tensorboard.glob("events.out.tfevents.*")
            for old in (self.last, self.best, self.scores, *points):
                old.unlink(missing_ok=True)
        self.path.mkdir(parents=True, exist_ok=True)
        # Last, and in place of an older one: a folder without it is not known for a run's.
        text = yaml.safe_dump(config.as_plain_data(), sort_keys=False)
        write_whole(self.config, lambda file: file.write(text.encode()))

    def write_scores(self, scores: Scores) -> None:
        """Write the scores of the last iteration."""
        text = json.dumps(scores.as_plain_data(), indent=2) + "\n"
        write_whole(self.scores, lambda file: file.write(text.encode()))


def fingerprint(images: Sequence[str]) -> dict[str, int]:
    """Number and checksum of the training images' names, in order."""
    return {"count": len(images), "names": zlib.crc32("\n".join(images).encode())}


def check_same(where: Path, began: dict[str, Any], asked: dict[str, Any]) -> None:
    """See that what goes on is what began.

    Args:
        where: File that says what began.
        began: Its content: a configuration as plain data, or a part of one.
        asked: The same of what is asked for.

    Raises:
        UserError: If settings that the result depends on differ; it names them.
    """
    before, now = dict(_settings(began)), dict(_settings(asked))
    raise_problems(
        f"{where}, which the run began with; it cannot go on with another",
        [
            f"{name}: {before.get(name)} there, {now.get(name)} asked for"
            for name in dict.fromkeys([*before, *now])
            if before.get(name) != now.get(name)
        ],
    )


def _settings(part: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    """All settings that a run depends on, by their dotted names."""
    for key, value in part.items():
        if (*path, key) in _MAY_DIFFER:
            continue
        if isinstance(value, dict):
            yield from _settings(value, (*path, key))
        else:
            yield ".".join((*path, key)), value
