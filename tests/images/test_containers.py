"""How each format says that it is turned, raw photos, and values that fill only a part of 16 bits."""

import base64
import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from declip.images.containers import raw_photo
from declip.images.decode import read_header
from declip.images.orientation import exif_orientation, to_stored, to_upright
from declip.images.read import MAX_PIXELS, read_photo, upright_size
from declip.report import metadata
from tests.images.pictures import (
    chunk,
    difference,
    encode,
    png_of,
    refused,
    scene,
    segment,
    tiff_of,
    with_chunks,
    with_segments,
)

CHROMIUM = Path("/usr/bin/chromium")


def exif(orientation: int, order: str = "<", kind: int = 3, count: int = 1) -> bytes:
    """An EXIF block (a TIFF) with this one tag."""
    value = struct.pack(f"{order}HH", orientation, 0) if kind == 3 else struct.pack(f"{order}I", orientation)
    start = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", 8)
    entry = struct.pack(f"{order}HHI", 0x112, kind, count) + value
    return start + struct.pack(f"{order}H", 1) + entry + bytes(4)


def xmp(orientation: int) -> bytes:
    return (
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        '<rdf:Description rdf:about="" xmlns:tiff="http://ns.adobe.com/tiff/1.0/" '
        f'tiff:Orientation="{orientation}"/></rdf:RDF></x:xmpmeta>'
    ).encode()


def corners() -> np.ndarray:
    """(48, 96, 3): red, green, blue and white quarters, so that each of eight orientations looks different."""
    picture = np.zeros((48, 96, 3), np.uint8)
    picture[:24, :48], picture[:24, 48:], picture[24:], picture[24:, :48] = (255, 0, 0), (0, 255, 0), 255, (0, 0, 255)
    return picture


def jpeg(*segments: bytes) -> bytes:
    return with_segments(encode(corners(), "JPEG", quality=95), *segments)


def png(*chunks: bytes, late: bool = False) -> bytes:
    return with_chunks(encode(corners(), "PNG"), *chunks, late=late)


def in_exif(block: bytes) -> bytes:
    return segment(0xE1, b"Exif\0\0" + block)


def in_xmp(orientation: int) -> bytes:
    return segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + xmp(orientation))


def avif_of_exif(orientation: int) -> bytes:
    """An AVIF whose EXIF names an orientation that no irot or imir says: Pillow does not write it."""
    block = exif(orientation).replace(b"\x12\x01", b"\x13\x01")
    data = encode(corners(), "AVIF", quality=95, exif=block)
    at = data.rindex(b"\x13\x01\x03\0")
    assert b"irot" not in data
    return data[:at] + b"\x12" + data[at + 1 :]


# Where an orientation may be named → (a file that names it, whether it counts). Frozen: as Chromium 156 draws them.
PLACES: dict[str, tuple[Callable[[int], bytes], bool]] = {
    "jpeg-exif": (lambda o: jpeg(in_exif(exif(o))), True),
    "jpeg-exif-motorola": (lambda o: jpeg(in_exif(exif(o, ">"))), True),
    "jpeg-exif-over-xmp": (lambda o: jpeg(in_xmp(3), in_exif(exif(o))), True),
    "jpeg-first-exif": (lambda o: jpeg(in_exif(exif(o)), in_exif(exif(3))), True),
    "jpeg-exif-breaks-off": (lambda o: jpeg(in_exif(exif(o)[:-4])), True),
    "jpeg-xmp": (lambda o: jpeg(in_xmp(o)), False),
    "jpeg-exif-long": (lambda o: jpeg(in_exif(exif(o, kind=4))), False),
    "jpeg-exif-two-values": (lambda o: jpeg(in_exif(exif(o, count=2))), False),
    "jpeg-second-exif": (lambda o: jpeg(in_exif(b"nothing"), in_exif(exif(o))), False),
    "png-exif": (lambda o: png(chunk(b"eXIf", exif(o))), True),
    "png-first-exif": (lambda o: png(chunk(b"eXIf", exif(o)), chunk(b"eXIf", exif(3))), True),
    "png-exif-late": (lambda o: png(chunk(b"eXIf", exif(o)), late=True), False),
    "png-exif-damaged": (lambda o: png(chunk(b"eXIf", exif(o))[:-1] + b"x"), False),
    "png-exif-words": (lambda o: png(chunk(b"eXIf", b"Exif\0\0" + exif(o))), False),
    "png-xmp": (lambda o: png(chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp(o))), False),
    "webp-exif": (lambda o: encode(corners(), "WEBP", lossless=True, exif=exif(o)), False),
    "webp-xmp": (lambda o: encode(corners(), "WEBP", lossless=True, xmp=xmp(o)), False),
    "avif-irot-imir": (lambda o: encode(corners(), "AVIF", quality=95, exif=exif(o)), True),
    "avif-exif": (avif_of_exif, False),
    "avif-xmp": (lambda o: encode(corners(), "AVIF", quality=95, xmp=xmp(o)), False),
}


