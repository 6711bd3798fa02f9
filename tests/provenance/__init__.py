"""What the tests of provenance share."""

from __future__ import annotations

import re
from typing import Any

from PIL import Image

from declip import provenance
from declip.images.read import read_photo
from declip.provenance import Provenance
from tests.images.pictures import encode
from tests.signing import SOURCES

ACCUSING = re.compile("changed after|was changed|tampered|forged|fake|is wrong|not the ones|do not fit", re.IGNORECASE)


def read(data: bytes, **options: Any) -> Provenance:
    return provenance.read(read_photo(data), **options)


def saved(kind: str = "JPEG", **options: Any) -> bytes:
    return encode(Image.new("RGB", (24, 16), (90, 120, 150)), kind, **options)


def words(found: Provenance) -> str:
    """Return all sentences."""
    return "\n".join([found.meaning, found.headline or "", *(r.text for r in (*found.reasons, *found.says))])


def codes(found: Provenance) -> set[str]:
    return {reason.code for reason in found.reasons}


def xmp(source: str, form: str = "attribute") -> bytes:
    """Return a packet that names a digital source type, in one of the forms that programs write."""
    address = f"{SOURCES}/{source}"
    inner = {
        "attribute": f'<rdf:Description Iptc4xmpExt:DigitalSourceType="{address}"/>',
        "element": f"<Iptc4xmpExt:DigitalSourceType>\n {address}\n</Iptc4xmpExt:DigitalSourceType>",
        "resource": f"<Iptc4xmpExt:DigitalSourceType rdf:resource='{address}'/>",
        "prefix": f'<rdf:Description ext:DigitalSourceType = "{address}"/>',
        "entities": f'<rdf:Description Iptc4xmpExt:DigitalSourceType="{address.replace("/", "&#x2F;")}"/>',
    }[form]
    return f"<x:xmpmeta><rdf:RDF>{inner}</rdf:RDF></x:xmpmeta>".encode()
