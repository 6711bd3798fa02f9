"""Pictures are read: every format, sources of every kind, limits, and what is cut off or damaged."""

import io
import os
import re
import struct
import sys
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps, PngImagePlugin

from declip.errors import ImageError
from declip.images import arrays, decode
from declip.images.mapfiles import read_mask, read_scores, write_mask, write_scores
from declip.images.orientation import to_stored
from declip.images.overlay import overlay
from declip.images.read import MAX_BYTES, read_photo
from declip.images.tensors import resize_scores
from declip.results import Sample
from tests.images.pictures import (
    FILES,
    difference,
    encode,
    exif_of,
    expected,
    file,
    png_of,
    refused,
    result_of,
    scene,
    textured,
    tiff_of,
)

KINDS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "AVIF", "HEIF")

# ── formats ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", FILES)
def test_a_picture_is_the_same_however_it_comes(name: str, tmp_path: Path) -> None:
    data = file(name, scene())
    path = tmp_path / "picture.jpg"  # the name does not matter
    path.write_bytes(data)
    photo = read_photo(path)
    assert difference(photo.pixels, expected(name, scene())) <= FILES[name][3]
    assert photo.size == (120, 160) and photo.name == str(path) and photo.data == data and photo.orientation == 1
    assert photo.pixels.dtype == np.uint8 and photo.pixels.flags.c_contiguous and photo.pixels.flags.writeable
    with Image.open(path) as opened:
        for other in (str(path), data, bytearray(data), opened, photo.pixels, photo):
            assert np.array_equal(read_photo(other).pixels, photo.pixels)
    assert read_photo(data).data == data and read_photo(photo.pixels).data == b""


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF", "BMP", "AVIF", "HEIF"])
def test_grey_pictures(kind: str) -> None:
    pixels = read_photo(encode(scene()[:, :, 1], kind)).pixels
    assert difference(pixels, np.repeat(scene()[:, :, 1:2], 3, axis=2)) < 2
    assert difference(pixels[:, :, 0], pixels[:, :, 2]) < 1


def test_transparency_is_composited_on_white() -> None:
    rgba = np.dstack([scene(), np.full((120, 160), 255, np.uint8)])
    rgba[:40, :, 3] = 0
    rgba[40:80, :, 3] = 128
    expected = scene().astype(float)
    expected[:40] = 255
    expected[40:80] = expected[40:80] * 128 / 255 + 255 * 127 / 255
    for kind, options in (("PNG", {}), ("TIFF", {}), ("WEBP", {"lossless": True, "exact": True})):
        pixels = read_photo(encode(rgba, kind, **options)).pixels
        assert np.abs(pixels - expected).max() <= 1
    assert read_photo(encode(Image.fromarray(rgba).convert("LA"), "PNG")).pixels[0, 0].tolist() == [255, 255, 255]
    premultiplied = read_photo(Image.fromarray(rgba).convert("RGBa")).pixels
    assert np.abs(premultiplied - expected).max() <= 3


def test_transparent_palette_entries_and_colours_are_white() -> None:
    palette = Image.fromarray(np.repeat(np.arange(4, dtype=np.uint8)[:, None], 5, axis=1)).convert("P")
    palette.putpalette([200, 0, 0, 0, 200, 0, 0, 0, 200, 9, 9, 9])
    one = read_photo(encode(palette, "PNG", transparency=1)).pixels
    assert one[:, 0].tolist() == [[200, 0, 0], [255, 255, 255], [0, 0, 200], [9, 9, 9]]
    each = read_photo(encode(palette, "PNG", transparency=bytes([0, 255, 51, 255]))).pixels
    assert each[:, 0].tolist() == [[255, 255, 255], [0, 200, 0], [204, 204, 244], [9, 9, 9]]
    assert read_photo(encode(palette, "GIF", transparency=2)).pixels[2, 0].tolist() == [255, 255, 255]
    colours = np.array([[[10, 20, 30], [40, 50, 60]]], dtype=np.uint8)
    keyed = read_photo(encode(colours, "PNG", transparency=(10, 20, 30))).pixels
    assert keyed.tolist() == [[[255, 255, 255], [40, 50, 60]]]
    grey = np.array([[7, 8]], dtype=np.uint8)
    assert read_photo(encode(grey, "PNG", transparency=7)).pixels[0, :, 0].tolist() == [255, 8]


