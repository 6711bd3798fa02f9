"""Walk the parts of a picture file before any pixel is decoded: segments, chunks, boxes, blocks, directories.

The bytes may be damaged or hostile: a walk ends where the file breaks off, what is not there reads as 0 or as nothing,
and nothing raises.
"""

from __future__ import annotations

import math
import re
import struct
import zlib
from collections.abc import Iterator
from typing import Literal, NamedTuple, TypeAlias

__all__ = [
    "Entry",
    "Format",
    "Tiff",
    "boxes",
    "gif_blocks",
    "jpeg_segments",
    "kind_of",
    "png_chunks",
    "raw_photo",
    "riff_chunks",
    "sum_is_right",
]

Format: TypeAlias = Literal["JPEG", "PNG", "WebP", "TIFF", "BMP", "GIF", "AVIF", "HEIC"]

PNG = b"\x89PNG\r\n\x1a\n"
TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_MAGIC: tuple[tuple[Format, tuple[bytes, ...]], ...] = (
    ("JPEG", (b"\xff\xd8\xff",)),
    ("PNG", (PNG,)),
    ("TIFF", TIFF),
    ("GIF", (b"GIF87a", b"GIF89a")),
    ("BMP", (b"BM",)),
)
_AVIF_BRANDS = {b"avif", b"avis"}
_HEIC_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"heif", b"mif1", b"msf1"}

# Inside a JPEG scan: the next marker that is neither a stuffed byte nor a restart.
_MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")


def kind_of(data: bytes) -> Format | None:
    """Return what the file is, by its first bytes; None for anything that declip does not read."""
    for kind, starts in _MAGIC:
        if data.startswith(starts):
            return kind
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WebP"
    if data[4:8] == b"ftyp":
        brands = {data[i : i + 4] for i in range(8, min(64, len(data), int.from_bytes(data[:4], "big")), 4)}
        return "AVIF" if brands & _AVIF_BRANDS else "HEIC" if brands & _HEIC_BRANDS else None
    return None


