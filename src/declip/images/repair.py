"""Take out of a file what is damaged, or too long, beside its picture, so that it does not hide the picture."""

from __future__ import annotations

import re
import struct
import zlib
from typing import TypeAlias

from PIL import PngImagePlugin

from declip.images.containers import Format, Tiff, gif_blocks, jpeg_segments, png_chunks, riff_chunks, sum_is_right

__all__ = ["bare", "without_damaged_chunks"]

_Part: TypeAlias = tuple[int, int]  # (start, end) of bytes

# What a chunk holds at least, where Pillow takes the whole file for damaged if it holds less.
_LEAST = {b"pHYs": 9, b"gAMA": 4, b"cHRM": 32, b"sRGB": 1, b"acTL": 8, b"fcTL": 26, b"fdAT": 4, b"eXIf": 8, b"iCCP": 3}
_ANIMATION = (b"acTL", b"fcTL", b"fdAT")


def without_damaged_chunks(data: bytes) -> tuple[bytes, tuple[str, ...]]:
    """Return a PNG without side chunks that are damaged or too long for a reader, and what is to be said of them.

    Picture, palette and transparency stay as they are. Of an animation whose chunks are damaged, the first picture
    stays.
    """
    dropped: set[_Part] = set()
    too_long: list[bytes] = []
    damaged: list[bytes] = []
    text = 0
    for kind, start, end in png_chunks(data):
        if not _is_side(kind):
            continue
        length = _inflated_length(kind, memoryview(data)[start + 8 : end - 4])
        if not sum_is_right(data, start, end) or end - start - 12 < _LEAST.get(kind, 0) or length is None:
            damaged.append(kind)
        elif length > PngImagePlugin.MAX_TEXT_CHUNK or text + length > PngImagePlugin.MAX_TEXT_MEMORY:
            too_long.append(kind)
        else:
            text += length
            continue
        dropped.add((start, end))
    notes = []
    if too_long:
        notes.append(
            f"A text or profile in this PNG ({_names(too_long)}) is too long; it was not read and is not shown."
        )
    if damaged:
        notes.append(f"A side chunk of this PNG ({_names(damaged)}) is damaged; it was not read and is not shown.")
    if not set(damaged).isdisjoint(_ANIMATION):
        dropped |= {(start, end) for kind, start, end in png_chunks(data) if kind in _ANIMATION}
        notes.append("The animation in this PNG is damaged; only its first picture was read.")
    return _cut_out(data, sorted(dropped)) or data, tuple(notes)


def _inflated_length(kind: bytes, body: memoryview) -> int | None:
    """Return the bytes of the text or profile in a chunk, at most one more than Pillow reads; None if it is damaged."""
    if kind == b"tEXt":
        return len(body)
    if kind not in (b"zTXt", b"iTXt", b"iCCP"):
        return 0
    keyword, _, rest = bytes(body).partition(b"\0")
    if not 1 <= len(keyword) <= 79:
        return None
    if kind == b"iTXt":
        if len(rest) < 2 or rest[2:].count(b"\0") < 2:
            return None
        text = rest[2:].split(b"\0", 2)[2]
        if rest[0] == 0:
            return len(text)
        rest = rest[1:2] + text
    if rest[:1] != b"\0":
        return None  # an unknown way of compression
    try:
        return len(zlib.decompressobj().decompress(rest[1:], PngImagePlugin.MAX_TEXT_CHUNK + 1))
    except zlib.error:
        return None


def _names(kinds: list[bytes]) -> str:
    """Name each kind once, in letters only: a damaged file may hold anything."""
    return ", ".join(dict.fromkeys(kind.decode() if kind.isalpha() else "unknown" for kind in kinds))


def _is_side(kind: bytes) -> bool:
    """Return whether a PNG's picture does without this chunk: a capital letter marks what a decoder needs."""
    return not kind[:1].isupper() and kind != b"tRNS"


