"""`blpseg scribbles`: from arguments to files."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import binary_dilation

from blpseg.cli import main
from blpseg.config import DataConfig
from blpseg.data.folder import ScribbleFolder
from blpseg.data.formats.scribblesup import read_scribblesup
from blpseg.data.layouts.voc import VOC_CLASSES
from blpseg.data.shapes import draw_drawing
from blpseg.scribbles.inspection import inspect

FILES = Path(__file__).parents[1] / "data" / "scribbles"


def labels(path: Path) -> np.ndarray:
    return np.array(Image.open(path))


def error_of(capsys: pytest.CaptureFixture[str], *argv: object) -> str:
    capsys.readouterr()
    assert main(["scribbles", *map(str, argv)]) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("blpseg: error: ") and "Traceback" not in shown
    return shown.removeprefix("blpseg: error: ").strip()


def test_commands_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["scribbles"]) == 0
    shown = capsys.readouterr().out
    assert all(f"  {name} " in shown for name in ("convert", "simulate", "preview", "inspect"))
    assert error_of(capsys, "paint") == (
        "unknown command 'paint'; expected one of convert, simulate, preview, inspect"
    )
    for name in ("convert", "simulate", "preview", "inspect"):
        assert main(["scribbles", name, "--help"]) == 0
        assert f"usage: blpseg scribbles {name} " in capsys.readouterr().out


def test_convert(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    inputs = [str(FILES / name) for name in ("2007_000032.xml", "cvat.xml")]
    output = tmp_path / "maps"
    assert main(["scribbles", "convert", *inputs, "--classes=voc", f"--output={output}"]) == 0
    assert f"Label maps written to {output}: 3 (255" in capsys.readouterr().out
    assert sorted(p.name for p in output.iterdir()) == ["2007_000032.png", "garden.png", "shed.png"]
    drawing = read_scribblesup(FILES / "2007_000032.xml")
    assert Image.open(output / "2007_000032.png").mode == "P"
    assert np.array_equal(labels(output / "2007_000032.png"), draw_drawing(drawing, VOC_CLASSES))
    garden = labels(output / "garden.png")
    assert garden.shape == (30, 40) and garden[12, 30] == 0 and garden[4, 30] == 3
    assert garden[12, 13] == 3  # the bird's z_order is the higher one


def test_convert_options(tmp_path: Path) -> None:
    classes = tmp_path / "classes.txt"
    classes.write_text("background\nbird\ncat\n")
    argv = ["scribbles", "convert", str(FILES / "labelme.json"), "--classes", str(classes)]
    assert main([*argv, f"--output={tmp_path / 'a'}"]) == 0
    assert main([*argv, f"--output={tmp_path / 'b'}", "--width=3"]) == 0
    assert main([*argv, f"--output={tmp_path / 'c'}", "--width=3", "--shrink=0.5"]) == 0
    assert main([*argv, f"--output={tmp_path / 'd'}", "--drop=1"]) == 0
    a, b, c, d = (labels(tmp_path / folder / "garden.png") for folder in "abcd")
    assert set(np.unique(a)) == {0, 1, 2, 255} and (d == 255).all()
    assert (a == 0).sum() < (c == 0).sum() < (b == 0).sum()
    assert (a[10:17, 26:35] == 2).all()


def test_convert_overwrites_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["convert", FILES / "cvat.xml", "--classes=voc", f"--output={tmp_path}"]
    (tmp_path / "shed.png").write_text("precious")
    assert "shed.png: exists already" in error_of(capsys, *argv)
    assert (tmp_path / "shed.png").read_text() == "precious"
    assert not (tmp_path / "garden.png").exists()
    assert main(["scribbles", *map(str, argv), "--overwrite=true"]) == 0
    assert labels(tmp_path / "shed.png").shape == (10, 20)


def test_convert_writes_nothing_unless_all_can_be_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in").mkdir()
    text = (FILES / "2007_000032.xml").read_text()
    (tmp_path / "in/good.xml").write_text(text)
    (tmp_path / "in/number.xml").write_text(text.replace("<X>21</X>", "<X>far</X>"))
    (tmp_path / "in/tag.xml").write_text(text.replace("plane", "unicorn"))
    output = tmp_path / "out"
    argv = ["convert", tmp_path / "in", "--classes=voc", f"--output={output}"]
    message = error_of(capsys, *argv)
    assert message.startswith("2 problems in the inputs; nothing was written:")
    assert f"{tmp_path / 'in/number.xml'}:20: expected <X> to be a number" in message
    assert f"{tmp_path / 'in/tag.xml'}:13: 'unicorn' is no class" in message
    assert not output.exists()


def test_convert_refuses_what_is_not_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = [f"--output={tmp_path / 'out'}"]
    assert "expected a file or folder" in error_of(
        capsys, "convert", tmp_path / "no.xml", "--classes=voc", *where
    )
    assert "expected files .xml or .json or .png or .tif or " in error_of(
        capsys, "convert", tmp_path, "--classes=voc", *where
    )
    assert "expected a file with class names, one per line, or voc, context, coco" in error_of(
        capsys, "convert", FILES / "cvat.xml", "--classes=cats", *where
    )
    assert "garden: 2 drawings of this name" in error_of(
        capsys, "convert", FILES / "cvat.xml", FILES / "labelme.json", "--classes=voc", *where
    )
    assert "width: expected at least 1 pixel, got 0" in error_of(
        capsys, "convert", FILES / "cvat.xml", "--classes=voc", "--width=0", *where
    )
    assert "drop: expected 0 to 1, got 2" in error_of(
        capsys, "convert", FILES / "cvat.xml", "--classes=voc", "--drop=2", *where
    )


def test_simulate(shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["scribbles", "simulate", str(shapes / "masks"), "--width=1"]
    for name, options in {
        "a": [],
        "again": [],
        "seeded": ["--seed=1"],
        "shrunk": ["--shrink=0.6"],
        "dropped": ["--drop=1"],
    }.items():
        assert main([*argv, f"--output={tmp_path / name}", *options]) == 0
    assert f"Label maps written to {tmp_path / 'a'}: 7 (255" in capsys.readouterr().out
    maps = {
        name: np.stack([labels(tmp_path / name / f"shape{i}.png") for i in range(7)])
        for name in ("a", "again", "seeded", "shrunk", "dropped")
    }
    assert np.array_equal(maps["a"], maps["again"]) and (maps["a"] != maps["seeded"]).any()
    assert (maps["dropped"] == 255).all()
    drawn, shrunk = maps["a"] != 255, maps["shrunk"] != 255
    assert 0 < shrunk.sum() < 0.7 * drawn.sum()
    near = binary_dilation(drawn, np.ones((1, 3, 3)))  # ends may round to other pixels
    assert not (shrunk & ~near).any()
    (tmp_path / "one").mkdir()
    mask = (shapes / "masks/shape3.png").read_bytes()
    (tmp_path / "one/shape3.png").write_bytes(mask)
    assert main([*argv[:2], str(tmp_path / "one"), "--width=1", f"--output={tmp_path / 'x'}"]) == 0
    assert np.array_equal(labels(tmp_path / "x/shape3.png"), maps["a"][3])
    assert "shape0.png: exists already" in error_of(
        capsys, "simulate", shapes / "masks", f"--output={tmp_path / 'a'}"
    )


def test_simulate_refusals(
    shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = f"--output={tmp_path / 'out'}"
    assert "preference must be a finite number >= 0, got -1" in error_of(
        capsys, "simulate", shapes / "masks", output, "--preference=-1"
    )
    assert "shrink must lie in 0..1, got 2" in error_of(
        capsys, "simulate", shapes / "masks", output, "--shrink=2"
    )
    assert "seed: expected at least 0" in error_of(
        capsys, "simulate", shapes / "masks", output, "--seed=-1"
    )
    assert "void: expected 0 to 255" in error_of(
        capsys, "simulate", shapes / "masks", output, "--void=300"
    )
    assert "expected masks (.png), found none" in error_of(capsys, "simulate", tmp_path, output)
    assert "expected a folder" in error_of(capsys, "simulate", tmp_path / "no", output)
    Image.new("RGB", (5, 5), (1, 2, 3)).save(tmp_path / "color.png")
    assert "color.png: expected a label map of mode L or P" in error_of(
        capsys, "simulate", tmp_path, output
    )
    Image.new("L", (5, 5), 255).save(tmp_path / "color.png")
    assert "color.png: mask must hold 0..254 or 0, got 255..255" in error_of(
        capsys, "simulate", tmp_path, f"--output={tmp_path / 'more'}", "--void=0"
    )


def test_preview(shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "pictures"
    argv = ["scribbles", "preview", f"--data.root={shapes}", f"--output={output}", "--count=2"]
    assert main([*argv, "--split=train"]) == 0
    assert f"Pictures written to {output}: 2." in capsys.readouterr().out
    assert sorted(path.name for path in output.iterdir()) == ["shape0.png", "shape1.png"]
    picture, scribbles = labels(output / "shape0.png"), labels(shapes / "scribbles/shape0.png")
    assert (picture[scribbles == 1] == (128, 0, 0)).all()
    assert (picture[scribbles == 2] == (0, 128, 0)).all()
    assert "shape0.png: exists already" in error_of(capsys, *argv[1:])
    assert "count: expected at least 1" in error_of(capsys, *argv[1:-1], "--count=0")


def test_inspect_writes_figures_and_plots(
    shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "report"
    argv = ["scribbles", "inspect", f"--data.root={shapes}", f"--output={output}"]
    assert main(argv) == 0
    shown = capsys.readouterr().out
    assert f"{shapes}, train: 5 images" in shown and "sizes: 64 x 48 (5)" in shown
    assert "0 problems" in shown and "against the masks of 5 images:" in shown
    written = json.loads((output / "inspection.json").read_text())
    scribbles = np.stack([labels(shapes / f"scribbles/shape{i}.png") for i in range(5)])
    assert written["class_pixels"] == [int((scribbles == label).sum()) for label in range(3)]
    assert written["class_images"] == [5, 5, 5] and written["never_scribbled"] == []
    assert math.isclose(np.mean(written["labeled_shares"]), (scribbles != 255).mean())
    assert written["statistics"]["contradicting_share"] == 0
    for name in ("classes.png", "preference.png", "scribbles.png"):
        assert min(Image.open(output / name).size) > 200
    assert "inspection.json: exists already" in error_of(capsys, *argv[1:])
    assert main([*argv, "--overwrite=true"]) == 0


def test_inspect_lists_every_problem_and_measures_the_rest(
    own_shapes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (own_shapes / "images/shape0.png").write_bytes(b"no picture")
    Image.new("L", (60, 48), 255).save(own_shapes / "scribbles/shape1.png")
    Image.new("L", (64, 48), 9).save(own_shapes / "masks/shape1.png")
    assert main(["scribbles", "inspect", f"--data.root={own_shapes}"]) == 1
    shown = capsys.readouterr().out
    assert "3 problems:" in shown and "sizes: 64 x 48 (1)" in shown
    assert "images/shape0.png: cannot be read" in shown
    assert "scribbles/shape1.png: is 60 x 48, but its image is 64 x 48" in shown
    assert "masks/shape1.png: holds the value 9; expected" in shown
    for path in own_shapes.glob("images/*"):
        path.write_bytes(b"no picture")
    assert main(["scribbles", "inspect", f"--data.root={own_shapes}"]) == 1
    assert "warning" not in capsys.readouterr().out


def test_inspect_warns(own_shapes: Path, tmp_path: Path) -> None:
    Image.new("L", (64, 48), 255).save(own_shapes / "scribbles/shape0.png")
    for i in (1, 2):
        path = own_shapes / f"scribbles/shape{i}.png"
        drawn = labels(path)
        drawn[drawn == 2] = 1  # which contradicts the masks
        Image.fromarray(drawn).save(path)
    found = inspect(DataConfig(own_shapes), quiet=True)
    text = "\n".join(found.warnings())
    assert found.without_scribbles == ["shape0"] and found.never_scribbled == ["square"]
    assert "1 image without a scribble, which teaches nothing: shape0" in text
    assert "classes never scribbled: square" in text
    assert "of the scribbled pixels contradict the masks" in text
    assert found.dark == 0 and not found.notes() and found.measured == 3
    assert inspect(DataConfig(own_shapes), measure=0, quiet=True).statistics is None
    assert inspect(DataConfig(own_shapes), measure=2, quiet=True).measured == 2


def test_inspect_explains_black_maps_and_unlabeled_zeros(own_shapes: Path) -> None:
    for path in own_shapes.glob("scribbles/*"):
        drawn = labels(path)
        Image.fromarray(np.where(drawn == 255, 0, drawn).astype(np.uint8)).save(path)
    found = inspect(DataConfig(own_shapes), quiet=True)
    assert found.dark == 3
    assert found.notes()[0].startswith(
        "3 label maps look black in a viewer, since their pixels hold"
    )
    (warning,) = (text for text in found.warnings() if "data.unlabeled_value" in text)
    assert warning.startswith("100% of the pixels are labeled, most of them background")


def test_inspect_without_masks(own_shapes: Path, tmp_path: Path) -> None:
    for path in own_shapes.glob("masks/*"):
        path.unlink()
    (own_shapes / "masks").rmdir()
    found = inspect(DataConfig(own_shapes), output=tmp_path / "out", quiet=True)
    assert found.statistics is None and found.preference() == {} and found.measured == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "classes.png",
        "inspection.json",
        "scribbles.png",
    ]


def test_simulated_scribbles_can_be_trained_on(shapes: Path, own_shapes: Path) -> None:
    for path in own_shapes.glob("scribbles/*"):
        path.unlink()
    argv = ["simulate", str(own_shapes / "masks"), f"--output={own_shapes / 'scribbles'}"]
    assert main(["scribbles", *argv]) == 0
    samples = ScribbleFolder(DataConfig(own_shapes))
    assert all((sample.target < 3).any() for sample in (samples[i] for i in range(3)))
