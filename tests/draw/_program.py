"""The page's server with a fast stand-in for the segmenter: in a thread, or as a program.

python -m tests.draw._program FOLDER PORT
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

from blpseg.draw.app import DrawApp
from blpseg.draw.folder import DrawFolder
from blpseg.draw.server import PageServer, bind, serve
from blpseg.draw.session import Segmenter

TOKEN = "secret"


class ColorSegmenter:
    """Give each pixel the class with the nearest mean color."""

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes
        self.taught: dict[bytes, tuple[np.ndarray, np.ndarray]] = {}

    def fit(self, images: Sequence[np.ndarray], scribbles: Sequence[np.ndarray]) -> None:
        """Keep the images; the last scribbles of each count."""
        for image, labels in zip(images, scribbles, strict=True):
            assert image.shape[:2] == labels.shape
            self.taught[image.tobytes()] = image[labels != 255], labels[labels != 255]

    def predict_proba(self, image: np.ndarray) -> np.ndarray:
        """Return [K, H, W] float32."""
        colors, labels = (np.concatenate(part) for part in zip(*self.taught.values(), strict=True))
        far = np.full(image.shape[:2], 1e3)
        distance = [
            np.abs(image - colors[labels == label].mean(0)).mean(2) if label in labels else far
            for label in range(self.num_classes)
        ]
        weight = np.exp(-np.stack(distance) / 60)
        return (weight / weight.sum(0)).astype(np.float32)

    def annotation_probability(self, image: np.ndarray) -> np.ndarray:
        """Return [H, W] float32, high on the right."""
        ramp = np.linspace(0, 1, image.shape[1], dtype=np.float32)
        return np.broadcast_to(ramp, image.shape[:2])

    def save(self, path: Path) -> None:
        """Write the number of classes."""
        Path(path).write_text(str(self.num_classes))


class Running:
    """A server in a thread."""

    def __init__(self, folder: Path, make_segmenter: Callable[[int], Segmenter]) -> None:
        self.folder = folder
        self.app = DrawApp(DrawFolder(folder), make_segmenter)
        listener = bind(0)
        self.port: int = listener.getsockname()[1]
        self.root = f"http://127.0.0.1:{self.port}"
        self.address = f"{self.root}/{TOKEN}/"
        self._server = PageServer(self.app, TOKEN, self.port)
        self._thread = threading.Thread(target=self._server.run, args=([listener],), daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop the server and wait for it."""
        loop = self.app.hub._loop
        if loop is not None:
            loop.call_soon_threadsafe(self.app.hub.close)
        self._server.should_exit = True
        self._thread.join(10)


@contextmanager
def running(
    folder: Path, make_segmenter: Callable[[int], Segmenter] = ColorSegmenter
) -> Iterator[Running]:
    """Serve a folder while the context lasts."""
    program = Running(folder, make_segmenter)
    try:
        yield program
    finally:
        program.stop()


def write_images(folder: Path, count: int = 3, size: tuple[int, int] = (160, 120)) -> Path:
    """Write images of a light disc on a dark ground into FOLDER/images."""
    (folder / "images").mkdir(parents=True)
    width, height = size
    y, x = np.mgrid[:height, :width]
    for number in range(count):
        image = np.full((height, width, 3), (40, 60, 50 + 20 * number), np.uint8)
        center = width * (0.4 + 0.05 * number)
        image[(x - center) ** 2 + (y - height / 2) ** 2 < (height / 3) ** 2] = (230, 180, 60)
        Image.fromarray(image).save(folder / "images" / f"disc{number}.png")
    return folder


if __name__ == "__main__":
    serve(
        DrawApp(DrawFolder(Path(sys.argv[1])), ColorSegmenter),
        bind(int(sys.argv[2])),
        announce=lambda address: print(address, flush=True),
    )
