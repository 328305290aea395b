"""Images as arrays: TIFFs of microscopes and satellites, 16 bits, many channels, broken files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from blpseg.data.images import UNREADABLE, image_shape, read_image
from blpseg.data.photos import photo_size, read_photo
from blpseg.errors import UserError

HEIGHT, WIDTH = 6, 9


def noise(*shape: int, dtype: type = np.uint16) -> np.ndarray:
    """Values over the whole range of the type."""
    return np.random.default_rng(0).integers(0, np.iinfo(dtype).max + 1, shape, dtype)


def write_tiff(folder: Path, pixels: np.ndarray, **options: object) -> Path:
    tifffile.imwrite(folder / "scan.tif", pixels, **options)
    return folder / "scan.tif"


def refused(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        read_image(path)
    with pytest.raises(UNREADABLE):
        image_shape(path)
        Image.open(path).load()
    assert str(caught.value).startswith(f"{path}: cannot be read (")
    return str(caught.value)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize(
    ("shape", "options", "channel_axis"),
    [
        ((HEIGHT, WIDTH), {}, None),
        ((HEIGHT, WIDTH, 3), {"photometric": "rgb"}, 2),
        ((HEIGHT, WIDTH, 4), {"photometric": "rgb", "extrasamples": ["unspecified"]}, 2),
        ((HEIGHT, WIDTH, 2), {"photometric": "minisblack", "planarconfig": "contig"}, 2),
        ((HEIGHT, WIDTH, 7), {"photometric": "minisblack", "planarconfig": "contig"}, 2),
        ((3, HEIGHT, WIDTH), {"photometric": "rgb", "planarconfig": "separate"}, 0),
        ((5, HEIGHT, WIDTH), {"photometric": "minisblack", "planarconfig": "separate"}, 0),
        ((4, HEIGHT, WIDTH), {"photometric": "minisblack"}, 0),
        ((4, HEIGHT, WIDTH), {"imagej": True, "metadata": {"axes": "CYX"}}, 0),
        ((4, HEIGHT, WIDTH), {"ome": True, "metadata": {"axes": "CYX"}}, 0),
        ((1, 4, 1, HEIGHT, WIDTH), {"ome": True, "metadata": {"axes": "TCZYX"}}, 0),
        ((HEIGHT, WIDTH), {"compression": "zlib", "predictor": 2}, None),
        ((4, HEIGHT, 1), {"ome": True, "metadata": {"axes": "CYX"}}, 0),
    ],
    ids=lambda value: "x".join(map(str, value)) if isinstance(value, tuple) else None,
)
def test_tiffs_keep_bits_and_channels(
    tmp_path: Path,
    dtype: type,
    shape: tuple[int, ...],
    options: dict[str, object],
    channel_axis: int | None,
) -> None:
    stored = noise(*shape, dtype=dtype)
    path = write_tiff(tmp_path, stored, **options)
    expected = stored.reshape([n for n in shape if n > 1 or len(shape) < 5])
    if channel_axis == 0:
        expected = np.moveaxis(expected, 0, 2)
    pixels = read_image(path)
    assert pixels.dtype == dtype and np.array_equal(pixels, expected)
    assert image_shape(path) == (*expected.shape, 1)[:3]


def test_lzw_is_read(tmp_path: Path) -> None:
    """LZW is what QuPath writes; tifffile decodes it by imagecodecs."""
    pytest.importorskip("imagecodecs", reason="tifffile decodes LZW by imagecodecs")
    stored = noise(HEIGHT, WIDTH, 3)
    path = write_tiff(tmp_path, stored, photometric="rgb", compression="lzw")
    assert np.array_equal(read_image(path), stored)


def test_without_the_codec_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_tiff(tmp_path, noise(HEIGHT, WIDTH, 3), photometric="rgb", compression="zlib")

    def missing(*_: object, **__: object) -> np.ndarray:
        raise ValueError("<COMPRESSION.LZW: 5> requires the 'imagecodecs' package")

    monkeypatch.setattr(tifffile.TiffPageSeries, "asarray", missing)
    with pytest.raises(UserError, match=r"pip install 'blpseg\[formats\]' brings it"):
        read_image(path)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_tiffs_turn_as_pillow_turns(tmp_path: Path, orientation: int) -> None:
    """The same upper bytes in a 16-bit TIFF, which tifffile reads, and a PNG, which Pillow does."""
    stored = noise(HEIGHT, WIDTH, 3, dtype=np.uint8)
    tag = (274, "H", 1, orientation)
    path = write_tiff(tmp_path, stored.astype(np.uint16) * 257, photometric="rgb", extratags=[tag])
    exif = Image.Exif()
    exif[274] = orientation
    Image.fromarray(stored).save(tmp_path / "photo.png", exif=exif)
    shown = read_image(tmp_path / "photo.png")
    assert np.array_equal(read_image(path), shown.astype(np.uint16) * 257)
    assert np.array_equal(np.asarray(read_photo(path)), shown)
    assert image_shape(path) == image_shape(tmp_path / "photo.png") == shown.shape


@pytest.mark.parametrize(
    ("mode", "shape"),
    [("1", (2, 3)), ("L", (2, 3)), ("LA", (2, 3)), ("RGBA", (2, 3, 3)), ("P", (2, 3, 3))],
)
def test_other_files_are_gray_or_color(tmp_path: Path, mode: str, shape: tuple[int, ...]) -> None:
    path = tmp_path / "photo.png"
    Image.new("RGB", (3, 2), (255, 255, 255)).convert(mode).save(path)
    pixels = read_image(path)
    assert pixels.shape == shape and pixels.dtype == np.uint8 and (pixels >= 254).all()
    assert image_shape(path) == (*shape, 1)[:3]


def test_16_bit_pngs_keep_their_bits(tmp_path: Path) -> None:
    stored = noise(HEIGHT, WIDTH)
    Image.fromarray(stored).save(tmp_path / "deep.png")
    assert np.array_equal(read_image(tmp_path / "deep.png"), stored)
    assert image_shape(tmp_path / "deep.png") == (HEIGHT, WIDTH, 1)


def test_photos_are_rgb(tmp_path: Path) -> None:
    """16 bits are scaled, a fourth band is dropped, other numbers of channels are refused."""
    stored = noise(HEIGHT, WIDTH, 4)
    path = write_tiff(tmp_path, stored, photometric="rgb", extrasamples=["unspecified"])
    assert np.array_equal(np.asarray(read_photo(path)), np.round(stored[..., :3] / 257))
    path = write_tiff(tmp_path, noise(5, HEIGHT, WIDTH), photometric="minisblack")
    with pytest.raises(UserError, match="expected a gray or color image, got 5 channels; blpseg.S"):
        read_photo(path)
    with pytest.raises(ValueError, match="got 5 channels"):
        photo_size(path)


@pytest.mark.parametrize(
    ("shape", "dtype", "options", "message"),
    [
        ((4, 6, 9), np.uint16, {"imagej": True, "metadata": {"axes": "ZYX"}}, "holds 4: Z 4 x Y 6"),
        ((4, 6, 9), np.uint16, {"ome": True, "metadata": {"axes": "TYX"}}, "holds 4: T 4 x Y 6"),
        ((4, 6, 9, 3), np.uint16, {"photometric": "rgb"}, "expected one picture, but the file hol"),
        ((17, 6, 9), np.uint8, {"photometric": "minisblack"}, "expected one picture, but the file"),
        ((6, 9), np.float32, {}, "expected 8 or 16 bits per channel, got mode F"),
        ((6, 9, 5), np.float32, {"photometric": "minisblack", "planarconfig": "contig"}, "float32"),
        ((6, 9, 5), np.int16, {"photometric": "minisblack", "planarconfig": "contig"}, "int16"),
    ],
)
def test_what_is_no_image_is_refused(
    tmp_path: Path, shape: tuple[int, ...], dtype: type, options: dict[str, object], message: str
) -> None:
    assert message in refused(write_tiff(tmp_path, np.ones(shape, dtype), **options))


def test_several_images_in_a_file_are_refused(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "scan.tif") as file:
        file.write(noise(HEIGHT, WIDTH, 3), photometric="rgb")
        file.write(noise(HEIGHT, 2, 3), photometric="rgb")
    assert "expected one picture, but the file holds 2" in refused(tmp_path / "scan.tif")


@pytest.mark.parametrize("kept", [0.02, 0.1, 0.5, 0.95])
def test_truncated_tiffs_are_refused(tmp_path: Path, kept: float) -> None:
    path = write_tiff(tmp_path, noise(60, 80, 5), photometric="minisblack", planarconfig="contig")
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * kept)])
    with pytest.raises(UserError, match=r"scan\.tif: cannot be read"):
        read_image(path)
