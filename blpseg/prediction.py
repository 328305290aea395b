"""Predict image files: write label maps, overlays, probabilities and pseudo labels."""

from __future__ import annotations

import glob
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from rich.text import Text
from torch import Tensor

from blpseg.checkpoints import load_model
from blpseg.crf import require_crf
from blpseg.crf_constants import CRF
from blpseg.data.images import images_in
from blpseg.data.labels import IGNORE, LabelFormat, numbered_classes, read_png
from blpseg.data.photos import read_photo
from blpseg.devices import choose_device
from blpseg.errors import UserError, raise_problems
from blpseg.inference import Prediction, predict_image
from blpseg.pictures import (
    contact_sheet,
    heat_map,
    overlay,
    save_label_map,
    save_picture,
    thumbnail,
)
from blpseg.views import SINGLE_VIEW, Views

_KINDS = ("masks", "overlays", "annotation")
_PSEUDO_LABELS, _PROBABILITIES = "pseudo_labels", "probabilities"
_SHEET = "sheet.png"
_SHEET_TITLES = ("image", "prediction", "annotation probability")
_SHEET_ROWS = 8
_LISTED = 4  # per image, in the terminal


class Failure(NamedTuple):
    """An image that could not be predicted."""

    path: Path
    reason: str


def predict(
    checkpoint: Path,
    inputs: Sequence[str],
    output: Path,
    *,
    views: Views = SINGLE_VIEW,
    query_stride: int | None = None,
    crf: CRF | None = None,
    pseudo_labels: bool = False,
    threshold: float | None = None,
    scribbles: Path | None = None,
    probabilities: bool = False,
    overwrite: bool = False,
    device: str = "auto",
    quiet: bool = False,
) -> list[Failure]:
    """Segment images and write the results to a folder.

    For each image NAME, write `masks/NAME.png` (label map, mode P), `overlays/NAME.png` and
    `annotation/NAME.png` (the annotation probability as a heat map). `sheet.png` shows the results
    of the first images in a table. Results have the size and orientation in which a viewer shows
    the image, by its EXIF data.

    Args:
        checkpoint: File that `blpseg train` wrote.
        inputs: Image files, folders of images, and glob patterns (`**` for any depth).
        output: Folder for the results.
        views: Scales, mirrored views and windows.
        query_stride: Image pixels per pixel of the logits, 1, 2 or 4; None: as in training.
        crf: Refine the labels by a dense CRF with these constants; None: no CRF.
        pseudo_labels: Write `pseudo_labels/NAME.png` too, the labels of `pseudo_label_map` as a
            label map for `data.scribbles`. The CRF does not change them.
        threshold: Smallest probability of a pseudo label; None takes that of the training.
        scribbles: Folder of the images' scribbles, `NAME.png` with 255 for unlabeled pixels; see
            `pseudo_label_map`.
        probabilities: Write `probabilities/NAME.npz` too: `probabilities` [K, H, W] float16, those
            before any CRF.
        overwrite: Replace earlier results.
        device: A torch device, or "auto" for the accelerator if there is one.
        quiet: Show no progress.

    Returns:
        The images that could not be read or predicted; all others are done.

    Raises:
        UserError: An input or its scribbles are missing, two results would have the same name, a
            result exists, or `threshold` or `scribbles` is given without `pseudo_labels`.
    """
    if not pseudo_labels and (threshold is not None or scribbles is not None):
        name = "scribbles" if threshold is None else "threshold"
        raise UserError(f"{name}: expected pseudo_labels with it, which writes pseudo labels")
    if threshold is not None and not 0 <= threshold <= 1:
        raise UserError(f"threshold: expected 0 to 1, got {threshold}")
    photos = find_photos(inputs)
    kinds = [*_KINDS]
    kinds += [_PSEUDO_LABELS] if pseudo_labels else []
    kinds += [_PROBABILITIES] if probabilities else []
    _check_results(photos, kinds, output, overwrite)
    if scribbles is not None:
        missing = [path.stem for path in photos if not (scribbles / f"{path.stem}.png").is_file()]
        raise_problems(str(scribbles), [f"{name}.png: there is no such file" for name in missing])
    if crf is not None:
        require_crf()
    trained = load_model(checkpoint, query_stride)
    model = trained.model.to(choose_device(device))
    threshold = model.threshold if threshold is None else threshold
    for kind in kinds:
        (output / kind).mkdir(parents=True, exist_ok=True)
    failures, pictures = [], []
    console = Console(stderr=True, quiet=quiet)
    for path in track(photos, "Predicting", console=console):
        try:
            photo = np.array(read_photo(path))
            drawn = None
            if scribbles is not None:
                drawn = _read_scribbles(scribbles, path.stem, photo.shape[:2], model.num_classes)
            prediction = predict_image(
                model,
                torch.from_numpy(photo).permute(2, 0, 1),
                views,
                crf=crf,
                probabilities=pseudo_labels or probabilities,
            )
            shown = _write(output, path.stem, photo, prediction)
            if pseudo_labels:
                labels = pseudo_label_map(prediction.probabilities, threshold, drawn)
                save_label_map(_result(output, _PSEUDO_LABELS, path.stem), labels.numpy())
            if probabilities:
                p = prediction.probabilities.numpy().astype(np.float16)
                np.savez_compressed(_result(output, _PROBABILITIES, path.stem), probabilities=p)
        except (UserError, OSError, RuntimeError) as error:
            reason = str(error) if isinstance(error, UserError) else f"{path}: {error}"
            failures.append(Failure(path, reason))
            console.print(Text(reason, style="red"))
        else:
            console.print(Text(f"{path}: {_summary(prediction.labels, trained.classes)}"))
            if len(pictures) < _SHEET_ROWS:
                pictures.append([thumbnail(picture) for picture in shown])
    if pictures:
        columns = zip(_SHEET_TITLES, zip(*pictures, strict=True), strict=True)
        save_picture(output / _SHEET, contact_sheet(dict(columns), classes=trained.classes))
    return failures


