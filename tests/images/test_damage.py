"""Damage beside the picture leaves it readable, and is told; damage in it does not."""

import io
import struct
import warnings
import zlib
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image

from declip.errors import ImageError
from declip.images import repair
from declip.images.read import read_photo
from declip.report import metadata
from tests.images.pictures import (
    chunk,
    encode,
    exif_of,
    file,
    refused,
    scene,
    segment,
    textured,
    with_chunks,
    with_segments,
)

JUNK = bytes(np.random.default_rng(0).integers(0, 256, 300, dtype=np.uint8))


@pytest.fixture(autouse=True)
def pillows_warnings() -> Iterator[None]:
    """Pillow also warns of such files, where it does not fail."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def png(*chunks: bytes, late: bool = False) -> bytes:
    return with_chunks(encode(scene(), "PNG"), *chunks, late=late)


def assert_read(data: bytes, pixels: np.ndarray, words: str) -> None:
    photo = read_photo(data)
    assert np.array_equal(photo.pixels, pixels)
    assert photo.data == data
    assert any(words in note for note in photo.notes) if words else photo.notes == ()
    assert metadata.read(photo) is not None and metadata.read(photo, position=True) is not None


# ── PNG ─────────────────────────────────────────────────────────────────────────────────────────────────────────────

LONG = zlib.compress(b'{"node":1}' * 210_000)
TOO_LONG = {
    "zTXt": chunk(b"zTXt", b"workflow\0\0" + LONG),
    "iTXt": chunk(b"iTXt", b"workflow\0\1\0\0\0" + LONG),
    "iTXt XMP": chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + LONG),
    "iCCP": chunk(b"iCCP", b"profile\0\0" + LONG),
    "iTXt plain": chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + b"x" * 2_000_000),
}


@pytest.mark.parametrize(("late", "name"), [*enumerate(TOO_LONG)])
def test_text_that_is_too_long_leaves_a_png_readable(late: int, name: str) -> None:
    text = chunk(b"tEXt", b"Software\0a program")
    data = png(text, TOO_LONG[name], late=late % 2 == 0)
    assert_read(data, scene(), f"({name[:4]}) is too long; it was not read")
    found = metadata.read(read_photo(data))
    assert found is not None and ("PNG Software", "a program") in found.software  # what is whole is still shown


def test_much_text_leaves_a_png_readable(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [chunk(b"zTXt", b"%d\0\0" % i + zlib.compress(bytes(900_000))) for i in range(3)]
    assert_read(png(*texts), scene(), "")
    monkeypatch.setattr("PIL.PngImagePlugin.MAX_TEXT_MEMORY", 2_000_000)
    assert_read(png(*texts), scene(), "(zTXt) is too long")


BODIES = (b"", b"k\0", b"k\0\1\2\3", JUNK[:31], JUNK)


@pytest.mark.parametrize("kind", ["pHYs", "gAMA", "eXIf", "iCCP", "zTXt", "iTXt", "tEXt", "acTL", "abCd"])
def test_a_damaged_side_chunk_leaves_a_png_readable(kind: str) -> None:
    for late, body in enumerate(BODIES):
        whole = chunk(kind.encode(), body)
        assert np.array_equal(read_photo(png(whole, late=late % 2 == 1)).pixels, scene())
        wrong_sum = whole[:-1] + bytes([whole[-1] ^ 1])
        words = f"({kind}) is damaged; it was not read and is not shown"
        assert_read(png(wrong_sum, late=late % 2 == 1), scene(), words)


@pytest.mark.parametrize(
    ("kind", "body"),
    [("pHYs", bytes(8)), ("gAMA", b"\0"), ("cHRM", bytes(31)), ("sRGB", b""), ("iCCP", b"a\0\7b")],
)
def test_short_chunks_are_told(kind: str, body: bytes) -> None:
    assert_read(png(chunk(kind.encode(), body)), scene(), f"({kind}) is damaged")
    assert_read(png(chunk(b"pHYs", struct.pack(">IIB", 2835, 2835, 1))), scene(), "")


def test_a_damaged_animation_leaves_its_first_picture() -> None:
    whole = encode(scene(), "PNG", Image.fromarray(255 - scene()))
    assert read_photo(whole).notes == ("The file holds 2 frames; the first one was examined.",)
    for kind in (b"acTL", b"fcTL", b"fdAT"):
        data = bytearray(whole)
        data[whole.index(kind) + 8] ^= 1
        photo = read_photo(bytes(data))
        assert np.array_equal(photo.pixels, scene())
        assert "The animation in this PNG is damaged; only its first picture was read." in photo.notes


def test_damage_that_changes_a_png_stays_an_error() -> None:
    keyed = encode(scene(), "PNG", transparency=(10, 20, 30))
    for kind in (b"IHDR", b"IDAT", b"tRNS"):
        data = bytearray(keyed)
        data[keyed.index(kind) + 5] ^= 1
        with refused("corrupt"):
            read_photo(bytes(data))


# ── JPEG ────────────────────────────────────────────────────────────────────────────────────────────────────────────


HEADS = (b"", b"JFIF\0", b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0", b"ICC_PROFILE\0", b"MPF\0", b"FPXR\0")
HEADS += (b"Adobe", b"Photoshop 3.0\0", b"Photoshop 3.0\x008BIM")


@pytest.mark.parametrize("number", [0xE0, 0xE1, 0xE2, 0xED, 0xEE, 0xFE])
def test_damaged_segments_leave_a_jpeg_readable(number: int) -> None:
    plain = encode(scene(), "JPEG", quality=90)
    expected = read_photo(plain).pixels
    for head in HEADS:
        for body in (b"", b"\0", b"\1\1", JUNK[:12], JUNK, b"II*\0\x08\0\0\0\xff\xff" + JUNK):
            if head == b"Adobe" and number == 0xEE and len(body) >= 7:
                continue  # says how colours are coded
            data = with_segments(plain, segment(number, head + body))
            photo = read_photo(data)
            assert np.array_equal(photo.pixels, expected), (head, body)
            assert metadata.read(photo, position=True) is not None


def test_what_a_jpeg_says_of_its_turn_counts_beside_damage() -> None:
    plain = encode(scene(), "JPEG", quality=90, exif=exif_of({0x112: 6}))
    data = with_segments(plain, segment(0xE2, b"ICC_PROFILE\0"))
    with pytest.raises(OSError), Image.open(io.BytesIO(data)):
        pass
    photo = read_photo(data)
    assert photo.orientation == 6 and photo.size == (160, 120)
    assert photo.notes == (
        "What this JPEG says beside its picture (as EXIF, text or profile) is damaged; it was not read.",
    )


END = "The file ends without its end marker; every pixel was there."
JPEGS = ("jpeg", "jpeg-grey", "jpeg-progressive", "jpeg-restarts", "jpeg-cmyk")


def test_a_jpeg_of_one_colour_without_its_end_marker_is_read() -> None:
    grey = np.full((64, 64, 3), 128, np.uint8)
    photo = read_photo(encode(grey, "JPEG")[:-2])
    assert np.array_equal(photo.pixels, grey) and photo.notes == (END,)


@pytest.mark.parametrize("name", JPEGS)
def test_a_jpeg_without_its_end_marker_is_read_if_every_pixel_came(name: str) -> None:
    whole = file(name, textured())
    expected = read_photo(whole).pixels
    assert read_photo(whole).notes == ()
    for data in (whole[:-2], whole[:-1], whole[:-2] + bytes(50), whole[:-2] + bytes(9000)):
        photo = read_photo(data)
        assert np.array_equal(photo.pixels, expected) and photo.notes == (END,) and photo.data == data
    # One byte less may still hold all bits but those that fill it up.
    for lacking in (4, 5, 12, 300):
        for rest in (b"", bytes(9000), b"\xff"):
            with refused("corrupt", r"truncated or damaged"):
                read_photo(whole[:-lacking] + rest)


# ── TIFF, WebP, GIF, AVIF and HEIC ──────────────────────────────────────────────────────────────────────────────────


def test_damaged_side_tags_leave_a_tiff_readable() -> None:
    plain = encode(scene(30, 40), "TIFF")
    at = struct.unpack("<I", plain[4:8])[0]
    count = struct.unpack("<H", plain[at : at + 2])[0]
    own = [plain[at + 2 + 12 * i : at + 14 + 12 * i] for i in range(count)]
    told = 0
    for tag in (270, 282, 34665):
        for kind in (2, 3, 5, 77):
            for number, value in ((1, 5), (1000, 8), (4_000_000_000, 8), (1, 4_000_000_000), (0, 0)):
                entries = sorted([*own, struct.pack("<HHII", tag, kind, number, value)], key=lambda e: e[1::-1])
                table = struct.pack("<H", len(entries)) + b"".join(entries) + bytes(4)
                data = plain[:4] + struct.pack("<I", len(plain)) + plain[8:] + table
                photo = read_photo(data)
                assert np.array_equal(photo.pixels, scene(30, 40)), (tag, kind, number, value)
                told += any("beside its picture" in note for note in photo.notes)
                assert metadata.read(photo) is not None
    assert told  # some of them Pillow does not read


def test_damaged_side_chunks_leave_a_webp_readable() -> None:
    plain = encode(scene(), "WEBP", lossless=True, exif=b"II*\0" + JUNK, xmp=b"<x/>" * 30, icc_profile=JUNK)
    assert_read(plain, scene(), "")
    exif = plain.index(b"EXIF")
    for data in (plain[: exif + 40], plain[: exif + 4] + struct.pack("<I", 3) + plain[exif + 8 :]):
        assert_read(data, scene(), "What this WebP says beside its picture")
    with pytest.raises(ImageError, match="damaged"):
        read_photo(plain[: exif - 500])


def test_empty_and_unknown_extensions_leave_a_gif_readable() -> None:
    plain = encode(scene(), "GIF")
    expected = read_photo(plain).pixels
    at = 13 + 3 * (2 << (plain[10] & 7))
    for label in (b"\xfe", b"\xff", b"\x01", b"\x77"):
        for body in (b"", b"\x05hello", b"\xff" + JUNK[:255], b"\x0bNETSCAPE2.0"):
            photo = read_photo(plain[:at] + b"!" + label + body + b"\0" + plain[at:])
            assert np.array_equal(photo.pixels, expected), (label, body)


@pytest.mark.parametrize("kind", ["AVIF", "HEIF"])
def test_damaged_exif_leaves_an_avif_or_heic_readable(kind: str) -> None:
    data = encode(scene(), kind, quality=90, exif=exif_of({0x10F: "a maker of cameras"}).tobytes())
    expected = read_photo(data).pixels
    at = max(data.rfind(b"MM\0*"), data.rfind(b"II*\0"))
    for position in range(at, at + 24, 3):
        hurt = bytearray(data)
        hurt[position] ^= 0xA5
        assert np.array_equal(read_photo(bytes(hurt)).pixels, expected), position - at


def test_nothing_is_taken_out_of_a_picture_alone() -> None:
    assert repair.bare(encode(scene(), "BMP"), "BMP") is None
    assert repair.bare(b"", "GIF") is None and repair.bare(b"II*\0", "TIFF") is None
    assert repair.bare(encode(scene(), "PNG"), "PNG") is None
    exif = b"Exif\0\0II*\0" + bytes(90)
    for kind, data in (
        ("JPEG", encode(scene(), "JPEG", exif=exif)),
        ("PNG", encode(scene(), "PNG", exif=exif)),
        ("WebP", encode(scene(), "WEBP", exif=exif)),
        ("TIFF", encode(scene(), "TIFF", tiffinfo={270: "a description"})),
        ("TIFF", encode(scene(), "TIFF", tiffinfo={270: "a description"}, big_tiff=True)),
    ):
        bare = repair.bare(data, kind)  # type: ignore[arg-type]
        assert bare is not None and np.array_equal(read_photo(bare).pixels, read_photo(data).pixels)
