"""What a file says of how it was made: each state by a file that has it, no sentence that says more than is known."""

from __future__ import annotations

import io
import json
import re
import socket
import struct
import sys
import zlib
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import cache
from types import ModuleType, SimpleNamespace
from typing import Any, get_args

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from declip import provenance
from declip.images.read import read_photo
from declip.provenance import Provenance
from declip.results import Photo
from tests.signing import SOURCES, Chain, actions, generated, manifest, signed, signed_anew

KINDS = ("JPEG", "PNG", "WebP", "TIFF")
ACCUSING = re.compile("changed after|was changed|tampered|forged|fake|is wrong|not the ones|do not fit", re.IGNORECASE)
NOW = datetime.now(UTC)
OVER = (NOW - timedelta(days=400), NOW - timedelta(days=30))


def read(data: bytes, **options: Any) -> Provenance:
    return provenance.read(read_photo(data), **options)


def saved(kind: str = "JPEG", **options: Any) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (24, 16), (90, 120, 150)).save(stream, kind, **options)
    return stream.getvalue()


def words(found: Provenance) -> str:
    """All sentences."""
    return "\n".join([found.meaning, found.headline or "", *(r.text for r in (*found.reasons, *found.says))])


def codes(found: Provenance) -> set[str]:
    return {reason.code for reason in found.reasons}


@cache
def chain() -> Chain:
    pytest.importorskip("c2pa")
    return Chain("The News")


@cache
def camera(kind: str = "JPEG") -> bytes:
    """A signed picture of a camera, edited."""
    return signed(manifest(), kind=kind, chain=chain())


def with_other_pixels(data: bytes, kind: str) -> bytes:
    """The same file with one bit of its pixels changed, still a picture that can be read."""
    changed = bytearray(data)
    if kind != "PNG":
        changed[data.index(b"VP8 ") + 200 if kind == "WebP" else -100] ^= 1
        return bytes(changed)
    chunk = data.index(b"IDAT")
    length = int.from_bytes(data[chunk - 4 : chunk], "big")
    pixels = bytearray(zlib.decompress(data[chunk + 4 : chunk + 4 + length]))
    pixels[-1] ^= 1
    packed = b"IDAT" + zlib.compress(bytes(pixels), 6)
    chunk_end = chunk + 8 + length
    return (
        data[: chunk - 4] + struct.pack(">I", len(packed) - 4) + packed + struct.pack(">I", zlib.crc32(packed))
    ) + data[chunk_end:]


# --- one file for each state ----------------------------------------------------------------------------------------


def test_a_photo_without_a_file_and_a_file_without_marks_say_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "c2pa", ModuleType("c2pa"))  # the reader is not asked
    nothing = provenance.read(read_photo(np.zeros((4, 4, 3), np.uint8)))
    assert (nothing.state, nothing.headline, nothing.generator, nothing.says) == ("none", None, None, ())
    for kind in (*KINDS, "BMP", "GIF", "AVIF"):
        found = read(saved(kind))
        assert (found.state, found.headline, found.generator, found.reasons) == ("none", None, None, ())


def test_a_signer_on_the_given_list_is_valid() -> None:
    found = read(camera(), anchors=chain().anchors)
    assert found.state == "valid" and "signingCredential.untrusted" not in codes(found)
    assert {"signingCredential.trusted", "claimSignature.validated", "assertion.dataHash.match"} <= codes(found)
    assert found.headline == (
        "The file itself says: captured by a digital camera (digitalCapture, by “Camera 2”); steps named: edited "
        "(c2pa.edited); signed by “The News”, for whom a trusted list vouches, and the bytes match."
    )


