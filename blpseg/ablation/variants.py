"""The variants of a run that an ablation compares: parts of the method, peers, and the ceiling."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from blpseg.config import RegularizerName, TrainConfig
from blpseg.errors import UserError


@dataclass(frozen=True)
class Variant:
    """Which parts of the method a run uses, and what it trains on."""

    name: str
    lam: bool = False
    blp: bool = False
    self_training: bool = False
    regularizer: RegularizerName = "none"
    masks: bool = False
    """Train on the masks instead of the scribbles."""
    crf: bool = False
    """Refine the predictions by a dense CRF; the network is the one of the variant without it."""

    @property
    def folder(self) -> str:
        """The name, as the name of a folder and on the command line."""
        return self.name.replace(" + ", "+").replace(" ", "-").lower()

    @property
    def trained(self) -> Variant:
        """The variant whose network this one uses: itself, or the one without the CRF."""
        if not self.crf:
            return self
        network = replace(self, crf=False)
        return next(other for other in VARIANTS if replace(other, name=self.name) == network)

    def of(self, config: TrainConfig) -> TrainConfig:
        """Switch the other parts off, in a configuration that has all of them."""
        optim, model, data = config.optim, config.model, config.data
        return replace(
            config,
            data=replace(data, train_labels="masks" if self.masks else data.train_labels),
            model=replace(
                model,
                lam=self.lam,
                gamma=model.gamma if self.blp else 0.0,
                regularizer=self.regularizer,
            ),
            optim=replace(
                optim, self_training_from=optim.self_training_from if self.self_training else None
            ),
        )


PARTS = (
    Variant("partial cross entropy"),
    Variant("LAM", lam=True),
    Variant("BLP", blp=True),
    Variant("LAM + BLP", lam=True, blp=True),
    Variant("LAM + BLP + self-training", lam=True, blp=True, self_training=True),
)
PEERS = (
    Variant("dense CRF", crf=True),
    Variant("gated CRF loss", regularizer="gated_crf"),
    Variant("soft labels", regularizer="soft_labels"),
    Variant("LAM + BLP + dense CRF", lam=True, blp=True, crf=True),
    Variant("LAM + BLP + gated CRF loss", lam=True, blp=True, regularizer="gated_crf"),
    Variant("LAM + BLP + soft labels", lam=True, blp=True, regularizer="soft_labels"),
)
BASELINE = PARTS[0]
CEILING = Variant("full supervision", masks=True)
VARIANTS = (*PARTS, *PEERS, CEILING)

_GROUPS = {"parts": PARTS, "peers": PEERS, "all": VARIANTS}


def choose_variants(names: Iterable[str]) -> list[Variant]:
    """Find variants by their names on the command line.

    Args:
        names: `Variant.folder` of variants, or "parts", "peers" or "all".

    Returns:
        The variants in the order of `VARIANTS`, each once. With a CRF variant comes the one whose
        network it uses, and the baseline always.

    Raises:
        UserError: There is no such variant, or no name.
    """
    by_name = {variant.folder: (variant,) for variant in VARIANTS} | _GROUPS
    chosen = {BASELINE}
    for name in (names := list(names)):
        if name not in by_name:
            raise UserError(f"variants: expected some of {', '.join(by_name)}; got {name}")
        chosen |= {*by_name[name], *(variant.trained for variant in by_name[name])}
    if not names:
        raise UserError(f"variants: expected some of {', '.join(by_name)}; got none")
    return [variant for variant in VARIANTS if variant in chosen]
