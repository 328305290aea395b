"""The scores of an ablation's runs, and their mean and deviation over seeds."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch

from blpseg.ablation.variants import BASELINE
from blpseg.metrics import Scores


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


def _plain(spread: Spread | None) -> dict[str, float | None] | None:
    return None if spread is None else spread._asdict()
