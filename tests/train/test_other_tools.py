"""What other tools paint arrives in the label map, pixel for pixel; broken files are named.

The files in tests/data/scribbles hold the painting of `painted()`. The tools' own packages wrote
them: labelme_masks.json labelme 6.3.1 (`write_label_file`, `img_arr_to_b64`); cvat_masks.xml
Datumaro 1.13.12's exporter "cvat", with the bird and the cat as cvat-sdk 2.80.0's `encode_mask`
gives them; the RLEs of label_studio.json label-studio-converter 0.0.59 (`brush.mask2rle`; the tasks
around them follow Label Studio's export "JSON"); coco.json pycocotools 2.0.11 (two compressed RLEs;
the plain one was checked with it); napari.tif napari 0.9.2 (`napari_write_labels`). ilastik has no
package: the tests write its layout with h5py, tifffile and zarr, which it uses itself.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from blpseg.cli import main
from blpseg.data.formats import label_image
from blpseg.data.formats.brush_rle import decode_brush, encode_brush
from blpseg.data.formats.run_lengths import decode_runs, unpack_counts
from blpseg.data.labels import numbered_classes
from blpseg.errors import UserError

FILES = Path(__file__).parents[1] / "data" / "scribbles"
CLASSES = ["background", "bird", "cat"]
HEIGHT, WIDTH = 30, 40


def painted() -> np.ndarray:
    """A stroke of each class, the cat's over the bird's: [H, W] uint8, 255 where nothing is."""
    labels = np.full((HEIGHT, WIDTH), 255, np.uint8)
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    labels[24:27, 2:38] = 0
    labels[(y - 8) ** 2 + (x - 15) ** 2 < 20] = 1
    labels[abs(y - x + 12) < 2] = 2
    return labels


def from_one() -> np.ndarray:
    """The painting as ilastik and napari number it."""
    return np.where(painted() == 255, 0, painted() + 1).astype(np.uint8)


@pytest.fixture
def convert(tmp_path: Path) -> Callable[..., Path]:
    """Return a caller of `blpseg scribbles convert` that returns the folder of label maps."""
    (tmp_path / "classes.txt").write_text("\n".join(CLASSES))

    def call(*inputs: Path, options: tuple[str, ...] = (), fails: bool = False) -> Path:
        output = tmp_path / "maps"
        shutil.rmtree(output, ignore_errors=True)
        argv = ["scribbles", "convert", *map(str, inputs), f"--output={output}", *options]
        assert main([*argv, f"--classes={tmp_path / 'classes.txt'}"]) == (2 if fails else 0)
        return output

    return call


@pytest.fixture
def error_of(
    convert: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    """Return a caller of the command that returns its message, without the problem's file."""

    def call(path: Path, *options: str) -> str:
        assert not convert(path, options=options, fails=True).exists()
        text = capsys.readouterr().err.split("nothing was written:\n")[-1].strip()
        assert text.startswith(str(path)) and "Traceback" not in text
        return text.removeprefix(str(path))

    return call


