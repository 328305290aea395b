"""The evaluation page: valid, self-contained, escaped; its numbers equal the scores."""

from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from blpseg.errors import UserError
from blpseg.evaluation import Evaluation, evaluate
from blpseg.evaluation.outputs import page_of
from blpseg.views import Views

VOID_TAGS = {"meta", "img", "br", "input", "link"}


class Page(HTMLParser):
    """Check that tags match; collect text, tags and addresses."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.sources: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.text += " "
        self.sources += [value for name, value in attrs if name in ("src", "href", "data")]
        if tag not in VOID_TAGS:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.sources += [value for name, value in attrs if name in ("src", "data")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def pictures(page: Page) -> list[np.ndarray]:
    found = []
    for source in page.sources:
        if source.startswith("data:image/"):
            content = base64.b64decode(source.partition(",")[2], validate=True)
            found.append(np.asarray(Image.open(io.BytesIO(content))))
    return found


def evaluated(checkpoint: Path, **options: object) -> tuple[Evaluation, Page, str]:
    evaluation = evaluate(checkpoint, quiet=True, **options)
    text = page_of(checkpoint.with_name("trained.evaluation.json")).read_text()
    return evaluation, Page(text), text


def test_page_shows_the_scores(checkpoint: Path) -> None:
    evaluation, page, _ = evaluated(checkpoint, views=Views([0.5, 1], flip=True))
    words = " ".join(page.text.split())
    scores = evaluation.scores
    assert (
        f"mIoU {100 * scores.miou:.2f} % boundary IoU {100 * scores.boundary_miou:.2f} %" in words
    )
    for name, iou in scores.iou.items():
        assert re.search(rf"{name} {100 * iou:.2f} {100 * scores.boundary_iou[name]:.2f}", words)
    for part in scores.by_border_distance + scores.by_scribble_distance:
        share = "-" if part.accuracy is None else f"{100 * part.accuracy:.2f}"
        assert f"{part.span} {share} {part.pixels:,}" in words
    assert "scales 0.5, 1; mirrored images too" in words and "list val" in words
    assert page.tags.count("svg") == 2


def test_page_needs_nothing_beside_it(checkpoint: Path) -> None:
    _, page, text = evaluated(checkpoint)
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    assert all(source.startswith(("data:", "#")) for source in page.sources)
    assert "@import" not in text and not re.search(r"url\((?!#)", text)
    assert len(text) < 500_000


def test_page_pictures_are_of_the_images(checkpoint: Path) -> None:
    """2 images, 5 pictures each; the share of red in "errors" is the share of wrong pixels."""
    evaluation, page, _ = evaluated(checkpoint)
    found = pictures(page)
    assert len(found) == 10 and all(max(picture.shape[:2]) == 320 for picture in found)
    wrong = [(picture == (196, 46, 46)).all(-1).mean() for picture in found[4::5]]
    bins = evaluation.scores.by_border_distance
    accuracy = sum(part.accuracy * part.pixels for part in bins if part.pixels) / (2 * 48 * 64)
    assert np.mean(wrong) == pytest.approx(1 - accuracy, abs=1e-6)
    worst = sorted(evaluation.images, key=lambda image: image.miou)
    assert page.text.index(worst[0].name) < page.text.index(worst[1].name)


def test_names_are_escaped(checkpoint: Path, own_shapes: Path) -> None:
    for folder in ("images", "scribbles", "masks"):
        path = own_shapes / folder / "shape0.png"
        path.rename(path.with_name("<b>&amp;.png"))
    _, page, text = evaluated(checkpoint, data={"root": own_shapes})
    assert "b" not in page.tags and "<b>" not in text
    assert "<b>&amp;" in page.text


def test_images_without_scribbles_have_no_such_picture(checkpoint: Path, own_shapes: Path) -> None:
    for path in (own_shapes / "scribbles").iterdir():
        path.unlink()
    _, page, _ = evaluated(checkpoint, data={"root": own_shapes})
    assert len(pictures(page)) == 3 * 4 and "nearest scribble" not in page.text


def test_the_page_is_not_overwritten_either(checkpoint: Path) -> None:
    page = page_of(checkpoint.with_name("trained.evaluation.json"))
    page.write_text("precious")
    with pytest.raises(UserError, match=r"trained\.evaluation\.html: exists already"):
        evaluate(checkpoint, quiet=True)
    assert page.read_text() == "precious"
    with pytest.raises(UserError, match="expected the name of a JSON file"):
        evaluate(checkpoint, output=page, overwrite=True, quiet=True)


def test_many_images_are_sampled(checkpoint: Path, own_shapes: Path) -> None:
    """The page shows the 6 worst and the 3 best, in this order, each once."""
    for folder in ("images", "scribbles", "masks"):
        for number in range(11):
            source = own_shapes / folder / f"shape{number % 3}.png"
            (own_shapes / folder / f"copy{number}.png").write_bytes(source.read_bytes())
    evaluation, page, _ = evaluated(checkpoint, data={"root": own_shapes})
    assert len(evaluation.images) == 14
    assert page.tags.count("h3") == 9 and len(pictures(page)) == 45
    assert page.text.index("Worst images") < page.text.index("Best images")
