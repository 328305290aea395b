"""``ScribbleSegmenter``: draw a few strokes, get label maps of images in seconds."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from os import PathLike
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import blpseg_ops
from blpseg.data.labels import MAX_CLASSES
from blpseg.data.shrinking import shrink_image, shrink_scribbles, shrunk_size
from blpseg.devices import choose_device
from blpseg.errors import UserError
from blpseg.pretrained import PACKAGES, PYPI
from blpseg.segmenter import storage
from blpseg.segmenter.aggregation import aggregate
from blpseg.segmenter.features import FeatureCache, FrozenFeatures, as_photos, window_image
from blpseg.segmenter.head import TEMPERATURE, Heads, fit_classes, train_annotation
from blpseg.segmenter.inputs import Picture, read_picture, read_scribbles, require_pairs
from blpseg.segmenter.samples import (
    Samples,
    has_labels,
    join,
    sample_window,
    with_fewer_unlabeled,
)
from blpseg.segmenter.windows import Window, windows

Image = np.ndarray | str | PathLike[str]

_MARGIN = 128  # pixels of context around the core of a window
_CELLS_AT_ONCE = 2**15  # that a head sees in float32
_UNLABELED_CELLS = 1024  # per window: for normalization and the annotation head
_ALL_UNLABELED_CELLS = 2**16  # of all images, so that memory grows with the strokes alone


class ScribbleSegmenter:
    """Segment images by a few strokes per class, within seconds on a CPU.

    A pretrained backbone, which is not trained, computes features of an image once. A linear head
    is fitted to the features of the scribbled pixels, in closed form. LAM aggregates its scores
    over near pixels that look alike. One object serves one call at a time.

    Args:
        num_classes: K, 2 to 254.
        backbone: Name of a timm model that returns features.
        pretrained: Its weights, see :func:`blpseg.pretrained.create_backbone`. None: those of a
            Python package if one has them ("tf_efficientnet_lite0", 1 and 2), else timm's.
        scales: Factors of the image's size at which the backbone sees it.
        sigma: Standard deviation of LAM's Gaussian, in cells of 4 x 4 pixels.
        window: Largest side of an image, in pixels, that the backbone sees at once; larger images
            are divided into windows. A multiple of 32, at least 512.
        max_side: Longer side, in pixels, to which larger images and their scribbles are shrunk
            first; results have the image's own size. None keeps every pixel.
        cache_bytes: Bytes of features that are kept between calls.
        seed: Seed of every random choice.
        device: "auto" (the accelerator if there is one), "cpu", "cuda", ...

    Raises:
        UserError: An argument is out of range, or the pretrained weights are missing.

    Examples:
        >>> segmenter = blpseg.ScribbleSegmenter(num_classes=3)
        >>> segmenter.fit([image], [scribbles])
        >>> labels = segmenter.predict(image)
    """

    def __init__(
        self,
        num_classes: int,
        backbone: str = "tf_efficientnet_lite0",
        *,
        pretrained: bool | str | Path | None = None,
        scales: Sequence[float] = (1.0, 2.0),
        sigma: float = 6.0,
        window: int = 1024,
        max_side: int | None = None,
        cache_bytes: int = 2**30,
        seed: int = 0,
        device: str = "auto",
    ) -> None:
        if not 2 <= num_classes <= MAX_CLASSES:
            raise UserError(f"num_classes: expected 2 to {MAX_CLASSES}, got {num_classes}")
        if window < 4 * _MARGIN or window % 32:
            raise UserError(
                f"window: expected a multiple of 32, at least {4 * _MARGIN}, got {window}"
            )
        if max_side is not None and max_side < 1:
            raise UserError(f"max_side: expected at least 1 pixel, got {max_side}")
        if not scales or not all(0.25 <= scale <= 4 for scale in scales):
            raise UserError(f"scales: expected numbers from 0.25 to 4, got {[*scales]}")
        if pretrained is None:
            pretrained = PYPI if backbone.split(".")[0] in PACKAGES else True
        self.num_classes = num_classes
        self.backbone, self.scales, self.sigma = backbone, [*map(float, scales)], sigma
        self.window, self.max_side, self.seed = window, max_side, seed
        self._device = choose_device(device)
        try:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)  # of random weights, where pretrained is False
                self._features = FrozenFeatures(backbone, pretrained, self.scales)
            self._features.to(self._device)
        except UserError:
            raise
        except (ValueError, RuntimeError, OSError) as error:
            raise UserError(f"backbone: cannot build {backbone!r}: {error}") from error
        self._cache = FeatureCache(cache_bytes)
        self._samples: dict[str, Samples] = {}  # by the image's key
        self._groups: int | None = None  # three-channel images per image, from the first fit on
        self._heads: Heads | None = None
        self._annotation_is_fitted = False

    @property
    def labeled_classes(self) -> list[int]:
        """Classes that have scribbles; the others are not predicted."""
        return sorted(
            {int(c) for s in self._samples.values() for c in s.labels[s.labeled].unique()}
        )

    def fit(self, images: Sequence[Image], scribbles: Sequence[Image]) -> ScribbleSegmenter:
        """Fit the segmenter to scribbles; a later call adds to what it was given before.

        Scribbles of an image that was given before replace its older ones. The scribbles of other
        images stay in use. After an error nothing has changed.

        Args:
            images: [H, W] or [H, W, C] arrays, uint8 or uint16, or paths. C = 3 is RGB. Each
                channel of other images passes through the backbone on its own.
            scribbles: One [H, W] integer array per image, or the path of a PNG: classes 0..K-1, 255
                unlabeled. A class without scribbles is reported by a warning.

        Returns:
            The segmenter.

        Raises:
            UserError: An input is unreadable or of a wrong type, size or channel number; a label is
                out of range; or there is no label at all.
        """
        images, scribbles = require_pairs(images, scribbles)
        samples, groups = dict(self._samples), self._groups
        for index, (image, drawn) in enumerate(zip(images, scribbles, strict=True)):
            picture = read_picture(image, f"images[{index}]")
            labels = read_scribbles(drawn, picture, self.num_classes, f"scribbles[{index}]")
            groups = _require_groups(picture, groups, f"images[{index}]")
            small = self._shrunk(picture)
            samples[picture.key] = self._sample(small, shrink_scribbles(labels, small.size))
        samples = {key: found for key, found in samples.items() if len(found.labels)}
        share = max(1, _ALL_UNLABELED_CELLS // max(1, len(samples)))
        samples = {key: with_fewer_unlabeled(found, share) for key, found in samples.items()}
        if not samples:
            raise UserError("scribbles: expected labels, but every pixel is 255 (unlabeled)")
        if self._heads is None:
            assert groups is not None
            self._heads = Heads(self._features.channels * groups, self.num_classes)
            self._heads.to(self._device).set_normalization(join([*samples.values()]).features)
        self._samples, self._groups = samples, groups
        fit_classes(self._heads, self._training_data())
        self._annotation_is_fitted = False
        if missing := sorted({*range(self.num_classes)} - {*self.labeled_classes}):
            warnings.warn(
                f"no scribbles of class {', '.join(map(str, missing))}; no pixel gets that label",
                stacklevel=2,
            )
        return self

    def predict(self, image: Image) -> np.ndarray:  # [H, W] uint8
        """Label an image by its most probable classes.

        Args:
            image: As in :meth:`fit`; also images without scribbles.

        Returns:
            [H, W] uint8, classes 0..K-1.

        Raises:
            UserError: The image is unreadable or of a wrong type, or nothing was fitted yet.
        """
        picture, small, heads = self._ready(image)
        if small.size != picture.size:
            probabilities = torch.from_numpy(self._probabilities(small, heads))[None]
            return blpseg_ops.upsample_argmax(probabilities, picture.size)[0].numpy()
        classes = np.array(self.labeled_classes, np.uint8)
        labels = np.empty(picture.size, np.uint8)
        for window, scores in self._class_scores(picture, heads):
            found = blpseg_ops.upsample_argmax(scores[None], _size(window))[0].cpu().numpy()
            labels[window.core_rows, window.core_columns] = classes[found[window.core_in_window]]
        return labels

    def predict_proba(self, image: Image) -> np.ndarray:  # [K, H, W] float32
        """Compute the class probabilities of an image; arguments and errors as for `predict`.

        Returns:
            [K, H, W] float32; 0 for classes without scribbles.
        """
        picture, small, heads = self._ready(image)
        return _enlarged(self._probabilities(small, heads), picture.size)

    def annotation_probability(self, image: Image) -> np.ndarray:  # [H, W] float32
        """Compute the probability that people would annotate a pixel; see `predict` for errors.

        Low where nobody has drawn on pixels of this kind yet.

        Returns:
            [H, W] float32, 0 to 1.
        """
        picture, small, heads = self._ready(image)
        if not self._annotation_is_fitted:
            train_annotation(heads, self._training_data(), self.seed)
            self._annotation_is_fitted = True
        out = np.empty(small.size, np.float32)
        for window, features in self._window_features(small):
            logits = _by_cell(heads.annotation, heads, features)
            probability = 1 - _upsampled(logits, window).softmax(0)[-1]
            out[window.core_rows, window.core_columns] = _core(probability, window)
        return _enlarged(out[None], picture.size)[0]

    def save(self, path: str | PathLike[str]) -> None:
        """Write the segmenter to one file: backbone, heads, and the scribbled pixels' features.

        Raises:
            UserError: Nothing was fitted yet.
            OSError: The file cannot be written; an older one is kept.
        """
        if self._heads is None:
            raise UserError("save: nothing was fitted yet; call fit first")
        storage.save(
            Path(path),
            {
                "settings": {
                    "num_classes": self.num_classes,
                    "backbone": self.backbone,
                    "scales": self.scales,
                    "sigma": self.sigma,
                    "window": self.window,
                    "max_side": self.max_side,
                    "seed": self.seed,
                },
                "groups": self._groups,
                "features": self._features.state_dict(),
                "heads": self._heads.state_dict(),
                "annotation_is_fitted": self._annotation_is_fitted,
                "samples": {key: tuple(found) for key, found in self._samples.items()},
            },
        )

    @classmethod
    def load(
        cls, path: str | PathLike[str], *, cache_bytes: int = 2**30, device: str = "auto"
    ) -> ScribbleSegmenter:
        """Read a file of `save`; `fit` goes on from there. No other file or package is needed.

        Args:
            path: The file.
            cache_bytes: See the class.
            device: See the class.

        Raises:
            UserError: The file is missing or of another kind, or there is no such device.
        """
        content = storage.load(Path(path))
        made = cls(**content["settings"], pretrained=False, cache_bytes=cache_bytes, device=device)
        made._features.load_state_dict(content["features"])
        made._groups = content["groups"]
        made._heads = Heads(made._features.channels * content["groups"], made.num_classes)
        made._heads.to(made._device).load_state_dict(content["heads"])
        made._annotation_is_fitted = content["annotation_is_fitted"]
        made._samples = {key: Samples(*found) for key, found in content["samples"].items()}
        return made

    def _training_data(self) -> Samples:
        joined = join([*self._samples.values()])
        return Samples(*(part.to(self._device) for part in joined))

    def _ready(self, image: Image) -> tuple[Picture, Picture, Heads]:
        """Return the picture, the same shrunk to `max_side`, and the heads."""
        if self._heads is None:
            raise UserError("predict: nothing was fitted yet; call fit first")
        picture = read_picture(image, "image")
        _require_groups(picture, self._groups, "image")
        return picture, self._shrunk(picture), self._heads

    def _shrunk(self, picture: Picture) -> Picture:
        if self.max_side is None:
            return picture
        size = shrunk_size(*picture.size, self.max_side)
        return picture._replace(pixels=shrink_image(picture.pixels, size))

    def _probabilities(self, picture: Picture, heads: Heads) -> np.ndarray:  # [K, H, W] float32
        classes = self.labeled_classes
        out = np.zeros((self.num_classes, *picture.size), np.float32)
        for window, scores in self._class_scores(picture, heads):
            probabilities = _upsampled(scores / TEMPERATURE, window).softmax(0)
            out[classes, window.core_rows, window.core_columns] = _core(probabilities, window)
        return out

    def _sample(self, picture: Picture, scribbles: np.ndarray) -> Samples:
        rng = np.random.default_rng(self.seed)
        found = [
            sample_window(features, scribbles, window, _UNLABELED_CELLS, rng)
            for window, features in self._window_features(picture, scribbles)
        ]
        empty = Samples(torch.empty(0, 0), torch.empty(0, dtype=torch.int64), torch.empty(0))
        return join(found) if found else empty

    def _window_features(
        self, picture: Picture, scribbles: np.ndarray | None = None
    ) -> Iterator[tuple[Window, Tensor]]:  # [C, h, w] float16 on the CPU
        """Compute or recall the features of each window; with scribbles, of those that have any."""
        for index, window in enumerate(windows(*picture.size, self.window, _MARGIN)):
            if scribbles is not None and not has_labels(scribbles, window):
                continue
            features = self._cache.get((picture.key, index))
            if features is None:
                photos = as_photos(window_image(picture, window)).to(self._device)
                levels = [self._features(photo[None]) for photo in photos]
                features = torch.cat(levels).clamp(-65504, 65504).half().cpu()
                self._cache.put((picture.key, index), features)
            yield window, features

    @torch.no_grad()
    def _class_scores(
        self, picture: Picture, heads: Heads
    ) -> Iterator[tuple[Window, Tensor]]:  # [number of labeled classes, h, w]
        for window, features in self._window_features(picture):
            scores = _by_cell(heads.classes, heads, features)[self.labeled_classes]
            image = window_image(picture, window).to(self._device)
            yield window, aggregate(image, scores, self.sigma)


@torch.no_grad()
def _by_cell(head: torch.nn.Module, heads: Heads, features: Tensor) -> Tensor:  # [K, h, w]
    parts = features.flatten(1).T.split(_CELLS_AT_ONCE)
    logits = torch.cat([head(heads.normalize(part.to(heads.scale.device))) for part in parts])
    return logits.T.reshape(-1, *features.shape[1:]).contiguous()


def _size(window: Window) -> tuple[int, int]:
    rows, columns = window.rows, window.columns
    return rows.stop - rows.start, columns.stop - columns.start


def _upsampled(logits: Tensor, window: Window) -> Tensor:  # [K, h, w] -> [K, H, W]
    size = _size(window)
    return F.interpolate(logits[None], size, mode="bilinear", align_corners=False)[0]


def _enlarged(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:  # [K, h, w] -> [K, H, W]
    if values.shape[1:] == size:
        return values
    enlarged = F.interpolate(
        torch.from_numpy(values)[None], size, mode="bilinear", align_corners=False
    )
    return enlarged[0].numpy()


def _core(values: Tensor, window: Window) -> np.ndarray:
    return values[..., window.core_in_window[0], window.core_in_window[1]].cpu().numpy()


def _require_groups(picture: Picture, groups: int | None, name: str) -> int:
    if groups is not None and picture.groups != groups:
        kinds = [
            "gray or RGB (3 channels)" if g == 1 else f"{g} channels"
            for g in (groups, picture.groups)
        ]
        raise UserError(f"{name}: expected {kinds[0]}, as in the first fit, got {kinds[1]}")
    return picture.groups
