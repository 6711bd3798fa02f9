"""What a picture's container says before any pixel is decoded: its parts, how it is turned, whether it is a raw photo.

Everything here walks bytes that may be damaged or hostile: a walk ends where the file breaks off, and never raises.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator
from typing import Literal, NamedTuple, TypeAlias

__all__ = [
    "Format",
    "exif_orientation",
    "jpeg_orientation",
    "jpeg_segments",
    "kind_of",
    "png_chunks",
    "png_orientation",
    "raw_photo",
    "significant_bits",
    "tiff_directory",
]

Format: TypeAlias = Literal["JPEG", "PNG", "WebP", "TIFF", "BMP", "GIF", "AVIF", "HEIC"]

PNG = b"\x89PNG\r\n\x1a\n"
TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")

# Raw photos that say so by their first bytes: (position, bytes, what it is).
_RAW = (
    (8, b"CR\x02", "Canon CR2"),
    (0, b"IIRO", "Olympus ORF"),
    (0, b"IIRS", "Olympus ORF"),
    (0, b"MMOR", "Olympus ORF"),
    (0, b"IIU\0", "Panasonic RW2"),
    (4, b"ftypcrx ", "Canon CR3"),
    (0, b"FUJIFILMCCD-RAW", "Fujifilm RAF"),
    (6, b"HEAPCCDR", "Canon CRW"),
    (0, b"FOVb", "Sigma X3F"),
    (0, b"\0MRM", "Minolta MRW"),
)
# What only raw photos hold: (photometric interpretation) mosaic and linear sensor data, (compression) Nikon's, Sony's,
# Pentax', Kodak's, Samsung's own.
_SENSOR = (32803, 34892)
_CAMERA_CODINGS = (32767, 32769, 32770, 34713, 65000, 65535)


def kind_of(data: bytes) -> Format | None:
    """What the file is, by its first bytes; None where it is nothing that declip reads."""
    head = data[:64]
    match head:
        case _ if head.startswith(b"\xff\xd8\xff"):
            return "JPEG"
        case _ if head.startswith(PNG):
            return "PNG"
        case _ if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
            return "WebP"
        case _ if head[:4] in TIFF:
            return "TIFF"
        case _ if head.startswith((b"GIF87a", b"GIF89a")):
            return "GIF"
        case _ if head.startswith(b"BM"):
            return "BMP"
        case _ if head[4:8] == b"ftyp":
            brands = {head[i : i + 4] for i in range(8, min(len(head), int.from_bytes(head[:4], "big")), 4)}
            if brands & {b"avif", b"avis"}:
                return "AVIF"
            if brands & {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"heif", b"mif1", b"msf1"}:
                return "HEIC"
    return None


# ── JPEG and PNG ────────────────────────────────────────────────────────────────────────────────────────────────────

# Inside a JPEG scan: the next marker that is neither a stuffed byte nor a restart.
_MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")


def jpeg_segments(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Walk a JPEG: (marker, its position, its segment) up to the end marker or to where the file breaks off."""
    at = 2
    while True:
        at = data.find(b"\xff", at)
        while at >= 0 and data[at + 1 : at + 2] == b"\xff":  # fill bytes
            at += 1
        if at < 0 or at + 1 >= len(data):
            return
        marker, start = data[at + 1], at
        at += 2
        if marker in (0x00, 0x01) or 0xD0 <= marker <= 0xD8:
            continue
        if marker == 0xD9:
            yield marker, start, b""
            return
        length = int.from_bytes(data[at : at + 2], "big")
        segment = data[at + 2 : at + length]
        at += length
        if length < 2 or at > len(data):
            return
        yield marker, start, segment
        if marker == 0xDA:
            found = _MARKER.search(data, at)
            if found is None:
                return
            at = found.start()


