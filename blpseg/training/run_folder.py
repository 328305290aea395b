"""The folder of a training run: its files, and the checks before a run starts or resumes."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from blpseg.checkpoints import load_checkpoint
from blpseg.config import TrainConfig, default_settings, fixed_settings
from blpseg.errors import UserError, raise_problems
from blpseg.files import temporary_path, write_json, write_whole
from blpseg.metrics import Scores

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
        """Check that a new run would destroy nothing.

        Raises:
            UserError: The path is a file, or the folder has content and `overwrite` is false.
        """
        if self.path.exists() and not self.path.is_dir():
            raise UserError(
                f"{self.path}: expected the path of a run folder, but it is a file; --output names "
                "another path"
            )
        # A run that is killed while it writes its first file leaves only this.
        leftover = {temporary_path(self.config)}
        if not overwrite and self.path.exists() and set(self.path.iterdir()) - leftover:
            raise UserError(
                f"{self.path}: exists already and is not empty; --resume continues the run in it, "
                "--overwrite replaces it, --output names another folder"
            )

    def check_unfinished(self, config: TrainConfig, images: Sequence[str]) -> dict[str, Any] | None:
        """Load the state that a run resumes from.

        Args:
            config: Configuration to resume with.
            images: Names of the training images.

        Returns:
            The content of last.pt; None if nothing was saved yet, so that the run starts.

        Raises:
            UserError: The folder has other content, or a run with another configuration or other
                training images.
        """
        if not self.config.is_file():
            self.check_new(overwrite=False)
            return None
        check_same(self.config, yaml.safe_load(self.config.read_text()), config.as_plain_data())
        if not self.last.is_file():
            return None
        content = load_checkpoint(self.last)
        if not content.keys() >= _STATE:
            raise UserError(
                f"{self.last}: expected the state of a training run, got a model without it; "
                "--output names another folder"
            )
        if content["images"] != fingerprint(images):
            raise UserError(
                f"{config.data.root}: expected the {content['images']['count']} training images "
                f"that the run in {self.path} started with, got {len(images)} images with other "
                "names; --overwrite starts anew"
            )
        return content

    def make(self, config: TrainConfig, *, keep: bool) -> None:
        """Make the folder and write config.yaml.

        Args:
            config: The run.
            keep: Keep the files of an earlier run; else delete them, and no other files.
        """
        if not keep:
            points = self.tensorboard.glob("events.out.tfevents.*")
            kept = self.path.glob("iteration-*.pt")
            for old in (self.last, self.best, self.scores, *kept, *points):
                old.unlink(missing_ok=True)
        self.path.mkdir(parents=True, exist_ok=True)
        # Written last, over an older one: a folder without config.yaml does not count as a run.
        text = yaml.safe_dump(config.as_plain_data(), sort_keys=False)
        write_whole(self.config, lambda file: file.write(text.encode()))

    def numbered(self, iteration: int) -> Path:
        """Return the checkpoint of an iteration that later ones do not replace."""
        return self.path / f"iteration-{iteration:06}.pt"

    def write_scores(self, scores: Scores) -> None:
        """Write the scores of the last iteration."""
        write_json(self.scores, scores.as_plain_data())


def fingerprint(images: Sequence[str]) -> dict[str, int]:
    """Compute number and checksum of the training images' names, in order."""
    return {"count": len(images), "names": zlib.crc32("\n".join(images).encode())}


def check_same(where: Path, saved: dict[str, Any], requested: dict[str, Any]) -> None:
    """Raise if the resumed configuration differs from the saved one.

    Args:
        where: File of the saved configuration.
        saved: Its content: a configuration as plain data, or a part of one.
        requested: The same part of the configuration to resume with.

    Raises:
        UserError: Settings that the result depends on differ; it names them.
    """
    before, now = dict(fixed_settings(saved)), dict(fixed_settings(requested))
    # A setting that the saved configuration lacks is newer: the run used today's default.
    before = {name: value for name, value in default_settings().items() if name in now} | before
    raise_problems(
        f"{where}, the saved configuration; a run resumes with the same one (--overwrite starts "
        "anew)",
        [
            f"{name}: {before.get(name)} saved, {now.get(name)} requested"
            for name in dict.fromkeys([*before, *now])
            if before.get(name) != now.get(name)
        ],
    )
