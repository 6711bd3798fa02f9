"""Pictures in, network inputs, scores out: every format, damage, limits, parity with torch, and the overlay."""

import io
import json
import os
import re
import struct
import sys
import threading
import time
import warnings
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter, PngImagePlugin

from declip.errors import DatasetError, ImageError
from declip.images import arrays, decode
from declip.images.mapfiles import read_mask, read_scores, write_mask, write_scores
from declip.images.overlay import RED, overlay, overlay_png
from declip.images.read import MAX_BYTES, read_photo
from declip.images.tensors import normalise, resize_scores, to_input, to_scores
from declip.results import Localization, MaskRule, Sample
from declip.spec import BackboneSpec, DecoderSpec, ModelSpec

GOLDEN = Path(__file__).resolve().parents[3] / "shared" / "golden"
SPEC = ModelSpec(
    backbones=(BackboneSpec(name="vit_large_patch14_clip_quickgelu_224", layer=20),), decoder=DecoderSpec(kind="conv-4")
)


def scene(height: int = 120, width: int = 160) -> np.ndarray:
    """A smooth coloured picture with an edge in it and no symmetry: (height, width, 3) uint8."""
    y, x = np.mgrid[:height, :width]
    red = 255 * x / max(1, width - 1)
    green = 255 * y / max(1, height - 1)
    blue = np.where(x + 2 * y < width, 40, 210)
    return np.stack([red, green, blue], axis=2).astype(np.uint8)


def textured(height: int = 120, width: int = 160) -> np.ndarray:
    """`scene` with grain, so that compressed files have a body to be cut."""
    noise = np.random.default_rng(0).integers(-20, 21, (height, width, 1))
    return np.clip(scene(height, width) + noise, 0, 255).astype(np.uint8)


def encode(picture: np.ndarray | Image.Image, kind: str, **options: object) -> bytes:
    if isinstance(picture, np.ndarray):
        picture = Image.fromarray(picture)
    if kind == "HEIF":
        pytest.importorskip("pillow_heif").register_heif_opener()
    stream = io.BytesIO()
    picture.save(stream, kind, **options)
    return stream.getvalue()


def difference(a: np.ndarray, b: np.ndarray) -> float:
    assert a.shape == b.shape
    return float(np.abs(a.astype(int) - b.astype(int)).mean())


def result_of(scores: np.ndarray, threshold: float = 0.5) -> Localization:
    return Localization(
        name="p", scores=scores, rule=MaskRule(threshold=threshold), image_score=0.5, model="m", sha256="0"
    )


