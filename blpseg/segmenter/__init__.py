"""Draw a few strokes, get label maps in seconds: frozen features, two small heads, and LAM."""

from blpseg.segmenter.export import export_label_maps
from blpseg.segmenter.segmenter import ScribbleSegmenter

__all__ = ["ScribbleSegmenter", "export_label_maps"]
