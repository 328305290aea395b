"""Draw scribbles over their images."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from blpseg.config import DataConfig
from blpseg.data.folder import Sample, ScribbleFolder
from blpseg.errors import UserError
from blpseg.pictures import draw_scribbles, save_picture
from blpseg.scribbles.outputs import prepare_output, progress


def preview(
    data: DataConfig,
    output: Path,
    *,
    split: str | None = None,
    count: int | None = None,
    overwrite: bool = False,
    quiet: bool = False,
) -> list[Path]:
    """Draw scribbles in their classes' colors over their images, OUTPUT/NAME.png.

    Args:
        data: The data set.
        output: Folder for the pictures.
        split: Split of the data set; None takes every image.
        count: Number of images, from the first on; None takes all.
        overwrite: Replace existing pictures.
        quiet: Show no progress bar.

    Returns:
        The files written.

    Raises:
        UserError: The data set cannot be read, or a picture exists.
    """
    if count is not None and count < 1:
        raise UserError(f"count: expected at least 1, got {count}")
    samples = ScribbleFolder(data, split, quiet=quiet)
    names = [f"{name}.png" for name in samples.names[:count]]
    prepare_output(output, names, overwrite)
    for index, name in progress(enumerate(names), "Drawing", len(names), quiet):
        save_picture(output / name, scribble_picture(samples[index], len(samples.classes)))
    return [output / name for name in names]


def scribble_picture(sample: Sample, num_classes: int) -> np.ndarray:  # [H, W, 3] uint8
    """Draw a sample's scribbles over its image."""
    photo = sample.image.permute(1, 2, 0).numpy()
    return draw_scribbles(photo, sample.target.numpy(), num_classes)
