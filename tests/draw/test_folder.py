"""What is written into the folder, and that `blpseg train` reads it."""

from __future__ import annotations

import errno
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from blpseg.config import DataConfig
from blpseg.data.folder import ScribbleFolder, choose_splits
from blpseg.draw.folder import LIST_HEADER, Conflict, DrawFolder
from blpseg.draw.scribbles import NO_FILE, ScribbleStore
from blpseg.draw.strokes import Stroke
from blpseg.errors import UserError

LINE = Stroke([(10, 10), (60, 12)], 2.0, 1)


def draw(folder: DrawFolder, index: int, *edits: Stroke) -> np.ndarray:
    store = ScribbleStore(folder)
    saved = store.apply(index, store.load(index).revision, edits)
    folder.set_drawn(index, bool((saved.labels != 255).any()))
    return saved.labels


@pytest.mark.parametrize("flat", [False, True])
def test_folder_is_the_data_set_that_train_reads(root: Path, flat: bool) -> None:
    if flat:
        for image in (root / "images").iterdir():
            image.rename(root / image.name)
        (root / "images").rmdir()
    folder = DrawFolder(root)
    assert {path.name for path in root.iterdir()} <= {"images", "disc0.png", "disc1.png"} | {
        "disc2.png"
    }
    drawn = draw(folder, 1, LINE)
    config = DataConfig(root=root)
    assert choose_splits(config) == ("train", None)
    (sample,) = ScribbleFolder(config, "train")
    assert sample.name == "disc1"
    assert np.array_equal(sample.target, np.where(drawn == 255, 2, drawn))
    assert (root / "classes.txt").read_text() == "background\nobject\n"


def test_list_follows_the_scribbles(root: Path) -> None:
    folder = DrawFolder(root)
    for index in (2, 0):
        draw(folder, index, LINE)
    path = root / "splits" / "train.txt"
    assert path.read_text().splitlines() == [LIST_HEADER, "disc0", "disc2"]
    draw(folder, 2, Stroke(LINE.points, 5.0, 255))
    assert path.read_text().splitlines() == [LIST_HEADER, "disc0"]
    (root / "splits" / "val.txt").write_text("disc1\n")
    draw(DrawFolder(root), 1, LINE)
    assert "disc1" not in path.read_text()


def test_own_list_is_kept(root: Path) -> None:
    (root / "splits").mkdir()
    (root / "splits" / "train.txt").write_text("disc2\n")
    folder = DrawFolder(root)
    draw(folder, 0, LINE)
    assert (root / "splits" / "train.txt").read_text() == "disc2\n"
    assert not folder.list_is_ours


def test_scribbles_of_others_are_opened_and_kept(root: Path) -> None:
    (root / "classes.txt").write_text("sky\ntree\nroad\n")
    (root / "scribbles").mkdir()
    labels = np.full((120, 160), 255, np.uint8)
    labels[100:110, 20:90] = 2
    Image.fromarray(labels).save(root / "scribbles" / "disc0.png")
    folder = DrawFolder(root)
    assert folder.classes == ["sky", "tree", "road"] and folder.drawn == {"disc0"}
    after = draw(folder, 0, LINE)
    with Image.open(root / "scribbles" / "disc0.png") as image:
        assert image.mode == "P" and np.array_equal(np.asarray(image), after)
    assert (after[100:110, 20:90] == 2).all() and (after[10, 10:60] == 1).all()


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.zeros((10, 20), np.uint8), "is 20 x 10, but its image is 160 x 120"),
        (np.full((120, 160), 9, np.uint8), "holds the value 9; expected 0 to 1"),
        (np.zeros((120, 160, 4), np.uint8), "expected a label map of mode L or P, got mode RGBA"),
    ],
)
def test_wrong_scribble_file_is_named_and_never_replaced(
    root: Path, labels: np.ndarray, message: str
) -> None:
    (root / "scribbles").mkdir()
    path = root / "scribbles" / "disc0.png"
    Image.fromarray(labels).save(path)
    before = path.read_bytes()
    store = ScribbleStore(DrawFolder(root))
    with pytest.raises(UserError, match=message):
        store.apply(0, NO_FILE, [LINE])
    assert path.read_bytes() == before


def test_xml_scribbles_are_not_hidden_by_a_png(root: Path) -> None:
    (root / "scribbles").mkdir()
    (root / "scribbles" / "disc0.xml").write_text("<annotation/>")
    store = ScribbleStore(DrawFolder(root))
    with pytest.raises(UserError, match="convert it with `blpseg scribbles convert`"):
        store.load(0)


