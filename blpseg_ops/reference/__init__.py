"""Plain PyTorch twins of the ops: the same names and signatures, written to be read.

They define what the kernels must compute. They hold everything at full size (the losses
[N, K, H, W]; ``lam`` goes through the L x L pairs of pixels in blocks), run on any device, are
differentiated by autograd, and compute in float64 for float64 input and in float32 for everything
narrower.

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