@pytest.mark.parametrize(
    ("place", "orientation"),
    [
        *((place, o) for place in ("jpeg-exif", "png-exif", "avif-irot-imir") for o in range(1, 9)),
        *((place, 6) for place in PLACES),
    ],
)
def test_a_picture_is_turned_as_browsers_turn_it(place: str, orientation: int, tmp_path: Path) -> None:
    make, counts = PLACES[place]
    data = make(orientation)
    photo = read_photo(data)
    applied = orientation if counts else 1
    assert photo.orientation == applied
    assert difference(photo.pixels, to_upright(corners(), applied)) < 6
    # What comes from the header alone, and what a reader of stored coefficients undoes, agree with it.
    path = tmp_path / "turned"
    path.write_bytes(data)
    assert upright_size(path, MAX_PIXELS) == photo.size
    assert difference(to_stored(photo.pixels, photo.orientation), corners()) < 6
    found = metadata.read(photo)
    assert found is not None and found.orientation == applied
    assert (found.stored_height, found.stored_width) == (48, 96)


@pytest.mark.parametrize("place", ["jpeg-xmp", "png-xmp", "webp-exif", "webp-xmp", "avif-xmp", "png-exif-late"])
def test_a_turn_that_does_not_count_is_told(place: str) -> None:
    (note,) = read_photo(PLACES[place][0](6)).notes
    assert "names the orientation 6" in note and "not turned by it" in note
    assert read_photo(PLACES[place][0](1)).notes == read_photo(PLACES["jpeg-exif"][0](6)).notes == ()


@pytest.mark.parametrize("orientation", [3, 6])
def test_xmp_turns_no_tiff_and_no_pil_image(orientation: int) -> None:
    for kind, options in (("TIFF", {"tiffinfo": {700: xmp(orientation)}}), ("JPEG", {"xmp": xmp(orientation)})):
        data = encode(corners(), kind, **options)
        assert read_photo(data).orientation == 1
        with Image.open(io.BytesIO(data)) as opened:
            for _ in range(2):
                assert difference(read_photo(opened).pixels, corners()) < 6
            assert opened.info["xmp"] == xmp(orientation)


def test_orientations_that_are_none() -> None:
    for block in (exif(0), exif(9), exif(6, kind=1), b"", b"II*\0", b"II+\0" + exif(6)[4:], exif(6)[:12]):
        assert exif_orientation(block) == 1
    elsewhere = b"II*\0" + struct.pack("<I", 9) + b"\0" + exif(6)[8:]
    assert exif_orientation(elsewhere) == 6


@pytest.mark.slow  # PLACES has its answers, frozen
def test_read_agrees_with_what_a_browser_draws() -> None:
    sync_api = pytest.importorskip("playwright.sync_api")
    if not CHROMIUM.exists():
        pytest.skip(f"there is no {CHROMIUM}")
    draw = """([url]) => new Promise((done, failed) => {
        const picture = new Image();
        picture.onerror = () => failed("not drawn");
        picture.onload = () => {
            const canvas = document.createElement("canvas");
            canvas.width = picture.naturalWidth;
            canvas.height = picture.naturalHeight;
            const context = canvas.getContext("2d");
            context.drawImage(picture, 0, 0);
            const [right, bottom] = [canvas.width - 5, canvas.height - 5];
            const corners = [[4, 4], [right, 4], [4, bottom], [right, bottom]];
            const colours = corners.map(([x, y]) => Array.from(context.getImageData(x, y, 1, 1).data).slice(0, 3));
            done([canvas.height, canvas.width, colours]);
        };
        picture.src = url;
    })"""
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        page = browser.new_page()
        for place, (make, counts) in PLACES.items():
            for orientation in range(1, 9) if counts else (6,):
                data = make(orientation)
                url = f"data:image/{place.partition('-')[0]};base64,{base64.b64encode(data).decode()}"
                height, width, colours = page.evaluate(draw, [url])
                read = read_photo(data).pixels
                assert read.shape == (height, width, 3), (place, orientation)
                ours = np.array([read[4, 4], read[4, -5], read[-5, 4], read[-5, -5]])
                assert difference(ours, np.array(colours)) < 6, (place, orientation)
        browser.close()


