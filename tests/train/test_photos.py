"""Photos as people have them: bit depths, modes, orientations, and files that are no photo."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from blpseg.data.images import UNREADABLE
from blpseg.data.photos import photo_size, read_photo
from blpseg.errors import UserError

ORIENTATION = 0x0112


def refused(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        read_photo(path)
    with pytest.raises(UNREADABLE):  # what is refused is found in the header, or on reading
        photo_size(path)
        Image.open(path).load()
    assert str(caught.value).startswith(f"{path}: cannot be read (")
    return str(caught.value)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "RGBA", "P", "CMYK", "YCbCr"])
def test_photos_of_other_modes_become_rgb(tmp_path: Path, mode: str) -> None:
    path = tmp_path / ("photo.tif" if mode in ("CMYK", "YCbCr") else "photo.png")
    value = 255 if mode == "1" else 102
    Image.new("RGB", (5, 4), (value, value, value)).convert(mode).save(path)
    photo = np.asarray(read_photo(path))
    assert photo.shape == (4, 5, 3) and np.abs(photo.astype(int) - value).max() <= 1


def test_transparency_is_dropped(tmp_path: Path) -> None:
    Image.new("RGBA", (5, 4), (10, 200, 30, 0)).save(tmp_path / "clear.png")
    assert (np.asarray(read_photo(tmp_path / "clear.png")) == (10, 200, 30)).all()


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bits_keep_their_range(tmp_path: Path, suffix: str) -> None:
    """Not clipped at 255, which is what Pillow's own conversion does."""
    path = tmp_path / f"deep.{suffix}"
    values = np.array([[0, 128, 129, 257, 32896, 65535]], np.uint16)
    Image.fromarray(values).save(path)
    photo = np.asarray(read_photo(path))
    assert photo.shape == (1, 6, 3)
    assert photo[0, :, 0].tolist() == [0, 0, 1, 1, 128, 255]
    assert photo_size(path) == (6, 1)


def test_16_bit_photos_turn_by_exif(tmp_path: Path) -> None:
    path, exif = tmp_path / "deep.png", Image.Exif()
    exif[ORIENTATION] = 6
    values = np.zeros((2, 3), np.uint16)
    values[0, 0] = 65535
    Image.fromarray(values).save(path, exif=exif)
    photo = np.asarray(read_photo(path))
    assert photo.shape == (3, 2, 3) and photo_size(path) == (2, 3)
    assert photo[0, 1, 0] == 255 and photo.sum() == 3 * 255  # the upper left is the upper right now


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_as_displayed(tmp_path: Path, orientation: int) -> None:
    """Corners of the displayed picture, by the EXIF standard: 0 and 1 above, 2 and 3 below."""
    shown = np.zeros((32, 48), np.uint8)
    shown[:16, :24], shown[:16, 24:], shown[16:, :24], shown[16:, 24:] = 10, 80, 160, 240
    stored = {
        1: shown,
        2: shown[:, ::-1],
        3: shown[::-1, ::-1],
        4: shown[::-1],
        5: shown.T,
        6: np.rot90(shown),
        7: np.rot90(shown, 2).T,
        8: np.rot90(shown, -1),
    }[orientation]
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    path = tmp_path / "photo.png"
    Image.fromarray(np.ascontiguousarray(stored)).save(path, exif=exif)
    assert np.array_equal(np.asarray(read_photo(path))[..., 0], shown)
    assert photo_size(path) == (48, 32)


@pytest.mark.parametrize("suffix", ["gif", "tif", "png", "webp"])
def test_files_of_several_pictures_are_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"film.{suffix}"
    frames = [Image.new("RGB", (16, 16), (value, 0, 0)) for value in (0, 100, 200)]
    frames[0].save(path, save_all=True, append_images=frames[1:])
    assert "expected one picture, but the file holds 3" in refused(path)
    assert Image.open(path).n_frames == 3


def test_the_first_picture_of_a_phone_s_jpeg_is_the_photo(tmp_path: Path) -> None:
    path = tmp_path / "phone.jpg"
    frames = [Image.new("RGB", (16, 16), (value, value, value)) for value in (50, 200)]
    frames[0].save(path, format="MPO", save_all=True, append_images=frames[1:])
    assert Image.open(path).format == "MPO"
    assert np.abs(np.asarray(read_photo(path)).astype(int) - 50).max() <= 2


def test_single_gifs_are_photos(tmp_path: Path) -> None:
    Image.new("P", (5, 4), 3).save(tmp_path / "one.gif")
    assert read_photo(tmp_path / "one.gif").size == (5, 4)


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_values_without_a_known_range_are_refused(tmp_path: Path, dtype: type) -> None:
    path = tmp_path / "height.tif"
    Image.fromarray(np.zeros((4, 5), dtype)).save(path)
    assert "expected 8 or 16 bits per channel, got mode" in refused(path)


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
def test_truncated_files_are_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"cut.{suffix}"
    pixels = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    refused(path)


@pytest.mark.parametrize("content", [b"", b"no picture", b"\x89PNG\r\n\x1a\n"])
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "photo.png"
    path.write_bytes(content)
    refused(path)