def test_sixteen_bits_keep_their_high_byte() -> None:
    grey = np.array([[0, 255, 256, 257, 30_000], [32_767, 32_768, 50_000, 65_279, 65_535]], dtype=np.uint16)
    expected = (grey // 256).astype(np.uint8)
    big = Image.frombytes("I;16B", (5, 2), grey.astype(">u2").tobytes())
    sources = {
        "png": encode(grey, "PNG"),
        "tiff": encode(grey, "TIFF"),
        "tiff-deflate": encode(grey, "TIFF", compression="tiff_adobe_deflate"),
        "tiff-big-endian": encode(big, "TIFF"),
        "pil": Image.fromarray(grey),
        "pil-big-endian": big,
        "pil-I": Image.fromarray(grey.astype(np.int32)),
    }
    for name, source in sources.items():
        pixels = read_photo(source).pixels
        assert np.array_equal(pixels, np.repeat(expected[:, :, None], 3, axis=2)), name


def test_sixteen_bit_colour() -> None:
    colour = (scene(6, 8).astype(np.uint16) << 8) + 77
    assert np.array_equal(read_photo(png_of(6, 8, 16, 2, colour.astype(">u2").tobytes())).pixels, scene(6, 8))
    tags = {256: (8,), 257: (6,), 258: (16, 16, 16), 262: (2,), 277: (3,), 278: (6,)}
    for order in "<>":
        body = colour.astype(f"{order}u2").tobytes()
        assert np.array_equal(read_photo(tiff_of(body, tags, order)).pixels, scene(6, 8))


def test_sixteen_bit_transparency_and_polarity_and_twelve_bits() -> None:
    grey = np.array([[1000, 40_000]], dtype=">u2")
    keyed = png_of(1, 2, 16, 0, grey.tobytes(), (b"tRNS", struct.pack(">H", 1000)))
    assert read_photo(keyed).pixels[0, :, 0].tolist() == [255, 156]
    tags = {256: (2,), 257: (1,), 258: (16,), 262: (0,), 277: (1,), 278: (1,)}
    assert read_photo(tiff_of(grey.astype("<u2").tobytes(), tags)).pixels[0, :, 0].tolist() == [252, 99]
    # Two samples of 12 bits in three bytes: 0xFFF and 0x800.
    twelve = tiff_of(b"\xff\xf8\x00", tags | {258: (12,), 262: (1,)})
    assert read_photo(twelve).pixels[0, :, 0].tolist() == [255, 128]


@pytest.mark.parametrize("white", [1.0, 255.0, 65535.0])
def test_float_grey(white: float) -> None:
    values = np.array([[0.0, 0.2, 0.5, 1.0, 1.04, -0.02]], dtype=np.float32) * np.float32(white)
    for source in (Image.fromarray(values), encode(values, "TIFF")):
        assert read_photo(source).pixels[0, :, 1].tolist() == [0, 51, 128, 255, 255, 0]


def test_grey_without_a_scale_is_refused() -> None:
    for values in (np.array([[0, 1e6]], np.float32), np.array([[0, np.nan]], np.float32)):
        with refused("format", "float grey with values from"):
            read_photo(Image.fromarray(values))
    with pytest.raises(ImageError, match="from 0 to 70000; expected 0-65535"):
        read_photo(Image.fromarray(np.array([[0, 70_000]], np.int32)))


def test_cmyk_without_adobes_marker_reads_the_same() -> None:
    data = encode(Image.fromarray(scene()).convert("CMYK"), "JPEG", quality=95)
    at = data.index(b"\xff\xee")
    without = data[:at] + data[at + 2 + int.from_bytes(data[at + 2 : at + 4], "big") :]
    assert b"Adobe" in data and b"Adobe" not in without
    assert np.array_equal(read_photo(without).pixels, read_photo(data).pixels)


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1)])
def test_extreme_sizes(size: tuple[int, int], tmp_path: Path) -> None:
    pixels = np.full((*size, 3), (200, 30, 60), np.uint8)
    for kind in ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "AVIF"):
        assert difference(read_photo(encode(pixels, kind)).pixels, pixels) < 3
    scores = resize_scores(np.full((256, 256), 0.75, np.float32), size)
    assert scores.shape == size and np.allclose(scores, 0.75)
    drawn = overlay(pixels, result_of(scores))
    assert (drawn.height, drawn.width) == size
    write_scores(tmp_path / "s.png", scores)
    assert np.allclose(read_scores(tmp_path / "s.png"), 0.75, atol=1e-5)
    write_mask(tmp_path / "m.png", scores > 0.5)
    assert read_photo(tmp_path / "m.png").size == size


