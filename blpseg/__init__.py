"""BLPSeg: train a segmentation network on scribbles. Model, data and training on ``blpseg_ops``."""

from blpseg.model import BLPSeg
from blpseg_ops import __version__

__all__ = ["BLPSeg", "__version__"]
