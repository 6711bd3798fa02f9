"""Content credentials: each state by a file that has it, and no sentence that says more than is known."""

from __future__ import annotations

import json
import re
import socket
import struct
import sys
import zlib
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from declip import provenance
from declip.images.read import read_photo
from tests.provenance import ACCUSING, codes, read, saved, words, xmp
from tests.signing import actions, chain, created, generated, manifest, signed

pytest.importorskip("c2pa")

# Signed by a certificate that was valid in 2024. "stamped": a time stamp of July 2024; "stamped-late": of June 2025.
STORED = Path(__file__).parents[1] / "golden" / "credentials"
BEGUN = "The file itself says: captured by a digital camera (digitalCapture, by “Camera 2”); steps named: edited "


@cache
def camera(kind: str = "JPEG") -> bytes:
    """Return a signed picture of a camera, edited."""
    return signed(manifest(), kind=kind)


def with_other_pixels(data: bytes, kind: str = "JPEG") -> bytes:
    """Return the same file with one bit of its pixels changed, still a picture that can be read."""
    changed = bytearray(data)
    if kind != "PNG":
        changed[data.index(b"VP8 ") + 200 if kind == "WebP" else -100] ^= 1
        return bytes(changed)
    chunk = data.index(b"IDAT")
    end = chunk + 8 + int.from_bytes(data[chunk - 4 : chunk], "big")
    pixels = bytearray(zlib.decompress(data[chunk + 4 : end - 4]))
    pixels[-1] ^= 1
    packed = b"IDAT" + zlib.compress(bytes(pixels), 6)
    size, check = struct.pack(">I", len(packed) - 4), struct.pack(">I", zlib.crc32(packed))
    return data[: chunk - 4] + size + packed + check + data[end:]


def test_a_signer_on_the_given_list_is_valid() -> None:
    found = read(camera(), anchors=chain("The News")[1])
    assert found.state == "valid" and "signingCredential.untrusted" not in codes(found)
    assert {"signingCredential.trusted", "claimSignature.validated", "assertion.dataHash.match"} <= codes(found)
    signer = "signed by “The News”, for whom a trusted list vouches, and the bytes match."
    assert found.headline == f"{BEGUN}(c2pa.edited); {signer}"


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WebP", "TIFF"])
def test_an_unknown_signer_leaves_the_file_intact(kind: str) -> None:
    found = read(camera(kind))
    assert found.state == "intact" and not ACCUSING.search(words(found)), words(found)
    assert {"signingCredential.untrusted", "claimSignature.validated", "assertion.dataHash.match"} <= codes(found)
    # c2pa leaves out what it has to write into a TIFF's own directory.
    left_out = ", but for parts that the signer left out" if kind == "TIFF" else ""
    signer = f"signed in the name of “The News”, and the bytes match{left_out}; who signed is not verified."
    assert found.headline == f"{BEGUN}(c2pa.edited); {signer}"
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
    ("name", "trusting", "state", "said"),
    [
        ("expired", True, "intact", "no time stamp tells when the file was signed"),
        ("stamped", False, "intact", "whether the certificate was valid then is not proved"),
        ("stamped", True, "valid", "A trusted list vouches for the authority that gave the time stamp"),
        ("stamped-late", True, "intact", "not valid at the time of signing that a trusted time stamp gives"),
    ],
)
def test_an_expired_certificate_is_no_change(name: str, trusting: bool, state: str, said: str) -> None:
    anchors = (STORED / "root.pem").read_text() if trusting else None
    found = provenance.read(read_photo(STORED / f"{name}.jpg"), anchors=anchors)
    assert found.state == state and said in words(found) and not ACCUSING.search(words(found))
    assert ("signingCredential.expired" in codes(found)) == (state == "intact")
    assert ("timeStamp.validated" in codes(found)) == (name != "expired")
    assert "assertion.dataHash.match" in codes(found) and "and the bytes match" in (found.headline or "")
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
    segment = camera()[camera().index(b"\xff\xeb") :]
    segment = segment[: 2 + int.from_bytes(segment[2:4], "big")]
    other = saved(quality=50)
    found = read(other[:2] + segment + other[2:])
    assert found.state == "changed" and "or the credentials were taken from another file" in found.meaning


def test_changed_statements_are_told_apart_from_changed_bytes() -> None:
    assert camera().count(b"Editor") == 1
    found = read(camera().replace(b"Editor", b"Someon"))
    assert found.state == "changed" and {"assertion.hashedURI.mismatch", "assertion.dataHash.match"} <= codes(found)
    assert "The bytes" not in (found.headline or "") and "Statements in the content credentials" in words(found)
    assert "changed after it was signed" not in words(found)


