"""Find the blocks of a file that say how it was made, and the statements in them that nobody signed."""

from __future__ import annotations

import html
import itertools
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field

from declip.files import visible
from declip.images.containers import Tiff, boxes, jpeg_segments, kind_of, png_chunks, riff_chunks
from declip.provenance.result import LONGEST, Statement, words

__all__ = ["OTHER_SOURCE", "Marks", "find_marks", "last_part", "unsigned_statements"]

OTHER_SOURCE = (None, "of a source that is not on IPTC's list")

_MOST = 60  # statements that are read from XMP
_XMP_BYTES = 1 << 20
_TEXT_BYTES = 1 << 16  # of a text chunk, unpacked
_C2PA_BOX = bytes.fromhex("d8fec3d61b0e483c92975828877ec481")
_XMP_HEADER = b"http://ns.adobe.com/xap/1.0/\0"
_TIFF_XMP, _TIFF_C2PA = 700, 52545

# As an attribute or an element, with any prefix: <a:DigitalSourceType>…</…>, rdf:resource="…", …="…".
_SOURCE = re.compile(
    r":DigitalSourceType(?:\s{1,20}rdf:resource)?\s{0,20}(?:=\s{0,20}[\"']|>)\s{0,200}([^\"'<>]{1,400})"
)
_ADDRESS = re.compile(r"dcterms:provenance\s{0,20}(?:=\s{0,20}[\"']|>)\s{0,20}https?://")


@dataclass(kw_only=True, slots=True)
class Marks:
    """What was found in the blocks of a file.

    mime: of the file, for the reader of manifests. manifest: the file holds content credentials. xmp: at most 1 MB.
    exif: the block as it is in the file. texts: PNG's text chunks that generators write, by their keys.
    """

    mime: str = ""
    manifest: bool = False
    xmp: str = ""
    exif: bytes = field(default=b"", repr=False)
    texts: dict[str, str] = field(default_factory=dict)

    @property
    def address(self) -> bool:
        """Whether XMP names an address of the manifest, in the form of the C2PA standard."""
        return _ADDRESS.search(self.xmp) is not None


def find_marks(data: bytes) -> Marks:
    """Find the blocks that say how the file was made. A damaged file gives what can be found, and no error."""
    kind = kind_of(data)
    found = Marks(mime=f"image/{kind.lower()}" if kind else "")
    match kind:
        case "JPEG":
            _read_jpeg(data, found)
        case "PNG":
            _read_png(data, found)
        case "WebP":
            parts = {kind: data[start + 8 : end] for kind, start, end in riff_chunks(data)}
            found.manifest = b"C2PA" in parts
            found.xmp, found.exif = _text(parts.get(b"XMP ", b"")), parts.get(b"EXIF", b"")
        case "TIFF":
            _read_tiff(data, found)
        case "AVIF" | "HEIC":
            found.manifest = any(data.startswith(_C2PA_BOX, at) for name, at, _ in boxes(data) if name == b"uuid")
            found.xmp = _packet(data)
        case "GIF":
            found.manifest = b"C2PA_GIF" in data
            found.xmp = _packet(data)
    return found


def _read_jpeg(data: bytes, found: Marks) -> None:
    """Read the segments before the first scan; these blocks all come before it."""
    for marker, _, segment in jpeg_segments(data):
        if marker == 0xDA:
            return
        if marker == 0xE1 and segment.startswith(_XMP_HEADER) and len(found.xmp) < _XMP_BYTES:
            found.xmp += _text(segment[len(_XMP_HEADER) :])
        elif marker == 0xE1 and segment.startswith(b"Exif\0") and not found.exif:
            found.exif = segment
        elif marker == 0xEB and segment.startswith(b"JP") and b"c2pa" in segment:
            found.manifest = True


def _read_png(data: bytes, found: Marks) -> None:
    for kind, start, end in png_chunks(data):
        match kind:
            case b"caBX":
                found.manifest = True
            case b"eXIf":
                found.exif = data[start + 8 : end - 4]
            case b"tEXt" | b"zTXt" | b"iTXt":
                key, text = _png_text(kind, data[start + 8 : min(end - 4, start + 8 + _XMP_BYTES)])
                if key == "XML:com.adobe.xmp":
                    found.xmp = found.xmp or text
                elif key in words().texts:
                    found.texts.setdefault(key, text)


def _png_text(kind: bytes, chunk: bytes) -> tuple[str, str]:
    """Return the key and the text, as far as it is needed; the text is "" if it cannot be unpacked."""
    key, _, rest = chunk.partition(b"\0")
    packed = kind == b"zTXt"
    if packed:
        rest = rest[1:]
    elif kind == b"iTXt":
        packed = rest[:1] == b"\1"
        rest = rest[2:].partition(b"\0")[2].partition(b"\0")[2]
    if packed:
        try:
            rest = zlib.decompressobj().decompress(rest, _XMP_BYTES if key.startswith(b"XML:") else _TEXT_BYTES)
        except zlib.error:
            rest = b""
    return key.decode("latin-1"), rest.decode("utf-8", "replace")


def _read_tiff(data: bytes, found: Marks) -> None:
    tiff = Tiff.of(data)
    assert tiff is not None
    entries, _ = tiff.directory()
    found.manifest = _TIFF_C2PA in entries
    if (xmp := entries.get(_TIFF_XMP)) is not None:
        start = int.from_bytes(xmp.value, "little" if tiff.order == "<" else "big")
        found.xmp = _text(data[start : start + xmp.number])


def _packet(data: bytes) -> str:
    """Return the XMP, wherever it is in the file; "" if there is none."""
    at = data.find(b"<x:xmpmeta")
    return _text(data[at : at + _XMP_BYTES]) if at >= 0 else ""


def _text(packet: bytes) -> str:
    return packet[:_XMP_BYTES].decode("utf-8", "replace")


def unsigned_statements(marks: Marks) -> Iterator[Statement]:
    """Yield what XMP, PNG's texts and EXIF say about how the picture was made."""
    for match in itertools.islice(_SOURCE.finditer(marks.xmp), _MOST):
        source = last_part(html.unescape(match[1]))
        kind, text = words().sources.get(source, OTHER_SOURCE)
        yield Statement(visible(source[:LONGEST]), text, "", kind, "in XMP")
    texts = words().texts
    for key, (needed, by) in texts.items():
        text = marks.texts.get(key, "")
        if text and all(word in text for word in needed):
            yield _text_statement(key, by, "in a PNG text")
    # EXIF's comment is in one of three encodings; ComfyUI writes into other tags, in ASCII.
    needed, by = texts["parameters"]
    if any(all(word.encode(c) in marks.exif for word in needed) for c in ("latin-1", "utf-16-le", "utf-16-be")):
        yield _text_statement("parameters", by, "in EXIF")
    for key in ("prompt", "workflow"):
        needed, by = texts[key]
        if all(word.encode() in marks.exif for word in (f"{key}:", *needed)):
            yield _text_statement(key, by, "in EXIF")


def _text_statement(key: str, by: str, where: str) -> Statement:
    return Statement(key, f"a text as of {by}", "", "text", where)


def last_part(source: object) -> str:
    """Return the last part of the address of a digital source type."""
    return str(source or "").strip().rstrip("/").rpartition("/")[2]
