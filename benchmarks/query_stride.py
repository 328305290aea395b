"""Scores and time of one checkpoint with logits at stride 4, 2 and 1.

``python -m benchmarks.query_stride CHECKPOINT FOLDER`` predicts the images of FOLDER's list ``val``
with each query stride of LAM and writes benchmarks/results/query-stride.json. Bilinear resizing
follows at strides 4 and 2.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

from rich.progress import track

from benchmarks.bench_interactive import machine
from blpseg.checkpoints import load_model
from blpseg.config import DataConfig
from blpseg.data.folder import ScribbleFolder
from blpseg.inference import predict_image
from blpseg.metrics import SegmentationScores

STRIDES = (4, 2, 1)
RESULT = Path(__file__).parent / "results" / "query-stride.json"


def measure(checkpoint: Path, data: ScribbleFolder, stride: int) -> dict[str, Any]:
    """Return mIoU, boundary IoU and the median seconds per image at a stride."""
    model = load_model(checkpoint, query_stride=stride).model
    scores = SegmentationScores(data.classes, distances=True)
    predict_image(model, data[0].image)  # warm up
    seconds = []
    for sample in track((data[i] for i in range(len(data))), f"stride {stride}", total=len(data)):
        start = perf_counter()
        prediction = predict_image(model, sample.image)
        seconds.append(perf_counter() - start)
        scores.update(prediction.labels, sample.mask, sample.target)
    found = scores.compute()
    return {
        "stride": stride,
        "miou": found.miou,
        "boundary_miou": found.boundary_miou,
        "seconds": median(seconds),
    }


def main() -> None:
    """Measure all strides."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--output", type=Path, default=RESULT)
    options = parser.parse_args()
    data = ScribbleFolder(DataConfig(options.folder), "val", labels="masks", quiet=True)
    trained = load_model(options.checkpoint)
    result = {
        "machine": machine(),
        "backbone": trained.config["model"]["backbone"],
        "trained_at": trained.model.stride,
        "images": len(data),
        "results": [measure(options.checkpoint, data, stride) for stride in STRIDES],
    }
    options.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