# ── raw photos ──────────────────────────────────────────────────────────────────────────────────────────────────────


def directory(width: int, height: int, at: int, *extra: tuple[int, int, int, int], photometric: int = 2) -> bytes:
    """A TIFF directory of an RGB strip at an offset. extra: (tag, type, count, value)."""
    entries = [
        *[(256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, photometric)],
        *[(273, 4, 1, at), (277, 3, 1, 3), (278, 4, 1, height), (279, 4, 1, width * height * 3)],
    ]
    given = {entry[0] for entry in extra}
    entries = sorted([*(entry for entry in entries if entry[0] not in given), *extra])
    return struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", *entry) for entry in entries) + bytes(4)


def two_pictures(
    first: tuple[int, int], *extra: tuple[int, int, int, int], inside: tuple[int, int], linked: str = "sub", **more: int
) -> bytes:
    """A TIFF of two pictures, (width, height) each: the second in a sub-directory, as the next page, or not at all."""
    room = 512
    strips = bytes(first[0] * first[1] * 3), bytes(inside[0] * inside[1] * 3)
    second = room + sum(map(len, strips))
    if linked == "sub":
        extra = (*extra, (330, 4, 1, second))
    ifd = directory(*first, room, *extra, **more)
    if linked == "next":
        ifd = ifd[:-4] + struct.pack("<I", second)
    return (b"II*\0\x08\0\0\0" + ifd).ljust(room, b"\0") + b"".join(strips) + directory(*inside, room + len(strips[0]))


RAW = {
    "a reduced first picture and a larger one": two_pictures((16, 12), (254, 4, 1, 1), inside=(64, 48)),
    "a larger picture in a sub-directory": two_pictures((16, 12), inside=(64, 48)),
    "a version of DNG": two_pictures((64, 48), (50706, 1, 4, 0x401), inside=(16, 12)),
    "the data of a sensor": two_pictures((64, 48), inside=(16, 12), photometric=32803),
    "a reduced picture alone": two_pictures((16, 12), (254, 4, 1, 1), inside=(1, 1), linked="no"),
    "a reduced picture, in the old way": two_pictures((16, 12), (255, 3, 1, 2), inside=(1, 1), linked="next"),
    "CR2": b"II*\0\x10\0\0\0CR\x02\0" + bytes(4) + directory(16, 12, 200) + bytes(999),
    "ORF": b"IIRO\x08\0\0\0" + directory(16, 12, 200) + bytes(999),
    "RW2": b"IIU\0\x18\0\0\0" + bytes(999),
    "CR3": struct.pack(">I", 24) + b"ftypcrx \0\0\0\1crx isom" + bytes(99),
    "RAF": b"FUJIFILMCCD-RAW 0201FF383501X-T1" + bytes(99),
}


@pytest.mark.parametrize("name", RAW)
def test_a_raw_photo_is_refused(name: str, tmp_path: Path) -> None:
    path = tmp_path / "photo.tif"  # whatever its name
    path.write_bytes(RAW[name])
    first = "; what lies first in it is a reduced picture of 12×16 px.*" if "reduced" in name else ""
    for read in (lambda: read_photo(path), lambda: read_photo(RAW[name]), lambda: read_header(RAW[name], "photo.tif")):
        with refused("format", rf"{first}(to|ordinary) TIFF or JPEG first"):
            read()
    if name in ("a version of DNG", "a reduced picture alone"):
        with Image.open(io.BytesIO(RAW[name])) as opened, refused("format", "a raw photo"):
            read_photo(opened)


def test_tiffs_whose_first_picture_is_the_photo_are_read() -> None:
    for data in (
        two_pictures((64, 48), inside=(16, 12)),  # a pyramid: the smaller ones lie in sub-directories
        two_pictures((64, 48), inside=(16, 12), linked="next"),
        two_pictures((64, 48), (254, 4, 1, 0), inside=(64, 48), linked="next"),
        two_pictures((64, 48), (254, 4, 1, 2), inside=(64, 48), linked="next"),  # 2: a page of several
    ):
        assert read_photo(data).size == (48, 64)
    data = encode(scene(30, 40), "TIFF", Image.fromarray(scene(60, 80)))
    assert read_photo(data).size == (30, 40)
    with Image.open(io.BytesIO(data)) as opened:
        assert read_photo(opened).size == (30, 40)


