"""An evaluation as one HTML page: one file, without scripts or links to other files."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

import matplotlib
import numpy as np
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from PIL import Image

from blpseg import __version__
from blpseg.crf_constants import CRF
from blpseg.curves import DISTANCES, distance_chart
from blpseg.data.labels import IGNORE
from blpseg.evaluation.scores import Evaluation, ImageExample
from blpseg.metrics import DistanceBin, Scores, percent
from blpseg.pictures import COLORS, color_labels, draw_scribbles, thumbnail
from blpseg.views import Views

_SIDE = 320  # pixels of a picture's longer side
_RIGHT, _WRONG, _VOID = (228, 232, 236), (196, 46, 46), (255, 255, 255)


def evaluation_page(
    evaluation: Evaluation,
    examples: Mapping[str, Sequence[ImageExample]],
) -> str:
    """Render the page.

    Args:
        evaluation: The scores.
        examples: Title of a section to the images in it.

    Returns:
        HTML.
    """
    environment = Environment(autoescape=True, undefined=StrictUndefined)
    template = files("blpseg").joinpath("templates", "evaluation.html").read_text(encoding="utf-8")
    num_classes = len(evaluation.scores.iou)
    return environment.from_string(template).render(
        evaluation=evaluation,
        scores=evaluation.scores,
        views=_views_in_words(evaluation.views, evaluation.stride, evaluation.crf),
        charts=_charts(evaluation.scores),
        sections={
            title: [
                {
                    "name": example.score.name,
                    "miou": example.score.miou,
                    "pictures": _pictures(example, num_classes),
                }
                for example in section
            ]
            for title, section in examples.items()
        },
        percent=percent,
        bar=_bar,
        swatch=_swatch,
        version=__version__,
    )


def _views_in_words(views: Views, stride: int, crf: CRF | None) -> str:
    parts = ["scales " + ", ".join(f"{scale:g}" for scale in views.scales)]
    parts += ["mirrored images too"] if views.flip else []
    parts += [f"windows of {views.window} px in larger images"] if views.window else []
    parts += [f"logits at stride {stride}"]
    if crf is not None:
        parts.append(
            f"dense CRF: {crf.iterations} iterations, smoothness {list(crf.smoothness)}, "
            f"appearance {list(crf.appearance)}"
        )
    return "; ".join(parts)


def _charts(scores: Scores) -> list[dict[str, Any]]:
    charts = []
    for field, thing in DISTANCES.items():
        bins: list[DistanceBin] = getattr(scores, field)
        if any(part.pixels for part in bins):
            charts.append({"thing": thing, "bins": bins, "svg": _svg(scores, field)})
    return charts


def _svg(scores: Scores, field: str) -> Markup:
    # Text as text keeps the file small and searchable; a fixed salt makes it reproducible.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "blpseg"}):
        file = io.StringIO()
        figure = distance_chart({"": [scores]}, field)
        figure.savefig(file, format="svg", metadata={"Date": None}, transparent=True)
    text = file.getvalue()
    return Markup(text[text.index("<svg") :])


def _pictures(example: ImageExample, num_classes: int) -> dict[str, str]:
    """Map captions to pictures, as data URIs."""
    sample, labels = example.sample, example.prediction.labels.numpy()
    photo = np.ascontiguousarray(sample.image.permute(1, 2, 0).numpy())
    target, mask = sample.target.numpy(), sample.mask.numpy()
    pictures = {"image": _uri(photo, "JPEG", quality=80)}
    if (target < num_classes).any():
        scribbles = draw_scribbles(photo, target, num_classes)
        pictures["scribbles"] = _uri(scribbles, "JPEG", quality=80)
    pictures["prediction"] = _uri(color_labels(labels), "PNG")
    pictures["truth"] = _uri(color_labels(mask), "PNG")
    errors = np.where((labels == mask)[..., None], np.uint8(_RIGHT), np.uint8(_WRONG))
    errors[mask == IGNORE] = _VOID
    pictures["errors"] = _uri(errors, "PNG")
    return pictures


def _uri(picture: np.ndarray, kind: str, **options: int) -> str:
    file = io.BytesIO()
    Image.fromarray(thumbnail(picture, _SIDE)).save(file, kind, optimize=True, **options)
    content = base64.b64encode(file.getvalue()).decode()
    return f"data:image/{kind.lower()};base64,{content}"


def _bar(share: float | None, kind: str = "") -> Markup:
    width = 0 if share is None else 100 * share
    return Markup('<div class="bar {}" style="width: {:.1f}%"></div>').format(kind, width)


def _swatch(label: int) -> Markup:
    color = "#{:02x}{:02x}{:02x}".format(*COLORS[label].tolist())
    return Markup('<span class="swatch" style="background: {}"></span>').format(color)
