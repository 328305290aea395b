"""Three photographs of scikit-image with scribbles, as a data set.

scikit-image's package holds the photographs: `astronaut` (NASA, public domain), `chelsea` and
`coffee` (CC0). The scribbles, `NAME.png` in this folder, were drawn by hand: smooth strokes of 5
pixels through a few points, in the middle of things, as people draw. 255 is unlabeled.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

import numpy as np
import skimage.data
from PIL import Image

from blpseg.data.labels import read_png

CLASSES: tuple[str, ...] = (
    "background",
    "cat",
    "flag",
    "spacecraft",
    "helmet",
    "person",
    "cup",
    "saucer",
    "spoon",
)
PHOTOGRAPHS: tuple[str, ...] = ("astronaut", "chelsea", "coffee")


class Photograph(NamedTuple):
    """A photograph and scribbles on it."""

    image: np.ndarray  # [H, W, 3] uint8
    scribbles: np.ndarray  # [H, W] uint8, 255 = unlabeled


def load_photograph(name: str) -> Photograph:
    """Load one of `PHOTOGRAPHS`; nothing is downloaded.

    Raises:
        KeyError: There is no photograph of that name.
    """
    if name not in PHOTOGRAPHS:
        raise KeyError(f"{name}: expected one of {', '.join(PHOTOGRAPHS)}")
    scribbles = read_png(Path(str(files(__package__).joinpath(f"{name}.png"))))
    return Photograph(getattr(skimage.data, name)(), scribbles)


def write_photographs(root: Path) -> None:
    """Write the photographs as a folder of images, scribbles and class names.

    Args:
        root: The folder to create; it may exist if it is empty.

    Raises:
        FileExistsError: `root` is not empty.
    """
    root = Path(root)
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise FileExistsError(f"{root} exists and is not an empty folder")
    for folder in ("images", "scribbles"):
        (root / folder).mkdir(parents=True)
    (root / "classes.txt").write_text("".join(f"{name}\n" for name in CLASSES))
    for name in PHOTOGRAPHS:
        photograph = load_photograph(name)
        Image.fromarray(photograph.image).save(root / "images" / f"{name}.png")
        source = files(__package__).joinpath(f"{name}.png")
        (root / "scribbles" / f"{name}.png").write_bytes(source.read_bytes())
