"""Segment one photograph from a few strokes: mean IoU and seconds of the segmenter and its peers.

``python -m benchmarks.bench_interactive FOLDER`` reads a folder of photographs with masks (images/,
masks/, classes.txt, splits/), draws 1, 2 and 4 strokes per class by the scribble simulator, and
writes benchmarks/results/interactive.json. Each photograph is on its own: nothing is learned from
the others. The docs show the scores on 12 photographs of PASCAL VOC's val list.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from statistics import mean, median
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("skimage", reason="the segmenter and its peers need the test extra")

from skimage.feature import multiscale_basic_features
from skimage.future import fit_segmenter, predict_segmenter
from skimage.segmentation import random_walker

import blpseg
import blpseg_ops
from blpseg.config import DataConfig
from blpseg.data.folder import ScribbleFolder
from blpseg.data.labels import IGNORE
from blpseg.data.scribble_simulator import simulate_strokes

STROKES = (1, 2, 4)
OURS = "ScribbleSegmenter"
_STEPS, _LEARNING_RATE = 100, 1e-2  # of heads that are trained by gradients
RESULT = Path(__file__).parent / "results" / "interactive.json"


class Photo(NamedTuple):
    """A photograph whose classes are numbered from 0 without gaps."""

    name: str
    image: np.ndarray  # [H, W, 3] uint8
    mask: np.ndarray  # [H, W] uint8, 255 is void
    num_classes: int

    def strokes(self, count: int) -> np.ndarray:  # [H, W] uint8, 255 unlabeled
        """Draw strokes per class."""
        return simulate_strokes(self.mask, count, seed=[0, *self.name.encode()])


class Result(NamedTuple):
    """What a method made of one photograph."""

    labels: np.ndarray  # [H, W]
    first: float  # seconds of the first strokes: everything that depends on the photograph
    stroke: float  # seconds of one more stroke


Method = Callable[[Photo, np.ndarray], Result]


def segmenter(photo: Photo, scribbles: np.ndarray, **options: Any) -> Result:
    """Run our segmenter; a later stroke finds the features in the cache."""
    ours = blpseg.ScribbleSegmenter(photo.num_classes, device="cpu", **options)
    seconds = []
    for _ in range(2):
        start = time.perf_counter()
        labels = ours.fit([photo.image], [scribbles]).predict(photo.image)
        seconds.append(time.perf_counter() - start)
    return Result(labels, *seconds)


def trained(photo: Photo, scribbles: np.ndarray, gamma: float) -> Result:
    """Train both heads together by BLPSeg's losses, in place of the closed form; then LAM."""
    ours = blpseg.ScribbleSegmenter(photo.num_classes, device="cpu")
    start = time.perf_counter()
    heads = ours.fit([photo.image], [scribbles])._heads
    middle = time.perf_counter()
    samples = ours._training_data()
    features = heads.normalize(samples.features)
    target = samples.labels.where(samples.labeled, photo.num_classes)[None, None]
    represented = float(samples.weights[~samples.labeled].mean())  # cells per unlabeled sample
    parameters = [*heads.classes.parameters(), *heads.annotation.parameters()]
    for parameter in parameters:
        nn.init.zeros_(parameter)
    optimizer = torch.optim.Adam(parameters, _LEARNING_RATE)
    for _ in range(_STEPS):
        logits = (head(features).T[None, :, None] for head in (heads.classes, heads.annotation))
        found = blpseg_ops.blp_objective(
            *logits, target, gamma=gamma, unlabeled_weight=0.02 * represented
        )
        optimizer.zero_grad()
        (found.blp_loss + found.annotation_loss).backward()
        optimizer.step()
    labels = ours.predict(photo.image)
    end = time.perf_counter()
    return Result(labels, end - start, end - middle)


def forest(photo: Photo, scribbles: np.ndarray) -> Result:
    """Run what scikit-image's TrainableSegmenter runs, as ilastik's pixel classification works."""
    from sklearn.ensemble import RandomForestClassifier

    start = time.perf_counter()
    known = multiscale_basic_features(photo.image, sigma_min=1, sigma_max=16, channel_axis=-1)
    middle = time.perf_counter()
    classifier = RandomForestClassifier(50, max_depth=10, n_jobs=-1, random_state=0)
    labels = np.where(scribbles == IGNORE, 0, scribbles.astype(int) + 1)
    predicted = predict_segmenter(known, fit_segmenter(labels, known, classifier)) - 1
    end = time.perf_counter()
    return Result(predicted, end - start, end - middle)


def walker(photo: Photo, scribbles: np.ndarray) -> Result:
    """Run scikit-image's random walker."""
    start = time.perf_counter()
    labels = np.where(scribbles == IGNORE, 0, scribbles.astype(int) + 1)
    predicted = random_walker(photo.image, labels, beta=130, mode="cg_j", channel_axis=-1) - 1
    seconds = time.perf_counter() - start
    return Result(predicted, seconds, seconds)