def jpeg_segments(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Yield (marker, its position, its segment) of a JPEG, up to the end marker."""
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
    """Yield (kind, start, end) of each whole chunk of a PNG, up to its end chunk.

    Its length lies at start, its content at start + 8, its check sum at end - 4.
    """
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
    """Return whether the check sum of the PNG chunk at (start, end) is that of its bytes."""
    return zlib.crc32(memoryview(data)[start + 4 : end - 4]) == int.from_bytes(data[end - 4 : end], "big")


def riff_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield (kind, start, end) of each chunk of a WebP; its content lies at start + 8, the last one may break off."""
    at = 12
    while at + 8 <= len(data):
        end = min(len(data), at + 8 + int.from_bytes(data[at + 4 : at + 8], "little"))
        yield data[at : at + 4], at, end
        at = end + end % 2


def boxes(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield (type, start, end) of the content of each outermost box of an AVIF or HEIC; the last one may break off."""
    at = 0
    while at + 8 <= len(data):
        size, head = int.from_bytes(data[at : at + 4], "big"), 8
        if size == 1:
            size, head = int.from_bytes(data[at + 8 : at + 16], "big"), 16
        end = at + size if size else len(data)
        if end < at + head:
            return
        yield data[at + 4 : at + 8], at + head, min(end, len(data))
        at = end


def gif_blocks(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield (kind, start, end) of the extensions (0x21) and pictures (0x2C) of a GIF; as Pillow, pass over the rest."""
    at = 13 + _palette(data[10]) if len(data) >= 13 else len(data)
    while at < len(data) and (kind := data[at]) != 0x3B:
        start = at
        if kind == 0x2C and at + 10 < len(data):
            at += 11 + _palette(data[at + 9])
        elif kind == 0x21:
            at += 2
        else:
            at += 1
            continue
        while at < len(data) and data[at]:
            at += 1 + data[at]
        at += 1
        yield kind, start, at


def _palette(flags: int) -> int:
    """Return the bytes of a GIF's palette."""
    return 3 << ((flags & 7) + 1) if flags & 0x80 else 0


# --- TIFF -----------------------------------------------------------------------------------------------------------

# The struct codes of the integer types.
_INTEGERS = {1: "B", 3: "H", 4: "I", 13: "I", 16: "Q", 18: "Q"}


class Entry(NamedTuple):
    """An entry of a directory: its type (3 = SHORT), how many values it has, its bytes, and its value or offset."""

    code: int
    number: int
    raw: bytes
    value: bytes


class Tiff(NamedTuple):
    """The bytes of a TIFF or an EXIF block.

    order: "<" or ">". big: BigTIFF. word, short: the struct codes of an offset and of the number of entries.
    """

    data: bytes
    order: Literal["<", ">"]
    big: bool
    word: str
    short: str

    @classmethod
    def of(cls, data: bytes) -> Tiff | None:
        """Return the TIFF; None where the first bytes are those of something else."""
        if data[:4] not in TIFF:
            return None
        order: Literal["<", ">"] = "<" if data[:1] == b"I" else ">"
        big = b"+" in data[2:4]
        return cls(data, order, big, order + ("Q" if big else "I"), order + ("Q" if big else "H"))

    def directory(self, at: int | None = None) -> tuple[dict[int, Entry], int]:
        """Return the first entry of each tag in the directory (IFD) at an offset, and the offset of the next directory.

        at: None = the first directory.
        """
        at = self._start() if at is None else at
        entry_count = _number(self.data, at, self.short)
        at += struct.calcsize(self.short)
        size = 20 if self.big else 12
        entries: dict[int, Entry] = {}
        whole = max(0, min(entry_count, 65_535, (len(self.data) - at) // size))
        for start in range(at, at + whole * size, size):
            raw = self.data[start : start + size]
            tag, code = struct.unpack(self.order + "HH", raw[:4])
            entries.setdefault(tag, Entry(code, _number(raw, 4, self.word), raw, raw[12 if self.big else 8 :]))
        return entries, _number(self.data, at + entry_count * size, self.word)

    def _start(self) -> int:
        return _number(self.data, 8 if self.big else 4, self.word)

    def starting_at(self, at: int, appended: bytes = b"") -> bytes:
        """Return the file with its first directory at another offset. appended: written behind its end."""
        start, word = 8 if self.big else 4, struct.pack(self.word, at)
        return self.data[:start] + word + self.data[start + len(word) :] + appended

    def from_picture(self, number: int) -> bytes:
        """Return the file, beginning with another picture of its chain. number: of that picture, from 0."""
        at = self._start()
        for _ in range(number):
            _, at = self.directory(at)
        return self.starting_at(at)

    def integers(self, tag: int, entries: dict[int, Entry]) -> tuple[int, ...]:
        """Return the values of an entry, at most 64; () where there is none, or where it holds no whole numbers."""
        entry = entries.get(tag)
        if entry is None or entry.code not in _INTEGERS:
            return ()
        code = _INTEGERS[entry.code]
        size = struct.calcsize(code)
        count = min(entry.number, 64)
        body = entry.value
        if entry.number * size > len(body):
            start = _number(body, 0, self.word)
            body = self.data[start : start + count * size]
        count = min(count, len(body) // size)
        return struct.unpack(f"{self.order}{count}{code}", body[: count * size])


def _number(data: bytes, at: int, form: str) -> int:
    end = at + struct.calcsize(form)
    return int(struct.unpack(form, data[at:end])[0]) if at >= 0 and end <= len(data) else 0


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
_SENSOR = {32803, 34892}
_CAMERA_CODINGS = {32767, 32769, 32770, 34713, 65000, 65535}
_WIDTH, _HEIGHT, _COMPRESSION, _PHOTOMETRIC, _SUB_PICTURES = 256, 257, 259, 262, 330
_REDUCED, _OLD_REDUCED, _DNG = 254, 255, 50706


def raw_photo(data: bytes) -> str | None:
    """Return why this is a raw photo, or a TIFF that begins with a reduced picture: a sentence; None where it is not.

    In such a file a small preview lies first, which every TIFF reader takes for the photo.
    """
    tiff = Tiff.of(data)
    first = tiff.directory()[0] if tiff else {}
    height, width = _size(tiff, first) if tiff else (0, 0)
    reduced = f"; what lies first in it is a reduced picture of {height}×{width} px" if height and width else ""
    for at, magic, name in _RAW:
        if data[at : at + len(magic)] == magic:
            return f"a raw photo ({name}){reduced}: develop it to TIFF or JPEG first"
    if tiff is None:
        return None
    parts = [tiff.directory(at)[0] for at in tiff.integers(_SUB_PICTURES, first)]
    raw = _DNG in first or any(
        _SENSOR & set(tiff.integers(_PHOTOMETRIC, entries))
        or _CAMERA_CODINGS & set(tiff.integers(_COMPRESSION, entries))
        for entries in (first, *parts)
    )
    if raw or any(math.prod(_size(tiff, part)) > height * width for part in parts):
        return f"a raw photo (DNG, NEF, ARW or the like){reduced}: develop it to TIFF or JPEG first"
    if any(value & 1 for value in tiff.integers(_REDUCED, first)) or 2 in tiff.integers(_OLD_REDUCED, first):
        return f"a TIFF{reduced}, as in raw photos: develop or save it as an ordinary TIFF or JPEG first"
    return None


def _size(tiff: Tiff, entries: dict[int, Entry]) -> tuple[int, int]:
    """Return the (height, width) of the picture that a directory describes; 0 where it does not say."""
    height, width = ((*tiff.integers(tag, entries), 0)[0] for tag in (_HEIGHT, _WIDTH))
    return height, width
