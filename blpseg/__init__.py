"""BLPSeg: train a segmentation network on scribbles. Model, data and training on ``blpseg_ops``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from blpseg.authors import load_authors_checkpoint
    from blpseg.model import BLPSeg
    from blpseg.segmenter import ScribbleSegmenter
    from blpseg_ops import __version__

__all__ = ["BLPSeg", "ScribbleSegmenter", "__version__", "load_authors_checkpoint"]


def __getattr__(name: str) -> Any:
    # torch and timm take seconds to import; `blpseg --help` and `blpseg draw` start without them.
    if name == "__version__":
        from blpseg_ops import __version__

        return __version__
    if name == "BLPSeg":
        from blpseg.model import BLPSeg

        return BLPSeg
    if name == "ScribbleSegmenter":
        from blpseg.segmenter import ScribbleSegmenter

        return ScribbleSegmenter
    if name == "load_authors_checkpoint":
        from blpseg.authors import load_authors_checkpoint

        return load_authors_checkpoint
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
