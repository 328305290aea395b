"""``blpseg ablate``: measure the gain of each part of the method, over seeds, on any data set.

All runs of a seed start from the same weights and use the same crops in the same order; only the
parts under test differ. Gains are therefore computed per seed.

| module | content |
|---|---|
| variants | which parts of the method each run uses |
| run | `ablate`, which trains and scores all runs |
| results | scores, mean and deviation |
| tables | the table in the terminal |
"""

from blpseg.ablation.results import Ablation, Run, Spread
from blpseg.ablation.run import ablate
from blpseg.ablation.tables import ablation_table
from blpseg.ablation.variants import BASELINE, VARIANTS, Variant

__all__ = [
    "BASELINE",
    "VARIANTS",
    "Ablation",
    "Run",
    "Spread",
    "Variant",
    "ablate",
    "ablation_table",
]