def labels_of(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def write_hdf5(path: Path, numbers: np.ndarray, axes: str = "yxc") -> Path:
    """Write ilastik's export: dataset exported_data, vigra's axistags."""
    h5py = pytest.importorskip("h5py")
    with h5py.File(path, "w") as file:
        data = file.create_dataset("exported_data", data=numbers, chunks=True, compression="gzip")
        tags = [
            {"key": key, "typeFlags": 1 if key == "c" else 2, "resolution": 0, "description": ""}
            for key in axes
        ]
        data.attrs["axistags"] = json.dumps({"axes": tags})
        data.attrs["drange"] = (0, 3)
    return path


@pytest.mark.parametrize(
    ("file", "names"),
    [
        ("cvat_masks.xml", ["garden"]),
        ("labelme_masks.json", ["garden"]),
        ("label_studio.json", ["garden", "shed"]),
        ("coco.json", ["garden", "shed"]),
    ],
)
def test_painted_pixels_arrive(convert: Callable[..., Path], file: str, names: list[str]) -> None:
    output = convert(FILES / file)
    assert sorted(path.stem for path in output.iterdir()) == names
    assert np.array_equal(labels_of(output / "garden.png"), painted())


@pytest.mark.parametrize("file", ["label_studio.json", "coco.json"])
def test_polygons_beside_masks(convert: Callable[..., Path], file: str) -> None:
    """The triangle (2, 2), (9, 2), (9, 7), in pixels or in percent of 20 x 10."""
    shed = labels_of(convert(FILES / file) / "shed.png")
    assert shed.shape == (10, 20) and shed[3, 7] == 1 and shed[6, 3] == 255
    assert set(np.unique(shed)) == {1, 255} and 15 < (shed == 1).sum() < 35


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("napari.tif", lambda path: shutil.copy(FILES / "napari.tif", path)),
        ("garden_Labels.tif", lambda path: tifffile.imwrite(path, from_one())),
        ("garden.ome.tif", lambda path: tifffile.imwrite(path, from_one()[None], ome=True)),
        ("garden.png", lambda path: Image.fromarray(from_one()).save(path)),
        ("garden_Labels.h5", lambda path: write_hdf5(path, from_one()[..., None])),
        ("garden.h5", lambda path: write_hdf5(path, from_one()[None, ..., None], "tyxc")),
        ("garden.hdf5", lambda path: write_hdf5(path, from_one().T[..., None], "xyc")),
    ],
)
def test_label_images_from_one(
    convert: Callable[..., Path], tmp_path: Path, name: str, write: Callable[[Path], object]
) -> None:
    write(tmp_path / name)
    output = convert(tmp_path / name, options=("--values=from-one",))
    expected = output / ("napari.png" if name == "napari.tif" else "garden.png")
    assert np.array_equal(labels_of(expected), painted())


@pytest.mark.parametrize("kind", ["array", "group", "ome-0.4", "ome-0.5"])
def test_zarr(convert: Callable[..., Path], tmp_path: Path, kind: str) -> None:
    """Of OME-Zarr's scales, the first listed is the full resolution."""
    zarr = pytest.importorskip("zarr")
    path = tmp_path / "garden.zarr"
    if kind == "array":
        zarr.save_array(str(path), from_one())
    else:
        group = zarr.open_group(str(path), mode="w")
        group["labels/s0" if kind == "group" else "s0"] = from_one()[None]
        if kind != "group":
            group["s1"] = from_one()[None, ::2, ::2]
            scales = {"multiscales": [{"datasets": [{"path": "s0"}, {"path": "s1"}]}]}
            group.attrs.update(scales if kind == "ome-0.4" else {"ome": scales})
    output = convert(path, options=("--values=from-one",))
    assert np.array_equal(labels_of(output / "garden.png"), painted())


def test_from_zero_is_the_default(convert: Callable[..., Path], tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "garden.tif", painted())
    assert np.array_equal(labels_of(convert(tmp_path / "garden.tif") / "garden.png"), painted())


def test_dataset_chooses(convert: Callable[..., Path], tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "garden.h5", "w") as file:
        file["strokes/anna"], file["strokes/ben"] = painted(), np.zeros_like(painted())
    output = convert(tmp_path / "garden.h5", options=("--dataset=/strokes/anna",))
    assert np.array_equal(labels_of(output / "garden.png"), painted())


def test_folders_of_json_may_hold_the_images(convert: Callable[..., Path], tmp_path: Path) -> None:
    """LabelMe writes its files beside the images, which are no label images."""
    (tmp_path / "both").mkdir()
    shutil.copy(FILES / "labelme_masks.json", tmp_path / "both/garden.json")
    Image.new("RGB", (WIDTH, HEIGHT), (9, 99, 199)).save(tmp_path / "both/garden.png")
    assert [path.name for path in convert(tmp_path / "both").iterdir()] == ["garden.png"]
    (tmp_path / "both/garden.json").unlink()
    Image.fromarray(painted()).save(tmp_path / "both/garden.png")
    assert [path.name for path in convert(tmp_path / "both").iterdir()] == ["garden.png"]