# ── orientation ─────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("kind", "orientation"),
    [("PNG", 5), ("JPEG", 8), ("AVIF", 7), ("TIFF-deflate", 6), *(("TIFF", number) for number in range(1, 9))],
)
def test_orientation_is_applied_once(kind: str, orientation: int, tmp_path: Path) -> None:
    kind, _, deflated = kind.partition("-")
    options = {"quality": 95} if kind == "AVIF" else {"compression": "tiff_adobe_deflate"} if deflated else {}
    stored = np.ascontiguousarray(to_stored(scene(30, 50), orientation))
    path = tmp_path / "turned"
    path.write_bytes(encode(stored, kind, exif=exif_of({0x112: orientation}), **options))
    photo = read_photo(path)
    assert photo.size == (30, 50) and photo.orientation == orientation
    assert difference(photo.pixels, scene(30, 50)) <= (6 if kind in ("JPEG", "AVIF") else 0)
    with Image.open(path) as opened:
        given, again = read_photo(opened), read_photo(opened)  # the second time it is loaded already
        assert np.array_equal(given.pixels, photo.pixels) and np.array_equal(again.pixels, photo.pixels)
        assert given.orientation == orientation
        turned = ImageOps.exif_transpose(opened)  # by the caller: not turned again
    assert np.array_equal(read_photo(turned).pixels, photo.pixels)
    assert np.array_equal(read_mask(Sample(image=path, label="real")), np.zeros((30, 50), dtype=bool))


# ── what is not a picture ───────────────────────────────────────────────────────────────────────────────────────────


def test_files_that_cannot_be_pictures(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("hello, I am a text")
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "page.tif").write_bytes(b"%PDF-1.7 and more")
    (tmp_path / "video.heic").write_bytes(struct.pack(">I", 20) + b"ftypisom" + bytes(8) + bytes(100))
    cases = {
        "absent.jpg": ("missing", "there is no such file"),
        "text.png/inside.png": ("missing", "there is no such file"),
        ".": ("input", "is a folder"),
        "text.png": ("format", "begins with b'hello, I am "),
        "page.tif": ("format", "expected JPEG, PNG, WebP, TIFF, BMP, GIF, AVIF or HEIC"),
        "video.heic": ("format", "not a picture declip reads"),
        "empty.jpg": ("corrupt", r"the file is empty \(0 bytes\)"),
        "x" * 300: ("missing", "cannot be opened"),
        "nul\0.png": ("missing", "cannot be the name of a file"),
    }
    for name, (kind, message) in cases.items():
        path = os.path.join(tmp_path, name)  # noqa: PTH118 - Path would normalise "."
        with pytest.raises(ImageError, match=message) as error:
            read_photo(path)
        assert error.value.kind == kind and error.value.image == path and path in str(error.value), name


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_a_pipe_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    with refused("input", "not a regular file"):
        read_photo(tmp_path / "pipe.png")


def test_heic_without_its_package_says_the_pip_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    head = struct.pack(">I", 24) + b"ftypheic" + bytes(4) + b"mif1heic" + bytes(100)
    with refused("format", re.escape("pip install 'declip[heif]'")):
        read_photo(head)