def png_of(height: int, width: int, depth: int, colour: int, rows: bytes, *extra: tuple[bytes, bytes]) -> bytes:
    """A PNG from unfiltered rows of packed samples: kinds Pillow does not write."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    line = len(rows) // height
    lines = b"".join(b"\0" + rows[i * line : (i + 1) * line] for i in range(height))
    chunks = [(b"IHDR", header), *extra, (b"IDAT", zlib.compress(lines)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*c) for c in chunks)


def tiff_of(body: bytes, tags: dict[int, tuple[int, ...]], order: str = "<") -> bytes:
    """An uncompressed TIFF of one strip: kinds Pillow does not write. tags: SHORTs, without strip offset and length."""
    entries = {273: (8,), 279: (len(body),), 259: (1,), **tags}
    at = 8 + len(body) + 2 + 12 * len(entries) + 4
    table, late = b"", b""
    for tag, values in sorted(entries.items()):
        kind, code = (4, "I") if tag in (273, 279) else (3, "H")
        packed = struct.pack(f"{order}{len(values)}{code}", *values)
        if len(packed) > 4:
            late, packed = late + packed, struct.pack(f"{order}I", at + len(late))
        table += struct.pack(f"{order}HHI", tag, kind, len(values)) + packed.ljust(4, b"\0")
    magic = b"II*\0" if order == "<" else b"MM\0*"
    ifd = struct.pack(f"{order}H", len(entries)) + table + struct.pack(f"{order}I", 0)
    return magic + struct.pack(f"{order}I", 8 + len(body)) + body + ifd + late


# ── formats ─────────────────────────────────────────────────────────────────────────────────────────────────────────

# name → (bytes, mean difference from the scene that is allowed)
FORMATS: dict[str, tuple[Callable[[], bytes], float]] = {
    "jpeg": (lambda: encode(scene(), "JPEG", quality=95), 2),
    "jpeg-progressive": (lambda: encode(scene(), "JPEG", quality=95, progressive=True), 2),
    "jpeg-restarts": (lambda: encode(scene(), "JPEG", quality=95, restart_marker_rows=1), 2),
    "jpeg-cmyk": (lambda: encode(Image.fromarray(scene()).convert("CMYK"), "JPEG", quality=95), 2),
    "jpeg-cmyk-progressive": (
        lambda: encode(Image.fromarray(scene()).convert("CMYK"), "JPEG", quality=95, progressive=True),
        2,
    ),
    "png": (lambda: encode(scene(), "PNG"), 0),
    "png-alpha": (lambda: encode(Image.fromarray(scene()).convert("RGBA"), "PNG"), 0),
    "webp": (lambda: encode(scene(), "WEBP", quality=95), 3),
    "webp-lossless": (lambda: encode(scene(), "WEBP", lossless=True), 0),
    "tiff": (lambda: encode(scene(), "TIFF"), 0),
    "tiff-lzw": (lambda: encode(scene(), "TIFF", compression="tiff_lzw"), 0),
    "tiff-deflate": (lambda: encode(scene(), "TIFF", compression="tiff_adobe_deflate"), 0),
    "tiff-cmyk": (lambda: encode(Image.fromarray(scene()).convert("CMYK"), "TIFF"), 1),
    "bmp": (lambda: encode(scene(), "BMP"), 0),
    "gif": (lambda: encode(scene(), "GIF"), 12),
    "avif": (lambda: encode(scene(), "AVIF", quality=95), 3),
    "heic": (lambda: encode(scene(), "HEIF", quality=95), 3),
}


@pytest.mark.parametrize("name", FORMATS)
def test_a_picture_is_the_same_however_it_comes(name: str, tmp_path: Path) -> None:
    data, allowed = FORMATS[name][0](), FORMATS[name][1]
    path = tmp_path / "picture.jpg"  # the name does not matter
    path.write_bytes(data)
    photo = read_photo(path)
    assert difference(photo.pixels, scene()) <= allowed
    assert photo.size == (120, 160) and photo.name == str(path) and photo.data == data and photo.orientation == 1
    assert photo.pixels.dtype == np.uint8 and photo.pixels.flags.c_contiguous and photo.pixels.flags.writeable
    with Image.open(path) as opened:
        for other in (str(path), data, bytearray(data), opened, photo.pixels, photo):
            assert np.array_equal(read_photo(other).pixels, photo.pixels)
    assert read_photo(data).data == data and read_photo(photo.pixels).data == b""


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "BMP", "AVIF", "HEIF"])
def test_grey_pictures(kind: str) -> None:
    grey = scene()[:, :, 1]
    pixels = read_photo(encode(grey, kind)).pixels
    assert difference(pixels, np.repeat(grey[:, :, None], 3, axis=2)) < 2
    assert difference(pixels[:, :, 0], pixels[:, :, 2]) < 1


def test_palettes_and_single_bits() -> None:
    palette = Image.fromarray(scene()).convert("P", palette=Image.Palette.ADAPTIVE)
    expected = np.array(palette.convert("RGB"))
    for kind in ("PNG", "GIF", "BMP", "TIFF"):
        assert np.array_equal(read_photo(encode(palette, kind)).pixels, expected)
    bits = Image.fromarray(scene()[:, :, 0] > 99)
    for kind in ("PNG", "BMP", "TIFF"):
        assert np.array_equal(read_photo(encode(bits, kind)).pixels[:, :, 1], 255 * (scene()[:, :, 0] > 99))


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
    grey_alpha = Image.fromarray(rgba).convert("LA")
    assert read_photo(encode(grey_alpha, "PNG")).pixels[0, 0].tolist() == [255, 255, 255]
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


def test_sixteen_bit_transparency_and_polarity() -> None:
    grey = np.array([[1000, 40_000]], dtype=">u2")
    keyed = png_of(1, 2, 16, 0, grey.tobytes(), (b"tRNS", struct.pack(">H", 1000)))
    assert read_photo(keyed).pixels[0, :, 0].tolist() == [255, 156]
    white_is_zero = {256: (2,), 257: (1,), 258: (16,), 262: (0,), 277: (1,), 278: (1,)}
    assert read_photo(tiff_of(grey.astype("<u2").tobytes(), white_is_zero)).pixels[0, :, 0].tolist() == [252, 99]


def test_twelve_bits_reach_white() -> None:
    # Two samples of 12 bits in three bytes: 0xFFF and 0x800.
    tags = {256: (2,), 257: (1,), 258: (12,), 262: (1,), 277: (1,), 278: (1,)}
    assert read_photo(tiff_of(b"\xff\xf8\x00", tags)).pixels[0, :, 0].tolist() == [255, 128]


@pytest.mark.parametrize("white", [1.0, 255.0, 65535.0])
def test_float_grey(white: float) -> None:
    values = np.array([[0.0, 0.2, 0.5, 1.0, 1.04, -0.02]], dtype=np.float32) * np.float32(white)
    for source in (Image.fromarray(values), encode(values, "TIFF")):
        assert read_photo(source).pixels[0, :, 1].tolist() == [0, 51, 128, 255, 255, 0]


def test_grey_without_a_scale_is_refused() -> None:
    for values in (np.array([[0, 1e6]], np.float32), np.array([[0, np.nan]], np.float32)):
        with pytest.raises(ImageError, match="float grey with values from") as error:
            read_photo(Image.fromarray(values))
        assert error.value.kind == "format"
    with pytest.raises(ImageError, match="from 0 to 70000; expected 0-65535"):
        read_photo(Image.fromarray(np.array([[0, 70_000]], np.int32)))


def test_cmyk_without_adobes_marker_reads_the_same() -> None:
    data = encode(Image.fromarray(scene()).convert("CMYK"), "JPEG", quality=95)
    at = data.index(b"\xff\xee")
    without = data[:at] + data[at + 2 + int.from_bytes(data[at + 2 : at + 4], "big") :]
    assert b"Adobe" in data and b"Adobe" not in without
    assert np.array_equal(read_photo(without).pixels, read_photo(data).pixels)


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_the_first_frame_counts(kind: str) -> None:
    frames = [Image.new("RGB", (20, 10), colour) for colour in ("red", "lime", "blue")]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encode(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert read_photo(data).pixels[5, 5].tolist() == [255, 0, 0]


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1)])
def test_extreme_sizes(size: tuple[int, int], tmp_path: Path) -> None:
    pixels = np.full((*size, 3), (200, 30, 60), np.uint8)
    for kind in ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "AVIF"):
        assert difference(read_photo(encode(pixels, kind)).pixels, pixels) < 3
    tensor = to_input(pixels, SPEC)
    assert tensor.shape == (3, 224, 224) and np.ptp(tensor[0]) == 0
    scores = resize_scores(np.full((256, 256), 0.75, np.float32), size)
    assert scores.shape == size and np.allclose(scores, 0.75)
    drawn = overlay(pixels, result_of(scores))
    assert (drawn.height, drawn.width) == size
    write_scores(tmp_path / "s.png", scores)
    assert np.allclose(read_scores(tmp_path / "s.png"), 0.75, atol=1e-5)
    write_mask(tmp_path / "m.png", scores > 0.5)
    assert read_photo(tmp_path / "m.png").size == size


# ── orientation ─────────────────────────────────────────────────────────────────────────────────────────────────────

# What a camera stores for an upright picture, per EXIF orientation.
STORED: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a),
    7: lambda a: a.transpose(1, 0, 2)[::-1, ::-1],
    8: lambda a: np.rot90(a, -1),
}


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "TIFF-deflate", "JPEG", "AVIF"])
def test_orientation_is_applied_once(kind: str, orientation: int, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x112] = orientation
    options: dict[str, object] = {"AVIF": {"quality": 95}}.get(kind, {})
    if kind == "TIFF-deflate":
        options = {"compression": "tiff_adobe_deflate"}
    stored = np.ascontiguousarray(STORED[orientation](scene(30, 50)))
    path = tmp_path / "turned"
    path.write_bytes(encode(stored, kind.removesuffix("-deflate"), exif=exif, **options))
    photo = read_photo(path)
    assert photo.size == (30, 50) and photo.orientation == orientation
    assert difference(photo.pixels, scene(30, 50)) <= (6 if kind in ("JPEG", "AVIF") else 0)
    with Image.open(path) as opened:
        given = read_photo(opened)
        again = read_photo(opened)  # loaded by now
    assert np.array_equal(given.pixels, photo.pixels) and np.array_equal(again.pixels, photo.pixels)
    assert given.orientation == orientation
    assert np.array_equal(read_mask(Sample(image=path, label="real")), np.zeros((30, 50), dtype=bool))


def test_a_broken_exif_block_leaves_the_picture_readable() -> None:
    data = encode(scene(), "JPEG", exif=b"Exif\0\0nothing of the kind", dpi=(72, 72))
    photo = read_photo(data)
    assert photo.orientation == 1 and photo.size == (120, 160)


def test_an_image_turned_by_the_caller_is_not_turned_again() -> None:
    exif = Image.Exif()
    exif[0x112] = 6
    data = encode(np.ascontiguousarray(STORED[6](scene())), "PNG", exif=exif)
    with Image.open(io.BytesIO(data)) as opened:
        from PIL import ImageOps

        assert np.array_equal(read_photo(ImageOps.exif_transpose(opened)).pixels, scene())


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
    with pytest.raises(ImageError, match="not a regular file"):
        read_photo(tmp_path / "pipe.png")


@pytest.mark.parametrize(
    "source",
    [
        None,
        3.5,
        [1, 2],
        np.full((4, 4, 3), 255, np.float32),
        np.full((4, 4, 3), -0.5),
        np.full((4, 4, 3), np.nan),
        np.zeros((5, 4, 2), np.uint8),
        np.zeros((4, 4, 3), bool),
        np.zeros((4, 4, 3), np.int64),
        np.zeros((4, 4, 3), complex),
        np.zeros((3, 4, 3), np.uint8),
        np.zeros((3, 4, 4), np.uint8),
        np.zeros((3, 4, 4, 3), np.uint8),
        np.zeros((0, 4, 3), np.uint8),
        np.zeros((2, 8, 9), np.uint8),
        np.zeros(9, np.uint8),
    ],
)
def test_objects_that_cannot_be_pictures(source: object) -> None:
    with pytest.raises(ImageError, match="expected") as error:
        read_photo(source)
    assert error.value.kind == "input"


def test_heic_without_its_package_says_the_pip_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    head = struct.pack(">I", 24) + b"ftypheic" + bytes(4) + b"mif1heic" + bytes(100)
    with pytest.raises(ImageError, match=re.escape("pip install 'declip[heif]'")) as error:
        read_photo(head)
    assert error.value.kind == "format"


def test_a_tiff_that_pillow_cannot_read_says_so() -> None:
    tags = {256: (2,), 257: (1,), 258: (64, 64, 64), 262: (2,), 277: (3,), 278: (1,)}
    with pytest.raises(ImageError, match="of a kind Pillow does not read"):
        read_photo(tiff_of(bytes(48), tags))


# ── limits ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "AVIF", "HEIF"])
def test_the_pixel_limit_is_checked_before_decoding(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = encode(scene(), kind)
    assert read_photo(data, max_pixels=160 * 120).size == (120, 160)
    monkeypatch.setattr(decode, "load", lambda *_: pytest.fail("decoded"))
    with pytest.raises(ImageError, match=f"at most {160 * 120 - 1} are read") as error:
        read_photo(data, max_pixels=160 * 120 - 1)
    assert error.value.kind == "too-large"
    with pytest.raises(ImageError, match=f"at most {160 * 120 - 1} are read"), Image.open(io.BytesIO(data)) as opened:
        read_photo(opened, max_pixels=160 * 120 - 1)


def test_declared_sizes_are_believed_before_anything_is_allocated() -> None:
    huge = png_of(1, 1, 8, 2, bytes(3)).replace(
        struct.pack(">II", 1, 1) + b"\x08\x02\0\0\0" + struct.pack(">I", 0), b""
    )
    header = struct.pack(">IIBBBBB", 200_000, 200_000, 8, 2, 0, 0, 0)
    huge = (
        huge[:8]
        + struct.pack(">I", 13)
        + b"IHDR"
        + header
        + struct.pack(">I", zlib.crc32(b"IHDR" + header))
        + huge[33:]
    )
    gif = b"GIF89a" + struct.pack("<HH", 60_000, 60_000) + bytes(20)
    for data in (huge, gif):
        with pytest.raises(ImageError, match="at most 250000000 are read") as error:
            read_photo(data)
        assert error.value.kind == "too-large"


def test_the_byte_limit_is_checked_before_reading(tmp_path: Path) -> None:
    path = tmp_path / "large.png"
    with path.open("wb") as file:  # sparse: takes no room
        file.truncate(MAX_BYTES + 1)
    with pytest.raises(ImageError, match="the file has 200000001 bytes; at most 200000000 are read") as error:
        read_photo(path)
    assert error.value.kind == "too-large"
    with pytest.raises(ImageError, match="at most 10 bytes are read"):
        read_photo(encode(scene(), "PNG"), max_bytes=10)
    with pytest.raises(ImageError, match="at most 99 pixels are read"):
        read_photo(np.zeros((10, 10, 3), np.uint8), max_pixels=99)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "AVIF", "HEIF"])
@pytest.mark.parametrize("limit", [160 * 120 - 1, 1000])
def test_pillows_own_limit_stays_out_of_it(kind: str, limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    # Above it Pillow warns, above its double it fails; it is lower than ours and global.
    if kind == "WEBP":  # whose plugin looks at the double while it opens
        limit = max(limit, 10_000)
    data = encode(scene(), kind)
    expected = read_photo(data).pixels
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    monkeypatch.setattr(arrays, "STRIP", 800)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.array_equal(read_photo(data).pixels, expected)
    assert limit == Image.MAX_IMAGE_PIXELS


# ── damage ──────────────────────────────────────────────────────────────────────────────────────────────────────────

DAMAGED: dict[str, Callable[[], bytes]] = {
    "jpeg": lambda: encode(textured(), "JPEG", quality=90),
    "jpeg-progressive": lambda: encode(textured(), "JPEG", quality=90, progressive=True),
    "jpeg-grey": lambda: encode(textured()[:, :, 0], "JPEG", quality=90),
    "jpeg-cmyk": lambda: encode(Image.fromarray(textured()).convert("CMYK"), "JPEG", quality=90),
    "jpeg-restarts": lambda: encode(textured(), "JPEG", quality=90, restart_marker_rows=1),
    "png": lambda: encode(textured(), "PNG"),
    "png-palette": lambda: encode(Image.fromarray(textured()).convert("P"), "PNG"),
    "png-16": lambda: encode(textured()[:, :, 0].astype(np.uint16) * 200, "PNG"),
    "webp": lambda: encode(textured(), "WEBP", quality=90),
    "webp-lossless": lambda: encode(textured(), "WEBP", lossless=True),
    "tiff": lambda: encode(textured(), "TIFF"),
    "tiff-lzw": lambda: encode(textured(), "TIFF", compression="tiff_lzw"),
    "tiff-deflate": lambda: encode(textured(), "TIFF", compression="tiff_adobe_deflate"),
    "tiff-jpeg": lambda: encode(textured(), "TIFF", compression="jpeg"),
    "bmp": lambda: encode(textured(), "BMP"),
    "gif": lambda: encode(textured(), "GIF"),
    "avif": lambda: encode(textured(), "AVIF", quality=90),
    "heic": lambda: encode(textured(), "HEIF", quality=90),
}


@pytest.mark.filterwarnings("ignore:Truncated File Read")
@pytest.mark.parametrize("name", DAMAGED)
def test_a_truncated_file_is_corrupt(name: str, tmp_path: Path) -> None:
    data = DAMAGED[name]()
    assert read_photo(data).size == (120, 160)
    path = tmp_path / "cut.jpg"
    for share in (0.02, 0.2, 0.5, 0.8, 0.95, 0.999):
        path.write_bytes(data[: max(20, int(len(data) * share))])
        with pytest.raises(ImageError, match=r"truncated|damaged") as error:
            read_photo(path)
        assert error.value.kind == "corrupt" and str(error.value).startswith(f"{path}: "), share


@pytest.mark.parametrize("name", [n for n in DAMAGED if n.startswith("jpeg")])
def test_a_jpeg_that_was_cut_and_closed_is_corrupt(name: str) -> None:
    # Pillow reads these without a word: rows of grey, or a coarse picture.
    data = DAMAGED[name]()
    for share in (0.3, 0.5, 0.7, 0.9, 0.97):
        cut = data[: int(len(data) * share)] + b"\xff\xd9"
        with pytest.raises(ImageError, match=r"truncated or damaged") as error:
            read_photo(cut)
        assert error.value.kind == "corrupt", share


def test_pillow_really_reads_a_closed_half() -> None:
    data = DAMAGED["jpeg"]()
    with Image.open(io.BytesIO(data[: len(data) // 2] + b"\xff\xd9")) as half:
        assert half.convert("RGB").getpixel((159, 119)) == (128, 128, 128)


def test_a_progressive_jpeg_cut_between_its_scans_is_corrupt() -> None:
    data = DAMAGED["jpeg-progressive"]()
    starts = [m.start() for m in re.finditer(rb"\xff\xda", data)]
    assert len(starts) == 10
    for count, start in enumerate(starts[1:], start=1):
        with pytest.raises(ImageError, match=f"only the first {count} of its scans are there"):
            read_photo(data[:start] + b"\xff\xd9")


@pytest.mark.parametrize(
    "name", ["jpeg", "jpeg-progressive", "jpeg-grey", "png", "webp", "webp-lossless", "avif", "heic"]
)
def test_a_download_whose_rest_is_zeros_is_corrupt(name: str) -> None:
    large = textured(300, 400)
    kind, _, variant = name.partition("-")
    options: dict[str, object] = {"quality": 95, "progressive": variant == "progressive"} if kind == "jpeg" else {}
    options |= {"lossless": variant == "lossless"} if kind == "webp" else {}
    data = encode(large[:, :, 0] if variant == "grey" else large, {"heic": "HEIF"}.get(kind, kind.upper()), **options)
    kept = max(len(data) // 3, len(data) - 30_000)
    assert len(data) - kept > 4096
    assert read_photo(data).size == (300, 400)
    with pytest.raises(ImageError) as error:
        read_photo(data[:kept] + bytes(len(data) - kept))
    assert error.value.kind == "corrupt"


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


def test_what_follows_the_end_of_a_jpeg_does_not_matter() -> None:
    data = encode(textured(), "JPEG")
    expected = read_photo(data).pixels
    for rest in (b"\0" * 5000, b"\xff\xd8\xff and a second picture", b"\xff"):
        assert np.array_equal(read_photo(data + rest).pixels, expected)


def test_damage_anywhere_is_an_image_error_or_a_picture() -> None:
    rng = np.random.default_rng(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, make in DAMAGED.items():
            if name == "heic" and "pillow_heif" not in sys.modules:
                continue
            data = np.frombuffer(make(), np.uint8)
            for _ in range(12):
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


def test_an_array_is_copied() -> None:
    frame = scene()
    photo = read_photo(frame)
    frame[:] = 0
    assert np.array_equal(photo.pixels, scene())
    grey = np.arange(12, dtype=np.uint8).reshape(3, 4)
    assert read_photo(grey).pixels[2, 3].tolist() == [11, 11, 11]
    assert np.array_equal(read_photo(scene()[::2, ::-1]).pixels, scene()[::2, ::-1])


def test_a_pil_image_keeps_its_mode_and_pixels() -> None:
    given = Image.fromarray(scene()).convert("RGBA")
    read_photo(given)
    assert given.mode == "RGBA" and np.array_equal(np.asarray(given)[:, :, :3], scene())


# ── the network's view ──────────────────────────────────────────────────────────────────────────────────────────────


def test_normalise_has_the_bits_of_torch() -> None:
    torch = pytest.importorskip("torch")
    values = np.arange(256, dtype=np.uint8)
    pixels = np.stack([values, values[::-1], np.roll(values, 99)], axis=1)[None]
    tensor = torch.from_numpy(pixels).permute(2, 0, 1).to(torch.float32).div(255)
    mean, std = torch.tensor(SPEC.mean), torch.tensor(SPEC.std)
    expected = tensor.sub_(mean[:, None, None]).div_(std[:, None, None]).numpy()
    ours = normalise(pixels, SPEC)
    assert ours.dtype == np.float32 and ours.flags.c_contiguous and np.array_equal(ours, expected)


def test_to_input_squashes_as_torchvision_does() -> None:
    transforms = pytest.importorskip("torchvision.transforms")
    pixels = textured(90, 311)
    steps = [transforms.Resize((224, 224)), transforms.ToTensor(), transforms.Normalize(SPEC.mean, SPEC.std)]
    expected = transforms.Compose(steps)(Image.fromarray(pixels)).numpy()
    assert np.array_equal(to_input(pixels, SPEC), expected)


@pytest.mark.skipif(not GOLDEN.exists(), reason="the shared golden values are not here")
@pytest.mark.parametrize("name", ["astronaut.png", "chelsea.png", "rocket.jpg"])
def test_golden_inputs_and_scores(name: str) -> None:
    skimage = pytest.importorskip("skimage")
    photo = read_photo(Path(skimage.__file__).parent / "data" / name)
    golden = np.load(GOLDEN / "photos_golden.npz")
    key = name if f"{name}|input" in golden else Path(name).stem
    expected = golden[f"{key}|input"]
    assert np.abs(to_input(photo.pixels, SPEC)[:, ::16, ::16] - expected).max() <= 1e-4
    facts = json.loads((GOLDEN / "photos_golden.json").read_text())
    size = facts[key]["size"] if isinstance(facts, dict) else next(f["size"] for f in facts if key in f.values())
    assert photo.size == tuple(size)


# ── scores ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_to_scores_is_a_safe_sigmoid() -> None:
    logits = np.array([[-1e30, -1000, -50, -1, 0, 1, 50, 1000, 1e30]], dtype=np.float32)
    before = logits.copy()
    for temperature in (1.0, 0.5, 3.0):
        scores = to_scores(logits, temperature)
        expected = 1 / (1 + np.exp(-np.clip(logits.astype(np.float64) / temperature, -700, 700)))
        assert scores.dtype == np.float32 and scores.shape == (1, 9)
        assert np.abs(scores - expected).max() < 1e-7
    assert np.array_equal(logits, before)


@pytest.mark.parametrize("size", [(512, 300), (100, 1000), (31, 17), (256, 256)])
def test_resize_scores_is_torchs_bilinear(size: tuple[int, int]) -> None:
    torch = pytest.importorskip("torch")
    scores = np.random.default_rng(0).random((256, 256), dtype=np.float32)
    tensor = torch.from_numpy(scores)[None, None]
    expected = torch.nn.functional.interpolate(tensor, size, mode="bilinear", align_corners=False, antialias=True)
    ours = resize_scores(scores, size)
    assert ours.shape == size and ours.dtype == np.float32 and ours.flags.writeable
    assert np.abs(ours - expected[0, 0].numpy()).max() < 2e-5


def test_resize_scores_stays_in_range() -> None:
    scores = np.zeros((9, 9), np.float32)
    scores[4:] = 1
    resized = resize_scores(scores, (1000, 700))
    assert resized.min() == 0 and resized.max() == 1
    strided = np.arange(64, dtype=np.float32).reshape(8, 8)[::2, ::2] / 64
    assert np.allclose(resize_scores(strided, (4, 4)), strided, atol=1e-6)


def test_scores_survive_their_file(tmp_path: Path) -> None:
    scores = np.random.default_rng(0).random((70, 50), dtype=np.float32)
    scores[0, :3] = 0, 1, 0.5
    before = scores.copy()
    write_scores(tmp_path / "a.scores.png", scores)
    back = read_scores(tmp_path / "a.scores.png")
    assert back.dtype == np.float32 and back.shape == (70, 50)
    assert np.abs(back - scores).max() <= 1 / 131070 + 1e-7
    assert back[0, :2].tolist() == [0, 1] and np.array_equal(scores, before)
    with Image.open(tmp_path / "a.scores.png") as opened:
        assert opened.mode == "I;16" and opened.size == (50, 70) and opened.getpixel((1, 0)) == 65535
    Image.fromarray(np.array([[0, 51, 255]], np.uint8)).save(tmp_path / "eight.png")
    assert read_scores(tmp_path / "eight.png")[0].tolist() == pytest.approx([0, 0.2, 1])


def test_scores_that_are_not_scores_are_refused(tmp_path: Path) -> None:
    for wrong in (np.full((3, 3), 1.01), np.full((3, 3), np.nan), np.full((3, 3), -0.01)):
        with pytest.raises(ValueError, match=r"outside \[0, 1\]"):
            write_scores(tmp_path / "s.png", wrong.astype(np.float32))
    with pytest.raises(ValueError, match=r"expected \(H, W\)"):
        write_scores(tmp_path / "s.png", np.zeros((1, 3, 3), np.float32))
    with pytest.raises(ValueError, match="expected bool"):
        write_mask(tmp_path / "m.png", np.zeros((3, 3), np.uint8))  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "s.jpg").write_bytes(encode(scene(), "JPEG"))
    with pytest.raises(ImageError, match="not a PNG"):
        read_scores(tmp_path / "s.jpg")
    (tmp_path / "rgb.png").write_bytes(encode(scene(), "PNG"))
    with pytest.raises(ImageError, match="expected grey"):
        read_scores(tmp_path / "rgb.png")


def test_write_mask(tmp_path: Path) -> None:
    mask = scene()[:, :, 0] > 100
    write_mask(tmp_path / "m.png", mask)
    with Image.open(tmp_path / "m.png") as opened:
        assert opened.mode == "L" and np.array_equal(np.asarray(opened), np.where(mask, 255, 0))


# ── masks ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_masks_with_transparent_parts_are_refused(tmp_path: Path) -> None:
    pixels = np.zeros((6, 8, 4), np.uint8)
    pixels[..., :3], pixels[:3, :, 3] = 255, 255
    path = tmp_path / "mask.png"
    Image.fromarray(pixels).save(path)
    with pytest.raises(ImageError, match="the mask has transparent parts; save it without") as caught:
        read_mask(Sample(image=path, mask=path, label="fake"))
    assert caught.value.kind == "input"
    pixels[..., 3], pixels[3:, :, :3] = 255, 0
    Image.fromarray(pixels).save(path)  # an alpha channel that hides nothing is none
    assert np.array_equal(read_mask(Sample(image=path, mask=path, label="fake"))[:, 0], np.arange(6) < 3)


def test_read_mask_resolves_polarity(tmp_path: Path) -> None:
    picture, path = tmp_path / "i.png", tmp_path / "m.png"
    values = np.array([[0, 127, 128, 255]], np.uint8)
    white = np.array([[False, False, True, True]])
    palette = Image.fromarray(values).convert("P")
    sources: list[np.ndarray | Image.Image] = [
        values,
        np.repeat(values[:, :, None], 3, axis=2),
        palette,
        values.astype(np.uint16) * 257,
        Image.fromarray(values).convert("RGBA"),
    ]
    for source in sources:
        path.write_bytes(encode(source, "PNG"))
        assert np.array_equal(read_mask(Sample(image=picture, mask=path, label="fake")), white)
        black = read_mask(Sample(image=picture, mask=path, label="fake", fake_is="black"))
        assert np.array_equal(black, ~white) and black.dtype == np.bool_
    path.write_bytes(encode(Image.fromarray(values > 0), "PNG"))
    assert read_mask(Sample(image=picture, mask=path, label="fake")).tolist() == [[False, True, True, True]]


def test_read_mask_without_a_file(tmp_path: Path) -> None:
    path = tmp_path / "real.jpg"
    path.write_bytes(encode(scene(), "JPEG"))
    mask = read_mask(Sample(image=path, label="real"))
    assert mask.shape == (120, 160) and mask.dtype == np.bool_ and not mask.any()
    with pytest.raises(DatasetError, match="a fake sample without a mask"):
        read_mask(Sample(image=path, label="fake"))
    with pytest.raises(ImageError, match="there is no such file"):
        read_mask(Sample(image=path, mask=tmp_path / "absent.png", label="fake"))


# ── overlay ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def drawn(pixels: np.ndarray, scores: np.ndarray, threshold: float = 0.5, **options: float) -> np.ndarray:
    return np.asarray(overlay(pixels, result_of(scores, threshold), **options)).astype(int)


def test_a_clean_photo_does_not_light_up() -> None:
    grey = np.repeat(textured()[:, :, :1], 3, axis=2)
    noise = np.random.default_rng(0).random((120, 160), dtype=np.float32)
    for threshold in (0.5, 0.1):
        # Everything below 60 % of the threshold leaves a grey photo as it is, however the scores vary among themselves.
        assert np.array_equal(drawn(grey, noise * np.float32(0.59 * threshold), threshold), grey)
    colours = drawn(textured(), np.zeros((120, 160), np.float32))
    assert np.array_equal(colours, drawn(textured(), noise * np.float32(0.29)))


def test_the_tint_follows_the_scores() -> None:
    grey = np.full((100, 100, 3), 120, np.uint8)
    redness = []
    for score in (0.0, 0.4, 0.6, 0.8, 1.0):
        # All of one score: no border, so no outline.
        pixel = drawn(grey, np.full((100, 100), score, np.float32))[50, 50]
        redness.append(pixel[0] - pixel[2])
    assert redness[0] == 0 and redness == sorted(set(redness))
    full = drawn(grey, np.ones((100, 100), np.float32), opacity=1.0)[50, 50]
    assert full.tolist() == list(RED)
    assert np.array_equal(drawn(grey, np.ones((100, 100), np.float32), opacity=0.0), grey)


@pytest.mark.parametrize("size", [(200, 300), (2800, 2800)])
def test_the_mask_has_a_thin_white_outline(size: tuple[int, int]) -> None:
    grey = np.full((*size, 3), 120, np.uint8)
    scores = np.zeros(size, np.float32)
    half = size[0] // 2
    scores[:half] = 0.9
    column = drawn(grey, scores)[:, size[1] // 2]
    # White on both sides of the border, heavier on a larger photo, and cased in black.
    assert column[half - 1 : half + 1].min() > 200
    assert np.count_nonzero(column.min(axis=1) > 200) == (2 if size == (200, 300) else 4)
    assert column[half : half + 6, 1].min() < 80
    far = 2 * int((size[0] * size[1]) ** 0.5 / 600) + 4
    assert np.array_equal(column[half + far :], np.full((size[0] - half - far, 3), 120))
    assert np.ptp(column[: half - far], axis=0).max() == 0


def test_strips_leave_no_seam(monkeypatch: pytest.MonkeyPatch) -> None:
    y, x = np.mgrid[:240, :160]
    scores = np.exp(-(((y - 110) / 60.0) ** 2) - ((x - 80) / 40.0) ** 2).astype(np.float32)
    whole = drawn(textured(240, 160), scores)
    monkeypatch.setattr(arrays, "STRIP", 160 * 7)
    assert np.array_equal(drawn(textured(240, 160), scores), whole)


def test_overlay_takes_what_read_takes(tmp_path: Path) -> None:
    path = tmp_path / "p.png"
    path.write_bytes(encode(textured(), "PNG"))
    scores = np.zeros((120, 160), np.float32)
    scores[30:60, 30:90] = 1
    expected = drawn(textured(), scores)
    for source in (path, path.read_bytes(), Image.fromarray(textured()), read_photo(path)):
        assert np.array_equal(np.asarray(overlay(source, result_of(scores))), expected)
    with pytest.raises(ImageError, match=r"\(120, 160\) pixels \(height, width\), the result \(160, 120\)"):
        overlay(path, result_of(scores.T))
    with pytest.raises(ValueError, match=r"opacity is 1.5; expected in \[0, 1\]"):
        overlay(path, result_of(scores), opacity=1.5)


def test_thresholds_at_both_ends() -> None:
    scores = np.linspace(0, 1, 120 * 160, dtype=np.float32).reshape(120, 160)
    for threshold in (0.0, 1.0):
        assert drawn(textured(), scores, threshold).shape == (120, 160, 3)


@pytest.mark.slow
def test_twelve_megapixels_are_drawn_and_written_quickly(tmp_path: Path) -> None:
    pixels = np.asarray(Image.fromarray(scene()).resize((4000, 3000)).filter(ImageFilter.DETAIL))
    y, x = np.mgrid[:750, :1000]
    small = np.exp(-(((y - 300) / 120) ** 2) - ((x - 500) / 150) ** 2).astype(np.float32)
    scores = resize_scores(small, (3000, 4000))
    limits = {
        lambda: overlay(pixels, result_of(scores)): 0.6,
        lambda: write_scores(tmp_path / "s.png", scores): 1.0,
        lambda: write_mask(tmp_path / "m.png", scores > 0.5): 0.5,
    }
    for work, seconds in limits.items():
        times = []
        for _ in range(3):
            start = time.thread_time()  # CPU time: other processes do not count
            work()
            times.append(time.thread_time() - start)
        assert min(times) < seconds


def test_an_overlay_s_file_is_the_overlay() -> None:
    photo = np.random.default_rng(0).integers(0, 256, (37, 53, 3), np.uint8)
    scores = np.tile(np.linspace(0, 1, 53, dtype=np.float32), (37, 1))
    result = Localization(name="a", scores=scores, rule=MaskRule(threshold=0.5), image_score=0.5, model="m", sha256="0")
    found = Image.open(io.BytesIO(overlay_png(photo, result)))
    found.load()
    assert (found.format, found.mode, found.size) == ("PNG", "RGB", (53, 37))
    np.testing.assert_array_equal(np.asarray(found), np.asarray(overlay(photo, result)))


def test_an_address_of_this_machine_is_its_file(tmp_path: Path) -> None:
    path = tmp_path / "my photos" / "a.png"
    path.parent.mkdir()
    Image.fromarray(np.full((70, 80, 3), 90, np.uint8)).save(path)
    assert read_photo(path.as_uri()).size == read_photo(path).size == (70, 80)
    with pytest.raises(ImageError, match="a file of the machine 'elsewhere'"):
        read_photo("file://elsewhere/a.png")
