"""``blpseg export``: write a trained model as an ONNX or torch.export file, and check the file.

The exported model takes RGB images of 8 bits and returns labels and logits of every pixel. It
contains the normalization.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

import blpseg_ops
from blpseg import __version__
from blpseg.checkpoints import Trained, load_model
from blpseg.data.scenes import render_scene
from blpseg.errors import UserError
from blpseg.model import BLPSeg

INPUT, OUTPUTS = "image", ("labels", "logits")
METADATA = "blpseg.json"  # in a .pt2; an ONNX file has a property per entry
_CHECKED_BATCHES = (1, 3)  # different from the traced size, to check that the batch is dynamic
_TRACED_BATCH = 2


class Exported(NamedTuple):
    """An exported file, and its differences from the model."""

    path: Path

    error: float
    """Largest difference of a logit."""

    largest: float
    """Largest logit; the tolerance is relative to it."""

    differing: int
    """Pixels with another label."""

    pixels: int
    """Pixels compared."""


class Deployed(nn.Module):
    """The computation of an exported file: scale to 0 to 1, predict logits, take the largest.

    Args:
        model: The network, in evaluation mode.
    """

    def __init__(self, model: BLPSeg) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        image: Tensor,  # [N, 3, H, W] uint8
    ) -> tuple[Tensor, Tensor]:  # [N, H, W] uint8, [N, K, H, W] float32
        """Segment images.

        Args:
            image: [N, 3, H, W] uint8, RGB.

        Returns:
            The most probable class of each pixel, [N, H, W] uint8, and the class logits.
        """
        logits = self.model(image.float() / 255)
        return logits.argmax(1).to(torch.uint8), logits


def export(
    checkpoint: Path,
    output: Path,
    *,
    size: tuple[int, int] = (512, 512),
    query_stride: int | None = None,
    tolerance: float = 1e-3,
    overwrite: bool = False,
) -> Exported:
    """Export a checkpoint's model, and compare the file's results with the model's.

    The suffix of `output` selects the format. ``.onnx``: an ONNX graph of standard operators.
    ``.pt2``: a `torch.export` program that calls this package's operators; import `blpseg_ops`
    before you load it. The batch size is dynamic, height and width are fixed. The file's metadata
    has the class names.

    Args:
        checkpoint: File that `blpseg train` wrote.
        output: The file to write, .onnx or .pt2.
        size: Height and width of the images, in pixels.
        query_stride: Image pixels per pixel of the logits, 1, 2 or 4; None: as in training.
        tolerance: Largest allowed difference of a logit, relative to the largest logit.
        overwrite: Replace the file if it exists.

    Returns:
        The differences between the file's results and the model's, on built-in scenes.

    Raises:
        UserError: An argument is wrong, a package is missing, or the results differ by more than
            the tolerance. Then nothing is written.
    """
    if output.suffix not in _FORMATS:
        raise UserError(f"{output}: expected a file name that ends in {' or '.join(_FORMATS)}")
    if output.exists() and not overwrite:
        raise UserError(f"{output}: exists already; --overwrite replaces it")
    if len(size) != 2 or min(size) < 1:
        raise UserError(f"size: expected height and width in pixels, got {list(size)}")
    write, run = _FORMATS[output.suffix]
    trained = load_model(checkpoint, query_stride)
    deployed = Deployed(trained.model).eval()
    output.parent.mkdir(parents=True, exist_ok=True)
    temporary = output.with_name(f"{output.stem}.part{output.suffix}")
    try:
        write(deployed, _photos(_TRACED_BATCH, size), temporary, _metadata(trained, size))
        exported = _compare(deployed, run(temporary), size)._replace(path=output)
        if not exported.error <= tolerance * exported.largest:
            raise UserError(
                f"{output}: not written, as its logits differ from the model's by up to "
                f"{exported.error:.3g}; expected at most {tolerance:g} (--tolerance) of the "
                f"largest logit, {exported.largest:.3g}"
            )
        temporary.replace(output)
    finally:
        temporary.unlink(missing_ok=True)
    return exported


def _metadata(trained: Trained, size: tuple[int, int]) -> dict[str, str]:
    return {
        "classes": json.dumps(trained.classes),
        "input": f"{INPUT}: uint8 [batch, 3, {size[0]}, {size[1]}], RGB",
        "outputs": "labels: uint8 [batch, height, width]; "
        "logits: float32 [batch, classes, height, width]",
        "iteration": str(trained.iteration),
        "blpseg": __version__,
    }


def _photos(batch: int, size: tuple[int, int]) -> Tensor:  # [N, 3, H, W] uint8
    images = [render_scene(seed, size).image for seed in range(batch)]
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()


def _program(deployed: Deployed, photos: Tensor) -> ExportedProgram:
    with torch.no_grad():
        return torch.export.export(deployed, (photos,), dynamic_shapes=({0: Dim("batch")},))


def _write_torch(deployed: Deployed, photos: Tensor, path: Path, metadata: dict[str, str]) -> None:
    torch.export.save(
        _program(deployed, photos), path, extra_files={METADATA: json.dumps(metadata)}
    )


def _run_torch(path: Path) -> Callable[[Tensor], Sequence[Tensor]]:
    return torch.export.load(path).module()


def _write_onnx(deployed: Deployed, photos: Tensor, path: Path, metadata: dict[str, str]) -> None:
    for name in ("onnx", "onnxscript", "onnxruntime"):
        try:
            import_module(name)
        except ImportError as error:
            raise UserError(
                f"export: expected the package {name}, which cannot be imported ({error}); "
                "pip install 'blpseg[onnx]' installs it"
            ) from error
    program = _program(deployed, photos).run_decompositions(blpseg_ops.decompositions())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter warns about its own code
        graph = torch.onnx.export(
            program,
            input_names=[INPUT],
            output_names=list(OUTPUTS),
            dynamo=True,
            verbose=False,
        )
    graph.model.metadata_props.update(metadata)
    graph.save(path)


def _run_onnx(path: Path) -> Callable[[Tensor], Sequence[Tensor]]:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def run(photos: Tensor) -> Sequence[Tensor]:
        found: Any = session.run(list(OUTPUTS), {INPUT: photos.numpy()})
        return [torch.from_numpy(part) for part in found]

    return run


_FORMATS = {".onnx": (_write_onnx, _run_onnx), ".pt2": (_write_torch, _run_torch)}


@torch.inference_mode()
def _compare(
    deployed: Deployed, run: Callable[[Tensor], Sequence[Tensor]], size: tuple[int, int]
) -> Exported:
    """Compare the results of the file and of the model; the caller sets the path."""
    error = largest = 0.0
    differing = pixels = 0
    for batch in _CHECKED_BATCHES:
        photos = _photos(batch, size)
        labels, logits = run(photos)
        expected_labels, expected = deployed(photos)
        difference = (logits - expected).abs().max().item()
        error = max(error, float("inf") if difference != difference else difference)
        largest = max(largest, expected.abs().max().item())
        differing += (labels != expected_labels).sum().item()
        pixels += labels.numel()
    return Exported(Path(), error, largest, differing, pixels)
