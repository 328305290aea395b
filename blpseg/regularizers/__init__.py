"""Losses of other methods on unlabeled pixels, to compare BLPSeg with and to add to it.

| module | content |
|---|---|
| gated_crf | `gated_crf_loss`, Obukhov et al. 2019 |
| soft_labels | `soft_label_loss`, Zhang and Boykov, CVPR 2025 |
| neighbors | pairs of near pixels, and the images at the logits' resolution |

They are written for clarity, in plain PyTorch, at the resolution of the logits. A new one needs a
name in `blpseg.config.RegularizerName` and a line in `REGULARIZERS`.
"""

from blpseg.regularizers.gated_crf import gated_crf_loss
from blpseg.regularizers.soft_labels import soft_label_loss

REGULARIZERS = {"gated_crf": (gated_crf_loss, 0.1), "soft_labels": (soft_label_loss, 0.3)}
"""Name to the loss and its default weight, chosen here."""

__all__ = ["REGULARIZERS", "gated_crf_loss", "soft_label_loss"]
