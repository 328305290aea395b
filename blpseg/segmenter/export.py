"""Write a segmenter's predictions as label maps, which `blpseg train` reads as masks or labels."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from blpseg.errors import UserError
from blpseg.pictures import save_label_map
from blpseg.scribbles.outputs import prepare_output
from blpseg.segmenter.segmenter import ScribbleSegmenter


def export_label_maps(
    segmenter: ScribbleSegmenter,
    images: Iterable[Path],
    output: Path,
    *,
    overwrite: bool = False,
) -> list[Path]:
    """Predict images; write label maps OUTPUT/NAME.png of mode P, whose values are the classes.

    Args:
        segmenter: A fitted segmenter.
        images: Image files.
        output: Folder for the label maps; created if missing.
        overwrite: Replace existing label maps.

    Returns:
        The files written, in the order of the images.

    Raises:
        UserError: Two images have one name without suffix, a label map exists, an image cannot be
            read, or nothing was fitted yet. Before the first prediction, except for images that
            cannot be read.
        OSError: A file cannot be written.
    """
    named: dict[str, Path] = {}
    for path in images:
        name = f"{path.stem}.png"
        if name in named:
            raise UserError(f"{path} and {named[name]}: both would become {output / name}")
        named[name] = path
    prepare_output(output, named, overwrite)
    for name, path in named.items():
        save_label_map(output / name, segmenter.predict(path))
    return [output / name for name in named]