def png_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Walk a PNG: (kind, start, end) of each whole chunk, its length and check sum included, up to its end chunk."""
    at = 8
    while at + 12 <= len(data):
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        if end > len(data):
            return
        kind = data[at + 4 : at + 8]
        yield kind, at, end
        if kind == b"IEND":
            return
        at = end


def sum_is_right(data: bytes, start: int, end: int) -> bool:
    """Whether the check sum of the PNG chunk at (start, end) is that of its bytes."""
    return zlib.crc32(memoryview(data)[start + 4 : end - 4]) == int.from_bytes(data[end - 4 : end], "big")


# ── TIFF directories ────────────────────────────────────────────────────────────────────────────────────────────────


class Entry(NamedTuple):
    """An entry of a TIFF directory. raw: its bytes as they lie there; value: what of them is its value, or its offset.

    code: the type, 3 = SHORT, 4 = LONG. number: of values.
    """

    code: int
    number: int
    raw: bytes
    value: bytes


class Directory(NamedTuple):
    """A TIFF directory (IFD): its entries by tag, the first of each that is there, and the offset of the next one."""

    entries: dict[int, Entry]
    next: int


class Layout(NamedTuple):
    """How a TIFF counts. order: "<" or ">"; big: BigTIFF. word, short: struct's codes of an offset and of a count."""

    order: Literal["<", ">"]
    big: bool
    word: str
    short: str


# Of the integer types: their struct codes.
_INTEGERS = {1: "B", 3: "H", 4: "I", 13: "I", 16: "Q", 18: "Q"}


def tiff_layout(data: bytes) -> Layout | None:
    """How the TIFF counts; None where its first bytes are none of a TIFF's."""
    if data[:4] not in TIFF:
        return None
    order: Literal["<", ">"] = "<" if data[:1] == b"I" else ">"
    big = b"+" in data[2:4]
    return Layout(order, big, order + ("Q" if big else "I"), order + ("Q" if big else "H"))


def first_offset(data: bytes, layout: Layout) -> int:
    """Where a TIFF's first directory lies; 0 where the file breaks off before it says so."""
    return _number(data, 8 if layout.big else 4, layout.word)