@pytest.mark.parametrize("kind", KINDS)
def test_an_unknown_signer_leaves_the_file_intact(kind: str) -> None:
    found = read(camera(kind))
    assert found.state == "intact"
    assert {"signingCredential.untrusted", "claimSignature.validated", "assertion.dataHash.match"} <= codes(found)
    assert not ACCUSING.search(words(found)), words(found)
    # c2pa leaves out what it has to write into a TIFF's own directory.
    left_out = ", but for parts that the signer left out" if kind == "TIFF" else ""
    assert found.headline == (
        "The file itself says: captured by a digital camera (digitalCapture, by “Camera 2”); steps named: edited "
        f"(c2pa.edited); signed in the name of “The News”, and the bytes match{left_out}; who signed is not verified."
    )
    assert [tuple(field) for field in found.fields] == [
        ("made by", "Camera 1.0"),
        ("signed in the name of", "The News"),
        ("certificate of", "A key"),
        ("action", "c2pa.created, by Camera 2, source: digitalCapture"),
        ("action", "c2pa.edited, by Editor, 2026-01-02T03:04:05Z"),
        ("ingredients", "0"),
    ]
    assert "48" not in json.dumps(found.to_dict())  # the place that the manifest holds


@pytest.mark.parametrize(
    ("stamped", "trusting", "state", "said"),
    [
        (None, False, "intact", "no time stamp tells when the file was signed"),
        (None, True, "intact", "no time stamp tells when the file was signed"),
        (NOW - timedelta(days=200), False, "intact", "whether the certificate was valid then is not proved"),
        (NOW - timedelta(days=200), True, "valid", "A trusted list vouches for the authority that gave the time stamp"),
        (NOW - timedelta(days=10), True, "intact", "not valid at the time of signing that a trusted time stamp gives"),
    ],
)
def test_an_expired_certificate_is_no_change(stamped: datetime | None, trusting: bool, state: str, said: str) -> None:
    data = signed_anew(camera(), chain(), OVER, stamped)
    found = read(data, anchors=chain().anchors if trusting else None)
    assert found.state == state and said in words(found)
    assert ("signingCredential.expired" in codes(found)) == (state == "intact")
    assert ("timeStamp.validated" in codes(found)) == (stamped is not None)
    assert "assertion.dataHash.match" in codes(found) and "and the bytes match" in (found.headline or "")
    assert not ACCUSING.search(words(found)), words(found)
    if state == "intact":
        assert re.search("the certificate (has expired|was not valid at the time of signing)", found.headline or "")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WebP"])
def test_other_bytes_are_called_changed(kind: str) -> None:
    found = read(with_other_pixels(camera(kind), kind))
    assert found.state == "changed" and found.reasons[0].code == "assertion.dataHash.mismatch"
    assert "changed after it was signed, or the credentials were taken from another file" in found.meaning
    assert found.headline is not None and found.headline.startswith(
        "The bytes of this file are not the ones that its content credentials were signed for; the credentials say: "
    )
    assert all("not known to be signed for this file" in said.text for said in found.says)


def test_credentials_of_another_file_do_not_fit() -> None:
    """The manifest of one JPEG put into another: what is said must hold for this, too."""
    segment = camera()[camera().index(b"\xff\xeb") :]
    segment = segment[: 2 + int.from_bytes(segment[2:4], "big")]
    other = saved(quality=50)
    found = read(other[:2] + segment + other[2:])
    assert found.state == "changed" and "or the credentials were taken from another file" in found.meaning


def test_changed_statements_are_told_apart_from_changed_bytes() -> None:
    assert camera().count(b"Editor") == 1
    found = read(camera().replace(b"Editor", b"Someon"))
    assert found.state == "changed" and "assertion.hashedURI.mismatch" in codes(found)
    assert "assertion.dataHash.match" in codes(found)
    assert "The bytes" not in (found.headline or "") and "Statements in the content credentials" in words(found)
    assert "changed after it was signed" not in words(found)


def test_a_broken_signature_proves_no_change() -> None:
    at = camera().index(b"\xf6\x58\x40") + 13  # within the 64 bytes of the signature
    data = bytearray(with_other_pixels(camera(), "JPEG"))
    data[at] ^= 1
    for broken in (bytes(data), camera()[:at] + bytes([camera()[at] ^ 1]) + camera()[at + 1 :]):
        found = read(broken)
        assert found.state == "signature wrong" and "claimSignature.mismatch" in codes(found)
        assert "was changed" not in words(found) and "bytes match" not in words(found)
        assert "anybody may have written them" in (found.headline or "")


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_manifest_elsewhere_is_not_fetched(kind: str) -> None:
    pytest.importorskip("c2pa")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.2)
        address = f"http://127.0.0.1:{listener.getsockname()[1]}/manifest.c2pa"
        found = read(signed(manifest(), kind=kind, address=address))
        with pytest.raises(TimeoutError):
            listener.accept()
    assert (found.state, found.reasons, found.says, found.fields) == ("elsewhere", (), (), ())
    assert found.headline is not None and "nothing was fetched" in found.headline


