"""What a file says of itself: read as it is, cut, and never trusted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from declip import provenance
from declip.images.decode import read_header
from declip.images.read import read_photo
from declip.provenance import Field
from declip.report import metadata
from declip.results import Photo
from tests.images.pictures import encode, exif_of, refused


def saved(kind: str = "JPEG", picture: Image.Image | None = None, **options: Any) -> Photo:
    return read_photo(encode(picture or Image.new("RGB", (24, 16), (90, 120, 150)), kind, **options))


def read(photo: Photo, **options: Any) -> metadata.Metadata:
    found = metadata.read(photo, **options)
    assert found is not None
    return found


@pytest.mark.parametrize("quality", [1, 30, 50, 75, 90, 95, 100])
def test_the_quality_of_libjpeg_is_found(quality: int) -> None:
    found = read(saved(quality=quality, subsampling="4:2:2", progressive=True)).jpeg
    assert found is not None
    assert (found.quality, found.distance, found.subsampling, found.progressive) == (quality, 0, "4:2:2", True)
    assert [len(table) for table in found.tables] == [64, 64]


def test_tables_are_row_by_row_with_luma_first() -> None:
    found = read(saved(quality=50)).jpeg
    assert found is not None
    # ITU-T T.81, tables K.1 and K.2.
    assert found.tables[0][:8] == (16, 11, 10, 16, 24, 40, 51, 61) and found.tables[0][8:10] == (12, 12)
    assert found.tables[1][:4] == (17, 18, 24, 47)


def test_other_tables_are_said_to_be_others() -> None:
    own = [[3 + (i % 8) for i in range(64)], [5] * 64]
    found = read(saved(qtables=own)).jpeg
    assert found is not None and found.distance > 1
    assert sorted(map(sorted, found.tables)) == sorted(map(sorted, own))
    quality, distance = metadata.jpeg_quality(found.tables)
    reference = read(saved(quality=quality)).jpeg
    assert reference is not None
    assert distance == pytest.approx(np.abs(np.array(found.tables) - np.array(reference.tables)).mean())


def test_grey_and_other_formats() -> None:
    grey = read(saved(picture=Image.new("L", (16, 16), 90), quality=80)).jpeg
    assert grey is not None and (grey.quality, grey.subsampling, len(grey.tables)) == (80, "", 1)
    for kind in ("PNG", "WEBP", "TIFF", "BMP", "GIF"):
        found = read(saved(kind))
        assert (found.format, found.jpeg, found.stored_height) == (kind, None, 16)


def test_exif_as_people_read_it() -> None:
    exif = exif_of({0x010F: "Maker", 0x0110: "Model\0\0", 0x0131: "Editor 1.0", 0x0112: 6})
    exif.get_ifd(0x8769).update({0x829A: (1, 125), 0x829D: 2.8, 0x920A: 35.0, 0x8827: 100, 0x9000: b"0232"})
    photo = saved(exif=exif)
    found = read(photo)
    assert dict(found.exif) == {
        "Make": "Maker",
        "Model": "Model",
        "Software": "Editor 1.0",
        "ExposureTime": dict(found.exif)["ExposureTime"],
        "FNumber": "f/2.8",
        "ISOSpeedRatings": "100",
        "FocalLength": "35 mm",
        "ExifVersion": "0232",
        "Orientation": "6",
    }
    assert (found.stored_height, found.stored_width, photo.size, found.orientation) == (16, 24, (24, 16), 6)
    assert found.software == (Field("EXIF Software", "Editor 1.0"),)


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("ExposureTime", 0.008, "1/125 s"),
        ("ExposureTime", 2.0, "2 s"),
        ("FNumber", float("nan"), "undefined"),
        ("FocalLength", 50, "50"),
        ("Make", b"\x00" * 9, "9 bytes"),
        ("XPTitle", "Tïtle\0".encode("utf-16-le"), "Tïtle"),
        ("Copyright", (1, 2), "1, 2"),
        ("Artist", "a" * 161, "a" * 160 + "… (cut: 161 in the file)"),
        ("Artist", "a" * 160, "a" * 160),
        ("Artist", object(), "undefined"),
    ],
)
def test_values(name: str, value: object, shown: str) -> None:
    assert metadata._value(name, value) == shown


def test_what_is_not_shown_is_named() -> None:
    exif = exif_of({0x010E: "a description", 0xC4A5: b"print", 0xFE00: 7})
    exif.get_ifd(0x8769).update({0x927C: b"maker note", 0x9286: b"ASCII\0\0\0comment"})
    found = read(saved(exif=exif, comment=b"a comment"))
    assert found.exif == () and found.free_text == ()
    texts = {"ImageDescription (text)", "UserComment (text)", "comment (text)"}
    assert texts | {"MakerNote", "tag 0xfe00", "PrintImageMatching"} <= set(found.withheld)
    told = read(saved(exif=exif, comment=b"a comment"), position=True)
    assert {field.value for field in told.free_text} == {"a description", "ASCII\0\0\0comment", "a comment"}


def test_names_are_few() -> None:
    found = read(saved(exif=exif_of(dict.fromkeys(range(0xF000, 0xF080), 1))))
    assert len(found.withheld) == 61 and found.withheld[-1] == "and 68 more"


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")  # Pillow's word on it; what counts is that the photo is read
def test_damaged_exif_is_said_to_be_unreadable() -> None:
    found = read(saved(exif=b"Exif\0\0" + b"II*\0\xff\xff\xff\xff" + b"rubbish"))
    assert found.exif == () and not found.has_position and found.thumbnail is None
    assert found.withheld == ("EXIF (empty or unreadable)",)
    assert read(saved(exif=b"Exif\0\0XX rubbish")).withheld == ("EXIF (empty or unreadable)",)


def test_software_in_xmp_and_comments() -> None:
    xmp = (
        b"<x:xmpmeta><rdf:Description xmp:CreatorTool='Tool &amp; Co' tiff:Make='no'>"
        b'<stEvt:softwareAgent>Agent 2</stEvt:softwareAgent><rdf:li stEvt:softwareAgent="Agent 2"/>'
        b"<Iptc4xmpExt:DigitalSourceType>http://x/trainedAlgorithmicMedia</Iptc4xmpExt:DigitalSourceType>"
        b"</rdf:Description></x:xmpmeta>"
    )
    found = read(saved(xmp=xmp, comment=b"CREATOR: gd-jpeg v1.0"))
    assert found.software == (
        Field("JPEG comment", "CREATOR: gd-jpeg v1.0"),
        Field("XMP CreatorTool", "Tool & Co"),
        Field("XMP softwareAgent", "Agent 2"),
        Field("XMP DigitalSourceType", "http://x/trainedAlgorithmicMedia"),
    )
    assert "the rest of XMP" in found.withheld and not found.has_position


def test_png_text() -> None:
    chunks = PngImagePlugin.PngInfo()
    chunks.add_text("Software", "Editor 3")
    chunks.add_text("parameters", "a long prompt")
    found = read(saved("PNG", pnginfo=chunks))
    assert found.software == (Field("PNG Software", "Editor 3"),)
    assert "PNG parameters (text)" in found.withheld and found.free_text == ()
    assert Field("PNG parameters", "a long prompt") in read(saved("PNG", pnginfo=chunks), position=True).free_text


def test_a_photo_without_a_file_says_nothing_and_a_position_in_xmp_alone_is_noticed() -> None:
    assert metadata.read(read_photo(np.zeros((4, 4, 3), np.uint8))) is None
    found = read(saved(xmp=b'<x:xmpmeta exif:GPSLatitude="1,2.3N"/>'))
    assert found.has_position and found.position == ()


def test_content_credentials_are_those_of_provenance() -> None:
    photo = saved(xmp=b'<x:xmpmeta Iptc4xmpExt:DigitalSourceType="http://x/trainedAlgorithmicMedia"/>')
    found = read(photo)
    assert found.credentials == provenance.read(photo) and found.credentials.generator == "whole"
    assert found.to_dict()["credentials"] == provenance.read(photo).to_dict()


def test_the_header_is_read_without_the_pixels(tmp_path: Path) -> None:
    data = saved(picture=Image.new("RGB", (300, 200)), quality=90).data
    assert read_header(data[: len(data) // 2], "half.jpg").size == (300, 200)
    with refused("format", "notes.txt: not a picture"):
        read_header(b"plain text", "notes.txt")