def _cut_out(data: bytes, parts: list[_Part]) -> bytes | None:
    """Return data without these parts, which are in their order; None where there are none."""
    if not parts:
        return None
    starts, ends = zip(*parts, strict=True)
    return b"".join(data[a:b] for a, b in zip((0, *ends), (*starts, len(data)), strict=True))


def bare(data: bytes, kind: Format) -> bytes | None:
    """Return the file without what does not belong to its picture; None where nothing can be taken out.

    It is for a second try when a decoder fails, perhaps over what is not the picture. Where the picture itself is
    damaged, the second try fails as the first did.
    """
    match kind:
        case "JPEG":
            return _cut_out(data, _jpeg_side(data))
        case "PNG":
            return _cut_out(data, [(start, end) for name, start, end in png_chunks(data) if _is_side(name)])
        case "TIFF":
            return _bare_tiff(data)
        case "WebP":
            return _bare_webp(data)
        case "GIF":
            return _cut_out(data, _gif_side(data))
        case "AVIF" | "HEIC":
            # Items of a kind that nobody knows are passed over; positions in the file must stay what they are.
            renamed = re.sub(rb"(infe.{8})(?:Exif|mime)", rb"\1none", data[:100_000], flags=re.DOTALL)
            return renamed + data[100_000:] if renamed != data[:100_000] else None
        case _:
            return None


def _jpeg_side(data: bytes) -> list[_Part]:
    """Find comments and application segments. Those of JFIF and Adobe, if whole, stay: they say how colours lie."""
    side: list[_Part] = []
    for marker, start, segment in jpeg_segments(data):
        if marker == 0xDA:
            break
        colours = (marker == 0xE0 and segment.startswith(b"JFIF\0") and len(segment) >= 14) or (
            marker == 0xEE and segment.startswith(b"Adobe") and len(segment) >= 12
        )
        if marker == 0xFE or (0xE0 <= marker <= 0xEF and not colours):
            side.append((start, start + 4 + len(segment)))
    return side


def _gif_side(data: bytes) -> list[_Part]:
    """Find the extensions before the first picture, but for the one that says what is transparent."""
    side: list[_Part] = []
    for kind, start, end in gif_blocks(data):
        if kind == 0x2C:
            return side
        if data[start + 1 : start + 3] != b"\xf9\x04":
            side.append((start, end))
    return []


# Tags without which the picture cannot be decoded, or would be another one.
_PICTURE_TAGS = frozenset(
    (
        *(*range(254, 260), 262, 266, 273, 274, *range(277, 280), 284, 292, 293, 317, *range(320, 326)),
        *(332, 338, 339, 347, *range(512, 522), *range(529, 533)),
    )
)


def _bare_tiff(data: bytes) -> bytes | None:
    """Set a first directory that holds only the tags of the picture behind the rest of the file."""
    tiff = Tiff.of(data)
    if tiff is None:
        return None
    entries, following = tiff.directory()
    kept = [entry.raw for tag, entry in sorted(entries.items()) if tag in _PICTURE_TAGS]
    if not kept or len(kept) == len(entries):
        return None
    padding = bytes(len(data) % 2)
    table = struct.pack(tiff.short, len(kept)) + b"".join(kept) + struct.pack(tiff.word, following)
    return tiff.starting_at(len(data) + len(padding), padding + table)


def _bare_webp(data: bytes) -> bytes | None:
    """Leave out profile, EXIF and XMP, and whatever follows a single picture."""
    kept, dropped = [], False
    for name, start, end in riff_chunks(data):
        chunk = data[start : end + end % 2]
        if name in (b"ICCP", b"EXIF", b"XMP "):
            dropped = True
        elif name == b"VP8X" and len(chunk) > 8:
            kept.append(chunk[:8] + bytes([chunk[8] & ~0b101100]) + chunk[9:])
        else:
            kept.append(chunk)
        if name in (b"VP8 ", b"VP8L"):
            dropped = dropped or end + end % 2 < len(data)
            break
    body = b"WEBP" + b"".join(kept)
    return b"RIFF" + struct.pack("<I", len(body)) + body if dropped else None
