"""What a training run is made of; the defaults are the recipe as published (Wang et al. 2023)."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from blpseg.errors import UserError

LayoutName = Literal[
    "folder", "voc", "context", "s4pascal", "s4cityscapes", "s4ade20k", "scribblecoco"
]


@dataclass
class DataConfig:
    """A folder of images and scribbles, and what the numbers in its label files mean.

    Relative paths start at the current folder.
    """

    root: Path
    """The data set's folder."""

    layout: LayoutName = "folder"
    """How the data set is laid out; folder: images/, scribbles/, classes.txt and, where there are
    any, masks/ and splits/; docs/data.md shows the others."""

    train_split: str | None = None
    """Part to train on (folder: a list splits/NAME.txt); null: the layout's (folder: train.txt
    where it exists, else every image)."""

    val_split: str | None = None
    """Part to validate on; null: the layout's, where it and masks exist (folder: val.txt)."""

    scribbles: Path | None = None
    """Folder of the scribble files; null: where the layout has them."""

    scribble_width: int = 1
    """Width in pixels of lines that scribble files hold as points (ScribbleSup's XML)."""

    unlabeled_value: int | None = None
    """Value of unlabelled pixels in the scribble files; null: the layout's (folder: 255; some sets
    use 0)."""

    first_class_value: int | None = None
    """Value of the first class in the scribble files; null: the layout's (folder: 0; 1 in sets that
    keep 0 for something else)."""

    mask_void_value: int | None = None
    """Value of void pixels in the mask files, which are left out of every score; null: the
    layout's (folder: 255)."""

    mask_first_class_value: int | None = None
    """Value of the first class in the mask files; null: the layout's (folder: the same as in the
    scribble files)."""

    workers: int = 4
    """Processes that load training images; 0 loads them in the training process."""

    def __post_init__(self) -> None:
        _at_least("data.scribble_width", self.scribble_width, 1)
        _at_least("data.workers", self.workers, 0)


@dataclass
class ModelConfig:
    """The network and its losses."""

    backbone: str = "resnet101s"
    """Name of a timm model with features at strides 4, 8, 16 and 32."""

    pretrained: bool = True
    """Start from timm's ImageNet weights (downloaded once)."""

    width: int = 256
    """Channels of the decoder."""

    embedding_dim: int = 256
    """Channels of the embedding that LAM compares pixels with."""

    lam: bool = True
    """Aggregate the logits over alike near pixels (LAM)."""

    sigma: float = 6.0
    """Standard deviation of LAM's Gaussian, in pixels of the logits (4 image pixels each)."""

    eps: float = 1e-7
    """Guard in LAM's renormalisation; 1e-7 is the published program's, 0 is the plain method."""

    gamma: float = 2.0
    """Exponent of the BLP loss's weights; 0 weighs every scribbled pixel alike."""

    unlabeled_weight: float = 0.02
    """Weight of unlabelled pixels in the annotation loss."""

    threshold: float = 0.9
    """Smallest class probability at which a pixel gets a pseudo label."""


@dataclass
class AugmentConfig:
    """Random changes to the training images."""

    flip: float = 0.5
    """Probability of a left-right flip."""

    scale: tuple[float, float] = (0.75, 1.25)
    """Smallest and largest factor of the random scaling."""

    crop: int = 384
    """Side of the square crop, in pixels after scaling; smaller images are padded."""

    def __post_init__(self) -> None:
        _within("augment.flip", self.flip, 0, 1)
        low, high = self.scale
        if not 0 < low <= high:
            raise UserError(
                f"augment.scale: expected 0 < smallest <= largest, got {low:g} and {high:g}"
            )
        _at_least("augment.crop", self.crop, 1)


