"""JPEG's own numbers, against files whose coefficients are known, and against a transform computed here."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, JpegImagePlugin
from scipy import fft

from declip.errors import ImageError, MissingExtraError
from declip.images import jpeg
from declip.images.jpeg import JpegCoefficients, read_coefficients, save_again
from declip.images.read import read_photo
from tests.images.pictures import encode, exif_of, refused

# Annex K of the JPEG standard: the luma table at quality 50.
ROWS = [[16, 11, 10, 16, 24, 40, 51, 61], [12, 12, 14, 19, 26, 58, 60, 55]]


def photo(height: int, width: int) -> NDArray[np.uint8]:
    """Smooth in one direction more than in the other, so that a transposed block is another one."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:height, :width]
    grey = 120 + 60 * np.sin(rows / 3) + 30 * np.sin(columns / 17) + rng.normal(0, 5, (height, width))
    return np.clip(np.stack([grey, grey * 0.8, grey * 1.1], axis=2), 0, 255).astype(np.uint8)


def transformed(grey: NDArray[np.uint8]) -> NDArray[np.float64]:
    """The orthonormal DCT of every 8×8 block, at its place; sides must be multiples of 8."""
    h, w = grey.shape
    blocks = (grey.astype(float) - 128).reshape(h // 8, 8, w // 8, 8)
    return fft.dctn(blocks, axes=(1, 3), norm="ortho").reshape(h, w)


@pytest.mark.parametrize(
    ("grey", "quality", "options"),
    [
        (True, 100, {}),
        (True, 75, {}),
        (False, 50, {"progressive": True}),
        (False, 50, {"subsampling": 0}),
        (False, 50, {"subsampling": 2}),
    ],
)
def test_coefficients_are_the_transform_of_the_luma(grey: bool, quality: int, options: dict[str, object]) -> None:
    picture = Image.fromarray(photo(40, 64)).convert("L" if grey else "RGB")
    found = read_coefficients(encode(picture, "JPEG", quality=quality, **options))
    assert found.was_jpeg and found.orientation == 1 and found.coefficients.shape == (40, 64)
    assert found.coefficients.dtype == np.int16 and found.table.dtype == np.int32
    luma = np.asarray(picture if grey else picture.convert("YCbCr").getchannel("Y"))
    apart = np.abs(found.coefficients - transformed(luma) / np.tile(found.table, (5, 8)))
    assert apart.max() <= 1 and apart.mean() < 0.3  # rounding alone leaves 0.25
    assert quality != 50 or found.table[:2].tolist() == ROWS


def test_known_coefficients_come_back(tmp_path: Path) -> None:
    jpeglib = pytest.importorskip("jpeglib")
    rng = np.random.default_rng(1)
    # Blocks are flat but for small waves, so that the pixels stay in range.
    blocks = rng.integers(-3, 4, (5, 7, 8, 8)).astype(np.int16)
    table = rng.integers(1, 12, (1, 8, 8)).astype(np.uint16)
    jpeglib.from_dct(blocks, qt=table).write_dct(str(tmp_path / "known.jpg"))
    found = read_coefficients(tmp_path / "known.jpg")
    assert found.was_jpeg and np.array_equal(found.table, table[0])
    for row in range(5):
        for column in range(7):
            place = found.coefficients[8 * row : 8 * row + 8, 8 * column : 8 * column + 8]
            assert np.array_equal(place, blocks[row, column])


def test_what_is_no_jpeg_is_saved_once_at_quality_100() -> None:
    pixels = photo(40, 48)
    expected = read_coefficients(encode(pixels, "JPEG", quality=100, subsampling=0))
    for source in (encode(pixels, "PNG"), pixels, Image.fromarray(pixels)):
        found = read_coefficients(source)
        assert not found.was_jpeg and found.orientation == 1
        assert (found.table == 1).all() and np.array_equal(found.coefficients, expected.coefficients)
    assert expected.was_jpeg


@pytest.mark.parametrize(("mode", "options"), [("RGB", {"keep_rgb": True}), ("CMYK", {})])
def test_a_jpeg_without_luma_counts_as_none(mode: str, options: dict[str, object]) -> None:
    found = read_coefficients(encode(Image.fromarray(photo(40, 48)).convert(mode), "JPEG", quality=60, **options))
    assert not found.was_jpeg and (found.table == 1).all()


def test_the_grid_is_the_stored_one() -> None:
    pixels = photo(40, 64)
    data = encode(pixels, "JPEG", quality=90, exif=exif_of({0x0112: 6}))
    found = read_coefficients(data)
    assert read_photo(data).size == (64, 40)
    assert found.orientation == 6 and found.coefficients.shape == (40, 64)
    assert np.array_equal(found.coefficients, read_coefficients(encode(pixels, "JPEG", quality=90)).coefficients)


@pytest.mark.parametrize(
    ("chroma", "told"), [("4:4:4", "4:4:4"), ("4:2:2", "4:2:2"), ("4:2:0", "4:2:0"), ("L", "grey")]
)
def test_other_pixels_are_saved_as_the_file_is(chroma: str, told: str) -> None:
    tables = [[3 + i for i in range(64)], [9 + 2 * i for i in range(64)]]
    image, stream = Image.fromarray(photo(45, 61)), io.BytesIO()
    options = {"qtables": tables[:1]} if chroma == "L" else {"qtables": tables, "subsampling": chroma}
    exif = Image.Exif()
    exif[0x0112] = 6
    (image.convert("L") if chroma == "L" else image).save(stream, "JPEG", exif=exif, **options)
    given = read_photo(stream.getvalue())
    assert given.size == (61, 45)
    other = np.ascontiguousarray(given.pixels[::-1])
    made, said = save_again(given, other)
    assert told in said and made.size == given.size and made.orientation == 6
    saved, before = (JpegImagePlugin.JpegImageFile(io.BytesIO(one.data)) for one in (made, given))
    assert saved.quantization == before.quantization and saved.size == before.size == (61, 45)
    assert JpegImagePlugin.get_sampling(saved) == JpegImagePlugin.get_sampling(before)
    # What was saved so already hardly changes; anything else does as the tables want it.
    again = save_again(given, given.pixels)[0].pixels.astype(int)
    assert np.abs(again - given.pixels).mean() < 1.5 < np.abs(again - made.pixels).mean()


def test_what_is_no_jpeg_is_kept_as_it_is() -> None:
    given = read_photo(photo(20, 30))
    made, said = save_again(given, given.pixels)
    assert made.pixels is given.pixels and made.data == b"" and "without loss" in said


def test_jpeglib_is_used_by_one_thread_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its memory is corrupted otherwise, and the process ends."""
    jpeglib = pytest.importorskip("jpeglib")
    held: list[bool] = []

    class Watched:
        """A file of jpeglib, which notes whether the lock is held when something of it is read."""

        def __init__(self, file: Any) -> None:
            self.file = file

        def __getattr__(self, name: str) -> Any:
            held.append(jpeg._ONE_AT_A_TIME().locked())
            return getattr(self.file, name)

    read_dct = jpeglib.read_dct
    monkeypatch.setattr(jpeglib, "read_dct", lambda path: Watched(read_dct(path)))
    assert read_coefficients(encode(photo(16, 16), "JPEG")).was_jpeg
    assert held == [True] * 4 and not jpeg._ONE_AT_A_TIME().locked()


def test_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jpeglib", None)
    with pytest.raises(MissingExtraError, match=r"declip\[data\]"):
        read_coefficients(photo(16, 16))


def test_blocks_that_are_cut_are_refused() -> None:
    with pytest.raises(ImageError, match="multiples of 8"):
        JpegCoefficients(
            coefficients=np.zeros((8, 12), np.int16), table=np.ones((8, 8), np.int32), was_jpeg=True, orientation=1
        )


def test_arithmetic_coding_is_named(tmp_path: Path) -> None:
    jpeglib = pytest.importorskip("jpeglib")
    (tmp_path / "plain.jpg").write_bytes(encode(photo(16, 16), "JPEG"))
    with jpeglib.version("turbo210"):
        jpeglib.read_dct(str(tmp_path / "plain.jpg")).write_dct(str(tmp_path / "coded.jpg"), flags=["+ARITH_CODE"])
    with refused("format", "baseline JPEG"):
        read_coefficients(tmp_path / "coded.jpg")
