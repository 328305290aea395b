"""Train a network from a saved segmenter (`--init`) and from a fresh start: mean IoU on the way.

``python -m benchmarks.segmenter_init FOLDER`` reads a folder of photographs with masks, draws
2 strokes per class on some of its training images by the scribble simulator, fits one segmenter to
all of them, and trains the configuration `small` from both starts on the same images, with each
learning rate. It writes benchmarks/results/segmenter-init.json after every run.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import replace
from importlib.resources import files
from itertools import product
from pathlib import Path
from typing import Any

import torch
import yaml
from PIL import Image
from torchmetrics.classification import MulticlassJaccardIndex

import blpseg
from benchmarks.bench_interactive import chosen_indices, machine
from blpseg.checkpoints import build_model, start_from
from blpseg.config import DataConfig, TrainConfig, read_config
from blpseg.data.folder import ScribbleFolder
from blpseg.data.labels import IGNORE
from blpseg.data.scribble_simulator import simulate_strokes
from blpseg.evaluation.scores import score_model
from blpseg.training import train

STROKES = 2
RESULT = Path(__file__).parent / "results" / "segmenter-init.json"


def write_data(source: Path, root: Path, train_count: int, val_count: int) -> Path:
    """Write a data set of photographs: simulated strokes on the training images, and masks."""
    for name in ("images", "scribbles", "masks", "splits"):
        (root / name).mkdir(parents=True)
    (root / "classes.txt").write_text((source / "classes.txt").read_text())
    for split, count in (("train", train_count), ("val", val_count)):
        data = ScribbleFolder(DataConfig(source), split, labels="masks", quiet=True, check=False)
        names = []
        for index in chosen_indices(data, count):
            sample = data[index]
            mask = sample.mask.numpy()
            strokes = simulate_strokes(mask, STROKES, seed=[0, *sample.name.encode()])
            image = sample.image.permute(1, 2, 0).numpy()
            for name, pixels in (("images", image), ("scribbles", strokes), ("masks", mask)):
                Image.fromarray(pixels).save(root / name / f"{sample.name}.png")
            names.append(sample.name)
        (root / "splits" / f"{split}.txt").write_text("\n".join(names) + "\n")
    return root


def fit_segmenter(root: Path) -> blpseg.ScribbleSegmenter:
    """Fit one segmenter to all training images."""
    names = (root / "splits" / "train.txt").read_text().split()
    classes = (root / "classes.txt").read_text().split()
    return blpseg.ScribbleSegmenter(len(classes), device="cpu").fit(
        [root / "images" / f"{name}.png" for name in names],
        [root / "scribbles" / f"{name}.png" for name in names],
    )


def score_segmenter(segmenter: blpseg.ScribbleSegmenter, data: ScribbleFolder) -> float:
    """Return the segmenter's mean IoU over a folder."""
    metric = MulticlassJaccardIndex(segmenter.num_classes, ignore_index=IGNORE)
    for sample in data:
        found = segmenter.predict(sample.image.permute(1, 2, 0).numpy())
        metric.update(torch.from_numpy(found)[None], sample.mask[None])
    return float(metric.compute())


def configuration(root: Path, output: Path, options: argparse.Namespace) -> TrainConfig:
    """Return the configuration `small` with these iterations, from a fresh start."""
    settings = yaml.safe_load(files("blpseg").joinpath("configs", "small.yaml").read_text())
    settings |= {"data": {"root": str(root), "workers": 0}, "output": str(output)}
    small = read_config(yaml.safe_dump(settings))
    return replace(
        small,
        optim=replace(small.optim, iterations=options.iterations),
        log=replace(small.log, validate_every=options.every),
        device="cpu",
    )


def curve(config: TrainConfig, data: ScribbleFolder) -> dict[int, float]:
    """Train; return the mean IoU before training and at every validation."""
    torch.manual_seed(config.seed)
    fresh = config.init is None
    model = build_model(config.model, len(data.classes), pretrained=None if fresh else False)
    if config.init is not None:
        print(start_from(config.init, model, data.classes))
    found = {0: score_model(model.eval(), data, distances=False).miou}
    train(config, on_step=lambda step: found.update({step.iteration: step.miou}))
    return {iteration: miou for iteration, miou in found.items() if miou is not None}


def main() -> None:
    """Measure both starts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--train", type=int, default=24, help="Photographs with strokes.")
    parser.add_argument("--val", type=int, default=40, help="Photographs to score on.")
    parser.add_argument("--iterations", type=int, default=200)
    parser.add_argument("--every", type=int, default=50, help="Iterations between scores.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--learning_rates", type=float, nargs="+", default=[1e-3])
    parser.add_argument("--output", type=Path, default=RESULT)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        root = write_data(options.folder, place / "data", options.train, options.val)
        data = ScribbleFolder(DataConfig(root), "val", labels="masks", quiet=True, check=False)
        segmenter = fit_segmenter(root)
        segmenter.save(place / "segmenter.pt")
        result: dict[str, Any] = {
            "machine": machine(),
            "train": (root / "splits" / "train.txt").read_text().split(),
            "val": (root / "splits" / "val.txt").read_text().split(),
            "segmenter": score_segmenter(segmenter, data),
            "curves": [],
        }
        inits = {"fresh": None, "segmenter": place / "segmenter.pt"}
        for rate, seed, start in product(options.learning_rates, options.seeds, inits):
            run = {"start": start, "learning_rate": rate, "seed": seed}
            config = configuration(root, place / f"{start}-{rate}-{seed}", options)
            config = replace(
                config,
                init=inits[start],
                seed=seed,
                optim=replace(config.optim, learning_rate=rate),
            )
            result["curves"].append({**run, "miou": curve(config, data)})
            options.output.write_text(json.dumps(result, indent=1) + "\n")
            print(result["curves"][-1], flush=True)


if __name__ == "__main__":
    main()
