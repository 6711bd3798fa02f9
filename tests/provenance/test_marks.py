"""Unsigned marks of how a file was made, and hostile files."""

from __future__ import annotations

import json
import sys
from types import ModuleType

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from declip import provenance
from declip.images.read import read_photo
from declip.results import Photo
from tests.images.pictures import exif_of
from tests.provenance import read, saved, words, xmp

PROMPT = "a cat\nNegative prompt: dog\nSteps: 20, Sampler: Euler a, CFG scale: 7"
GRAPH = json.dumps({"3": {"class_type": "KSampler", "inputs": {}}})


def with_xmp(kind: str, packet: bytes) -> bytes:
    if kind == "TIFF":
        return saved(kind, tiffinfo={700: packet})
    return with_texts({"XML:com.adobe.xmp": packet.decode()}) if kind == "PNG" else saved(kind, xmp=packet)


def with_texts(texts: dict[str, str], *, packed: bool = False) -> bytes:
    chunks = PngImagePlugin.PngInfo()
    for key, text in texts.items():
        if key.startswith("XML:"):
            chunks.add_itxt(key, text, zip=len(text) > 1000)
        else:
            chunks.add_text(key, text, zip=packed)
    return saved("PNG", pnginfo=chunks)


def read_bytes(data: bytes) -> provenance.Provenance:
    """Read the marks of a file whose pixels cannot be decoded."""
    return provenance.read(Photo(pixels=np.zeros((4, 4, 3), np.uint8), name="x", data=data))


def test_a_photo_without_a_file_and_a_file_without_marks_say_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "c2pa", ModuleType("c2pa"))  # the reader is not asked
    nothing = provenance.read(read_photo(np.zeros((4, 4, 3), np.uint8)))
    plain = [read(saved(kind)) for kind in ("JPEG", "PNG", "WebP", "TIFF", "BMP", "GIF", "AVIF")]
    for found in (nothing, *plain):
        assert (found.state, found.headline, found.generator) == ("none", None, None)
        assert found.says == found.reasons == ()


@pytest.mark.parametrize(
    ("kind", "form"),
    [
        *(("JPEG", form) for form in ("attribute", "element", "resource", "prefix", "entities")),
        *((kind, "attribute") for kind in ("PNG", "WebP", "AVIF", "TIFF")),
    ],
)
def test_sources_in_xmp_are_told_as_unsigned(kind: str, form: str) -> None:
    found = read(with_xmp(kind, xmp("compositeWithTrainedAlgorithmicMedia", form)))
    assert (found.state, found.generator) == ("none", "parts")
    assert found.headline == (
        "The file itself says: parts were made by a generator (compositeWithTrainedAlgorithmicMedia, in XMP, unsigned: "
        "anybody can write this)."
    )


def test_xmp_beside_credentials_elsewhere() -> None:
    packet = b'<x:xmpmeta dcterms:provenance="https://example.org/m" ' + xmp("trainedAlgorithmicMedia")[11:]
    found = read(saved(xmp=packet))
    assert (found.state, found.generator) == ("elsewhere", "whole")
    elsewhere = "the file names an address where its content credentials are said to be; nothing was fetched."
    assert found.headline is not None and found.headline.endswith(f"anybody can write this); {elsewhere}")


def test_a_source_that_is_on_no_list_is_told_as_such() -> None:
    found = read(saved(xmp=xmp("somethingNew")))
    text = "of a source that is not on IPTC's list (in XMP, unsigned: anybody can write this)"
    assert (found.generator, found.headline) == (None, None)
    assert found.says == (provenance.Reason("somethingNew", text),)


@pytest.mark.parametrize(
    ("key", "text", "packed"),
    [
        ("parameters", PROMPT, False),
        ("parameters", PROMPT, True),
        ("prompt", GRAPH, True),
        ("workflow", '{"nodes": []}', False),
        ("Dream", "cat -s 50", False),
    ],
)
def test_texts_of_generators_are_named_and_not_shown(key: str, text: str, packed: bool) -> None:
    found = read(with_texts({key: text}, packed=packed))
    assert (found.state, found.generator) == ("none", "text") and "cat" not in words(found)
    assert found.headline is not None and found.headline.startswith("The file holds a text as of ")
    assert f"“{key}”, in a PNG text, unsigned: anybody can write this" in found.headline


@pytest.mark.parametrize(("kind", "coding"), [("JPEG", "latin-1"), ("WebP", "utf-16-le"), ("JPEG", "utf-16-be")])
def test_texts_of_generators_in_exif(kind: str, coding: str) -> None:
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x9286] = b"UNICODE\0" + PROMPT.encode(coding)
    found = read(saved(kind, exif=exif))
    assert found.generator == "text" and "“parameters”, in EXIF" in (found.headline or "")


@pytest.mark.parametrize("kind", ["WebP", "PNG"])
def test_a_graph_in_exif(kind: str) -> None:
    exif = exif_of({0x010F: f"prompt:{GRAPH}"})
    assert [said.code for said in read(saved(kind, exif=exif)).says] == ["prompt"]


def test_other_texts_of_these_names_are_no_marks() -> None:
    found = read(with_texts({"parameters": "f/8, ISO 100", "prompt": "Say cheese", "workflow": "crop, then send"}))
    assert (found.generator, found.says) == (None, ())


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WebP"])
def test_entities_are_not_expanded(kind: str) -> None:
    packet = (
        b'<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;"><!ENTITY c SYSTEM "file:///etc/passwd">]>'
        b"<x:xmpmeta><Iptc4xmpExt:DigitalSourceType>http://x/&b;&c;</Iptc4xmpExt:DigitalSourceType></x:xmpmeta>"
    )
    found = read(with_xmp(kind, packet))
    assert [said.code for said in found.says] == ["&b;&c;"] and found.headline is None


def test_control_characters_in_xmp_are_codes() -> None:
    packet = b'<x:xmpmeta Iptc4xmpExt:DigitalSourceType="http://x/trained\x1b[31m&#8238;Media"/>'
    assert [said.code for said in read(with_xmp("PNG", packet)).says] == ["trained\\x1b[31m\\u202eMedia"]


def test_huge_blocks_are_read_in_part() -> None:
    padded = b"<x:xmpmeta>" + b" " * 3_000_000 + xmp("trainedAlgorithmicMedia")
    assert read(with_xmp("WebP", padded)).generator is None
    many = b"<x:xmpmeta>" + b"".join(xmp(f"kind{i}") for i in range(500))
    assert len(read(with_xmp("WebP", many)).says) == 60
    assert read_bytes(with_texts({"parameters": " " * 200_000 + PROMPT}, packed=True)).says == ()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WebP", "TIFF", "GIF", "AVIF"])
def test_a_file_that_breaks_off_anywhere_is_survived(kind: str) -> None:
    data = saved(kind, **({} if kind == "GIF" else {"exif": Image.Exif()}))
    assert all(read_bytes(data[:length]).state == "none" for length in (*range(min(len(data), 300)), len(data) - 1))


@pytest.mark.parametrize(
    "data",
    [
        b"\xff\xd8\xff\xe1\0\0" * 50,
        b"\x89PNG\r\n\x1a\n" + bytes(1200),
        b"RIFF\0\0\0\0WEBP" + bytes(800),
        b"\0\0\0\x08ftypavif" + bytes(80),
        b"II*\0\x08\0\0\0\xff\xff" + bytes(40),
        b"MM\0*\xff\xff\xff\xff",
    ],
)
def test_blocks_of_no_length_end_the_walk(data: bytes) -> None:
    assert read_bytes(data).state == "none"
