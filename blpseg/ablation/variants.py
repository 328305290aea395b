"""The variants of a run that an ablation compares."""

from __future__ import annotations

from dataclasses import dataclass, replace

from blpseg.config import TrainConfig


@dataclass(frozen=True)
class Variant:
    """Which parts of the method a run uses."""

    name: str
    lam: bool = False
    blp: bool = False
    self_training: bool = False

    @property
    def folder(self) -> str:
        """The name, as the name of a folder."""
        return self.name.replace(" + ", "+").replace(" ", "-").lower()

    def of(self, config: TrainConfig) -> TrainConfig:
        """Switch the other parts off, in a configuration that has all of them."""
        optim, model = config.optim, config.model
        return replace(
            config,
            model=replace(model, lam=self.lam, gamma=model.gamma if self.blp else 0.0),
            optim=replace(
                optim, self_training_from=optim.self_training_from if self.self_training else None
            ),
        )


VARIANTS = (
    Variant("partial cross entropy"),
    Variant("LAM", lam=True),
    Variant("BLP", blp=True),
    Variant("LAM + BLP", lam=True, blp=True),
    Variant("LAM + BLP + self-training", lam=True, blp=True, self_training=True),
)
BASELINE = VARIANTS[0]
