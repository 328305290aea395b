"""Simulate scribbles on a folder of masks."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from blpseg.data.labels import read_png
from blpseg.data.scribble_simulator import ScribbleOptions, simulate_scribbles
from blpseg.errors import UserError
from blpseg.pictures import save_label_map
from blpseg.scribbles.outputs import prepare_output, progress


def simulate(
    masks: Path,
    output: Path,
    options: ScribbleOptions,
    *,
    seed: int = 0,
    void: int = 255,
    overwrite: bool = False,
    quiet: bool = False,
) -> list[Path]:
    """Simulate scribbles on every mask of a folder; write label maps OUTPUT/NAME.png of mode P.

    The scribbles of a mask depend only on the mask, its name, the options and the seed.

    Args:
        masks: Folder of PNG label maps.
        output: Folder for the scribbles, in the masks' values; 255 is unlabeled.
        options: Settings of the simulator.
        seed: Seed.
        void: Value of void pixels in the masks, not scribbled on.
        overwrite: Replace existing label maps.
        quiet: Show no progress bar.

    Returns:
        The files written.

    Raises:
        UserError: There are no masks, a mask cannot be read, or a label map exists.
    """
    if not 0 <= void <= 255:
        raise UserError(f"void: expected 0 to 255, got {void}")
    if seed < 0:
        raise UserError(f"seed: expected at least 0, got {seed}")
    if not masks.is_dir():
        raise UserError(f"{masks}: expected a folder, but there is none")
    paths = sorted(path for path in masks.iterdir() if path.suffix.lower() == ".png")
    if not paths:
        raise UserError(f"{masks}: expected masks (.png), found none")
    prepare_output(output, [f"{path.stem}.png" for path in paths], overwrite)
    written = []
    for path in progress(paths, "Scribbling", len(paths), quiet):
        try:
            scribbles = simulate_scribbles(
                read_png(path),
                seed=[seed, *path.stem.encode()],
                ignore_value=void,
                **asdict(options),
            )
        except ValueError as error:
            text = str(error)
            raise UserError(text if isinstance(error, UserError) else f"{path}: {text}") from error
        written.append(output / f"{path.stem}.png")
        save_label_map(written[-1], scribbles)
    return written