@dataclass
class OptimConfig:
    """AdamW on a polynomial schedule, and when self-training begins."""

    learning_rate: float = 3e-5
    """Learning rate of the first iteration."""

    weight_decay: float = 0.01
    """AdamW's decoupled weight decay."""

    power: float = 0.9
    """Iteration i of n runs at learning_rate * (1 - i / (n + 1)) ** power."""

    batch_size: int = 10
    """Images per iteration, a multiple of the number of processes that share them; at least 2, as
    batch norm sees one pooled pixel per image."""

    epochs: int = 40
    """Passes over the training images (the last one rounded up to whole batches)."""

    iterations: int | None = None
    """Number of iterations; where given, it replaces epochs."""

    self_training_from: int | None = 10_000
    """First iteration, counted from 0, that learns from pseudo labels too; null: none does."""

    mixed_precision: Literal["no", "fp16", "bf16"] = "fp16"
    """Number format of the forward pass on CUDA; other devices compute in float32."""

    def __post_init__(self) -> None:
        _at_least("optim.learning_rate", self.learning_rate, 0)
        _at_least("optim.weight_decay", self.weight_decay, 0)
        _at_least("optim.power", self.power, 0)
        _at_least("optim.batch_size", self.batch_size, 2)
        _at_least("optim.epochs", self.epochs, 1)
        if self.iterations is not None:
            _at_least("optim.iterations", self.iterations, 1)
        if self.self_training_from is not None:
            _at_least("optim.self_training_from", self.self_training_from, 0)

    def total_iterations(self, num_images: int) -> int:
        """Count the iterations of the whole run over a set of `num_images` images."""
        if self.iterations is not None:
            return self.iterations
        return -(-self.epochs * num_images // self.batch_size)


@dataclass
class LogConfig:
    """How often the run is written down, in iterations."""

    scalars_every: int = 20
    """Iterations between two points in TensorBoard: losses, learning rate, images per second, peak
    memory."""

    validate_every: int = 2000
    """Iterations between two validations, with pictures for TensorBoard; the end has one too."""

    preview_every: int = 500
    """Iterations between two looks at predictions, as pictures in TensorBoard."""

    save_every: int = 1000
    """Iterations between two writings of last.pt; the end has one too."""

    def __post_init__(self) -> None:
        _at_least("log.scalars_every", self.scalars_every, 1)
        _at_least("log.validate_every", self.validate_every, 1)
        _at_least("log.preview_every", self.preview_every, 1)
        _at_least("log.save_every", self.save_every, 1)


@dataclass
class TrainConfig:
    """A training run.

    Partial cross entropy, the baseline, is `model.lam=False`, `model.gamma=0` and
    `optim.self_training_from=None`: the annotation head sees detached features, so its loss does
    not touch the segmentation.
    """

    data: DataConfig
    """The images and their labels."""

    output: Path
    """Run folder for checkpoints, TensorBoard files, the configuration and the scores."""

    model: ModelConfig = field(default_factory=ModelConfig)
    """The network and its losses."""

    augment: AugmentConfig = field(default_factory=AugmentConfig)
    """Random changes to the training images."""

    optim: OptimConfig = field(default_factory=OptimConfig)
    """Optimizer, schedule, self-training."""

    log: LogConfig = field(default_factory=LogConfig)
    """How often the run is written down."""

    overwrite: bool = False
    """Replace the files of an earlier run in the run folder; other files there stay."""

    resume: bool = False
    """Continue the run in the run folder from its last.pt; where nothing was saved yet, begin."""

    seed: int = 0
    """Seed of the weights, the order of the images and their augmentation."""

    device: Literal["auto", "cpu"] = "auto"
    """auto: the accelerator where there is one."""

    def __post_init__(self) -> None:
        _at_least("seed", self.seed, 0)
        if self.overwrite and self.resume:
            raise UserError("resume: a run is either continued or replaced; overwrite is true, too")

    def as_plain_data(self) -> dict[str, Any]:
        """Turn into nested dicts of numbers, strings and lists, e.g. for YAML."""
        return asdict(self, dict_factory=_plain_dict)


def read_config(text: str) -> TrainConfig:
    """Read a training run from YAML, as `blpseg train` reads its file.

    Raises:
        ArgumentError: If it is no YAML, or a key or value does not fit; the message names it.
    """
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(TrainConfig)
    options = parser.instantiate(parser.parse_string(text))
    return TrainConfig(**{part.name: options[part.name] for part in fields(TrainConfig)})


def _plain_dict(items: list[tuple[str, Any]]) -> dict[str, Any]:
    return {key: _plain(value) for key, value in items}


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    return list(value) if isinstance(value, tuple) else value


def _at_least(name: str, value: float, smallest: float) -> None:
    if not value >= smallest:
        raise UserError(f"{name}: expected at least {smallest}, got {value}")


def _within(name: str, value: float, smallest: float, largest: float) -> None:
    if not smallest <= value <= largest:
        raise UserError(f"{name}: expected {smallest} to {largest}, got {value}")