def test_directories_that_lead_nowhere_end_the_walk() -> None:
    for at in (0, 8, 4_000_000_000):
        data = b"II*\0" + struct.pack("<I", at) + b"\xff" * 40
        assert raw_photo(data) is None
    looping = two_pictures((8, 8), (330, 4, 1, 8), inside=(1, 1), linked="no")
    assert raw_photo(looping) is None and read_photo(looping).size == (8, 8)


# ── 10 and 12 bits in 16 ────────────────────────────────────────────────────────────────────────────────────────────

COLOUR = {256: (8,), 257: (6,), 258: (16, 16, 16), 262: (2,), 277: (3,), 278: (6,)}
GREY = {256: (8,), 257: (6,), 258: (16,), 262: (1,), 277: (1,), 278: (6,)}


def deep(bits: int, colour: bool) -> np.ndarray:
    """`scene` in its lowest bits of 16, with something in the very lowest."""
    picture = scene(6, 8) if colour else scene(6, 8)[:, :, 0]
    return (picture.astype(np.uint16) << (bits - 8)) | 1


@pytest.mark.parametrize("bits", [10, 12])
@pytest.mark.parametrize("colour", [False, True])
def test_declared_bits_fill_the_range(bits: int, colour: bool) -> None:
    values, expected = deep(bits, colour), scene(6, 8) if colour else np.repeat(scene(6, 8)[:, :, :1], 3, axis=2)
    tags = COLOUR if colour else GREY
    channels = 3 if colour else 1
    significant = (b"sBIT", bytes([bits] * channels))
    sources = {"png": png_of(6, 8, 16, 2 if colour else 0, values.astype(">u2").tobytes(), significant)}
    for order in "<>":
        body = values.astype(f"{order}u2").tobytes()
        for tag in (281, 341):
            top = {tag: ((1 << bits) - 1,) * channels}
            sources[f"tiff {order} {tag}"] = tiff_of(body, tags | top, order)
            sources[f"deflated {order} {tag}"] = tiff_of(zlib.compress(body), tags | top | {259: (8,)}, order)
    for name, source in sources.items():
        photo = read_photo(source)
        assert np.array_equal(photo.pixels, expected) and photo.notes == (), name
    turned = read_photo(with_chunks(sources["png"], chunk(b"eXIf", exif(6))))
    assert np.array_equal(turned.pixels, to_upright(expected, 6))


@pytest.mark.parametrize("colour", [False, True])
def test_values_that_stay_low_are_told_and_left(colour: bool) -> None:
    values = deep(12, colour)
    high = np.repeat(values.reshape(6, 8, -1) >> 8, 1 if colour else 3, axis=2)
    body = values.astype(">u2").tobytes()
    for source in (
        png_of(6, 8, 16, 2 if colour else 0, body),
        # Of more values than are there, or of a range that is no number of bits: not certain.
        png_of(6, 8, 16, 2 if colour else 0, body, (b"sBIT", bytes([10] * (3 if colour else 1)))),
        tiff_of(body, (COLOUR if colour else GREY) | {281: (4000,) * (3 if colour else 1)}, ">"),
        values,
    ):
        photo = read_photo(source)
        assert np.array_equal(photo.pixels, high)
        assert len(photo.notes) == 1 and f"above {values.max()} of 65535" in photo.notes[0]
        assert "12 bits" in photo.notes[0] and "by 16" in photo.notes[0]
    assert read_photo(np.zeros((6, 8), np.uint16)).notes == ()
    assert read_photo(np.full((6, 8), 4096, np.uint16)).notes == ()


def test_dark_pictures_that_were_scaled_are_not_scaled_again() -> None:
    # As the PNG standard asks: 12 bits shifted up, their highest bits repeated below. These are dark.
    twelve = np.arange(48, dtype=np.uint16).reshape(6, 8) * 5
    scaled = twelve << 4 | twelve >> 8
    photo = read_photo(png_of(6, 8, 16, 0, scaled.astype(">u2").tobytes(), (b"sBIT", b"\x0c")))
    assert np.array_equal(photo.pixels[:, :, 0], scaled >> 8) and len(photo.notes) == 1
