"""What a trained model says about photos: label maps, overlays and annotation probabilities."""

from __future__ import annotations

import glob
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import track
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2.functional import resize

from blpseg.checkpoints import load_model
from blpseg.data.photos import images_in, read_photo
from blpseg.data.transforms import normalize
from blpseg.errors import UserError, raise_problems
from blpseg.model import BLPSeg
from blpseg.pictures import contact_sheet, heat_map, overlay, save_label_map, save_picture

_KINDS = ("masks", "overlays", "annotation")
_SHEET = "sheet.png"
_SHEET_TITLES = ("image", "prediction", "annotation probability")
_SHEET_ROWS = 8


class Prediction(NamedTuple):
    """What the model says about one image."""

    labels: Tensor
    """[H, W] uint8, the most probable class of each pixel."""

    annotation_probability: Tensor
    """[H, W] float32, the probability that somebody annotates here, whatever the class."""


class Failure(NamedTuple):
    """An image that could not be predicted."""

    path: Path
    reason: str


@torch.inference_mode()
def predict_image(
    model: BLPSeg,
    image: Tensor,  # [3, H, W] uint8
    *,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
) -> Prediction:
    """Label one image, as an average over scales and flips.

    At each scale the logits are resized to the image with align_corners=True and then averaged, as
    published.

    The image is scaled as in training, bicubically.

    Args:
        model: The model, in evaluation mode; the work is done on its device.
        image: [3, H, W] uint8, RGB.
        scales: Factors of the image's size.
        flip: Take the mirrored image at each scale too.

    Returns:
        The label map and the annotation probability, on the CPU.
    """
    device = next(model.parameters()).device
    size = tuple(image.shape[-2:])
    photo = tv_tensors.Image(image.to(device))
    views = [
        (scale, mirrored) for scale in scales for mirrored in ((False, True) if flip else (False,))
    ]
    totals: tuple[Tensor | float, Tensor | float] = (0.0, 0.0)
    for scale, mirrored in views:
        view = normalize()(_scaled(photo, scale)).as_subclass(Tensor)[None]
        logits = model.predict(view.flip(-1) if mirrored else view)
        logits = [part.float().flip(-1) if mirrored else part.float() for part in logits]
        totals = tuple(
            total + _resize(part, size) for total, part in zip(totals, logits, strict=True)
        )
    segmentation, annotation = (total[0] / len(views) for total in totals)
    return Prediction(
        segmentation.argmax(0).to("cpu", torch.uint8), 1 - annotation.softmax(0)[-1].cpu()
    )


def predict(
    checkpoint: Path,
    inputs: Sequence[str],
    output: Path,
    *,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
    overwrite: bool = False,
    device: str = "auto",
    quiet: bool = False,
) -> list[Failure]:
    """Label photos and write the results beside each other in one folder.

    Writes `masks/NAME.png` (label map, mode P), `overlays/NAME.png` and `annotation/NAME.png` (the
    annotation probability as a heat map) for each photo NAME, and `sheet.png`, the first few beside
    each other.

    Args:
        checkpoint: File that `blpseg train` wrote.
        inputs: Image files, folders of them and glob patterns (`**` for any depth).
        output: Folder for the results.
        scales: Factors of the image's size to average over.
        flip: Take the mirrored image at each scale too.
        overwrite: Replace results that are there already.
        device: A torch device, or "auto" for the accelerator where there is one.
        quiet: Show no progress bar.

    Returns:
        The photos that could not be read or predicted; the others are done.

    Raises:
        UserError: If an input is missing, two would get the same name, or a result exists already.
    """
    photos = find_photos(inputs)
    _check_results(photos, output, overwrite)
    trained = load_model(checkpoint)
    model = trained.model.to(choose_device(device))
    for kind in _KINDS:
        (output / kind).mkdir(parents=True, exist_ok=True)
    failures, pictures = [], []
    for path in track(photos, "Predicting", console=Console(stderr=True), disable=quiet):
        try:
            photo = np.array(read_photo(path))
            found = predict_image(
                model, torch.from_numpy(photo).permute(2, 0, 1), scales=scales, flip=flip
            )
            shown = _write(output, path.stem, photo, found)
        except UserError as error:
            failures.append(Failure(path, str(error)))
        except (OSError, RuntimeError) as error:
            failures.append(Failure(path, f"{path}: {error}"))
        else:
            if len(pictures) < _SHEET_ROWS:
                pictures.append(shown)
    if pictures:
        columns = zip(_SHEET_TITLES, zip(*pictures, strict=True), strict=True)
        save_picture(output / _SHEET, contact_sheet(dict(columns), classes=trained.classes))
    return failures


def find_photos(inputs: Sequence[str]) -> list[Path]:
    """List the files that paths, folders and glob patterns name, each once, in order.

    Raises:
        UserError: If an input names nothing, or two files have the same name but for the folder or
            the suffix, as their results would.
    """
    found: dict[Path, Path] = {}
    for text in inputs:
        for path in _matches(text):
            found.setdefault(path.resolve(), path)
    by_name = defaultdict(list)
    for path in found.values():
        by_name[path.stem].append(str(path))
    raise_problems(
        "the inputs; predict these in runs of their own, into folders of their own",
        [f"{', '.join(same)}: the same name" for same in by_name.values() if len(same) > 1],
    )
    return list(found.values())


def choose_device(device: str) -> torch.device:
    """Find the torch device of a name; "auto" is the accelerator where there is one.

    Raises:
        UserError: If there is no such device.
    """
    if device == "auto":
        return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"device: cannot use {device!r} ({reason})") from error


def _scaled(photo: tv_tensors.Image, scale: float) -> tv_tensors.Image:
    if scale == 1:
        return photo
    size = [max(1, round(side * scale)) for side in photo.shape[-2:]]
    return resize(photo, size, InterpolationMode.BICUBIC, antialias=True)


def _resize(logits: Tensor, size: tuple[int, ...]) -> Tensor:
    if tuple(logits.shape[-2:]) == size:
        return logits
    return F.interpolate(logits, size, mode="bilinear", align_corners=True)


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
            f"{text}: expected an image, a folder of images or a pattern, found no image"
        )
    return paths


def _result(output: Path, kind: str, name: str) -> Path:
    return output / kind / f"{name}.png"


def _check_results(photos: Sequence[Path], output: Path, overwrite: bool) -> None:
    if overwrite:
        return
    results = [_result(output, kind, path.stem) for path in photos for kind in _KINDS]
    results.append(output / _SHEET)
    raise_problems(
        f"{output}; --overwrite true replaces the files",
        [f"{path.relative_to(output)}: exists already" for path in results if path.exists()],
    )


def _write(output: Path, name: str, photo: np.ndarray, found: Prediction) -> list[np.ndarray]:
    """Write a photo's results; returns the photo and the pictures made of it."""
    labels = found.labels.numpy()
    pictures = [overlay(photo, labels), heat_map(found.annotation_probability.numpy())]
    save_label_map(_result(output, "masks", name), labels)
    for kind, picture in zip(_KINDS[1:], pictures, strict=True):
        save_picture(_result(output, kind, name), picture)
    return [photo, *pictures]