def pseudo_label_map(
    probabilities: Tensor,  # [K, H, W]
    threshold: float,
    scribbles: Tensor | None = None,  # [H, W] uint8
) -> Tensor:  # [H, W] uint8
    """Label the pixels of sure predictions, by the rule of `blpseg_ops.pseudo_labels`.

    Args:
        probabilities: [K, H, W] floating point, 0 to 1.
        threshold: Smallest probability of a label.
        scribbles: [H, W] uint8, 0..K-1, 255 for unlabeled. Scribbled pixels keep their label, and
            others get only classes of the scribbles, or class 0. None: no scribbles, any class.

    Returns:
        [H, W] uint8, 255 where no class reaches the threshold.
    """
    if scribbles is not None:
        drawn = scribbles != IGNORE
        absent = torch.ones(len(probabilities), dtype=torch.bool)
        absent[scribbles[drawn].long()] = False
        absent[0] = False
        probabilities = probabilities.masked_fill(absent[:, None, None], 0)
    best, labels = probabilities.max(0)
    labels = labels.where(best >= threshold, IGNORE).to(torch.uint8)
    return labels if scribbles is None else scribbles.where(drawn, labels)


def find_photos(inputs: Sequence[str]) -> list[Path]:
    """List the image files of paths, folders and glob patterns, each once, in order.

    Raises:
        UserError: An input matches no image, or two files have the same name without folder and
            suffix, so that one result would replace the other.
    """
    found: dict[Path, Path] = {}
    for text in inputs:
        for path in _matches(text):
            found.setdefault(path.resolve(), path)
    by_name = defaultdict(list)
    for path in found.values():
        by_name[path.stem].append(str(path))
    raise_problems(
        "the inputs; predict files of the same name in separate runs, with separate --output",
        [f"{', '.join(same)}: the same name" for same in by_name.values() if len(same) > 1],
    )
    return list(found.values())


def _matches(text: str) -> list[Path]:
    path = Path(text)
    if path.is_dir():
        paths = images_in(path)
    elif path.exists():
        paths = [path]
    else:
        paths = sorted(
            Path(name) for name in glob.glob(text, recursive=True) if Path(name).is_file()
        )
    if not paths:
        raise UserError(
            f"{text}: expected an image, a folder of images or a pattern of them, found no image"
        )
    return paths


def _result(output: Path, kind: str, name: str) -> Path:
    return output / kind / f"{name}.{'npz' if kind == _PROBABILITIES else 'png'}"


def _check_results(
    photos: Sequence[Path], kinds: Sequence[str], output: Path, overwrite: bool
) -> None:
    if overwrite:
        return
    results = [_result(output, kind, path.stem) for path in photos for kind in kinds]
    results.append(output / _SHEET)
    raise_problems(
        f"{output}; --overwrite replaces the files",
        [f"{path.relative_to(output)}: exists already" for path in results if path.exists()],
    )


def _read_scribbles(
    folder: Path, name: str, size: tuple[int, int], num_classes: int
) -> Tensor:  # [H, W] uint8
    """Read the scribbles of an image of a (height, width)."""
    path = folder / f"{name}.png"
    values = numbered_classes(num_classes, 0, IGNORE, "unlabeled", IGNORE)
    file = LabelFormat(values, read_png)
    raise_problems(str(folder), file.problems(path, size[::-1]))
    return torch.from_numpy(file.load(path))


def _summary(labels: Tensor, classes: Sequence[str]) -> str:
    """Format the size of an image and its largest classes."""
    height, width = labels.shape
    shares = labels.flatten().bincount(minlength=len(classes)).double() / labels.numel()
    largest = [label for label in shares.argsort(descending=True).tolist() if shares[label] > 0]
    parts = [f"{classes[label]} {100 * shares[label]:.1f} %" for label in largest[:_LISTED]]
    return f"{width} x {height}, {', '.join(parts)}{', ...' if len(largest) > _LISTED else ''}"


def _write(output: Path, name: str, photo: np.ndarray, prediction: Prediction) -> list[np.ndarray]:
    """Write the results of an image; return the image, the overlay and the heat map."""
    labels = prediction.labels.numpy()
    pictures = [overlay(photo, labels), heat_map(prediction.annotation_probability.numpy())]
    save_label_map(_result(output, "masks", name), labels)
    for kind, picture in zip(_KINDS[1:], pictures, strict=True):
        save_picture(_result(output, kind, name), picture)
    return [photo, *pictures]
