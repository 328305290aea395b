"""``blpseg ablate``: measure the gain of each part of the method and of its peers, over seeds.

All runs of a seed start from the same weights and use the same crops in the same order; only the
parts under test differ. Gains are therefore computed per seed.

| module | content |
|---|---|
| variants | parts of the method, peers, and the ceiling |
| run | `ablate`, which trains and scores all runs |
| results | scores, mean and deviation |
| tables | the table in the terminal |
"""

from blpseg.ablation.results import Ablation, Run, Spread
from blpseg.ablation.run import ablate
from blpseg.ablation.tables import ablation_table
from blpseg.ablation.variants import BASELINE, CEILING, PARTS, PEERS, VARIANTS, Variant

__all__ = [
    "BASELINE",
    "CEILING",
    "PARTS",
    "PEERS",
    "VARIANTS",
    "Ablation",
    "Run",
    "Spread",
    "Variant",
    "ablate",
    "ablation_table",
]
