"""Write scenes as a folder in the layout of a user's own data."""

from __future__ import annotations

from pathlib import Path

import imgviz

from blpseg.data.scenes.painting import CLASSES, image_shape, render_scene
from blpseg.data.scribble_simulator import ScribbleOptions, simulate_scribbles


def write_scenes(
    root: Path,
    count: int,
    seed: int = 0,
    size: int | tuple[int, int] = 128,
    *,
    val_count: int = 0,
    **scribble_options: float,
) -> None:
    """Write scenes as a folder of images, scribbles, masks, class names and split lists.

    The layout is `images/NAME.png`, `scribbles/NAME.png` (255 = unlabeled), `masks/NAME.png`,
    `classes.txt` and `splits/{train,val}.txt`. Scene i of a split depends only on the seed and i,
    not on the counts.

    Args:
        root: The folder to create; it may exist if it is empty.
        count: Scenes for training.
        seed: Seed of the whole data set; the two splits use separate random streams.
        size: Side, or (height, width), in pixels.
        val_count: Scenes for validation.
        **scribble_options: `preference`, `width`, `length` and `drop` of `simulate_scribbles`.

    Raises:
        FileExistsError: `root` is not empty.
        ValueError: A count is negative, or the size or a scribble option is out of range.
    """
    root = Path(root)
    ScribbleOptions(**scribble_options)
    image_shape(size)
    if count < 0 or val_count < 0:
        raise ValueError(f"count and val_count must not be negative, got {count} and {val_count}")
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise FileExistsError(
            f"{root} exists and is not an empty folder; scenes are never written over it"
        )
    for folder in ("images", "scribbles", "masks", "splits"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    (root / "classes.txt").write_text("".join(f"{name}\n" for name in CLASSES))
    for stream, (split, total) in enumerate((("train", count), ("val", val_count))):
        names = [f"{split}_{index:05d}" for index in range(total)]
        for index, name in enumerate(names):
            image, mask = render_scene((seed, stream, index), size)
            scribble = simulate_scribbles(mask, seed=(seed, stream, index), **scribble_options)
            imgviz.io.imsave(root / "images" / f"{name}.png", image)
            imgviz.io.lblsave(root / "masks" / f"{name}.png", mask)
            imgviz.io.lblsave(root / "scribbles" / f"{name}.png", scribble)
        (root / "splits" / f"{split}.txt").write_text("".join(f"{name}\n" for name in names))
