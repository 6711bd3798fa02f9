"""What files hold beside the picture that is examined: each file is built here, in the way that devices build it."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin, TiffTags

from declip.errors import ImageError
from declip.images import pages
from declip.images.read import read_photo
from declip.results import Photo
from tests.images.pictures import chunk, encode, exif_of, refused, segment, with_segments

COLOURS = ((200, 30, 30), (30, 200, 30), (30, 30, 200), (90, 90, 90))
MP4 = b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom" + struct.pack(">I", 200_008) + b"mdat" + bytes(range(200)) * 1000


def plain(index: int, size: tuple[int, int] = (48, 32)) -> Image.Image:
    return Image.new("RGB", size, COLOURS[index])


def colour(photo: Photo) -> int:
    """Which of COLOURS a photo has."""
    mean = photo.pixels.reshape(-1, 3).mean(axis=0)
    return int(np.argmin([np.abs(mean - known).sum() for known in COLOURS]))


def check_pages(data: bytes, unit: str, order: list[int]) -> None:
    """Each page has its own colour, and says which one it is."""
    count = len(order)
    for page, expected in enumerate(order, start=1):
        photo = read_photo(data, page=page)
        assert (colour(photo), photo.page, photo.pages) == (expected, page, count)
        which = "the first one" if page == 1 else f"number {page}"
        assert photo.notes == (f"The file holds {count} {unit}; {which} was examined.",)
    first = read_photo(data)
    assert (first.page, first.pages, colour(first)) == (1, count, order[0])
    for wrong in (0, count + 1, -1):
        with refused("input", f"got picture {wrong} of the file; there are {count} of them"):
            read_photo(data, page=wrong)


@pytest.mark.parametrize("kind", ["TIFF", "GIF", "WEBP", "PNG", "AVIF"])
def test_every_page_can_be_read(kind: str) -> None:
    unit = "pages" if kind == "TIFF" else "frames"
    check_pages(encode(plain(0), kind, plain(1), plain(2)), unit, [0, 1, 2])


def test_the_main_picture_of_a_heic_comes_first() -> None:
    pillow_heif = pytest.importorskip("pillow_heif")
    several = pillow_heif.HeifFile()
    for index in range(3):
        several.add_from_pillow(plain(index, (64, 48)))
    stream = io.BytesIO()
    several.save(stream, primary_index=1)
    check_pages(stream.getvalue(), "pictures", [1, 0, 2])


def test_pages_have_sizes_of_their_own() -> None:
    data = encode(plain(0, (40, 30)), "TIFF", plain(1, (64, 50)))
    assert [read_photo(data, page=page).size for page in (1, 2)] == [(30, 40), (50, 64)]
    with pytest.raises(ImageError, match="50×64 pixels") as caught:
        read_photo(data, page=2, max_pixels=2000)
    assert caught.value.kind == "too-large" and read_photo(data, max_pixels=2000).size == (30, 40)


def tiff_of(*pages: tuple[Image.Image, dict[int, int]]) -> bytes:
    """A TIFF whose pages have tags of their own."""
    stream = io.BytesIO()
    with TiffImagePlugin.AppendingTiffWriter(stream) as writer:
        for picture, tags in pages:
            picture.save(writer, "TIFF", tiffinfo=tags)
            writer.newFrame()
        return stream.getvalue()


def test_each_page_of_a_tiff_is_turned_and_scaled_by_its_own_tags() -> None:
    values = np.arange(0, 4096, 2, np.uint16).reshape(32, 64) | 1
    deep = Image.fromarray(values)
    data = tiff_of((plain(0, (64, 48)), {}), (plain(1, (64, 48)), {274: 6}), (deep, {281: 4095}))
    first, second, third = (read_photo(data, page=page) for page in (1, 2, 3))
    assert [(photo.size, photo.orientation) for photo in (first, second)] == [((48, 64), 1), ((64, 48), 6)]
    assert np.array_equal(third.pixels[:, :, 0], values >> 4) and third.pixels.max() == 255
    assert third.notes == ("The file holds 3 pages; number 3 was examined.",) and third.data == data
    low = read_photo(tiff_of((plain(0), {}), (deep, {})), page=2)
    assert np.array_equal(low.pixels[:, :, 0], values >> 8)
    assert len(low.notes) == 2 and "12" in low.notes[1]  # both on the file and on how it was read


def test_a_smaller_copy_behind_the_picture_can_be_read_and_damage_is_of_its_page() -> None:
    pyramid = tiff_of((plain(0, (64, 48)), {}), (plain(1, (32, 24)), {254: 1}))
    assert read_photo(pyramid).size == (48, 64) and read_photo(pyramid, page=2).size == (24, 32)
    with pytest.raises(ImageError, match="what lies first in it is a reduced picture"):
        read_photo(tiff_of((plain(1, (32, 24)), {254: 1}), (plain(0, (64, 48)), {})))


def test_a_picture_of_a_jpeg_is_turned_by_its_own_tag() -> None:
    data = with_index(encode(plain(0), "JPEG"), [(0x020003, encode(plain(1), "JPEG", exif=exif_of({274: 6})))])
    first, second = read_photo(data), read_photo(data, page=2)
    assert (first.size, first.orientation, second.size, second.orientation) == ((32, 48), 1, (48, 32), 6)
    noise = encode(Image.effect_noise((64, 64), 80).convert("RGB"), "JPEG")
    cut = with_index(encode(plain(0), "JPEG"), [(0x020003, noise[: len(noise) // 2])])
    assert read_photo(cut).pages == 2
    with refused("corrupt", "truncated or damaged"):
        read_photo(cut, page=2)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "AVIF"])
def test_a_file_of_one_picture_has_nothing_to_tell(kind: str) -> None:
    photo = read_photo(encode(plain(0), kind))
    assert (photo.page, photo.pages, photo.notes) == (1, 1, ())
    with pytest.raises(ImageError, match="got picture 2 of the file; there is 1"):
        read_photo(encode(plain(0), kind), page=2)


def test_arrays_and_photos_have_one_page() -> None:
    pixels = np.zeros((9, 9, 3), np.uint8)
    assert read_photo(pixels, page=1).pages == 1
    with pytest.raises(ImageError, match="there is 1"):
        read_photo(pixels, page=2)
    photo = read_photo(io.BytesIO(encode(plain(0), "TIFF", plain(1))), page=2)
    assert read_photo(photo) is photo and read_photo(photo, page=2) is photo
    with pytest.raises(ImageError, match="is picture 2, decoded"):
        read_photo(photo, page=1)


def test_a_pil_image_is_read_at_its_current_frame(tmp_path: Path) -> None:
    data = encode(plain(0), "TIFF", plain(1), plain(2))
    opened = Image.open(io.BytesIO(data))
    opened.seek(1)
    photo = read_photo(opened)
    assert (colour(photo), photo.page, photo.pages) == (1, 2, 3)
    assert colour(read_photo(opened, page=3)) == 2 and opened.tell() == 1
    assert photo.notes == ("The file holds 3 frames; number 2 was examined.",)


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's own words on it
@pytest.mark.parametrize("good", [1, 2])
def test_a_damaged_page_is_told_and_those_before_it_are_read(good: int) -> None:
    data = encode(plain(0), "TIFF", plain(1), plain(2))
    opened = Image.open(io.BytesIO(data))
    opened.seek(good)
    assert isinstance(opened, TiffImagePlugin.TiffImageFile)
    broken = data[: opened.tag_v2._offset + 4]
    photo = read_photo(broken)
    assert colour(photo) == 0 and photo.pages == good
    assert photo.notes[-1].startswith(f"What follows number {good} of the pages is damaged, and was not examined (")
    assert colour(read_photo(broken, page=good)) == good - 1
    with pytest.raises(ImageError, match=f"got picture {good + 1} of the file"):
        read_photo(broken, page=good + 1)
    opened = Image.open(io.BytesIO(broken))
    opened.seek(good - 1)
    assert colour(read_photo(opened)) == good - 1


# --- JPEGs ----------------------------------------------------------------------------------------------------------


def with_xmp(jpeg: bytes, words: bytes) -> bytes:
    return with_segments(jpeg, segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + words))


def with_index(first: bytes, others: list[tuple[int, bytes]]) -> bytes:
    """A JPEG with others behind it, listed by an index (MPF) of (type, JPEG), as cameras write it."""
    count = 1 + len(others)
    head = b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", 3)
    head += struct.pack("<HHI4s", 0xB000, 7, 4, b"0100")
    head += struct.pack("<HHII", 0xB001, 4, 1, count)
    head += struct.pack("<HHII", 0xB002, 7, 16 * count, 8 + 2 + 3 * 12 + 4) + struct.pack("<I", 0)
    length = 4 + len(head) + 16 * count
    base = 2 + 4 + 4  # of the offsets: behind "MPF\0" of a segment that comes first
    total = len(first) + 4 + length
    entries = struct.pack("<IIIHH", 0x20030000, total, 0, 0, 0)
    at = total
    for role, jpeg in others:
        entries += struct.pack("<IIIHH", role, len(jpeg), at - base, 0, 0)
        at += len(jpeg)
    return with_segments(first, segment(0xE2, b"MPF\0" + head + entries)) + b"".join(jpeg for _, jpeg in others)


def notes(data: bytes) -> tuple[str, ...]:
    photo = read_photo(data)
    assert colour(photo) == 0 and photo.page == 1
    return photo.notes


def test_every_picture_of_a_jpeg_can_be_read() -> None:
    second = encode(plain(1), "JPEG")
    data = with_index(encode(plain(0), "JPEG"), [(0x020003, second), (0, encode(plain(2), "JPEG"))])
    check_pages(data, "pictures", [0, 1, 2])
    assert read_photo(data).data == data
    assert read_photo(data, page=2).data == second  # its own coefficients are these


FIRST, SECOND, SMALL = (encode(plain(0), "JPEG"), encode(plain(1), "JPEG"), encode(plain(1, (24, 16)), "JPEG"))
MAP = encode(Image.new("L", (12, 8), 99), "JPEG")
ADOBE = b'<x hdrgm:Version="1.0"/>'
GAIN_MAP = "A gain map for HDR screens was not examined."
VIDEO = "A video of 0.2 MB behind the photo (a motion photo) was not examined."
LISTED = with_index(FIRST, [(0, SECOND)])


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (with_index(FIRST, [(0x010001, SMALL)]), ["1 smaller copy of the picture inside the file: not examined."]),
        (
            with_index(FIRST, [(0x010001, SMALL), (0x010002, SMALL)]),
            ["2 smaller copies of the picture inside the file: not examined."],
        ),
        *(
            (with_index(FIRST, [(0, with_xmp(MAP, words))]), [GAIN_MAP])
            for words in (ADOBE, b"<HDRGainMap:HDRGainMapVersion>65536<", b'Item:Semantic="GainMap"')
        ),
        (with_xmp(FIRST, ADOBE), [GAIN_MAP]),
        (with_xmp(FIRST, b'<x GDepth:Format="RangeInverse"/>'), ["A depth map was not examined."]),
        *(
            (with_xmp(FIRST, words) + b"MotionPhoto_Data" + MP4 + b"SEFHtrailerSEFT", [VIDEO])
            for words in (b'GCamera:MicroVideo="1"', b'GCamera:MotionPhoto="1"', b"<GCamera:MotionPhoto>1<")
        ),
        (FIRST + MP4 + bytes(16), [VIDEO]),
        (
            with_xmp(FIRST, b'GCamera:MotionPhoto="1"'),
            ["The file says that it is a motion photo; the video is not in it."],
        ),
        (with_xmp(FIRST, b'GCamera:MotionPhoto="0"'), []),
        (with_index(with_xmp(FIRST, b'GCamera:MotionPhoto="1"'), [(0, with_xmp(MAP, ADOBE))]) + MP4, [GAIN_MAP, VIDEO]),
        (LISTED[: -len(SECOND)], ["The file lists 1 further picture that cannot be found in it."]),
    ],
)
def test_what_else_a_jpeg_holds_is_told(data: bytes, expected: list[str]) -> None:
    assert list(notes(data)) == expected and read_photo(data).pages == 1


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_bytes_behind_the_end_are_told(kind: str) -> None:
    data = encode(plain(0), kind)
    assert notes(data + b"PK\3\4 a zip file") == ("15 bytes behind the end of the picture were not examined.",)
    assert notes(data + encode(plain(1), "JPEG"))[0].startswith("Another JPEG of ")
    assert notes(data + b"\0\0\xff\n") == ()


# --- transparency and TIFF ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("mode", "alpha"), [("RGBA", 254), ("LA", 0), ("P", 254)])
def test_transparent_parts_are_measured(mode: str, alpha: int) -> None:
    picture = Image.new("RGBA", (50, 40), (200, 30, 30, 255))
    picture.paste((10, 20, 30, alpha), (0, 0, 50, 5))
    converted = picture if mode == "RGBA" else picture.convert("LA" if mode == "LA" else "P")
    if mode == "P":
        converted.info["transparency"] = bytes([255] * 256)
        index = converted.getpixel((0, 0))
        assert isinstance(index, int)
        converted.info["transparency"] = bytes(alpha if i == index else 255 for i in range(256))
    (note,) = read_photo(converted).notes
    assert note == "Transparent parts (12 % of the picture) were laid on white; what is hidden there was not examined."


@pytest.mark.parametrize(("width", "share"), [(1, "less than 1 %"), (100, "50 %"), (199, "99 %"), (200, "all")])
def test_shares_are_said_in_words(width: int, share: str) -> None:
    picture = Image.new("RGBA", (200, 10), (200, 30, 30, 255))
    picture.paste((0, 0, 0, 0), (0, 0, width, 10))
    (note,) = read_photo(encode(picture, "PNG")).notes
    assert note.startswith(f"Transparent parts ({share} of the picture)")


def test_layers_and_pictures_inside_of_pages_are_told() -> None:
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[330], tags.tagtype[330] = 8, TiffTags.LONG
    tags[37724] = b"Adobe Photoshop Document Data Block\0"
    assert notes(encode(plain(0), "TIFF", tiffinfo=tags)) == (
        "Pictures inside of the first page (TIFF's SubIFDs) were not examined.",
        "Photoshop's layers were not examined, only what they add up to.",
    )


# --- HEIC's and AVIF's boxes, and files that claim too much ---------------------------------------------------------


def box(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", 8 + len(content)) + kind + content


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (box(b"meta", b"urn:com:apple:photo:2020:aux:hdrgainmap\0"), "A gain map for HDR screens was not examined."),
        (box(b"meta", b"infe\2\0\0\0\0\4\0\0tmap\0"), "A gain map for HDR screens was not examined."),
        (box(b"meta", b"urn:mpeg:hevc:2015:auxid:2\0"), "A depth map was not examined."),
        (box(b"mpvd", bytes(160_000)), "A video of 0.2 MB behind the photo (a motion photo) was not examined."),
        (box(b"moov", b"trak"), "A sequence of pictures or a video inside the file was not examined."),
        (box(b"meta", b"urn:mpeg:hevc:2015:auxid:1\0"), None),  # alpha, which is laid on white
    ],
)
def test_what_the_boxes_of_a_heic_hold_is_told(content: bytes, expected: str | None) -> None:
    data = box(b"ftyp", b"heic\0\0\0\0mif1heic") + content + box(b"mdat", b"hdrgm: tmap mpvd")
    found = pages.held(data, "HEIC", Image.new("RGB", (9, 9)))
    assert found.pages == 1 and found.notes == (() if expected is None else (expected,))


def test_counting_ends_somewhere() -> None:
    frame = b",\0\0\0\0\1\0\1\0\0\2\2\x4c\1\0"
    gif = b"GIF89a\1\0\1\0\x80\0\0\0\0\0\xff\xff\xff" + 3000 * frame + b";"
    photo = read_photo(gif)
    assert photo.pages == 1000
    assert photo.notes[1] == "The file holds more than 1000 frames; those behind cannot be examined."
    claimed = encode(plain(0), "PNG", plain(1))
    at = claimed.index(b"acTL")
    claimed = claimed[: at - 4] + chunk(b"acTL", struct.pack(">II", 2_000_000_000, 0)) + claimed[at + 16 :]
    assert read_photo(claimed).pages == 1000
    with refused("corrupt", "picture 900 of the file is damaged"):
        read_photo(claimed, page=900)


@pytest.mark.parametrize("at", [4, 40])
def test_a_damaged_index_of_pictures_is_told(at: int) -> None:
    start = LISTED.index(b"MPF\0") + 4
    photo = read_photo(LISTED[: start + at] + b"\xff" * 8 + LISTED[start + at + 8 :])
    assert colour(photo) == 0 and photo.notes


def test_a_gif_with_comments_and_palettes_is_counted() -> None:
    frames = [plain(index).quantize(4) for index in range(4)]
    data = encode(frames[0], "GIF", *frames[1:], comment=b"x" * 700)
    assert read_photo(data).pages == 4 == Image.open(io.BytesIO(data)).n_frames  # type: ignore[attr-defined]
