"""The examples for Label Studio and napari, with requests and layers as these send and hold them.

napari is too heavy for the tests' extra: the test of the widget runs where napari is installed. It
ran with napari 0.9.2 and PyQt6 6.11, QT_QPA_PLATFORM=offscreen. Label Studio's requests follow
label-studio-ml and Label Studio's webhook reference.
"""

from __future__ import annotations

import importlib.util
import threading
import time
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tifffile

import blpseg
from blpseg.data.formats.brush_rle import decode_brush, encode_brush
from blpseg.errors import UserError

from .conftest import CLASSES, draw_shapes

EXAMPLES = Path(__file__).parents[2] / "examples"
KEY = "s3cret"
CONFIG = """<View>
  <Image name="image" value="$image"/>
  <BrushLabels name="brush" toName="image">
    <Label value="background"/><Label value="disc"/><Label value="square"/>
  </BrushLabels>
</View>"""
PROJECT = {"id": 7, "label_config": CONFIG}
TASK = {"id": 1, "data": {"title": "two shapes", "image": "/data/upload/7/5c1f0b7e-shape0.tif"}}


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def small_segmenter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make segmenters of a small backbone with random weights, which needs no package."""
    small = partial(blpseg.ScribbleSegmenter, backbone="test_resnet", pretrained=False)
    monkeypatch.setattr(blpseg, "ScribbleSegmenter", small)


@pytest.mark.parametrize("name", ["label_studio_backend", "napari_widget"])
def test_examples_are_short(name: str) -> None:
    assert len((EXAMPLES / f"{name}.py").read_text().splitlines()) < 150


@pytest.fixture
def label_studio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Serve a 16-bit image to requests with the key; return the log of requests."""
    tifffile.imwrite(tmp_path / "shape.tif", draw_shapes(0)[0].astype(np.uint16) * 257)
    log: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            log.append(f"{self.path} {self.headers['Authorization']}")
            self.send_response(200 if self.headers["Authorization"] == f"Token {KEY}" else 401)
            self.end_headers()
            self.wfile.write((tmp_path / "shape.tif").read_bytes())

        def log_message(self, *_: object) -> None:
            """Print nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("LABEL_STUDIO_URL", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("LABEL_STUDIO_API_KEY", KEY)
        yield log
        server.shutdown()


@pytest.fixture
def backend(small_segmenter: None, label_studio: list[str]) -> Any:
    """Return a client of the backend."""
    testclient = pytest.importorskip("starlette.testclient", reason="needs the extra draw")
    return testclient.TestClient(load("label_studio_backend").create_app())


def event(action: str, scribbles: np.ndarray) -> dict[str, Any]:
    """Return a webhook's request with a brush result per class."""
    height, width = scribbles.shape
    result = [
        {
            "type": "brushlabels",
            "from_name": "brush",
            "to_name": "image",
            "original_width": width,
            "original_height": height,
            "value": {
                "format": "rle",
                "rle": encode_brush(scribbles == label),
                "brushlabels": [name],
            },
        }
        for label, name in enumerate(CLASSES)
        if (scribbles == label).any()
    ]
    annotation = {"id": 3, "result": result, "was_cancelled": False}
    return {"action": action, "project": PROJECT, "task": TASK, "annotation": annotation}


def predict(backend: Any) -> dict[str, Any]:
    request = {"tasks": [TASK], "project": "7.1700000000", "label_config": CONFIG, "params": {}}
    (answer,) = backend.post("/predict", json=request).json()["results"]
    return answer


def test_label_studio_backend_learns_and_predicts(backend: Any, label_studio: list[str]) -> None:
    """The prediction is one brush result per class; together they cover every pixel once."""
    assert backend.get("/health").json()["status"] == "UP"
    setup = {"project": "7.1700000000", "schema": CONFIG, "hostname": "", "access_token": ""}
    assert backend.post("/setup", json=setup).json() == {"model_version": "0"}
    assert predict(backend) == {"result": [], "score": 0.0, "model_version": "0"}
    _, scribbles, _ = draw_shapes(0)
    assert backend.post("/webhook", json=event("ANNOTATION_CREATED", scribbles)).status_code == 200
    assert label_studio == [f"{TASK['data']['image']} Token {KEY}"]
    answer = predict(backend)
    assert answer["model_version"] == "1" and 0 < answer["score"] <= 1
    assert {(one["from_name"], one["to_name"]) for one in answer["result"]} == {("brush", "image")}
    masks = np.stack(
        [
            decode_brush(one["value"]["rle"], one["original_width"], one["original_height"], "here")
            for one in answer["result"]
        ]
    )
    assert (masks.sum(0) == 1).all()
    names = [one["value"]["brushlabels"][0] for one in answer["result"]]
    labels = np.array([CLASSES.index(name) for name in names])[masks.argmax(0)]
    assert _agreement(labels, scribbles) > 0.9