def test_a_damaged_manifest_is_unreadable() -> None:
    data = bytearray(camera())
    start = data.index(b"jumb") + 30
    data[start : start + 30] = bytes(30)
    found = read(bytes(data))
    assert found.state == "unreadable" and not ACCUSING.search(words(found))
    assert found.headline == "The file carries content credentials that cannot be read."


@pytest.mark.parametrize("kind", [*KINDS, "AVIF", "GIF"])
def test_without_a_reader_credentials_are_named_and_nothing_else_changes(
    monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    data = camera(kind)
    monkeypatch.setitem(sys.modules, "c2pa", None)
    found = read(data)
    assert found.state == "present, not read"
    assert found.headline == "Content credentials are present, and were not read: pip install 'c2pa-python'."
    assert read(saved(kind)).state == "none"
    with_source = read(saved("WebP", xmp=xmp("trainedAlgorithmicMedia")))
    assert (with_source.state, with_source.generator) == ("none", "whole")


# --- what the file says ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WebP"])
@pytest.mark.parametrize(
    ("source", "generator", "said"),
    [
        ("trainedAlgorithmicMedia", "whole", "created by a generator (trainedAlgorithmicMedia, by “Paint 3”)"),
        (
            "compositeWithTrainedAlgorithmicMedia",
            "parts",
            "parts were made by a generator (compositeWithTrainedAlgorithmicMedia, by “Paint 3”)",
        ),
        ("digitalArt", None, "drawn by a person with digital tools (digitalArt, by “Paint 3”)"),
    ],
)
def test_signed_sources(kind: str, source: str, generator: str | None, said: str) -> None:
    pytest.importorskip("c2pa")
    found = read(signed(generated(source), kind=kind, chain=chain()))
    assert found.generator == generator and provenance.Reason("c2pa.created", found.says[-1].text) in found.says
    assert found.headline == (
        f"The file itself says: {said}; signed in the name of “The News”, and the bytes match; who signed is not "
        "verified."
    )


def test_edits_are_told_and_harmless_steps_are_not() -> None:
    pytest.importorskip("c2pa")
    taken = {"action": "c2pa.created", "digitalSourceType": f"{SOURCES}/digitalCapture"}
    steps = [{"action": f"c2pa.{name}"} for name in ("converted", "color_adjustments", "edited", "published")]
    found = read(signed(actions(taken, *steps)))
    assert "steps named: colours or brightness adjusted (c2pa.color_adjustments), edited (c2pa.edited);" in (
        found.headline or ""
    )
    assert [said.code for said in found.says] == [
        "digitalCapture",
        "c2pa.created",
        "c2pa.converted",
        "c2pa.color_adjustments",
        "c2pa.edited",
        "c2pa.published",
    ]
    assert found.generator is None
    plain = read(signed(actions(taken, {"action": "c2pa.converted"})))
    assert "steps named" not in (plain.headline or "")


def test_an_edit_with_a_generator_is_no_creation() -> None:
    pytest.importorskip("c2pa")
    taken = {"action": "c2pa.created", "digitalSourceType": f"{SOURCES}/digitalCapture"}
    edit = {"action": "c2pa.edited", "digitalSourceType": f"{SOURCES}/trainedAlgorithmicMedia"}
    found = read(signed(actions(taken, edit)))
    assert found.generator == "parts" and "edited with a generator (trainedAlgorithmicMedia)" in (found.headline or "")
    assert "created by a generator" not in words(found)


def using(relationship: str, action: str) -> dict[str, Any]:
    """A manifest of a picture that an earlier one went into."""
    step = {"action": action, "parameters": {"ingredientIds": [relationship]}}
    begun = {"action": "c2pa.created", "digitalSourceType": f"{SOURCES}/digitalCapture"}
    return actions(step) if action == "c2pa.opened" else actions(begun, step)


@pytest.mark.parametrize(
    ("relationship", "action", "generator"),
    [("parentOf", "c2pa.opened", "whole"), ("componentOf", "c2pa.placed", "parts"), ("inputTo", "c2pa.edited", None)],
)
def test_earlier_pictures(relationship: str, action: str, generator: str | None) -> None:
    pytest.importorskip("c2pa")
    made = signed(generated())
    found = read(signed(using(relationship, action), parts={relationship: made}))
    assert (found.state, found.generator) == ("intact", generator)
    if generator == "parts":
        assert "of a picture that went into it: created by a generator" in (found.headline or "")
    assert all("not of this file" in reason.text for reason in found.reasons[-1:])


def test_what_is_wrong_with_an_earlier_picture_is_not_wrong_with_this_one() -> None:
    pytest.importorskip("c2pa")
    broken = with_other_pixels(signed(generated()), "JPEG")
    found = read(signed(using("parentOf", "c2pa.opened"), parts={"parentOf": broken}))
    assert found.state == "intact"
    (mismatch,) = [reason for reason in found.reasons if reason.code == "assertion.dataHash.mismatch"]
    assert mismatch.text.startswith("Of an earlier picture that went into this one, not of this file: ")
    assert "in the content credentials of what it was before, whose own checks failed" in (found.headline or "")


# --- unsigned marks -------------------------------------------------------------------------------------------------


def xmp(source: str, form: str = "attribute") -> bytes:
    address = f"{SOURCES}/{source}"
    inner = {
        "attribute": f'<rdf:Description Iptc4xmpExt:DigitalSourceType="{address}"/>',
        "element": f"<Iptc4xmpExt:DigitalSourceType>\n {address}\n</Iptc4xmpExt:DigitalSourceType>",
        "resource": f"<Iptc4xmpExt:DigitalSourceType rdf:resource='{address}'/>",
        "prefix": f'<rdf:Description ext:DigitalSourceType = "{address}"/>',
        "entities": f'<rdf:Description Iptc4xmpExt:DigitalSourceType="{address.replace("/", "&#x2F;")}"/>',
    }[form]
    return f"<x:xmpmeta><rdf:RDF>{inner}</rdf:RDF></x:xmpmeta>".encode()


def saved_with_xmp(kind: str, packet: bytes) -> bytes:
    if kind != "PNG":
        return saved(kind, xmp=packet)
    chunks = PngImagePlugin.PngInfo()
    chunks.add_itxt("XML:com.adobe.xmp", packet.decode("latin-1"), zip=len(packet) > 1000)
    return saved("PNG", pnginfo=chunks)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WebP", "AVIF"])
@pytest.mark.parametrize("form", ["attribute", "element", "resource", "prefix", "entities"])
def test_sources_in_xmp_are_told_as_unsigned(kind: str, form: str) -> None:
    found = read(saved_with_xmp(kind, xmp("compositeWithTrainedAlgorithmicMedia", form)))
    assert (found.state, found.generator) == ("none", "parts")
    assert found.headline == (
        "The file itself says: parts were made by a generator (compositeWithTrainedAlgorithmicMedia, in XMP, unsigned: "
        "anybody can write this)."
    )


def test_sources_in_xmp_of_a_tiff() -> None:
    assert read(saved("TIFF", tiffinfo={700: xmp("trainedAlgorithmicMedia")})).generator == "whole"


def test_xmp_beside_signed_statements() -> None:
    pytest.importorskip("c2pa")
    found = read(signed(manifest(), chain=chain(), xmp=xmp("trainedAlgorithmicMedia")))
    assert (found.state, found.generator) == ("intact", "whole")
    assert found.headline is not None and found.headline.startswith(
        "The file itself says: created by a generator (trainedAlgorithmicMedia, in XMP, not among the signed "
        "statements); its content credentials say: captured by a digital camera (digitalCapture"
    )
    # As much is said by both: then by the one that can be checked.
    both = read(signed(generated(), chain=chain(), xmp=xmp("trainedAlgorithmicMedia")))
    assert (both.headline or "").startswith("The file itself says: created by a generator (trainedAlgorithmicMedia, by")
    assert "XMP" not in (both.headline or "") and sum("in XMP" in said.text for said in both.says) == 1
    parts = signed(generated("compositeWithTrainedAlgorithmicMedia"), xmp=xmp("trainedAlgorithmicMedia"))
    assert read(parts).generator == "whole" and "created by a generator" in (read(parts).headline or "")


def test_xmp_beside_credentials_elsewhere() -> None:
    packet = b'<x:xmpmeta dcterms:provenance="https://example.org/m" ' + xmp("trainedAlgorithmicMedia")[11:]
    found = read(saved(xmp=packet))
    assert (found.state, found.generator) == ("elsewhere", "whole")
    assert found.headline is not None and found.headline.endswith(
        "anybody can write this); the file names an address where its content credentials are said to be; nothing was "
        "fetched."
    )


def test_a_source_that_is_on_no_list_is_told_as_such() -> None:
    found = read(saved(xmp=xmp("somethingNew")))
    assert found.generator is None and found.headline is None
    assert found.says == (
        provenance.Reason(
            "somethingNew", "of a source that is not on IPTC's list (in XMP, unsigned: anybody can write this)"
        ),
    )


PROMPT = "a cat\nNegative prompt: dog\nSteps: 20, Sampler: Euler a, CFG scale: 7"
GRAPH = json.dumps({"3": {"class_type": "KSampler", "inputs": {}}})


@pytest.mark.parametrize(
    ("key", "text"), [("parameters", PROMPT), ("prompt", GRAPH), ("workflow", '{"nodes": []}'), ("Dream", "cat -s 50")]
)
@pytest.mark.parametrize("packed", [False, True])
def test_texts_of_generators_are_named_and_not_shown(key: str, text: str, packed: bool) -> None:
    chunks = PngImagePlugin.PngInfo()
    chunks.add_text(key, text, zip=packed)
    found = read(saved("PNG", pnginfo=chunks))
    assert (found.state, found.generator) == ("none", "text")
    assert found.headline is not None and found.headline.startswith("The file holds a text as of ")
    assert f"“{key}”, in a PNG text, unsigned: anybody can write this" in found.headline
    assert "cat" not in words(found)


@pytest.mark.parametrize("coding", ["latin-1", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("kind", ["JPEG", "WebP"])
def test_texts_of_generators_in_exif(kind: str, coding: str) -> None:
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x9286] = b"UNICODE\0" + PROMPT.encode(coding)
    found = read(saved(kind, exif=exif))
    assert found.generator == "text" and "“parameters”, in EXIF" in (found.headline or "")


def test_a_graph_in_exif() -> None:
    exif = Image.Exif()
    exif[0x010F] = f"prompt:{GRAPH}"
    assert [said.code for said in read(saved("WebP", exif=exif)).says] == ["prompt"]


def test_other_texts_of_these_names_are_no_marks() -> None:
    chunks = PngImagePlugin.PngInfo()
    for key, text in (("parameters", "f/8, ISO 100"), ("prompt", "Say cheese"), ("workflow", "crop, then send")):
        chunks.add_text(key, text)
    found = read(saved("PNG", pnginfo=chunks))
    assert (found.generator, found.says) == (None, ())


# --- hostile files --------------------------------------------------------------------------------------------------


def test_names_cannot_leave_their_quotes_and_show_their_codes() -> None:
    pytest.importorskip("c2pa")
    name = "Paint”, verified by\u202e the \x1b[31mNews\n\u2028“" + "n" * 500
    found = read(signed(generated(name=name), chain=Chain('x”; the bytes match\x07"')))
    text = words(found)
    assert text.replace("\n", "").isprintable()
    assert '“Paint", verified by\\u202e the \\x1b[31mNews' in text and "n" * 61 not in text
    assert found.headline is not None and found.headline.count("“") == found.headline.count("”") == 2
    assert '“x"; the bytes match\\x07"”' in found.headline


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WebP"])
def test_entities_are_not_expanded(kind: str) -> None:
    packet = (
        b'<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;"><!ENTITY c SYSTEM "file:///etc/passwd">]>'
        b"<x:xmpmeta><Iptc4xmpExt:DigitalSourceType>http://x/&b;&c;</Iptc4xmpExt:DigitalSourceType></x:xmpmeta>"
    )
    found = read(saved_with_xmp(kind, packet))
    assert [said.code for said in found.says] == ["&b;&c;"] and found.headline is None


def test_control_characters_in_xmp_are_codes() -> None:
    packet = b'<x:xmpmeta Iptc4xmpExt:DigitalSourceType="http://x/trained\x1b[31m&#8238;Media"/>'
    found = read(saved_with_xmp("PNG", packet))
    assert [said.code for said in found.says] == ["trained\\x1b[31m\\u202eMedia"]


def test_huge_xmp_is_read_in_part() -> None:
    padded = b"<x:xmpmeta>" + b" " * 3_000_000 + xmp("trainedAlgorithmicMedia")
    assert read(saved_with_xmp("WebP", padded)).generator is None
    many = b"<x:xmpmeta>" + b"".join(xmp(f"kind{i}") for i in range(500))
    assert len(read(saved_with_xmp("WebP", many)).says) == 60


def test_a_text_that_unpacks_to_too_much_is_read_in_part() -> None:
    chunks = PngImagePlugin.PngInfo()
    chunks.add_text("parameters", " " * 200_000 + PROMPT, zip=True)
    stream = io.BytesIO()
    Image.new("RGB", (8, 8)).save(stream, "PNG", pnginfo=chunks)
    photo = Photo(pixels=np.zeros((8, 8, 3), np.uint8), name="x", data=stream.getvalue())
    assert provenance.read(photo).says == ()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WebP", "TIFF", "GIF", "AVIF"])
def test_a_file_that_breaks_off_anywhere_is_survived(kind: str) -> None:
    data = saved(kind, **({} if kind == "GIF" else {"exif": Image.Exif()}))
    pixels = np.zeros((4, 4, 3), np.uint8)
    for length in (*range(min(len(data), 300)), len(data) - 1):
        found = provenance.read(Photo(pixels=pixels, name="x", data=data[:length]))
        assert found.state == "none"


def test_blocks_of_no_length_end_the_walk() -> None:
    pixels = np.zeros((4, 4, 3), np.uint8)
    for data in (
        b"\xff\xd8\xff\xe1\0\0" * 50,
        b"\x89PNG\r\n\x1a\n" + bytes(1200),
        b"RIFF\0\0\0\0WEBP" + bytes(800),
        b"\0\0\0\x08ftypavif" + bytes(80),
        b"II*\0\x08\0\0\0\xff\xff" + bytes(40),
        b"MM\0*\xff\xff\xff\xff",
    ):
        assert provenance.read(Photo(pixels=pixels, name="x", data=data)).state == "none"


# --- the reader's answers -------------------------------------------------------------------------------------------

Reader = Callable[[Any], Provenance]


@pytest.fixture
def answer(monkeypatch: pytest.MonkeyPatch) -> Reader:
    """Read a JPEG with a manifest of which the reader says this."""
    data = camera()
    asked: dict[str, Any] = {}

    class C2paError(Exception):
        pass

    def try_create(mime: str, stream: io.BytesIO, context: Any) -> Any:
        asked.update(mime=mime, data=stream.read(), settings=context)
        match asked["answer"]:
            case None:
                return None
            case Exception() as error:
                raise error
        return SimpleNamespace(json=lambda: asked["answer"])

    module: Any = ModuleType("c2pa")
    module.C2paError = C2paError
    module.Reader = SimpleNamespace(try_create=try_create)
    module.Context = SimpleNamespace(from_dict=lambda settings: settings)
    monkeypatch.setitem(sys.modules, "c2pa", module)

    def reading(said: Any) -> Provenance:
        asked["answer"] = C2paError("damaged") if said == "raise" else said
        found = read(data)
        assert asked["mime"] == "image/jpeg" and asked["data"] == data
        assert asked["settings"] == {"verify": {"remote_manifest_fetch": False, "ocsp_fetch": False}}
        return found

    return reading


def store(failure: tuple[str, ...] = (), informational: tuple[str, ...] = (), **more: Any) -> str:
    """The reader's answer on a file whose bytes and signature match, with further results."""
    results = {
        "success": [{"code": "claimSignature.validated"}, {"code": "assertion.dataHash.match"}],
        "informational": [{"code": code} for code in informational],
        "failure": [{"code": code} for code in failure],
    }
    whole = {"active_manifest": "a", "manifests": {"a": {}}, "validation_results": {"activeManifest": results}}
    return json.dumps(whole | more)


@pytest.mark.parametrize(
    ("said", "state"),
    [
        (None, "none"),
        ("raise", "unreadable"),
        ("{}", "unreadable"),
        ("[1]", "unreadable"),
        ("no JSON", "unreadable"),
        ("[" * 100_000, "unreadable"),
        ('{"active_manifest": "a", "manifests": {"a": 1}}', "unreadable"),
        ('{"active_manifest": ["a"], "manifests": {"a": {}}}', "unreadable"),
        ('{"active_manifest": "a", "manifests": {"a": {}}}', "unclear"),
        ('{"active_manifest": "a", "manifests": {"a": {"claim_generator_info": [1], "ingredients": 3}}}', "unclear"),
    ],
)
def test_any_answer_is_survived(answer: Reader, said: str | None, state: str) -> None:
    assert answer(said).state == state


@pytest.mark.parametrize("code", ["signingCredential.revoked", "signingCredential.ocsp.revoked"])
def test_a_revoked_certificate_is_told_and_is_no_change(answer: Reader, code: str) -> None:
    found = answer(store((code,)))
    assert found.state == "intact" and "the certificate was revoked" in (found.headline or "")
    assert not ACCUSING.search(words(found))


def test_checks_without_words_are_told_by_their_codes(answer: Reader) -> None:
    found = answer(store(("assertion.action.malformed", "new.\u202ecode")))
    assert found.state == "intact"
    assert "further checks failed (assertion.action.malformed, new.\\u202ecode)" in (found.headline or "")
    assert provenance.Reason("new.\\u202ecode", "The reader reports that this check failed.") in found.reasons


def test_what_the_signer_left_out_is_told(answer: Reader) -> None:
    found = answer(store((), ("assertion.dataHash.additionalExclusionsPresent",)))
    assert "the bytes match, but for parts that the signer left out" in (found.headline or "")


def test_a_result_on_a_box_of_another_manifest_is_not_of_this_file(answer: Reader) -> None:
    place = "self#jumbf=/c2pa/{}/c2pa.assertions/c2pa.hash.data"
    matches = [{"code": "claimSignature.validated"}, {"code": "assertion.dataHash.match", "url": place.format("a")}]
    for label, state in (("a", "changed"), ("b", "intact")):
        failed = [{"code": "assertion.dataHash.mismatch", "url": place.format(label)}]
        found = answer(store(validation_results={"activeManifest": {"success": matches, "failure": failed}}))
        assert found.state == state
        assert ("not of this file" in words(found)) == (label == "b")


@pytest.mark.parametrize("kind", ["dataHash", "bmffHash", "boxesHash", "collectionHash"])
def test_every_hash_of_the_bytes_counts(answer: Reader, kind: str) -> None:
    found = answer(store((f"assertion.{kind}.mismatch", "signingCredential.expired")))
    assert found.state == "changed" and "The bytes of this file" in (found.headline or "")


def test_without_results_the_list_of_failures_is_read(answer: Reader) -> None:
    def listed(*statuses: tuple[str, str]) -> Provenance:
        status = [{"code": code, "url": f"self#jumbf=/c2pa/{label}/x"} for code, label in statuses]
        return answer(store(validation_results=None, validation_status=status))

    assert listed(("signingCredential.expired", "a")).state == "unclear"
    assert not ACCUSING.search(words(listed(("signingCredential.expired", "a"))))
    assert listed(("assertion.dataHash.mismatch", "a")).state == "changed"
    other = listed(("assertion.dataHash.mismatch", "b"))
    assert other.state == "unclear" and "not of this file" in other.reasons[0].text


def test_the_answer_is_plain_and_flat(answer: Reader) -> None:
    for said in (None, "raise", store(("signingCredential.untrusted",))):
        row = answer(said).to_dict()
        assert json.loads(json.dumps(row)) == row
        assert list(row) == ["state", "meaning", "headline", "generator", "reasons", "says", "fields"]
        assert row["state"] in get_args(provenance.State)
        assert all(list(entry) == ["code", "text"] for entry in (*row["reasons"], *row["says"]))
