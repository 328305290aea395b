"""Inspect a data set before training: what it holds, and what is wrong with it."""

from __future__ import annotations

import json
import math
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from blpseg.config import DataConfig
from blpseg.data.folder import ScribbleFolder, choose_splits
from blpseg.data.scribble_statistics import DistanceSums, ScribbleStatistics, scribble_statistics
from blpseg.data.shapes import UNLABELED
from blpseg.errors import UserError
from blpseg.pictures import color_labels, contact_sheet, save_picture
from blpseg.scribbles.outputs import prepare_output, progress
from blpseg.scribbles.plots import plot_classes, plot_preference
from blpseg.scribbles.preview import scribble_picture

REPORT, CLASSES, PREFERENCE, SHEET = (
    "inspection.json",
    "classes.png",
    "preference.png",
    "scribbles.png",
)

_DARK = 32  # gray values below this look black
_NEARLY_ALL = 0.5  # people label a few percent
_SHEET_IMAGES = 4


@dataclass(frozen=True)
class Inspection:
    """What a data set holds, and what is wrong with it."""

    root: str
    split: str | None
    classes: list[str]

    images: int
    """Number of images in the split."""

    problems: list[str]
    """Why files cannot be used, a line each; the figures below leave these images out."""

    sizes: dict[str, int]
    """Number of images per size, "W x H"."""

    without_scribbles: list[str]
    """Images whose scribble file labels no pixel."""

    class_images: list[int]
    """Per class, the number of images with a scribble of it."""

    class_pixels: list[int]
    """Per class, the number of scribbled pixels."""

    labeled_shares: list[float]
    """Per image, the share of labeled pixels, ascending."""

    dark: int
    """Number of scribble files that look black in a viewer."""

    measured: int
    """Number of images with masks that `statistics` is measured on."""

    statistics: ScribbleStatistics | None
    """How the scribbles compare with the masks; None without masks."""

    @property
    def never_scribbled(self) -> list[str]:
        """Return the classes without a scribble."""
        return [
            name for name, count in zip(self.classes, self.class_images, strict=True) if not count
        ]

    @property
    def labeled_share(self) -> float:
        """Return the mean share of labeled pixels per image; NaN without images."""
        return float(np.mean(self.labeled_shares)) if self.labeled_shares else math.nan

    def warnings(self) -> list[str]:
        """Return what can be trained on but may be a mistake."""
        found = []
        if self.without_scribbles:
            found.append(
                f"{_count(len(self.without_scribbles), 'image')} without a scribble, which teaches "
                f"nothing: {_some(self.without_scribbles)}"
            )
        if self.labeled_shares and self.never_scribbled:
            found.append(f"classes never scribbled: {_some(self.never_scribbled)}")
        if self.labeled_share > _NEARLY_ALL:
            most = self.classes[int(np.argmax(self.class_pixels))]
            found.append(
                f"{self.labeled_share:.0%} of the pixels are labeled, most of them {most}: if "
                "this value means unlabeled, set data.unlabeled_value to it "
                "(and data.first_class_value to the first class)"
            )
        contradicting = self.statistics.contradicting_share if self.statistics else math.nan
        if contradicting > 0.05:
            found.append(
                f"{contradicting:.0%} of the scribbled pixels contradict the masks (people: up to "
                "1 %): the two may number the classes differently"
            )
        return found

    def notes(self) -> list[str]:
        """Return what may surprise but is correct."""
        if not self.dark:
            return []
        return [
            f"{_count(self.dark, 'label map')} look black in a viewer, since their pixels hold "
            f"class numbers (0 to {len(self.classes)} of 255), not colors; "
            "`blpseg scribbles preview` shows them in color"
        ]

    def preference(self) -> dict[str, tuple[DistanceSums, DistanceSums]]:
        """Return border distances of regions and scribbles, for class 0 and for the others."""
        if self.statistics is None:
            return {}
        found = {}
        for name, wanted in ((self.classes[0], {0}), ("other classes", set(range(1, 255)))):
            pair = tuple(
                reduce(add, (one for label, one in sums.items() if label in wanted), DistanceSums())
                for sums in (self.statistics.region, self.statistics.scribble)
            )
            if pair[0].pixels:
                found[name] = pair
        return found

    def as_plain_data(self) -> dict[str, Any]:
        """Return dicts, lists, numbers and strings, for JSON; NaN becomes null."""
        plain = asdict(self) | {"statistics": None, "warnings": self.warnings()}
        plain["never_scribbled"] = self.never_scribbled
        if self.statistics is not None:
            plain["statistics"] = {
                "labeled_share": _number(self.statistics.labeled_share),
                "contradicting_share": _number(self.statistics.contradicting_share),
                "border_distance": {
                    name: {"region": _distances(region), "scribbles": _distances(scribbles)}
                    for name, (region, scribbles) in self.preference().items()
                },
            }
        return plain


class _Found(NamedTuple):
    """The measurements of one image."""

    size: tuple[int, int]  # width, height
    counts: np.ndarray  # [K] scribbled pixels
    dark: bool
    statistics: ScribbleStatistics | None