def test_label_studio_backend_names_what_is_wrong(
    backend: Any, label_studio: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, scribbles, _ = draw_shapes(0)

    def refused(data: dict[str, Any]) -> str:
        answer = backend.post("/webhook", json=data)
        assert answer.status_code == 400
        return answer.json()["detail"]

    elsewhere = event("ANNOTATION_CREATED", scribbles)
    elsewhere["task"] = {"id": 1, "data": {"image": "http://127.0.0.1:9/data/shape0.png"}}
    assert "task 1: expected an image of LABEL_STUDIO_URL=" in refused(elsewhere)
    assert label_studio == []
    other_size = event("ANNOTATION_CREATED", scribbles[:20])
    assert "expected shape [48, 64]" in refused(other_size)
    empty = event("ANNOTATION_CREATED", scribbles) | {"project": {"id": 8, "label_config": "<V/>"}}
    assert "expected one <BrushLabels>, got 0" in refused(empty)
    assert "'action'" in refused({})
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", "wrong")
    assert "401" in refused(event("ANNOTATION_UPDATED", scribbles))
    assert predict_is_empty(backend)


def predict_is_empty(backend: Any) -> bool:
    """Nothing was learned from refused requests."""
    setup = {"project": "7.1700000000", "schema": CONFIG}
    return backend.post("/setup", json=setup).json() == {"model_version": "0"}


def layers() -> tuple[SimpleNamespace, SimpleNamespace]:
    image, scribbles, _ = draw_shapes(0)
    strokes = np.where(scribbles == 255, 0, scribbles.astype(int) + 1)
    return (
        SimpleNamespace(name="shape", data=image, rgb=True, contrast_limits=(0, 255)),
        SimpleNamespace(name="strokes", data=strokes),
    )


def test_napari_layers_become_pixels_and_scribbles() -> None:
    widget = load("napari_widget")
    image, strokes = layers()
    assert np.array_equal(widget.pixels_of(image), image.data)
    assert np.array_equal(widget.scribbles_of(strokes), draw_shapes(0)[1])
    image.data = np.dstack([image.data, image.data[..., :1]])
    assert widget.pixels_of(image).shape == (48, 64, 3)  # without transparency
    plane = SimpleNamespace(
        name="plane", data=np.array([[-1.0, 0.0, 0.5, 1.0, 9.0]]), rgb=False, contrast_limits=(0, 1)
    )
    assert widget.pixels_of(plane).tolist() == [[0, 0, 32768, 65535, 65535]]
    plane.data = np.zeros((5, 48, 64), np.uint16)
    assert widget.pixels_of(plane).shape == (48, 64, 5)
    plane.data = np.zeros((2, 5, 48, 64), np.uint16)
    with pytest.raises(UserError, match=r"plane: expected \[H, W\] or \[C, H, W\], got \[2, 5, 48"):
        widget.pixels_of(plane)
    strokes.data = np.array([[300]])
    with pytest.raises(UserError, match="strokes: expected labels 0 to 254, got up to 300"):
        widget.scribbles_of(strokes)


def test_napari_segmenter_takes_new_classes(small_segmenter: None) -> None:
    widget = load("napari_widget")
    image, scribbles, _ = draw_shapes(0)
    segmenter = widget.LayerSegmenter()
    with pytest.raises(UserError, match="expected strokes of two labels or more"):
        segmenter.segment("shape", image, np.where(scribbles == 0, 0, 255).astype(np.uint8), {})
    two = np.where(scribbles == 2, 255, scribbles).astype(np.uint8)
    assert set(np.unique(segmenter.segment("shape", image, two, {})["shape"][0])) == {1, 2}
    other = draw_shapes(1)[0]
    found = segmenter.segment("shape", image, scribbles, {"other": other})
    labels, advice = found["shape"]
    assert labels.dtype == np.uint8 and _agreement(labels - 1, scribbles) > 0.9
    assert advice.shape == scribbles.shape and 0 <= advice.min() <= advice.max() <= 1
    assert found["other"][0].shape == other.shape[:2]


def test_napari_widget(small_segmenter: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Press the button: layers come, and the next press replaces their data."""
    monkeypatch.setenv("QT_QPA_PLATFORM", "offscreen")
    napari = pytest.importorskip("napari", reason="napari is not in the extra test: too heavy")
    from napari.components import ViewerModel  # a viewer without a canvas, which needs OpenGL
    from napari.qt import get_qapp

    application = get_qapp()
    viewer = ViewerModel()
    image, strokes = layers()
    inputs = [
        viewer.add_image(image.data, name="shape"),
        viewer.add_labels(strokes.data, name="strokes"),
    ]
    assert isinstance(inputs[0], napari.layers.Image)
    widget = load("napari_widget").make_widget(viewer)

    def press() -> None:
        widget(*inputs)
        assert not widget.call_button.enabled
        for _ in range(600):
            application.processEvents()
            if widget.call_button.enabled:
                return
            time.sleep(0.05)
        raise TimeoutError

    press()
    labels = viewer.layers["segmentation shape"].data
    assert _agreement(labels - 1, draw_shapes(0)[1]) > 0.9
    assert viewer.layers["where to paint shape"].data.shape == labels.shape
    viewer.layers["strokes"].data = np.where(strokes.data == 3, 0, strokes.data)
    count = len(viewer.layers)
    press()
    assert set(np.unique(viewer.layers["segmentation shape"].data)) == {1, 2}
    assert len(viewer.layers) == count


def _agreement(labels: np.ndarray, scribbles: np.ndarray) -> float:
    """Return the share of the scribbled pixels that got their class."""
    drawn = scribbles != 255
    return float((labels == scribbles)[drawn].mean())
