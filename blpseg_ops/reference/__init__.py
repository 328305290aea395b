"""The definition of every op: its formula in plain PyTorch, short and readable.

Functions have the names and arguments of the ops. They hold everything at full size (the losses
[N, K, H, W], ``lam`` all pairs of pixels), run on any device, and are differentiated by autograd,
any number of times and in forward mode. float64 inputs are computed in float64, all others in
float32. The kernels and :mod:`blpseg_ops.fallback` are tested against them in float64.

Source: Wang et al., "BLPSeg: Balance the Label Preference in Scribble-Supervised Semantic
Segmentation", IEEE TIP 32, 2023.
"""

from blpseg_ops.reference.annotation_loss import annotation_loss
from blpseg_ops.reference.blp_loss import blp_loss
from blpseg_ops.reference.blp_objective import blp_objective
from blpseg_ops.reference.lam import lam
from blpseg_ops.reference.pseudo_labels import pseudo_labels
from blpseg_ops.reference.upsample_argmax import upsample_argmax

__all__ = [
    "annotation_loss",
    "blp_loss",
    "blp_objective",
    "lam",
    "pseudo_labels",
    "upsample_argmax",
]