def tiff_directory(data: bytes, at: int, layout: Layout) -> Directory:
    """The directory at an offset, as far as it is there."""
    entry_count = _number(data, at, layout.short)
    at += struct.calcsize(layout.short)
    size = 20 if layout.big else 12
    entries: dict[int, Entry] = {}
    whole = max(0, min(entry_count, 65_535, (len(data) - at) // size))
    for i in range(whole):
        raw = data[at + i * size : at + (i + 1) * size]
        tag, code = struct.unpack(layout.order + "HH", raw[:4])
        entries.setdefault(tag, Entry(code, _number(raw, 4, layout.word), raw, raw[12 if layout.big else 8 :]))
    return Directory(entries, _number(data, at + entry_count * size, layout.word))


def tiff_from(data: bytes, number: int) -> bytes:
    """The same TIFF, beginning with another picture of its chain. number: of that picture, from 0."""
    layout = tiff_layout(data)
    assert layout is not None
    at = first_offset(data, layout)
    for _ in range(number):
        at = tiff_directory(data, at, layout).next
    start = 8 if layout.big else 4
    word = struct.pack(layout.word, at)
    return data[:start] + word + data[start + len(word) :]


def integers(data: bytes, entry: Entry | None, layout: Layout) -> tuple[int, ...]:
    """The values of an entry, at most 64 of them; () where there is none, or where it holds no whole numbers."""
    if entry is None or entry.code not in _INTEGERS:
        return ()
    code = _INTEGERS[entry.code]
    size = struct.calcsize(code)
    count = min(entry.number, 64)
    body = entry.value
    if entry.number * size > len(body):
        start = _number(body, 0, layout.word)
        body = data[start : start + count * size]
    count = min(count, len(body) // size)
    return struct.unpack(f"{layout.order}{count}{code}", body[: count * size])


def _number(data: bytes, at: int, form: str) -> int:
    end = at + struct.calcsize(form)
    return int(struct.unpack(form, data[at:end])[0]) if at >= 0 and end <= len(data) else 0


# ── orientation ─────────────────────────────────────────────────────────────────────────────────────────────────────


def exif_orientation(block: bytes) -> int:
    """The orientation in an EXIF block, 1-8, as browsers take it; 1 where it names none.

    block: a TIFF, without the words "Exif" in front. The first entry of that tag in the first directory counts, if it
    is one SHORT from 1 to 8; a block that breaks off later does no harm.
    """
    layout = tiff_layout(block)
    if layout is None or layout.big:
        return 1
    entry = tiff_directory(block, first_offset(block, layout), layout).entries.get(0x112)
    if entry is None or entry.code != 3 or entry.number != 1:
        return 1
    (value,) = integers(block, entry, layout)
    return value if 1 <= value <= 8 else 1


def jpeg_orientation(data: bytes) -> int:
    """The orientation of a JPEG, 1-8: of its first EXIF segment."""
    for marker, _, segment in jpeg_segments(data):
        if marker == 0xE1 and segment.startswith(b"Exif\0"):
            return exif_orientation(segment[6:])
        if marker == 0xDA:
            break
    return 1


def png_orientation(data: bytes) -> int:
    """The orientation of a PNG, 1-8: of its first whole eXIf chunk, if that comes before the picture."""
    for kind, start, end in png_chunks(data):
        if kind == b"eXIf" and sum_is_right(data, start, end):
            return exif_orientation(data[start + 8 : end - 4])
        if kind == b"IDAT":
            break
    return 1


# ── raw photos ──────────────────────────────────────────────────────────────────────────────────────────────────────


def raw_photo(data: bytes) -> str | None:
    """Why this is a raw photo, or a TIFF that begins with a reduced picture: a sentence; None where it is neither.

    In such a file a small preview lies first, which every TIFF reader takes for the photo.
    """
    for at, magic, name in _RAW:
        if data[at : at + len(magic)] == magic:
            return f"a raw photo ({name}){_reduced(data)}: develop it to TIFF or JPEG first"
    layout = tiff_layout(data)
    if layout is None:
        return None
    first = tiff_directory(data, first_offset(data, layout), layout).entries

    def of(entries: dict[int, Entry], tag: int) -> tuple[int, ...]:
        return integers(data, entries.get(tag), layout)

    parts = [tiff_directory(data, at, layout).entries for at in of(first, 330)]
    raw = 50706 in first or any(
        set(of(entries, 262)) & set(_SENSOR) or set(of(entries, 259)) & set(_CAMERA_CODINGS)
        for entries in (first, *parts)
    )
    if raw or any(_area(data, part, layout) > _area(data, first, layout) for part in parts):
        return f"a raw photo (DNG, NEF, ARW or the like){_reduced(data)}: develop it to TIFF or JPEG first"
    if any(value & 1 for value in of(first, 254)) or 2 in of(first, 255):
        return f"a TIFF{_reduced(data)}, as in raw photos: develop or save it as an ordinary TIFF or JPEG first"
    return None


def _area(data: bytes, entries: dict[int, Entry], layout: Layout) -> int:
    """Pixels of the picture that a directory describes; 0 where it does not say."""
    width, height = (integers(data, entries.get(tag), layout) for tag in (256, 257))
    return width[0] * height[0] if width and height else 0


def _reduced(data: bytes) -> str:
    layout = tiff_layout(data)
    if layout is None:
        return ""
    entries = tiff_directory(data, first_offset(data, layout), layout).entries
    width, height = (integers(data, entries.get(tag), layout) for tag in (256, 257))
    if not width or not height:
        return ""
    return f"; what lies first in it is a reduced picture of {height[0]}×{width[0]} px"


# ── depth ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def significant_bits(data: bytes, kind: Format) -> int:
    """How many bits, 9 to 15, a 16-bit PNG or TIFF says that its values have; 16 where it says nothing of the kind.

    PNG: its sBIT chunk, if all channels have the same. TIFF: MaxSampleValue or SMaxSampleValue, where it is a power of
    two less one.
    """
    values: tuple[int, ...] = ()
    if kind == "PNG":
        for name, start, end in png_chunks(data):
            if name == b"sBIT" and sum_is_right(data, start, end):
                values = tuple(1 << bits for bits in data[start + 8 : end - 4] if bits <= 16)
            if name == b"IDAT":
                break
    elif kind == "TIFF" and (layout := tiff_layout(data)) is not None:
        entries = tiff_directory(data, first_offset(data, layout), layout).entries
        for tag in (281, 341):
            values = values or tuple(value + 1 for value in integers(data, entries.get(tag), layout))
    known = set(values) & {1 << bits for bits in range(9, 16)}
    return known.pop().bit_length() - 1 if len(set(values)) == 1 and known else 16
