"""Data sets in the folders that people have them in."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, get_args

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat

from blpseg.config import DataConfig, LayoutName, OptimConfig, TrainConfig
from blpseg.data.folder import ScribbleFolder, choose_evaluation_split, choose_splits
from blpseg.data.layouts import LAYOUTS
from blpseg.data.layouts.context import CONTEXT_CLASSES
from blpseg.errors import UserError
from blpseg.training import train

TRAIN, VAL = [f"shape{i}" for i in range(5)], ["shape5", "shape6"]
LABEL_IDS = np.array([7, 8, 11])  # of Cityscapes' first three classes
IDS_459 = {name: 3 * i + 2 for i, name in enumerate(CONTEXT_CLASSES[1:])}


class DataSet(NamedTuple):
    """Describe a data set of shapes in one layout."""

    config: DataConfig
    classes: int
    scribbles: str  # folder of the scribbles, from the root


def write(path: Path, labels: np.ndarray, *, rgb: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(labels.astype(np.uint8))
    (Image.merge("RGB", [image] * 3) if rgb else image).save(path)


def labels_of(shapes: Path, kind: str, name: str) -> np.ndarray:
    return np.array(Image.open(shapes / kind / f"{name}.png")).astype(int)


def copy_photo(shapes: Path, name: str, to: Path) -> None:
    to.parent.mkdir(parents=True, exist_ok=True)
    Image.open(shapes / "images" / f"{name}.png").save(to, quality=95)


def write_lists(folder: Path, **lists: list[str]) -> None:
    folder.mkdir(parents=True)
    for name, content in lists.items():
        (folder / f"{name}.txt").write_text("\n".join(content) + "\n")


def xml_of(labels: np.ndarray, tags: list[str]) -> str:
    """Return the shapes' scribbles, rows of pixels, as ScribbleSup's XML."""
    height, width = labels.shape
    lines = [f"<annotation><size><width>{width}</width><height>{height}</height></size>"]
    for label, tag in enumerate(tags):
        rows, columns = np.nonzero(labels == label)
        points = "".join(
            f"<point><X>{x}</X><Y>{y}</Y></point>"
            for x, y in zip(columns[[0, -1]], rows[[0, -1]], strict=True)
        )
        lines.append(f"<polygon><tag>{tag}</tag>{points}</polygon>")
    return "\n".join([*lines, "</annotation>"])


def write_voc(shapes: Path, top: Path, scribbles: str = "xml") -> DataSet:
    root = top / "VOCdevkit/VOC2012"
    write_lists(root / "ImageSets/Segmentation", train=TRAIN[:2], trainaug=TRAIN, val=VAL)
    for name in TRAIN + VAL:
        copy_photo(shapes, name, root / f"JPEGImages/{name}.jpg")
        write(root / f"SegmentationClassAug/{name}.png", labels_of(shapes, "masks", name))
    for name in TRAIN[:2] + VAL:
        mask = labels_of(shapes, "masks", name)
        mask[0] = 255
        write(root / f"SegmentationClass/{name}.png", mask)
    folder = "../scribble_annotation/pascal_2012" + ("" if scribbles == "xml" else "_label")
    (root / folder).mkdir(parents=True)
    for name in TRAIN:
        labels = labels_of(shapes, "scribbles", name)
        if scribbles == "xml":
            text = xml_of(labels, ["background", "plane", "bike"])
            (root / folder / f"{name}.xml").write_text(text)
        else:
            write(root / folder / f"{name}.png", labels)
    return DataSet(DataConfig(root, "voc", workers=0), 21, folder)


def write_s4pascal(shapes: Path, top: Path) -> DataSet:
    found = write_voc(shapes, top)
    root, folder = found.config.root, "../s4Pascal/scribble/VOCScribble_aug_auto"
    for name in TRAIN:
        write(root / folder / f"{name}.png", labels_of(shapes, "scribbles", name), rgb=True)
    return DataSet(DataConfig(root, "s4pascal", workers=0), 21, folder)


def write_context(shapes: Path, top: Path) -> DataSet:
    root, folder = top / "VOCdevkit/Context", "../scribble_annotation/pascal_context_label"
    write_lists(root / "ImageSets/Segmentation", train=TRAIN, val=VAL)
    classes = root / "SegmentationClass"
    classes.mkdir()
    for name in TRAIN + VAL:
        copy_photo(shapes, name, root / f"JPEGImages/{name}.jpg")
        numbers = np.array([0, IDS_459["aeroplane"], IDS_459["bicycle"]])
        mask = numbers[labels_of(shapes, "masks", name)]
        mask[1, 1] = 4  # one of the other labels
        savemat(classes / f"{name}.mat", {"LabelMap": mask.astype(np.uint16)}, do_compression=True)
    for name in TRAIN:
        write(root / folder / f"{name}.png", labels_of(shapes, "scribbles", name))
    write_context_lists(classes)
    return DataSet(DataConfig(root, "context", workers=0), 60, folder)


def write_context_lists(folder: Path) -> None:
    """The two lists in their spelling, which differs in three names."""
    spelt = {"table": "diningtable", "bedclothes": "bedcloth", "cloth": "clothes"}
    rows = [f"{number}: {name}" for name, number in IDS_459.items()]
    (folder / "labels.txt").write_text("\n".join([*rows, "4: accordion", "178: zebra"]) + "\n")
    rows = [f"{i}: {spelt.get(name, name)}" for i, name in enumerate(CONTEXT_CLASSES) if i]
    (folder / "59_labels.txt").write_text("\n".join(rows) + "\n")


def write_s4cityscapes(shapes: Path, top: Path) -> DataSet:
    root, folder = top / "cityscapes", "scribbles/gtFine"
    for part, names in {"train": TRAIN, "val": VAL}.items():
        for name in names:
            copy_photo(shapes, name, root / f"leftImg8bit/{part}/ulm/{name}_leftImg8bit.png")
            mask = LABEL_IDS[labels_of(shapes, "masks", name)]
            mask[0, :2] = 4, 255  # static, and a license plate's -1
            write(root / f"gtFine/{part}/ulm/{name}_gtFine_labelIds.png", mask)
    for name in TRAIN:
        labels = labels_of(shapes, "scribbles", name)
        labels = np.where(labels == 255, 0, LABEL_IDS[labels % 255])
        labels[0, 0] = 4
        write(root / folder / f"train/ulm/{name}_gtFine_labelIds.png", labels, rgb=True)
    return DataSet(DataConfig(root, "s4cityscapes", workers=0), 19, folder)


def write_s4ade20k(shapes: Path, top: Path) -> DataSet:
    root, folder = top / "ADEChallengeData2016", "scribbles"
    for part, names in {"training": TRAIN, "validation": VAL}.items():
        for name in names:
            copy_photo(shapes, name, root / f"images/{part}/{name}.jpg")
            mask = labels_of(shapes, "masks", name) + 1
            mask[0, 0] = 0
            write(root / f"annotations/{part}/{name}.png", mask)
    for name in TRAIN:
        labels = labels_of(shapes, "scribbles", name)
        labels = np.where(labels == 255, 0, labels + 1)
        write(root / folder / f"training/{name}.png", labels, rgb=True)
    rows = ["Idx\tRatio\tTrain\tVal\tName", "1\t0.1576\t11664\t1172\twall"]
    rows += [f"{i}\t0.01\t10\t1\tthing{i}, stuff, whatnot" for i in range(2, 151)]
    (root / "objectInfo150.txt").write_text("\n".join(rows) + "\n")
    return DataSet(DataConfig(root, "s4ade20k", workers=0), 150, folder)


def write_scribblecoco(shapes: Path, top: Path) -> DataSet:
    root, folder = top / "ScribbleCOCO", "coco2014_train_scribble_r1"
    write_lists(root / "ImageSets/SegmentationAug", train=TRAIN, val=VAL)
    for name in TRAIN + VAL:
        copy_photo(shapes, name, root / f"JPEGImages/{name}.jpg")
        write(root / f"SegmentationClassAug/{name}.png", labels_of(shapes, "masks", name))
    for name in TRAIN:
        write(root / folder / f"{name}.png", labels_of(shapes, "scribbles", name))
    return DataSet(DataConfig(root, "scribblecoco", workers=0), 81, folder)


WRITERS: dict[str, Callable[[Path, Path], DataSet]] = {
    "voc": write_voc,
    "context": write_context,
    "s4pascal": write_s4pascal,
    "s4cityscapes": write_s4cityscapes,
    "s4ade20k": write_s4ade20k,
    "scribblecoco": write_scribblecoco,
}


@pytest.fixture(params=WRITERS)
def data_set(request: pytest.FixtureRequest, shapes: Path, tmp_path: Path) -> DataSet:
    """Return a data set in each layout; a test may change it."""
    return WRITERS[request.param](shapes, tmp_path)


def refused(config: DataConfig, split: str | None = None, **options: object) -> str:
    with pytest.raises(UserError) as caught:
        ScribbleFolder(config, split, **options)
    return str(caught.value)


def test_samples_are_those_of_the_folder(data_set: DataSet, shapes: Path) -> None:
    config, k, _ = data_set
    train_split, val_split = choose_splits(config)
    samples = ScribbleFolder(config, train_split)
    assert samples.names == TRAIN and len(samples.classes) == k
    for name, sample in zip(TRAIN, samples, strict=False):
        labels = labels_of(shapes, "scribbles", name)
        assert np.array_equal(sample.target.numpy(), np.where(labels == 255, k, labels))
        assert sample.target.dtype == torch.uint8 and sample.image.shape == (3, 48, 64)
        assert sample.mask is None and sample.class_present.nonzero().flatten().tolist() == [
            0,
            1,
            2,
        ]
    validation = ScribbleFolder(config, val_split, labels="masks")
    assert validation.names == VAL and choose_evaluation_split(config) == val_split
    for name, sample in zip(VAL, validation, strict=False):
        mask, expected = sample.mask.numpy(), labels_of(shapes, "masks", name)
        known = mask != 255
        assert np.array_equal(mask[known], expected[known])
        assert (~known).sum() == {"voc": 64, "s4pascal": 64, "s4cityscapes": 2, "s4ade20k": 1}.get(
            config.layout, 0
        )


def test_loader_processes_may_be_spawned(data_set: DataSet) -> None:
    samples = ScribbleFolder(data_set.config, choose_splits(data_set.config)[0])
    assert torch.equal(pickle.loads(pickle.dumps(samples))[2].target, samples[2].target)


def test_training_from_every_layout(
    data_set: DataSet, make_config: Callable[..., TrainConfig]
) -> None:
    optim = OptimConfig(1e-3, batch_size=2, iterations=2, self_training_from=1)
    losses = []
    result = train(
        make_config(data=data_set.config, optim=optim), on_step=lambda s: losses.append(s.blp)
    )
    assert len(losses) == 2 and np.isfinite(losses).all() and losses[0] > 0
    assert result.scores.images == len(VAL)


def test_missing_scribbles_are_named(data_set: DataSet) -> None:
    config, _, folder = data_set
    split, _ = choose_splits(config)
    victim = next(path for path in sorted((config.root / folder).rglob("*")) if path.is_file())
    victim.unlink()
    message = refused(config, split)
    assert (
        message.startswith(f"1 problem in {config.root}:") and f"{victim.name}: missing" in message
    )
    shutil.rmtree(config.root / folder)
    assert "expected a folder of scribbles" in refused(config, split)
    assert "data.scribbles names another" in refused(config, split)


def test_scribbles_may_lie_elsewhere(data_set: DataSet, tmp_path: Path) -> None:
    config, _, folder = data_set
    split, _ = choose_splits(config)
    before = ScribbleFolder(config, split)[0].target
    shutil.move(config.root / folder, tmp_path / "mine")
    config.scribbles = tmp_path / "mine"
    assert torch.equal(ScribbleFolder(config, split)[0].target, before)
    config.scribbles = tmp_path / "nowhere"
    assert refused(config, split) == f"{tmp_path / 'nowhere'}: expected a folder, but there is none"


def test_missing_images_masks_and_lists_are_named(data_set: DataSet) -> None:
    config = data_set.config
    _, val = choose_splits(config)
    files = ScribbleFolder(config, val, labels="masks").files[0]
    files.mask.unlink()
    if config.layout in ("voc", "s4pascal"):  # the other folder has it
        assert ScribbleFolder(config, val, labels="masks").files[0].mask != files.mask
    else:
        assert f"{files.mask.name}: missing" in refused(config, val, labels="masks")
    files.image.unlink()
    if config.layout in ("s4cityscapes", "s4ade20k"):  # its images are those in the folder
        assert ScribbleFolder(config, val, labels="masks").names == VAL[1:]
    else:
        assert f"{files.image.name}: missing" in refused(config, val, labels="masks")
    message = refused(config, "nosuch")
    assert "nosuch" in message and ("there is none" in message)


def test_label_values_beyond_the_classes_are_named(data_set: DataSet) -> None:
    config, k, folder = data_set
    split, _ = choose_splits(config)
    victim = next(path for path in sorted((config.root / folder).rglob("*.*")))
    if victim.suffix == ".xml":
        victim.write_text(victim.read_text().replace("plane", "unicorn"))
        assert f"{victim}:3: 'unicorn' is no class" in refused(config, split)
    else:
        write(victim, np.full((48, 64), 200))
        assert f"{victim}: holds the value 200; expected" in refused(config, split)


def test_voc_prefers_the_authors_png_and_takes_widths(shapes: Path, tmp_path: Path) -> None:
    config = write_voc(shapes, tmp_path).config
    thin = ScribbleFolder(config, "trainaug")[0].target
    config.scribble_width = 3
    assert (ScribbleFolder(config, "trainaug")[0].target < 21).sum() > 2.5 * (thin < 21).sum()
    png = write_voc(shapes, tmp_path / "png", "png").config
    assert torch.equal(ScribbleFolder(png, "trainaug")[0].target, thin)
    shutil.move(png.root / "../scribble_annotation/pascal_2012_label", config.root / "..")
    folder = config.root / "../scribble_annotation"
    shutil.move(config.root / "../pascal_2012_label", folder / "pascal_2012_label")
    assert torch.equal(ScribbleFolder(config, "trainaug")[0].target, thin)


def test_own_numbers_go_before_the_layouts(shapes: Path, tmp_path: Path) -> None:
    config, _, folder = write_scribblecoco(shapes, tmp_path)
    before = ScribbleFolder(config, "train")[0].target
    for path in (config.root / folder).iterdir():
        labels = np.array(Image.open(path)).astype(int)
        write(path, np.where(labels == 255, 0, labels + 1))
    config.unlabeled_value, config.first_class_value = 0, 1
    assert torch.equal(ScribbleFolder(config, "train")[0].target, before)
    cityscapes = write_s4cityscapes(shapes, tmp_path).config
    cityscapes.unlabeled_value = 0
    assert refused(cityscapes, "train").startswith(
        "data.unlabeled_value: expected no value, as Cityscapes' labelIds"
    )


def test_training_classes_of_cityscapes(shapes: Path, tmp_path: Path) -> None:
    config = write_s4cityscapes(shapes, tmp_path).config
    path = min((config.root / "scribbles").rglob("*.png"))
    labels = np.zeros((48, 64), int)
    labels[0, :34] = range(34)
    write(path, labels)
    target = ScribbleFolder(config, "train")[0].target[0, :34].tolist()
    # trainIds as cityscapesScripts defines them, 19 standing for "not trained on".
    other = 19
    assert target == [
        *[other] * 7, 0, 1, other, other, 2, 3, 4, other, other, other, 5, other, 6, 7, 8, 9, 10,
        11, 12, 13, 14, 15, other, other, 16, 17, 18,
    ]  # fmt: skip


def test_context_without_lists_numbers_59_classes(shapes: Path, tmp_path: Path) -> None:
    config = write_context(shapes, tmp_path).config
    classes = config.root / "SegmentationClass"
    (classes / "labels.txt").unlink()
    mask = np.zeros((48, 64))
    mask[0, :60] = range(60)
    for name in VAL:
        savemat(classes / f"{name}.mat", {"LabelMap": mask})
    found = ScribbleFolder(config, "val", labels="masks")[0].mask
    assert found[0, :60].tolist() == list(range(60))
    savemat(classes / "shape5.mat", {"LabelMap": mask + 400})
    assert "shape5.mat: holds the value 400, 401" in refused(config, "val", labels="masks")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"Labels": np.zeros((48, 64))}, "expected a variable LabelMap, got Labels"),
        ({"LabelMap": np.full((48, 64), 0.5)}, "expected LabelMap to be a matrix of whole numbers"),
        ({"LabelMap": np.full((48, 64), -1)}, "expected LabelMap to be a matrix of whole numbers"),
        ({"LabelMap": "text"}, "expected LabelMap to be a matrix of whole numbers"),
        ({"LabelMap": np.zeros((4, 6))}, "is 6 x 4, but its image is 64 x 48"),
        (None, "cannot be read"),
    ],
)
def test_mat_files_that_cannot_be_used(
    shapes: Path, tmp_path: Path, content: dict[str, object] | None, message: str
) -> None:
    config = write_context(shapes, tmp_path).config
    path = config.root / "SegmentationClass/shape5.mat"
    path.write_bytes(b"no matrix at all")
    if content is not None:
        savemat(path, content)
    assert f"{path}: {message}" in refused(config, "val", labels="masks")


def test_lists_of_context_are_checked(shapes: Path, tmp_path: Path) -> None:
    config = write_context(shapes, tmp_path).config
    folder = config.root / "SegmentationClass"
    text = (folder / "labels.txt").read_text()
    (folder / "labels.txt").write_text(text.replace(": wood", ": timber"))
    assert "labels.txt: expected lines for wood, found none" in refused(config, "train")
    (folder / "labels.txt").write_text(text.replace("2: aeroplane", "aeroplane"))
    assert "labels.txt:1: expected ID: NAME, got 'aeroplane'" in refused(config, "train")
    (folder / "labels.txt").write_text(text)
    names = (folder / "59_labels.txt").read_text()
    (folder / "59_labels.txt").write_text(names.replace("1: aeroplane", "1: wood"))
    assert "59_labels.txt: expected 1: aeroplane to 59: wood" in refused(config, "train")


def test_the_classes_of_ade20k_come_with_it(shapes: Path, tmp_path: Path) -> None:
    config = write_s4ade20k(shapes, tmp_path).config
    assert ScribbleFolder(config, "training").classes[:2] == ["wall", "thing2"]
    path = config.root / "objectInfo150.txt"
    text = path.read_text()
    path.write_text(text.replace("\n77\t", "\n78\t"))
    assert "expected a heading and rows 1 to 150" in refused(config, "training")
    path.write_text(text.replace("thing9,", "thing8,"))
    assert "class names must differ, but 'thing8' comes twice" in refused(config, "training")
    path.unlink()
    assert "expected a file with the table of the classes" in refused(config, "training")


def test_the_configuration_knows_every_layout() -> None:
    assert get_args(LayoutName) == tuple(LAYOUTS)


def test_every_image_without_lists(shapes: Path, tmp_path: Path) -> None:
    config = write_scribblecoco(shapes, tmp_path).config
    assert ScribbleFolder(config, None, labels="masks").names == TRAIN + VAL
    shutil.rmtree(config.root / "SegmentationClassAug")
    assert choose_splits(config) == ("train", None)