def test_a_broken_signature_proves_no_change() -> None:
    at = camera().index(b"\xf6\x58\x40") + 13  # within the 64 bytes of the signature
    for data in (with_other_pixels(camera()), camera()):
        found = read(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        assert found.state == "signature wrong" and "claimSignature.mismatch" in codes(found)
        assert "was changed" not in words(found) and "bytes match" not in words(found)
        assert "anybody may have written them" in (found.headline or "")


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_manifest_elsewhere_is_not_fetched(kind: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        address = f"http://127.0.0.1:{listener.getsockname()[1]}/manifest.c2pa"
        found = read(signed(manifest(), kind=kind, address=address))
        with pytest.raises(BlockingIOError):
            listener.accept()
    assert (found.state, found.reasons, found.says, found.fields) == ("elsewhere", (), (), ())
    assert found.headline is not None and "nothing was fetched" in found.headline


def test_a_damaged_manifest_is_unreadable() -> None:
    start = camera().index(b"jumb") + 30
    found = read(camera()[:start] + bytes(30) + camera()[start + 30 :])
    assert found.state == "unreadable" and not ACCUSING.search(words(found))
    assert found.headline == "The file carries content credentials that cannot be read."


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WebP", "TIFF", "AVIF", "GIF"])
def test_without_a_reader_credentials_are_named(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    data = camera(kind)
    monkeypatch.setitem(sys.modules, "c2pa", None)
    found = read(data)
    assert found.state == "present, not read" and read(saved(kind)).state == "none"
    assert found.headline == "Content credentials are present, and were not read: pip install 'c2pa-python'."


@pytest.mark.parametrize(
    ("source", "generator", "said"),
    [
        ("trainedAlgorithmicMedia", "whole", "created by a generator"),
        ("compositeWithTrainedAlgorithmicMedia", "parts", "parts were made by a generator"),
        ("digitalArt", None, "drawn by a person with digital tools"),
    ],
)
def test_signed_sources(source: str, generator: str | None, said: str) -> None:
    found = read(signed(generated(source)))
    assert found.generator == generator and [row.code for row in found.says] == [source, "c2pa.created"]
    signer = "signed in the name of “The News”, and the bytes match; who signed is not verified."
    assert found.headline == f"The file itself says: {said} ({source}, by “Paint 3”); {signer}"


def test_edits_are_told_and_harmless_steps_are_not() -> None:
    steps = ("converted", "color_adjustments", "edited", "published")
    found = read(signed(actions(created("digitalCapture"), *({"action": f"c2pa.{name}"} for name in steps))))
    edits = "steps named: colours or brightness adjusted (c2pa.color_adjustments), edited (c2pa.edited);"
    assert edits in (found.headline or "") and found.generator is None
    assert [row.code for row in found.says] == ["digitalCapture", "c2pa.created", *(f"c2pa.{name}" for name in steps)]
    plain = read(signed(actions(created("digitalCapture"), {"action": "c2pa.converted"})))
    assert "steps named" not in (plain.headline or "")


def test_an_edit_with_a_generator_is_no_creation() -> None:
    edit = created("trainedAlgorithmicMedia") | {"action": "c2pa.edited"}
    found = read(signed(actions(created("digitalCapture"), edit)))
    assert found.generator == "parts" and "edited with a generator (trainedAlgorithmicMedia)" in (found.headline or "")
    assert "created by a generator" not in words(found)


def using(relationship: str, action: str) -> dict[str, Any]:
    """Return a manifest of a picture that an earlier one went into."""
    step = {"action": action, "parameters": {"ingredientIds": [relationship]}}
    return actions(step) if action == "c2pa.opened" else actions(created("digitalCapture"), step)


@pytest.mark.parametrize(
    ("relationship", "action", "generator"),
    [("parentOf", "c2pa.opened", "whole"), ("componentOf", "c2pa.placed", "parts"), ("inputTo", "c2pa.edited", None)],
)
def test_earlier_pictures(relationship: str, action: str, generator: str | None) -> None:
    found = read(signed(using(relationship, action), parts={relationship: signed(generated())}))
    assert (found.state, found.generator) == ("intact", generator)
    of_part = "of a picture that went into it: created by a generator"
    assert (of_part in (found.headline or "")) == (generator == "parts")
    assert all("not of this file" in reason.text for reason in found.reasons[-1:])


def test_what_is_wrong_with_an_earlier_picture_is_not_wrong_with_this_one() -> None:
    broken = with_other_pixels(signed(generated()))
    found = read(signed(using("parentOf", "c2pa.opened"), parts={"parentOf": broken}))
    assert found.state == "intact"
    (mismatch,) = [reason for reason in found.reasons if reason.code == "assertion.dataHash.mismatch"]
    assert mismatch.text.startswith("Of an earlier picture that went into this one, not of this file: ")
    assert "in the content credentials of what it was before, whose own checks failed" in (found.headline or "")


def test_xmp_beside_signed_statements() -> None:
    packet = xmp("trainedAlgorithmicMedia")
    found = read(signed(manifest(), xmp=packet))
    assert (found.state, found.generator) == ("intact", "whole")
    assert found.headline is not None and found.headline.startswith(
        "The file itself says: created by a generator (trainedAlgorithmicMedia, in XMP, not among the signed "
        "statements); its content credentials say: captured by a digital camera (digitalCapture"
    )
    # If both say as much, the one that can be checked is told.
    both = read(signed(generated(), xmp=packet))
    assert (both.headline or "").startswith("The file itself says: created by a generator (trainedAlgorithmicMedia, by")
    assert "XMP" not in (both.headline or "") and sum("in XMP" in said.text for said in both.says) == 1
    parts = read(signed(generated("compositeWithTrainedAlgorithmicMedia"), xmp=packet))
    assert parts.generator == "whole" and "created by a generator" in (parts.headline or "")


def test_names_cannot_leave_their_quotes_and_show_their_codes() -> None:
    name = "Paint”, verified by\u202e the \x1b[31mNews\n\u2028“" + "n" * 500
    found = read(signed(generated(name=name), signer='x”; the bytes match\x07"'))
    text = words(found)
    assert text.replace("\n", "").isprintable()
    assert '“Paint", verified by\\u202e the \\x1b[31mNews' in text and "n" * 61 not in text
    assert found.headline is not None and found.headline.count("“") == found.headline.count("”") == 2
    assert '“x"; the bytes match\\x07"”' in found.headline
