"""Walk the parts of a picture file before any pixel is decoded: segments, chunks, boxes, blocks.

The bytes may be damaged or hostile: a walk ends where the file breaks off, and never raises.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator
from typing import Literal, TypeAlias

__all__ = ["Format", "boxes", "gif_blocks", "jpeg_segments", "kind_of", "png_chunks", "riff_chunks", "sum_is_right"]

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