def test_edit_of_an_old_revision_is_refused(root: Path) -> None:
    folder = DrawFolder(root)
    first, second = ScribbleStore(folder), ScribbleStore(folder)
    revision = first.apply(0, NO_FILE, [LINE]).revision
    with pytest.raises(Conflict, match="disc0 were changed in another tab or by another program"):
        second.apply(0, NO_FILE, [Stroke([(5, 5)], 3.0, 0)])
    assert second.load(0).revision == revision


def test_full_disk_keeps_the_old_file(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = ScribbleStore(DrawFolder(root))
    revision = store.apply(0, NO_FILE, [LINE]).revision
    path = root / "scribbles" / "disc0.png"
    before = path.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left on device.*an older file of this name is"):
        store.apply(0, revision, [Stroke([(5, 5)], 3.0, 0)])
    assert path.read_bytes() == before and [*path.parent.iterdir()] == [path]
    monkeypatch.undo()
    assert store.apply(0, revision, [Stroke([(5, 5)], 3.0, 0)]).labels[5, 5] == 0


@pytest.mark.parametrize("link", ["scribbles", "classes.txt", "splits", "scribbles/disc0.png"])
def test_nothing_is_written_through_links(root: Path, tmp_path: Path, link: str) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "classes.txt").write_text("background\nobject\n")
    target = outside / "classes.txt" if link == "classes.txt" else outside
    if link.endswith(".png"):
        target = outside / "victim.png"
        Image.fromarray(np.full((120, 160), 255, np.uint8)).save(target)
        (root / "scribbles").mkdir()
    (root / link).symlink_to(target)
    before = {path: path.read_bytes() for path in outside.iterdir()}
    with pytest.raises(UserError, match="is a link; blpseg draw writes into .* only"):
        draw(DrawFolder(root), 0, LINE)
    assert {path: path.read_bytes() for path in outside.iterdir()} == before


def test_link_in_place_of_the_temporary_file_is_not_followed(root: Path, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (root / "scribbles").mkdir()
    (root / "scribbles" / "disc0.png.part").symlink_to(victim)
    draw(DrawFolder(root), 0, LINE)
    assert victim.read_text() == "mine" and (root / "scribbles" / "disc0.png").is_file()


def test_folder_without_write_permission(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    with pytest.raises(UserError, match=r"fruit: cannot be written to \(Permission denied\)"):
        DrawFolder(root)


def test_folders_that_cannot_be_drawn_on(root: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nosuch: expected a folder of images, but there is none"):
        DrawFolder(tmp_path / "nosuch")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty: expected images"):
        DrawFolder(tmp_path / "empty")
    (root / "images" / "disc0.jpg").touch()
    with pytest.raises(UserError, match=r"disc0.jpg, disc0.png: the same name"):
        DrawFolder(root)


def test_classes_are_renamed_and_added(root: Path) -> None:
    folder = DrawFolder(root, ["ground", "apple"])
    first = folder.classes_revision
    folder.set_classes(["ground", "red  apple ", "pear"], first)
    assert (root / "classes.txt").read_text() == "ground\nred apple\npear\n"
    assert DrawFolder(root).classes == folder.classes == ["ground", "red apple", "pear"]
    with pytest.raises(Conflict, match="classes were changed in another tab"):
        folder.set_classes(["ground", "plum"], first)
    (root / "classes.txt").write_text("ground\nberry\npear\n")
    with pytest.raises(Conflict):
        folder.set_classes(["ground", "plum", "pear"], folder.classes_revision)
    assert folder.classes == ["ground", "berry", "pear"]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a", "a"], 'There is a class "a" already; names must differ'),
        (["a", " "], "A class needs a name"),
        (["a", "b\x00"], "at most 100 printable characters"),
        (["a"], "expected at least the 2 classes that there are, got 1"),
        ([str(i) for i in range(255)], "expected 2 to 254 names, got 255"),
    ],
)
def test_class_names_that_cannot_be_used(root: Path, names: list[str], message: str) -> None:
    folder = DrawFolder(root)
    with pytest.raises(UserError, match=message):
        folder.set_classes(names, folder.classes_revision)
    assert not (root / "classes.txt").exists() and folder.classes == ["background", "object"]


def test_class_files_that_cannot_be_used(root: Path) -> None:
    (root / "classes.txt").write_text("cat\ndog\ncat\n")
    with pytest.raises(UserError, match="class names must differ, but 'cat' comes more than once"):
        DrawFolder(root)
    (root / "classes.txt").write_text("cat\ndog\n")
    with pytest.raises(UserError, match=r"--classes: .* holds other classes \(cat, dog\)"):
        DrawFolder(root, ["a", "b"])
