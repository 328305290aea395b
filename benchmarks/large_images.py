"""Segment an image of 20 megapixels and many photographs: seconds and peak memory.

``python -m benchmarks.large_images`` runs each case in a process of its own and writes
benchmarks/results/large-images.json. The image repeats a photograph; two of its windows have
scribbles. Each of the many photographs gets scribbles in a call of its own.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.bench_interactive import machine
from blpseg import ScribbleSegmenter
from blpseg.data.photographs import load_photograph

HEIGHT, WIDTH = 3648, 5472  # 20 megapixels
MANY = 200
CASES: dict[str, dict[str, Any]] = {
    "20 megapixels": {},
    "20 megapixels, scales=(1.0,)": {"scales": (1.0,)},
    "20 megapixels, max_side=1024": {"max_side": 1024},
    f"{MANY} photographs": {},
}
RESULT = Path(__file__).parent / "results" / "large-images.json"


def large() -> tuple[np.ndarray, np.ndarray]:
    """Repeat a photograph; keep the scribbles of two of its copies."""
    image, scribbles = load_photograph("chelsea")
    height, width = scribbles.shape
    times = -(-HEIGHT // height), -(-WIDTH // width)
    repeated = np.tile(image, (*times, 1))[:HEIGHT, :WIDTH]
    drawn = np.full((HEIGHT, WIDTH), 255, np.uint8)
    for row, column in ((1, 1), (times[0] - 3, times[1] - 3)):
        drawn[row * height :, column * width :][:height, :width] = scribbles
    return repeated, drawn


def photographs() -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Make photographs that differ, by shifting one."""
    image, scribbles = load_photograph("chelsea")
    for shift in range(MANY):
        yield np.roll(image, shift, 1), np.roll(scribbles, shift, 1)


def measure(name: str) -> dict[str, Any]:
    """Run a case: the seconds of the first label map, of the next one, and the peak memory."""
    segmenter = ScribbleSegmenter(2, device="cpu", **CASES[name])
    pairs = photographs() if name.endswith("photographs") else [large()]
    before, first, again = _peak(), [], []
    for image, scribbles in pairs:
        for seconds in (first, again):
            start = time.perf_counter()
            segmenter.fit([image], [scribbles])
            segmenter.predict(image)
            seconds.append(time.perf_counter() - start)
    return {
        "case": name,
        "first_seconds": first[-1],  # of the last photograph
        "stroke_seconds": again[-1],
        "peak_bytes": _peak() - before,
    }


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    """Run the cases."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", nargs="+", choices=CASES, default=[*CASES])
    parser.add_argument("--output", type=Path, default=RESULT)
    parser.add_argument("--one", choices=CASES, help="Run this case here and print its figures.")
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.one)))
        return
    rows = []
    for name in options.cases:
        command = [sys.executable, "-m", "benchmarks.large_images", "--one", name]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        rows.append(json.loads(done.stdout))
        print(rows[-1], flush=True)
        result = {"machine": machine(), "results": rows}
        options.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
