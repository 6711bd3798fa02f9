"""Read the directories of TIFF files and EXIF blocks, and tell raw photos, which are TIFFs too.

The bytes may be damaged or hostile: what is not there reads as 0 or as nothing, and nothing raises.
"""

from __future__ import annotations

import struct
from typing import Literal, NamedTuple

from declip.images.containers import TIFF

__all__ = ["Directory", "Entry", "Tiff", "raw_photo"]

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

# The struct codes of the integer types.
_INTEGERS = {1: "B", 3: "H", 4: "I", 13: "I", 16: "Q", 18: "Q"}


class Entry(NamedTuple):
    """An entry of a directory. raw: its bytes as they lie there; value: what of them is its value, or its offset.

    code: the type, 3 = SHORT, 4 = LONG. number: of values.
    """

    code: int
    number: int
    raw: bytes
    value: bytes


class Directory(NamedTuple):
    """A directory (IFD): its entries by tag, the first of each that is there, and the offset of the next one."""

    entries: dict[int, Entry]
    next: int


class Tiff(NamedTuple):
    """The bytes of a TIFF and how it counts. order: "<" or ">"; big: BigTIFF."""

    data: bytes
    order: Literal["<", ">"]
    big: bool

    @classmethod
    def of(cls, data: bytes) -> Tiff | None:
        """Return the TIFF; None where the first bytes are those of something else."""
        return cls(data, "<" if data[:1] == b"I" else ">", b"+" in data[2:4]) if data[:4] in TIFF else None

    @property
    def word(self) -> str:
        """The struct code of an offset."""
        return self.order + ("Q" if self.big else "I")

    @property
    def short(self) -> str:
        """The struct code of the number of a directory's entries."""
        return self.order + ("Q" if self.big else "H")

    @property
    def pointer(self) -> int:
        """Where the offset of the first directory is written."""
        return 8 if self.big else 4

    def first(self) -> Directory:
        """Return the first directory."""
        return self.directory(_number(self.data, self.pointer, self.word))

    def directory(self, at: int) -> Directory:
        """Return the directory at an offset, as far as it is there."""
        entry_count = _number(self.data, at, self.short)
        at += struct.calcsize(self.short)
        size = 20 if self.big else 12
        entries: dict[int, Entry] = {}
        whole = max(0, min(entry_count, 65_535, (len(self.data) - at) // size))
        for start in range(at, at + whole * size, size):
            raw = self.data[start : start + size]
            tag, code = struct.unpack(self.order + "HH", raw[:4])
            entries.setdefault(tag, Entry(code, _number(raw, 4, self.word), raw, raw[12 if self.big else 8 :]))
        return Directory(entries, _number(self.data, at + entry_count * size, self.word))

    def starting_at(self, at: int, appended: bytes = b"") -> bytes:
        """Return the file with its first directory at another offset. appended: written behind its end."""
        start, word = self.pointer, struct.pack(self.word, at)
        return self.data[:start] + word + self.data[start + len(word) :] + appended

    def from_picture(self, number: int) -> bytes:
        """Return the file, beginning with another picture of its chain. number: of that picture, from 0."""
        at = _number(self.data, self.pointer, self.word)
        for _ in range(number):
            at = self.directory(at).next
        return self.starting_at(at)

    def integers(self, entry: Entry | None) -> tuple[int, ...]:
        """Return the values of an entry, at most 64; () where there is none, or where it holds no whole numbers."""
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


def raw_photo(data: bytes) -> str | None:
    """Return why this is a raw photo, or a TIFF that begins with a reduced picture: a sentence; None where it is not.

    In such a file a small preview lies first, which every TIFF reader takes for the photo.
    """
    tiff = Tiff.of(data)
    first = tiff.first().entries if tiff else {}
    size = _size(tiff, first)
    reduced = f"; what lies first in it is a reduced picture of {size[0]}×{size[1]} px" if size else ""
    for at, magic, name in _RAW:
        if data[at : at + len(magic)] == magic:
            return f"a raw photo ({name}){reduced}: develop it to TIFF or JPEG first"
    if tiff is None:
        return None
    parts = [tiff.directory(at).entries for at in tiff.integers(first.get(_SUB_PICTURES))]
    raw = _DNG in first or any(
        _SENSOR & set(tiff.integers(entries.get(_PHOTOMETRIC)))
        or _CAMERA_CODINGS & set(tiff.integers(entries.get(_COMPRESSION)))
        for entries in (first, *parts)
    )
    if raw or any(_area(tiff, part) > _area(tiff, first) for part in parts):
        return f"a raw photo (DNG, NEF, ARW or the like){reduced}: develop it to TIFF or JPEG first"
    if any(value & 1 for value in tiff.integers(first.get(_REDUCED))) or 2 in tiff.integers(first.get(_OLD_REDUCED)):
        return f"a TIFF{reduced}, as in raw photos: develop or save it as an ordinary TIFF or JPEG first"
    return None


def _size(tiff: Tiff | None, entries: dict[int, Entry]) -> tuple[int, int] | None:
    """Return the (height, width) of the picture that a directory describes; None where it does not say."""
    height, width = (tiff.integers(entries.get(tag)) if tiff else () for tag in (_HEIGHT, _WIDTH))
    return (height[0], width[0]) if height and width and height[0] and width[0] else None


def _area(tiff: Tiff, entries: dict[int, Entry]) -> int:
    height, width = _size(tiff, entries) or (0, 0)
    return height * width
