"""Choose where the next scribble goes: mean IoU after dots at the places that each rule names.

``python -m benchmarks.next_stroke FOLDER`` starts with 1 stroke per class on each photograph.
Then a dot of the true class is drawn where the rule is largest, the segmenter learns, and so on.
The overlay "Where to draw next" of `blpseg draw` is the rule with the annotation head; the rule
without it shows what the head is worth. Writes benchmarks/results/next-stroke.json.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from statistics import mean

import numpy as np
from scipy.ndimage import distance_transform_edt

from benchmarks.bench_interactive import Photo, machine, mean_iou, photos
from blpseg import ScribbleSegmenter
from blpseg.data.labels import IGNORE
from blpseg.draw.results import teaching_value

RADIUS = 4  # pixels of a dot
SCORED = (0, 2, 4, 8)  # dots
RESULT = Path(__file__).parent / "results" / "next-stroke.json"

Rule = Callable[[ScribbleSegmenter, Photo, np.random.Generator], np.ndarray]  # [H, W]


def hints(segmenter: ScribbleSegmenter, photo: Photo, rng: np.random.Generator) -> np.ndarray:
    """Return the overlay of `blpseg draw`."""
    probability = segmenter.predict_proba(photo.image)
    return teaching_value(probability, segmenter.annotation_probability(photo.image))


def unsure(segmenter: ScribbleSegmenter, photo: Photo, rng: np.random.Generator) -> np.ndarray:
    """Return the overlay without the annotation head."""
    probability = segmenter.predict_proba(photo.image)
    return teaching_value(probability, np.zeros(probability.shape[1:], np.float32))


def anywhere(segmenter: ScribbleSegmenter, photo: Photo, rng: np.random.Generator) -> np.ndarray:
    """Return random values."""
    return rng.random(photo.mask.shape)


def mistakes(segmenter: ScribbleSegmenter, photo: Photo, rng: np.random.Generator) -> np.ndarray:
    """Return the depth inside wrong regions, which a person who knows the truth can see."""
    wrong = (segmenter.predict(photo.image) != photo.mask) & (photo.mask != IGNORE)
    return distance_transform_edt(wrong)


RULES: dict[str, Rule] = {
    "a random place": anywhere,
    "the most uncertain region": unsure,
    "the same, times 1 - annotation probability": hints,
    "the middle of the largest mistake": mistakes,
}


def scores(photo: Photo, rule: Rule) -> list[float]:
    """Return the mean IoU after each number of dots."""
    rng = np.random.default_rng(0)
    rows, columns = np.indices(photo.mask.shape)
    scribbles = photo.strokes(1)
    segmenter = ScribbleSegmenter(photo.num_classes, device="cpu")
    found = []
    for dots in range(max(SCORED) + 1):
        segmenter.fit([photo.image], [scribbles])
        if dots in SCORED:
            found.append(mean_iou(segmenter.predict(photo.image), photo))
        if dots == max(SCORED):
            break
        free = (photo.mask != IGNORE) & (scribbles == IGNORE)
        value = np.where(free, rule(segmenter, photo, rng), -1)
        row, column = np.unravel_index(value.argmax(), value.shape)
        near = (rows - row) ** 2 + (columns - column) ** 2 <= RADIUS**2
        label = photo.mask[row, column]
        scribbles = np.where(near & (photo.mask == label), label, scribbles)
    return found


def main() -> None:
    """Run all rules on all photographs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--split", default="val")
    parser.add_argument("--photos", type=int, default=12)
    parser.add_argument("--output", type=Path, default=RESULT)
    options = parser.parse_args()
    rows: dict[str, list[list[float]]] = {name: [] for name in RULES}
    names = []
    for photo in photos(options.folder, options.split, options.photos):
        names.append(photo.name)
        for name, rule in RULES.items():
            rows[name].append(scores(photo, rule))
        result = {
            "machine": machine(),
            "photos": names,
            "dots": SCORED,
            "mean_iou": {
                name: [mean(part) for part in zip(*found, strict=True)]
                for name, found in rows.items()
            },
        }
        options.output.write_text(json.dumps(result, indent=1) + "\n")
        print(len(names), photo.name, flush=True)


if __name__ == "__main__":
    main()
