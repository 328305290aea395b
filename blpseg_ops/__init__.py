"""Kernels for scribble-supervised segmentation (BLPSeg, IEEE TIP 2023), with autograd.

Ops: ``lam``, ``blp_loss``, ``annotation_loss``, ``pseudo_labels``, ``blp_objective`` (those three
in one call), ``upsample_argmax``, ``joint_bilateral``. Modules: ``LocalAggregation``, ``BLPLoss``.
``reference`` holds the definition of every op in plain PyTorch. ``checked_targets`` checks the
values of targets on GPUs, too. The package needs torch alone. ``python -m blpseg_ops`` prints which
kernels are built and which backends each op has.
"""

from blpseg_ops import reference
from blpseg_ops._targets import checked_targets
from blpseg_ops._version import __version__
from blpseg_ops.modules import BLPLoss, LocalAggregation
from blpseg_ops.ops._register import decompositions
from blpseg_ops.ops.annotation_loss import annotation_loss
from blpseg_ops.ops.blp_loss import blp_loss
from blpseg_ops.ops.blp_objective import blp_objective
from blpseg_ops.ops.joint_bilateral import joint_bilateral
from blpseg_ops.ops.lam import lam
from blpseg_ops.ops.pseudo_labels import pseudo_labels
from blpseg_ops.ops.upsample_argmax import upsample_argmax
from blpseg_ops.reference.blp_objective import BLPObjective

__all__ = [
    "BLPLoss",
    "BLPObjective",
    "LocalAggregation",
    "__version__",
    "annotation_loss",
    "blp_loss",
    "blp_objective",
    "checked_targets",
    "decompositions",
    "joint_bilateral",
    "lam",
    "pseudo_labels",
    "reference",
    "upsample_argmax",
]