def inspect(
    data: DataConfig,
    *,
    split: str | None = None,
    measure: int = 500,
    output: Path | None = None,
    overwrite: bool = False,
    quiet: bool = False,
) -> Inspection:
    """Inspect a data set.

    Args:
        data: The data set.
        split: Its split; None takes the one that would be trained on.
        measure: Number of images, evenly spread, whose scribbles are compared with their masks.
        output: Folder for ``inspection.json`` and pictures: ``scribbles.png``, the first scribbles
            in color; ``classes.png``, how often each class is scribbled; ``preference.png``, how
            far from borders scribbles lie. None writes nothing.
        overwrite: Replace existing files.
        quiet: Show no progress bar.

    Returns:
        The inspection.

    Raises:
        UserError: The folder or its lists are missing, or an output file exists.
    """
    if measure < 0:
        raise UserError(f"measure: expected at least 0, got {measure}")
    split = split or choose_splits(data)[0]
    samples = ScribbleFolder(data, split, labels="all", quiet=quiet, check=False)
    if output is not None:
        prepare_output(output, (REPORT, CLASSES, PREFERENCE, SHEET), overwrite)
    problems = samples.problems(quiet=quiet)
    usable = [index for index, lines in enumerate(problems) if not lines]
    masked = [index for index in usable if samples.files[index].mask is not None]
    measured = set(masked[:: max(1, -(-len(masked) // measure))]) if measure else set()
    with ThreadPoolExecutor() as pool:
        looks = pool.map(lambda index: _look(samples, index, index in measured), usable)
        found = list(progress(looks, "Measuring", len(usable), quiet))
    inspection = _sum_up(samples, split, problems, usable, found)
    if output is not None:
        _write(inspection, samples, usable, output)
    return inspection


def _look(samples: ScribbleFolder, index: int, measure: bool) -> _Found:
    sample, k = samples[index], len(samples.classes)
    target = sample.target.numpy()
    statistics = None
    if measure:
        scribble = np.where(target < k, target, UNLABELED)
        statistics = scribble_statistics(scribble, sample.mask.numpy())
    counts = np.bincount(target.ravel(), minlength=k)[:k]
    return _Found(
        target.shape[::-1], counts, _looks_black(samples.files[index].scribbles), statistics
    )


def _looks_black(path: Path) -> bool:
    if path.suffix.lower() == ".xml":
        return False
    with Image.open(path) as image:
        bright = sum(image.histogram()[_DARK:]) / math.prod(image.size)
        return image.mode == "L" and bright < 0.01


def _sum_up(
    samples: ScribbleFolder,
    split: str | None,
    problems: list[list[str]],
    usable: list[int],
    found: list[_Found],
) -> Inspection:
    sizes = Counter(f"{one.size[0]} x {one.size[1]}" for one in found)
    counts = np.array([one.counts for one in found]).reshape(-1, len(samples.classes))
    statistics = [one.statistics for one in found if one.statistics is not None]
    return Inspection(
        root=str(samples.root),
        split=split,
        classes=samples.classes,
        images=len(samples),
        problems=[line for lines in problems for line in lines],
        sizes=dict(sizes.most_common()),
        without_scribbles=[
            samples.names[index]
            for index, labeled in zip(usable, counts.any(1), strict=True)
            if not labeled
        ],
        class_images=(counts > 0).sum(0).tolist(),
        class_pixels=counts.sum(0).tolist(),
        labeled_shares=sorted(float(one.counts.sum() / np.prod(one.size)) for one in found),
        dark=sum(one.dark for one in found),
        measured=len(statistics),
        statistics=reduce(add, statistics) if statistics else None,
    )


def _write(
    inspection: Inspection, samples: ScribbleFolder, usable: list[int], output: Path
) -> None:
    (output / REPORT).write_text(json.dumps(inspection.as_plain_data(), indent=2) + "\n")
    if not usable:
        return
    plot_classes(inspection.classes, inspection.class_images, inspection.labeled_shares).savefig(
        output / CLASSES
    )
    if inspection.statistics is not None:
        plot_preference(inspection.preference()).savefig(output / PREFERENCE)
    shown = [samples[index] for index in usable[:_SHEET_IMAGES]]
    columns = {
        "image": [sample.image.permute(1, 2, 0).numpy() for sample in shown],
        "scribbles": [scribble_picture(sample, len(samples.classes)) for sample in shown],
    }
    if all(sample.mask is not None for sample in shown):
        columns["mask"] = [color_labels(sample.mask.numpy()) for sample in shown]
    save_picture(output / SHEET, contact_sheet(columns, classes=samples.classes))


def _distances(sums: DistanceSums) -> dict[str, Any]:
    return {
        "pixels": sums.pixels,
        "mean_px": _number(sums.mean),
        "share_within_5_px": _number(sums.near_share),
    }


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _some(names: list[str], shown: int = 8) -> str:
    return ", ".join(names[:shown]) + (", ..." if len(names) > shown else "")