def test_images_are_compared(
    convert: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The images may have any number of channels."""
    (tmp_path / "images").mkdir()
    options = (f"--images={tmp_path / 'images'}",)
    convert(FILES / "coco.json", options=options, fails=True)
    assert f"garden: no image of this name in {tmp_path / 'images'}" in capsys.readouterr().err
    tifffile.imwrite(tmp_path / "images/garden.tif", np.zeros((5, HEIGHT, WIDTH), np.uint16))
    Image.new("L", (10, 20)).save(tmp_path / "images/shed.png")
    convert(FILES / "coco.json", options=options, fails=True)
    message = capsys.readouterr().err
    assert "shed: is drawn on 20 x 10 pixels, but " in message
    assert "images/shed.png is 10 x 20" in message and "garden" not in message
    Image.new("L", (20, 10)).save(tmp_path / "images/shed.png")
    assert len(list(convert(FILES / "coco.json", options=options).iterdir())) == 2
    convert(FILES / "coco.json", options=("--images=nowhere",), fails=True)
    assert "nowhere: expected a folder of images" in capsys.readouterr().err


def test_a_mask_is_cut_by_drop_like_any_shape(convert: Callable[..., Path]) -> None:
    output = convert(FILES / "labelme_masks.json", options=("--drop=1",))
    assert (labels_of(output / "garden.png") == 255).all()


def _edit(document: Any, place: tuple[Any, ...], value: Any) -> Any:
    inner = document
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    return document


TASK, ANNOTATION = (0, "annotations", 0, "result", 1), ("annotations", 1)


@pytest.mark.parametrize(
    ("file", "place", "value", "message"),
    [
        (
            "label_studio.json",
            (*TASK, "value", "rle"),
            [0, 0, 18],
            ": task 0, result 1: expected L",
        ),
        ("label_studio.json", (*TASK, "value", "rle"), "abc", "expected rle to be a list, got str"),
        ("label_studio.json", (*TASK, "value", "rle"), [-1, 7, "x"], "RLE as a list of bytes, but"),
        (
            "label_studio.json",
            (*TASK, "value", "rle"),
            [255] * 99,
            "expected an RLE of 40 x 30 pixel",
        ),
        (
            "label_studio.json",
            (*TASK, "value", "format"),
            "png",
            "expected format 'rle', got 'png'",
        ),
        (
            "label_studio.json",
            (*TASK, "type"),
            "rectanglelabels",
            "expected a result of type brushl",
        ),
        (
            "label_studio.json",
            (*TASK, "value", "brushlabels"),
            ["dog"],
            "'dog' is no class; expected",
        ),
        (
            "label_studio.json",
            (*TASK, "value", "brushlabels"),
            [],
            "expected one label in brushlabels",
        ),
        (
            "label_studio.json",
            (*TASK, "original_width"),
            None,
            ": task 0: expected original_width to",
        ),
        (
            "label_studio.json",
            (*TASK, "original_width"),
            41,
            "for one image size, got 40 x 30, 41 x 30",
        ),
        (
            "label_studio.json",
            (0, "data"),
            {"text": "hi"},
            ": task 0: expected the address of an image",
        ),
        (
            "label_studio.json",
            (0,),
            {"image": "/x.png", "tag": []},
            ": task 0: expected annotations to",
        ),
        (
            "coco.json",
            (*ANNOTATION, "segmentation"),
            [],
            ": annotation 1: expected segmentation to be",
        ),
        (
            "coco.json",
            (*ANNOTATION, "segmentation"),
            [[1, 2, 3, 4, 5]],
            "expected a polygon as [x, y",
        ),
        (
            "coco.json",
            (*ANNOTATION, "segmentation", "size"),
            [40, 30],
            "an RLE of size [30, 40], as its",
        ),
        ("coco.json", (*ANNOTATION, "segmentation", "counts"), [9, 9], "= 1200 pixels, got 18"),
        (
            "coco.json",
            (*ANNOTATION, "segmentation", "counts"),
            [9, -9],
            "run lengths >= 0 in the RLE, g",
        ),
        (
            "coco.json",
            (*ANNOTATION, "segmentation", "counts"),
            "d2~k",
            "compressed RLE, got '~' in it",
        ),
        (
            "coco.json",
            (*ANNOTATION, "segmentation", "counts"),
            "d2P",
            "but it ends within a number",
        ),
        (
            "coco.json",
            (*ANNOTATION, "category_id"),
            99,
            "there is no category of the category_id 99",
        ),
        ("coco.json", (*ANNOTATION, "image_id"), 99, "there is no image of the image_id 99"),
        (
            "coco.json",
            ("images", 0, "width"),
            None,
            ": image 0: expected width to be a number, got not",
        ),
        (
            "labelme_masks.json",
            ("shapes", 0, "mask"),
            "iVBORw0KGgo=",
            "expected mask to be a PNG in b",
        ),
        ("labelme_masks.json", ("shapes", 0, "mask"), "%%%", "expected mask to be a PNG in base64"),
        (
            "labelme_masks.json",
            ("shapes", 0, "mask"),
            None,
            "expected mask to be text, got nothing",
        ),
        (
            "labelme_masks.json",
            ("shapes", 0, "points"),
            [[9, 24], [44, 26]],
            "expected a mask inside ",
        ),
        (
            "labelme_masks.json",
            ("imageHeight",),
            None,
            "expected imageHeight to be a number, got nothi",
        ),
    ],
)
def test_broken_json_is_named(
    tmp_path: Path,
    error_of: Callable[..., str],
    file: str,
    place: tuple[Any, ...],
    value: Any,
    message: str,
) -> None:
    path = tmp_path / file
    path.write_text(json.dumps(_edit(json.loads((FILES / file).read_text()), place, value)))
    assert message in error_of(path)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("3, 1, 6, 4", "3, 1, 6, 5", ":37: expected an RLE of 9 x 9 = 81 pixels, got 82"),
        ("3, 1, 6, 4", "3, -1, 6, 4", ":37: expected run lengths >= 0 in the RLE, got -1"),
        ("3, 1, 6, 4", "3, x, 6, 4", ":37: expected rle as n, n, ..., got '3, x, 6, 4"),
        (
            'left="11" top="4"',
            'left="32" top="4"',
            ":37: expected a mask inside the image of 40 x 30",
        ),
        (
            'left="11" top="4"',
            'left="1.5" top="4"',
            ":37: expected a mask inside the image of 40 x 3",
        ),
        ('left="11" top="4"', 'top="4"', ":37: expected the attribute left in <mask>"),
        (
            ' width="40" height="30">\n    <mask',
            ">\n    <mask",
            ":34: expected the attribute width",
        ),
    ],
)
def test_broken_cvat_masks_are_named(
    tmp_path: Path, error_of: Callable[..., str], old: str, new: str, message: str
) -> None:
    text = (FILES / "cvat_masks.xml").read_text()
    assert old in text
    path = tmp_path / "cvat_masks.xml"
    path.write_text(text.replace(old, new, 1))
    assert error_of(path).startswith(message)


@pytest.mark.parametrize(
    ("numbers", "options", "message"),
    [
        (
            from_one() * 2,
            ("--values=from-one",),
            ": holds the value 4, 6; expected 1 to 3 (3 classes)",
        ),
        (
            from_one(),
            (),
            ": holds the value 3; expected 0 to 2 (3 classes) or 255 (unlabeled); --values",
        ),
        (from_one().astype(np.int32) - 1, (), ": expected labels of 0 to 65535, got -1 to 2"),
        (from_one().astype(np.float32), (), ": expected whole numbers as labels, got float32"),
        (
            np.stack([from_one()] * 4),
            (),
            ": expected one plane of labels, rows and columns, got shape (4",
        ),
    ],
)
def test_other_label_images_are_refused(
    tmp_path: Path,
    error_of: Callable[..., str],
    numbers: np.ndarray,
    options: tuple[str, ...],
    message: str,
) -> None:
    tifffile.imwrite(tmp_path / "garden.tif", numbers, photometric="minisblack")
    assert error_of(tmp_path / "garden.tif", *options).startswith(message)
    assert error_of(
        write_hdf5(tmp_path / "garden.h5", numbers, "zyx"[-numbers.ndim :]), *options
    ).startswith(message)


def test_several_arrays_and_none_chosen(tmp_path: Path, error_of: Callable[..., str]) -> None:
    h5py, zarr = pytest.importorskip("h5py"), pytest.importorskip("zarr")
    with h5py.File(tmp_path / "garden.h5", "w") as file:
        file["anna"] = file["more/ben"] = painted()
    group = zarr.open_group(str(tmp_path / "garden.zarr"), mode="w")
    group["anna"] = group["more/ben"] = painted()
    for name in ("garden.h5", "garden.zarr"):
        assert error_of(tmp_path / name) == (
            ": expected one array, but the file holds anna, more/ben; --dataset=NAME chooses one"
        )
        assert error_of(tmp_path / name, "--dataset=eve") == (
            ": expected an array 'eve', but the file holds anna, more/ben"
        )


@pytest.mark.parametrize("name", ["garden.tif", "garden.h5", "garden.png"])
def test_other_content_is_refused(tmp_path: Path, error_of: Callable[..., str], name: str) -> None:
    (tmp_path / name).write_bytes(b"no picture")
    assert error_of(tmp_path / name).startswith(": cannot be read (")


def test_empty_zarr_is_refused(tmp_path: Path, error_of: Callable[..., str]) -> None:
    pytest.importorskip("zarr")
    (tmp_path / "garden.zarr").mkdir()
    assert error_of(tmp_path / "garden.zarr").startswith(": cannot be read (")


@pytest.mark.parametrize(("name", "package"), [("garden.h5", "h5py"), ("garden.zarr", "zarr")])
def test_missing_packages_are_named(
    tmp_path: Path,
    error_of: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    package: str,
) -> None:
    def missing(name: str) -> None:
        raise ModuleNotFoundError(f"No module named {name!r}")

    monkeypatch.setattr(label_image, "import_module", missing)
    (tmp_path / name).mkdir() if package == "zarr" else (tmp_path / name).touch()
    assert error_of(tmp_path / name).startswith(
        f": reading it needs {package}; pip install 'blpseg[formats]'"
    )


@pytest.mark.parametrize("seed", range(4))
def test_run_lengths_round_trip(seed: int) -> None:
    """Random masks through encoders written here, of runs of every length."""
    rng = np.random.default_rng(seed)
    height, width = rng.integers(1, 400, 2).tolist()
    mask = np.repeat(rng.random(height * width) < 0.5, rng.integers(1, 2000, height * width))
    mask = mask[: height * width].reshape(height, width)
    assert np.array_equal(decode_brush(encode_brush(mask), width, height, "here"), mask)
    flat = mask.T.ravel()
    edges = np.flatnonzero(np.diff(np.r_[False, flat]))
    counts = np.diff(np.r_[0, edges, flat.size]).tolist()
    assert np.array_equal(decode_runs(counts, width, height, "here", by_columns=True), mask)
    assert unpack_counts(pack_counts(counts), "here") == counts


def pack_counts(counts: list[int]) -> str:
    """Pack run lengths as COCO's `rleToString` does."""
    text = ""
    for index, count in enumerate(counts):
        value = count - counts[index - 2] if index > 2 else count
        while True:
            code, value = value & 0x1F, value >> 5
            last = value == (-1 if code & 0x10 else 0)
            text += chr(48 + code + (0 if last else 0x20))
            if last:
                break
    return text


def test_brush_streams_of_single_words() -> None:
    """Encoders may also write runs of words that differ; here 8 words, then one repeated."""
    bits = f"{16:032b}{7:05b}" + f"{2:04b}" * 4
    bits += "0" + "00" + f"{7:03b}" + "".join(f"{v:08b}" for v in (1, 2, 3, 255, 9, 9, 9, 127))
    bits += "1" + "01" + f"{7:03b}" + f"{200:08b}"
    data = np.packbits(np.array(list(bits), np.uint8)).tolist()
    assert decode_brush(data, 2, 2, "here").tolist() == [[True, False], [True, True]]


def test_presets_fit_254_classes() -> None:
    names = [f"class {number}" for number in range(254)]
    meaning = label_image.LabelImages(names, "from-one").meaning
    assert meaning == numbered_classes(254, 1, 0, "unlabeled", 255)
    with pytest.raises(UserError, match="values: expected from-zero or from-one, got 'as-is'"):
        label_image.LabelImages(CLASSES, "as-is")


def _commands(page: str) -> list[str]:
    """Return the page's indented commands, lines that end in a backslash joined."""
    code = "\n".join(re.findall(r"^    (\S.*|    \S.*)$", page, re.MULTILINE))
    return code.replace("\\\n", " ").splitlines()


def test_the_page_leads_from_exports_to_a_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Run docs/from_other_tools.md as it stands; only the training is smaller."""
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parents[2] / "docs/from_other_tools.md").read_text()
    (tmp_path / "mydata/images").mkdir(parents=True)
    names = re.search(r"^```\n(.*?)```", page, re.MULTILINE | re.DOTALL)[1]
    assert names.split() == CLASSES
    Path("mydata/classes.txt").write_text(names)
    rng = np.random.default_rng(0)
    for name, size in {"garden": (HEIGHT, WIDTH), "shed": (10, 20), "roof": (9, 9)}.items():
        pixels = rng.integers(0, 256, (*size, 3), np.uint8)
        Image.fromarray(pixels).save(f"mydata/images/{name}.jpg")
    for folder in ("ilastik", "napari"):
        Path(folder).mkdir()
    write_hdf5(Path("ilastik/garden_Labels.h5"), from_one()[..., None])
    shutil.copy(FILES / "napari.tif", "napari/garden.tif")
    shutil.copy(FILES / "cvat_masks.xml", "annotations.xml")
    shutil.copy(FILES / "label_studio.json", ".")
    small = ["--model.backbone=test_resnet", "--model.pretrained=false", "--model.width=16"]
    small += ["--augment.crop=32", "--optim.iterations=1", "--optim.batch_size=2", "--device=cpu"]
    small += ["--data.workers=0"]
    ran = []
    for command in _commands(page):
        words = shlex.split(command)
        if words[0] != "blpseg":
            subprocess.run(command, shell=True, check=True)
            continue
        if words[1:3] == ["scribbles", "convert"]:
            shutil.rmtree("mydata/scribbles", ignore_errors=True)
        argv = [*words[1:], *(small if words[1] == "train" else [])]
        assert main(argv) == 0, capsys.readouterr().err
        ran.append(words[1] if words[1] != "scribbles" else words[2])
        if ran[-1] == "convert":
            assert np.array_equal(labels_of(Path("mydata/scribbles/garden.png")), painted())
    assert ran == ["convert"] * 4 + ["inspect", "train", "predict"]
    assert Path("runs/mydata/last.pt").exists() and any(Path("predictions").rglob("roof*"))
