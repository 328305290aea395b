"""The folder data set: what it reads, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import tv_tensors

from blpseg.data.layouts import LAYOUTS
from blpseg.data.photos import read_photo
from blpseg.errors import UserError

from .conftest import folder_of

ORIENTATION = 0x0112


def pixels(path: Path) -> torch.Tensor:
    return torch.from_numpy(np.array(Image.open(path)))


def refused(root: Path, **options: object) -> str:
    with pytest.raises(UserError) as caught:
        folder_of(root, **options)
    return str(caught.value)


def test_sample_of_image_and_scribbles(shapes: Path) -> None:
    folder = folder_of(shapes, "train")
    sample = folder[1]
    assert folder.classes == ["background", "disc", "square"]
    assert folder.names == [f"shape{i}" for i in range(5)] and len(folder) == 5
    assert sample.name == "shape1" and sample.mask is None
    assert isinstance(sample.image, tv_tensors.Image) and isinstance(sample.target, tv_tensors.Mask)
    assert sample.image.dtype == sample.target.dtype == torch.uint8
    assert torch.equal(sample.image, pixels(shapes / "images/shape1.png").permute(2, 0, 1))
    scribbles = pixels(shapes / "scribbles/shape1.png")
    assert torch.equal(sample.target, torch.where(scribbles == 255, 3, scribbles))
    assert sample.class_present.tolist() == [True, True, True]


def test_masks_come_when_asked_for(shapes: Path) -> None:
    sample = folder_of(shapes, "val", labels="masks")[0]
    assert sample.name == "shape5"
    assert torch.equal(sample.mask, pixels(shapes / "masks/shape5.png"))
    assert set(sample.target.unique().tolist()) == {0, 1, 2, 3}


def test_masks_do_not_need_scribbles(own_shapes: Path) -> None:
    (own_shapes / "scribbles/shape0.png").unlink()
    sample = folder_of(own_shapes, labels="masks")[0]
    assert (sample.target == 3).all()
    assert sample.class_present.tolist() == [True, False, False]


def test_class_present_names_scribbled_classes_and_class_0(own_shapes: Path) -> None:
    scribbles = np.full((48, 64), 255, np.uint8)
    scribbles[5, 5] = 2
    Image.fromarray(scribbles).save(own_shapes / "scribbles/shape0.png")
    assert folder_of(own_shapes)[0].class_present.tolist() == [True, False, True]


def test_other_values_for_unlabeled_and_the_first_class(own_shapes: Path) -> None:
    original = folder_of(own_shapes)[0].target
    for path in own_shapes.glob("scribbles/*"):
        shifted = np.where((old := np.array(Image.open(path))) == 255, 0, old + 1)
        Image.fromarray(shifted.astype(np.uint8)).save(path)
    folder = folder_of(own_shapes, unlabeled_value=0, first_class_value=1)
    assert torch.equal(folder[0].target, original)


def test_other_values_in_masks(own_shapes: Path) -> None:
    path = own_shapes / "masks/shape0.png"
    mask = np.array(Image.open(path)) + 1
    mask[0, 0] = 0
    for other in own_shapes.glob("masks/*"):
        Image.fromarray(mask).save(other)
    folder = folder_of(own_shapes, labels="masks", mask_void_value=0, mask_first_class_value=1)
    found = folder[0].mask
    assert found[0, 0] == 255
    assert torch.equal(found.flatten()[1:], torch.from_numpy(mask - 1).flatten()[1:])


def test_masks_start_where_scribbles_do_unless_told(own_shapes: Path) -> None:
    for path in own_shapes.glob("masks/*"):
        Image.fromarray(np.array(Image.open(path)) + 1).save(path)
    for path in own_shapes.glob("scribbles/*"):
        path.unlink()
    found = folder_of(own_shapes, labels="masks", first_class_value=1)[0].mask
    assert found.unique().tolist() == [0, 1, 2]
    assert "holds the value 3" in refused(
        own_shapes, labels="masks", first_class_value=1, mask_first_class_value=0
    )


def test_palette_scribbles_are_read_as_their_indices(own_shapes: Path) -> None:
    path = own_shapes / "scribbles/shape0.png"
    original = folder_of(own_shapes)[0].target
    image = Image.open(path).copy()
    image.putpalette(np.random.default_rng(0).integers(0, 256, 768).astype(np.uint8).tobytes())
    image.save(path)
    assert Image.open(path).mode == "P"
    assert torch.equal(folder_of(own_shapes)[0].target, original)


def test_exif_rotation_is_honoured(own_shapes: Path) -> None:
    (own_shapes / "images/shape0.png").unlink()
    stored = np.zeros((64, 48, 3), np.uint8)
    stored[:, :24] = 255  # the left half; turned clockwise, it is the upper one
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    Image.fromarray(stored).save(own_shapes / "images/shape0.jpg", exif=exif)
    image = folder_of(own_shapes)[0].image
    assert image.shape == (3, 48, 64)
    assert (image[:, :20] > 250).all() and (image[:, 28:] < 5).all()


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "CMYK"])
def test_photos_of_other_modes_become_rgb(tmp_path: Path, mode: str) -> None:
    path = tmp_path / ("photo.tif" if mode == "CMYK" else "photo.png")
    Image.new("RGB", (5, 4), (102, 102, 102)).convert(mode).save(path)
    photo = np.asarray(read_photo(path))
    assert photo.shape == (4, 5, 3) and np.abs(photo.astype(int) - 102).max() <= 1


def test_missing_and_orphaned_files_are_named_together(own_shapes: Path) -> None:
    (own_shapes / "scribbles/shape0.png").unlink()
    (own_shapes / "images/shape1.png").unlink()
    message = refused(own_shapes)
    assert message.startswith(f"2 problems in {own_shapes}:")
    assert "scribbles/shape0.png: missing" in message
    assert "scribbles/shape1.png: no image of this name" in message


def test_listed_images_must_exist_and_others_are_left_alone(own_shapes: Path) -> None:
    (own_shapes / "splits").mkdir()
    (own_shapes / "splits/some.txt").write_text("shape2\nghost\n")
    (own_shapes / "scribbles/shape0.png").unlink()
    assert "images/: no image named 'ghost'" in refused(own_shapes, split="some")
    (own_shapes / "splits/some.txt").write_text("shape2\n")
    assert folder_of(own_shapes, "some").names == ["shape2"]


def test_sizes_must_agree(own_shapes: Path) -> None:
    Image.new("L", (60, 48), 255).save(own_shapes / "scribbles/shape1.png")
    message = refused(own_shapes)
    assert "scribbles/shape1.png: is 60 x 48, but its image is 64 x 48" in message


def test_values_beyond_the_classes_are_named(own_shapes: Path) -> None:
    scribbles = np.full((48, 64), 255, np.uint8)
    scribbles[0, :2] = 3, 200
    Image.fromarray(scribbles).save(own_shapes / "scribbles/shape1.png")
    assert (
        "scribbles/shape1.png: holds the value 3, 200; "
        "expected 0 to 2 (3 classes) or 255 (unlabeled)" in refused(own_shapes)
    )
    Image.new("L", (64, 48), 7).save(own_shapes / "masks/shape1.png")
    Image.new("L", (64, 48), 2).save(own_shapes / "scribbles/shape1.png")
    assert (
        "masks/shape1.png: holds the value 7; expected 0 to 2 (3 classes) or 255 (void)"
        in refused(own_shapes, labels="masks")
    )


def test_many_problems_are_counted(own_shapes: Path) -> None:
    source = own_shapes / "images/shape0.png"
    for i in range(9):
        (own_shapes / f"images/more{i}.png").write_bytes(source.read_bytes())
    lines = refused(own_shapes).splitlines()
    assert lines[0].startswith("9 problems") and lines[-1] == "  ... and 4 more" and len(lines) == 7


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "1", "I;16"])
def test_scribbles_of_other_modes_are_refused(own_shapes: Path, mode: str) -> None:
    color = (1, 2, 1, 255)[: len(mode)] if mode.startswith("RGB") else 1
    Image.new(mode, (64, 48), color).save(own_shapes / "scribbles/shape1.png")
    message = refused(own_shapes)
    assert f"scribbles/shape1.png: expected a label map of mode L or P, got mode {mode}" in message


def test_scribbles_may_be_rgb_of_equal_channels(own_shapes: Path) -> None:
    path = own_shapes / "scribbles/shape0.png"
    original = folder_of(own_shapes)[0].target
    Image.merge("RGB", 3 * [Image.open(path)]).save(path)
    assert torch.equal(folder_of(own_shapes)[0].target, original)


@pytest.mark.parametrize("folder", ["images", "scribbles"])
def test_unreadable_files_are_named(own_shapes: Path, folder: str) -> None:
    path = own_shapes / folder / "shape2.png"
    path.write_bytes(b"no picture")
    assert f"{folder}/shape2.png: cannot be read" in refused(own_shapes)


def test_truncated_scribbles_are_named(own_shapes: Path) -> None:
    path = own_shapes / "scribbles/shape2.png"
    path.write_bytes(path.read_bytes()[:-40])
    assert "scribbles/shape2.png: cannot be read" in refused(own_shapes)


def test_photos_of_floating_point_are_refused(own_shapes: Path) -> None:
    (own_shapes / "images/shape0.png").unlink()
    Image.fromarray(np.zeros((48, 64), np.float32)).save(own_shapes / "images/shape0.tif")
    assert "images/shape0.tif: cannot be read (expected 8 or 16 bits per channel, got mode F" in (
        refused(own_shapes)
    )


def test_images_that_differ_in_suffix_only_are_refused(own_shapes: Path) -> None:
    Image.new("RGB", (64, 48)).save(own_shapes / "images/shape1.jpg")
    assert "shape1.jpg, shape1.png: the same name" in refused(own_shapes)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("\n\n", "expected 2 class names or more, found 0"),
        ("only\n", "expected 2 class names or more, found 1"),
        ("cat\ndog\ncat\n", "class names must differ, but 'cat' comes more than once"),
        ("\n".join(map(str, range(255))), "expected at most 254 class names, found 255"),
    ],
)
def test_class_lists_that_cannot_be_used(own_shapes: Path, text: str, message: str) -> None:
    (own_shapes / "classes.txt").write_text(text)
    assert refused(own_shapes) == f"{own_shapes / 'classes.txt'}: {message}"


def test_missing_parts_of_the_folder(own_shapes: Path) -> None:
    (own_shapes / "classes.txt").rename(own_shapes / "names.txt")
    assert "classes.txt: expected a file with the class names" in refused(own_shapes)
    (own_shapes / "names.txt").rename(own_shapes / "classes.txt")
    assert "nosuch.txt: expected a file with image names" in refused(own_shapes, split="nosuch")
    (own_shapes / "masks").rename(own_shapes / "away")
    assert refused(own_shapes, labels="masks") == (
        f"{own_shapes / 'masks'}: expected a folder, but there is none"
    )
    for path in [*own_shapes.glob("images/*"), *own_shapes.glob("scribbles/*")]:
        path.unlink()
    assert "images: expected images (.png .jpg" in refused(own_shapes)


def test_lists_must_name_each_image_once(own_shapes: Path) -> None:
    (own_shapes / "splits").mkdir()
    path = own_shapes / "splits/some.txt"
    path.write_text("\n")
    has_split = LAYOUTS["folder"].has_split
    assert not has_split(own_shapes, "some") and not has_split(own_shapes, "other")
    assert refused(own_shapes, split="some") == (
        f"{path}: expected image names, one per line, but it is empty"
    )
    path.write_text("shape1\nshape1\n")
    assert has_split(own_shapes, "some")
    assert "'shape1' comes more than once" in refused(own_shapes, split="some")


def test_a_value_cannot_mean_two_things(own_shapes: Path) -> None:
    assert refused(own_shapes, unlabeled_value=0) == (
        "the value 0 cannot mean both unlabeled and class 0: classes are 0 to 2"
    )
    assert "label values must lie in 0 to 255" in refused(own_shapes, unlabeled_value=256)