def grabcut(photo: Photo, scribbles: np.ndarray) -> Result:
    """Run OpenCV's GrabCut; unlabeled pixels begin as probable background."""
    import cv2

    start = time.perf_counter()
    labels = np.full(scribbles.shape, cv2.GC_PR_BGD, np.uint8)
    labels[scribbles == 0], labels[scribbles == 1] = cv2.GC_BGD, cv2.GC_FGD
    cv2.setRNGSeed(0)
    models = np.zeros((1, 65)), np.zeros((1, 65))
    cv2.grabCut(photo.image[..., ::-1].copy(), labels, None, *models, 5, cv2.GC_INIT_WITH_MASK)
    seconds = time.perf_counter() - start
    foreground = (labels == cv2.GC_FGD) | (labels == cv2.GC_PR_FGD)
    return Result(foreground.astype(int), seconds, seconds)


METHODS: dict[str, Method] = {
    OURS: segmenter,
    "without LAM": partial(segmenter, sigma=0.1),  # a window of 0 cells: LAM changes nothing
    "without the image at twice its size": partial(segmenter, scales=(1.0,)),
    "heads trained by partial cross entropy": partial(trained, gamma=0.0),
    "heads trained by the BLP loss": partial(trained, gamma=2.0),
    "random forest (scikit-image)": forest,
    "random walker (scikit-image)": walker,
    "GrabCut (OpenCV)": grabcut,
}


def chosen_indices(data: ScribbleFolder, count: int) -> Iterator[int]:
    """Choose photographs at random that have two classes, each large enough for a stroke."""
    for index in np.random.default_rng(0).permutation(len(data)).tolist():
        if not count:
            return
        mask = data[index].mask.numpy()
        drawn = np.unique(simulate_strokes(mask, 1, seed=0))
        classes = [label for label in np.unique(mask) if label != IGNORE]
        if len(classes) < 2 or set(classes) - set(drawn):
            continue
        count -= 1
        yield index


def photos(folder: Path, split: str, count: int) -> Iterator[Photo]:
    """Read photographs, and number the classes of each from 0."""
    data = ScribbleFolder(DataConfig(folder), split, labels="masks", quiet=True, check=False)
    for index in chosen_indices(data, count):
        sample = data[index]
        mask = sample.mask.numpy()
        classes = [label for label in np.unique(mask) if label != IGNORE]
        table = np.full(256, IGNORE, np.uint8)
        table[classes] = range(len(classes))
        image = np.ascontiguousarray(sample.image.permute(1, 2, 0).numpy())
        yield Photo(sample.name, image, table[mask], len(classes))


def mean_iou(labels: np.ndarray, photo: Photo) -> float:
    """Return the mean of the IoU of the photograph's classes; void is left out."""
    known = photo.mask != IGNORE
    pairs = [(labels == k, photo.mask == k) for k in range(photo.num_classes)]
    return mean(
        float((found & true & known).sum() / ((found | true) & known).sum())
        for found, true in pairs
    )


def main() -> None:
    """Run all methods on all photographs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--split", default="val")
    parser.add_argument("--photos", type=int, default=40)
    parser.add_argument("--without", nargs="*", default=[], help="Names of methods to leave out.")
    parser.add_argument("--output", type=Path, default=RESULT)
    options = parser.parse_args()
    methods = {name: run for name, run in METHODS.items() if name not in options.without}
    rows: dict[tuple[str, int], list[tuple[float, float, float]]] = {}
    chosen = [*photos(options.folder, options.split, options.photos)]
    segmenter(chosen[0], chosen[0].strokes(1))  # loads the libraries
    for done, photo in enumerate(chosen, 1):
        for count in STROKES:
            scribbles = photo.strokes(count)
            for name, run in methods.items():
                if run is grabcut and photo.num_classes != 2:
                    continue
                found = run(photo, scribbles)
                row = (mean_iou(found.labels, photo), found.first, found.stroke)
                rows.setdefault((name, count), []).append(row)
        # After each photograph, so that an interrupted run leaves its results.
        options.output.write_text(json.dumps(_summary(rows, chosen[:done]), indent=1) + "\n")
        print(f"{done}/{len(chosen)} {photo.name}", flush=True)


def machine() -> dict[str, Any]:
    """Describe the processor and the libraries."""
    return {
        "cpu": cpu_model(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "blpseg": blpseg.__version__,
    }


@cache
def cpu_model() -> str:
    """Return the processor's name."""
    import cpuinfo  # of pytest-benchmark

    return cpuinfo.get_cpu_info()["brand_raw"]


def _summary(
    rows: dict[tuple[str, int], list[tuple[float, float, float]]], chosen: list[Photo]
) -> dict[str, Any]:
    return {
        "machine": machine(),
        "photos": [photo.name for photo in chosen],
        "results": [
            {
                "method": name,
                "strokes": count,
                "photos": len(values),
                "mean_iou": mean(iou for iou, _, _ in values),
                "first_seconds": median(first for _, first, _ in values),
                "stroke_seconds": median(stroke for _, _, stroke in values),
            }
            for (name, count), values in rows.items()
        ],
    }


if __name__ == "__main__":
    main()
