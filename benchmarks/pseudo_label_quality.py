"""Compare pseudo labels with the masks: how many pixels get one, and how many are right.

``python -m benchmarks.pseudo_label_quality CHECKPOINT FOLDER RESULT.json`` takes training images of
a data set, so that choices made with it leave the validation images alone. For each threshold, and
per class, it counts the unlabeled pixels with a pseudo label (coverage) and their accuracy, over
all pixels and near the borders. It also counts the pixels that lie in a class without a scribble in
the image: self-training gives these a label of another class, or none.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import blpseg_ops
from blpseg.checkpoints import load_model
from blpseg.config import DataConfig
from blpseg.data.folder import ScribbleFolder
from blpseg.files import write_json
from blpseg.metrics import border_distance

THRESHOLDS = (0.5, 0.7, 0.8, 0.9, 0.95, 0.99)
BORDER = 6  # pixels: "near the border"


@torch.inference_mode()
def quality(checkpoint: Path, folder: Path, count: int) -> dict[str, Any]:
    """Count the pixels of `count` training images, evenly spread over the list."""
    trained = load_model(checkpoint)
    model, classes = trained.model, trained.classes
    samples = ScribbleFolder(DataConfig(folder), "train", labels="masks", quiet=True)
    places = np.linspace(0, len(samples) - 1, min(count, len(samples))).round().astype(int)
    totals = {threshold: np.zeros((len(classes), 5)) for threshold in THRESHOLDS}
    absent = pixels = 0
    for place in places.tolist():
        sample = samples[place]
        image, target, mask = (
            part.as_subclass(Tensor) for part in (sample.image, sample.target, sample.mask)
        )
        free = (target == len(classes)) & (mask < len(classes))
        near = torch.as_tensor(border_distance(mask)) <= BORDER
        logits = model.logits(image[None].float() / 255)[0]
        absent += int((free & ~sample.class_present[mask.clamp(max=len(classes) - 1).long()]).sum())
        pixels += int(free.sum())
        for threshold, total in totals.items():
            labels = blpseg_ops.pseudo_labels(
                logits, target[None], sample.class_present[None], threshold=threshold
            )[0]
            for label in range(len(classes)):
                own = free & (mask == label)
                given = own & (labels != 255)
                right = own & (labels == label)
                counts = (own, given, right, given & near, right & near)
                total[label] += [int(part.sum()) for part in counts]
    return {
        "iteration": trained.iteration,
        "images": len(places),
        "unlabeled_pixels": pixels,
        "pixels_of_classes_without_scribble": absent,
        "border_pixels_within": BORDER,
        "thresholds": {
            str(threshold): {
                "all": _shares(total.sum(0)),
                **{name: _shares(row) for name, row in zip(classes, total, strict=True)},
            }
            for threshold, total in totals.items()
        },
    }


def _shares(counts: np.ndarray) -> dict[str, float | None]:
    own, given, right, given_near, right_near = counts.tolist()
    return {
        "coverage": given / own if own else None,
        "accuracy": right / given if given else None,
        "accuracy_near_border": right_near / given_near if given_near else None,
    }


def main() -> None:
    """Measure one checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("result", type=Path)
    parser.add_argument("--images", type=int, default=60)
    options = parser.parse_args()
    write_json(options.result, quality(options.checkpoint, options.folder, options.images))


if __name__ == "__main__":
    main()
