"""The scores of an ablation's runs, and their mean and deviation over seeds."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch

from blpseg.ablation.variants import BASELINE, CEILING
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


Score = Callable[[Scores], float | None]

SCORES: dict[str, Score] = {
    "miou": lambda scores: scores.miou,
    "foreground_dice": lambda scores: scores.foreground_dice,
    "boundary_miou": lambda scores: scores.boundary_miou,
}


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
    """Name of a variant to its finished runs, one per seed; variants may have different seeds."""

    def mean(self, name: str, score: Score) -> Spread | None:
        """Compute mean and deviation of a score of a variant, 0 to 1."""
        return Spread.of([score(run.scores) for run in self.runs[name]])

    def gain(self, name: str, score: Score) -> Spread | None:
        """Compute the difference of a score to the baseline's of the same seed."""
        return self._compare(score, lambda own, base: own - base, name, BASELINE.name)

    def gap_closed(self, name: str, score: Score) -> Spread | None:
        """Compute gain / (full supervision's gain), per seed: 0 the baseline, 1 the ceiling."""
        return self._compare(
            score,
            lambda own, base, full: (own - base) / (full - base) if full > base else None,
            name,
            BASELINE.name,
            CEILING.name,
        )

    def share_of_full(self, name: str, score: Score) -> Spread | None:
        """Compute a score as a share of full supervision's of the same seed."""
        return self._compare(
            score, lambda own, full: own / full if full else None, name, CEILING.name
        )

    def _compare(
        self, score: Score, compare: Callable[..., float | None], *names: str
    ) -> Spread | None:
        """Compare variants on the seeds that all of them have."""
        by_seed = [
            {run.seed: score(run.scores) for run in self.runs.get(name, ())} for name in names
        ]
        values = [[scores.get(seed) for scores in by_seed] for seed in by_seed[0]]
        return Spread.of([None if None in row else compare(*row) for row in values])

    def as_plain_data(self) -> dict[str, Any]:
        """Convert to nested dicts and lists, e.g. for JSON."""
        return {
            "settings": self.settings,
            "machine": {"torch": torch.__version__, "threads": torch.get_num_threads()},
            "training_seconds": round(
                sum(run.seconds for runs in self.runs.values() for run in runs)
            ),
            "variants": {
                name: {
                    **{key: _plain(self.mean(name, score)) for key, score in SCORES.items()},
                    **{
                        f"{key}_{relation.__name__}": _plain(relation(name, score))
                        for key, score in SCORES.items()
                        for relation in (self.gain, self.gap_closed, self.share_of_full)
                    },
                    "runs": [asdict(run) for run in runs],
                }
                for name, runs in self.runs.items()
            },
        }


def _plain(spread: Spread | None) -> dict[str, float | None] | None:
    return None if spread is None else spread._asdict()