def test_a_tiff_that_pillow_cannot_read_says_so() -> None:
    tags = {256: (2,), 257: (1,), 258: (64, 64, 64), 262: (2,), 277: (3,), 278: (1,)}
    with pytest.raises(ImageError, match="of a kind Pillow does not read"):
        read_photo(tiff_of(bytes(48), tags))


# ── limits ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", KINDS)
def test_the_pixel_limit_is_checked_before_decoding(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = encode(scene(), kind)
    assert read_photo(data, max_pixels=160 * 120).size == (120, 160)
    monkeypatch.setattr(decode, "load", lambda *_: pytest.fail("decoded"))
    with refused("too-large", f"at most {160 * 120 - 1} are read"):
        read_photo(data, max_pixels=160 * 120 - 1)
    with pytest.raises(ImageError, match=f"at most {160 * 120 - 1} are read"), Image.open(io.BytesIO(data)) as opened:
        read_photo(opened, max_pixels=160 * 120 - 1)


def test_declared_sizes_are_believed_before_anything_is_allocated() -> None:
    huge = png_of(200_000, 200_000, 8, 2, b"")
    gif = b"GIF89a" + struct.pack("<HH", 60_000, 60_000) + bytes(20)
    for data in (huge, gif):
        with refused("too-large", "at most 250000000 are read"):
            read_photo(data)


def test_the_byte_limit_is_checked_before_reading(tmp_path: Path) -> None:
    path = tmp_path / "large.png"
    with path.open("wb") as file:  # sparse: takes no room
        file.truncate(MAX_BYTES + 1)
    with refused("too-large", "the file has 200000001 bytes; at most 200000000 are read"):
        read_photo(path)
    with pytest.raises(ImageError, match="at most 10 bytes are read"):
        read_photo(encode(scene(), "PNG"), max_bytes=10)
    with pytest.raises(ImageError, match="at most 99 pixels are read"):
        read_photo(np.zeros((10, 10, 3), np.uint8), max_pixels=99)


@pytest.mark.parametrize("kind", KINDS)
def test_pillows_own_limit_stays_out_of_it(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Above it Pillow warns, above its double it fails; it is lower than ours and global.
    limit = 10_000 if kind == "WEBP" else 1000  # its plugin looks at the double while it opens
    data = encode(scene(), kind)
    expected = read_photo(data).pixels
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    monkeypatch.setattr(arrays, "STRIP", 800)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.array_equal(read_photo(data).pixels, expected)
    assert limit == Image.MAX_IMAGE_PIXELS


# ── damage ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.filterwarnings("ignore:Truncated File Read")
@pytest.mark.parametrize("name", FILES)
def test_a_truncated_file_is_corrupt(name: str, tmp_path: Path) -> None:
    data = file(name, textured())
    assert read_photo(data).size == (120, 160)
    path = tmp_path / "cut.jpg"
    for share in (0.02, 0.5, 0.999):
        path.write_bytes(data[: max(20, int(len(data) * share))])
        with pytest.raises(ImageError, match=r"truncated|damaged") as error:
            read_photo(path)
        assert error.value.kind == "corrupt" and str(error.value).startswith(f"{path}: "), share


@pytest.mark.parametrize("name", [name for name in FILES if name.startswith("jpeg")])
def test_a_jpeg_that_was_cut_and_closed_is_corrupt(name: str) -> None:
    # Pillow reads these without a word: rows of grey, or a coarse picture.
    data = file(name, textured())
    for share in (0.3, 0.97):
        cut = data[: int(len(data) * share)] + b"\xff\xd9"
        with refused("corrupt", r"truncated or damaged"):
            read_photo(cut)


def test_a_progressive_jpeg_cut_between_its_scans_is_corrupt() -> None:
    data = file("jpeg-progressive", textured())
    starts = [m.start() for m in re.finditer(rb"\xff\xda", data)]
    assert len(starts) == 10
    for count, start in enumerate(starts[1:], start=1):
        with pytest.raises(ImageError, match=f"only the first {count} of its scans are there"):
            read_photo(data[:start] + b"\xff\xd9")


@pytest.mark.parametrize("name", ["jpeg-progressive", "jpeg-grey", "png", "webp", "webp-lossless", "avif", "heic"])
def test_a_download_whose_rest_is_zeros_is_corrupt(name: str) -> None:
    data = file(name, textured(300, 400))
    kept = max(len(data) // 3, len(data) - 30_000)
    assert len(data) - kept > 4096
    assert read_photo(data).size == (300, 400)
    with refused("corrupt"):
        read_photo(data[:kept] + bytes(len(data) - kept))


def test_a_png_is_checked_by_its_sums() -> None:
    data = bytearray(encode(textured(), "PNG"))
    data[len(data) // 2] ^= 1
    with pytest.raises(ImageError, match="check sum of its IDAT chunk is wrong"):
        read_photo(bytes(data))
    whole = encode(textured(), "PNG")
    with pytest.raises(ImageError, match="it ends without an end chunk"):
        read_photo(whole[:-12])
    info = PngImagePlugin.PngInfo()
    info.add_text("Comment", "harmless")
    commented = encode(textured(), "PNG", pnginfo=info)
    assert np.array_equal(read_photo(commented).pixels, textured())


def test_a_tiff_whose_strips_do_not_cover_it_is_corrupt() -> None:
    tags = {256: (4,), 257: (8,), 258: (8,), 262: (1,), 277: (1,), 278: (4,)}
    with pytest.raises(ImageError, match="do not cover the picture"):
        read_photo(tiff_of(bytes(16), tags))


def test_grey_pictures_that_are_whole_are_not_suspected() -> None:
    grey = np.full((64, 64, 3), 128, np.uint8)
    for options in ({}, {"optimize": True}, {"progressive": True}, {"restart_marker_rows": 1}):
        assert np.array_equal(read_photo(encode(grey, "JPEG", **options)).pixels, grey)
    cornered = textured()
    cornered[100:, 140:] = 128
    for quality in (30, 75, 95):
        assert read_photo(encode(cornered, "JPEG", quality=quality)).size == (120, 160)


def test_damage_anywhere_is_an_image_error_or_a_picture() -> None:
    rng = np.random.default_rng(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in FILES:
            if name == "heic" and "pillow_heif" not in sys.modules:
                continue
            data = np.frombuffer(file(name, textured()), np.uint8)
            for _ in range(4):
                hurt = data.copy()
                hurt[rng.integers(0, min(len(hurt), 400), 3)] = rng.integers(0, 256, 3)
                try:
                    pixels = read_photo(hurt.tobytes()).pixels
                except ImageError as error:
                    assert error.kind in ("corrupt", "format", "too-large")
                else:
                    assert pixels.ndim == 3


# ── threads and buffers ─────────────────────────────────────────────────────────────────────────────────────────────


def test_threads_may_share_everything(tmp_path: Path) -> None:
    path = tmp_path / "photo.jpg"
    path.write_bytes(encode(textured(300, 400), "JPEG"))
    expected = read_photo(path).pixels
    barrier = threading.Barrier(8)
    with Image.open(path) as opened:

        def work(i: int) -> bool:
            barrier.wait()
            return np.array_equal(read_photo(opened if i % 2 else path).pixels, expected)

        with ThreadPoolExecutor(8) as pool:
            assert all(pool.map(work, range(8)))


def test_a_pil_image_keeps_its_mode_and_pixels() -> None:
    given = Image.fromarray(scene()).convert("RGBA")
    read_photo(given)
    assert given.mode == "RGBA" and np.array_equal(np.asarray(given)[:, :, :3], scene())


def test_an_address_of_this_machine_is_its_file(tmp_path: Path) -> None:
    path = tmp_path / "my photos" / "a.png"
    path.parent.mkdir()
    Image.fromarray(np.full((70, 80, 3), 90, np.uint8)).save(path)
    assert read_photo(path.as_uri()).size == read_photo(path).size == (70, 80)
    with pytest.raises(ImageError, match="a file of the machine 'elsewhere'"):
        read_photo("file://elsewhere/a.png")
