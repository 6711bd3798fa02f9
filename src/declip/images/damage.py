"""Damaged files: what is missing of a picture where its decoder would not say so, and what may be missing.

A picture of which a part did not come is refused; there `fault` has the words. Damage in what is no part of the picture
(text, EXIF, profiles, comments) must not hide the picture: `without_damaged_chunks` and `bare` take it out.
"""

from __future__ import annotations

import io
import re
import struct
import zlib
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, JpegImagePlugin, PngImagePlugin

from declip.images.containers import (
    Format,
    first_offset,
    jpeg_segments,
    png_chunks,
    sum_is_right,
    tiff_directory,
    tiff_layout,
)

__all__ = ["bare", "closed", "fault", "jpeg_tail_fault", "tiff_fault", "without_damaged_chunks"]


def fault(data: bytes, kind: Format) -> str | None:
    """What is missing from a file or damaged in it, where Pillow would not say so; None if nothing is."""
    match kind:
        case "JPEG":
            return _jpeg_fault(data)
        case "PNG":
            return _png_fault(data)
        case "WebP" | "AVIF" | "HEIC":
            return _zeros_fault(data, kind)
        case _:
            return None


# ── JPEG ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _is_frame(marker: int) -> bool:
    return 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)


def _is_progressive(marker: int) -> bool:
    return marker in (0xC2, 0xC6, 0xCA, 0xCE)


def _jpeg_fault(data: bytes) -> str | None:
    """libjpeg shows whatever has arrived: a coarse picture when the later scans of a progressive file are gone, noise
    when the rest of a file is zeros. So an end marker must be reached (`closed` sets one where the file has none), and
    before it every component must have come; in a progressive file every coefficient, down to its last bit.
    """
    missing_bits: dict[int, NDArray[np.int64]] = {}
    progressive = ended = False
    scans = 0
    for marker, _, segment in jpeg_segments(data):
        if _is_frame(marker) and not missing_bits:
            progressive = _is_progressive(marker)
            missing_bits = {component: np.full(64, 16) for component in segment[6::3]}
        elif marker == 0xDA and segment and len(segment) == 4 + 2 * segment[0]:
            scans += 1
            first, last, bits = segment[-3], segment[-2], segment[-1] & 15
            for component in segment[1:-3:2]:
                if not progressive:
                    missing_bits.pop(component, None)
                elif component in missing_bits:
                    missing_bits[component][first : last + 1] = bits
        elif marker == 0xD9:
            ended = True
    if not ended:
        return "it breaks off before its end marker"
    if any(bits.any() for bits in missing_bits.values()):
        return f"only the first {scans} of its scans are there"
    return None


def closed(data: bytes) -> bytes | None:
    """A JPEG that ends inside its last scan, with an end marker set there; None for any other.

    Whether the scan was whole, `jpeg_tail_fault` finds. Long runs of zeros, which an interrupted download leaves for
    the rest of a file, are no part of a scan, also where its last byte may have been a zero: that cannot be told from
    a byte that is missing.
    """
    last = None
    for marker, start, segment in jpeg_segments(data):
        last = (marker, start + 4 + len(segment))
    if last is None or last[0] != 0xDA:
        return None
    end = len(data)
    zeros = end - len(data.rstrip(b"\0"))
    if zeros >= 16:
        end -= zeros
        if data[end - 1 : end] == b"\xff":  # a stuffed zero belongs to it
            end += 1
    while end > last[1] and data[end - 1] == 0xFF:  # half of a marker
        end -= 1
    return data[:end] + b"\xff\xd9"


def jpeg_tail_fault(data: bytes, image: Image.Image, *, thorough: bool) -> str | None:
    """Whether the last scan broke off before an end marker, which libjpeg fills up with mid-grey or coarse rows.

    Bytes put in front of that marker change the picture only if the decoder still wanted some. This second decoding is
    spared for a sequential file whose last pixel is not mid-grey, unless thorough, which also tries other bytes: a few
    missing bits may happen to be those of one filling.
    """
    segments = list(jpeg_segments(data))
    one_scan = sum(marker == 0xDA for marker, _, _ in segments) == 1
    corner = image.getpixel((image.width - 1, image.height - 1))
    values = corner if isinstance(corner, tuple) else (corner,)
    if not thorough and one_scan and not all(abs((v or 0) - 128) <= 2 for v in values):
        return None
    end = segments[-1][1]
    fillings = (bytes(range(1, 255)), bytes(range(254, 0, -1)))
    for filling in fillings if thorough else fillings[:1]:
        longer = JpegImagePlugin.JpegImageFile(io.BytesIO(data[:end] + filling + data[end:]))
        longer.load()
        if ImageChops.difference(image, longer).getbbox() is not None:
            return "its picture data end too early"
    return None


# ── PNG ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _png_fault(data: bytes) -> str | None:
    """Walk a PNG's chunks: Pillow neither checks the sums of the picture data nor asks for the end chunk."""
    at, last = 8, b""
    for kind, start, end in png_chunks(data):
        # A capital first letter marks what a decoder needs; a damaged comment harms nobody.
        if kind[:1].isupper() and not sum_is_right(data, start, end):
            return f"the check sum of its {kind.decode('latin-1')} chunk is wrong"
        at, last = end, kind
    if last == b"IEND":
        return None
    if at + 8 <= len(data):
        return f"it ends inside its {data[at + 4 : at + 8].decode('latin-1')} chunk"
    return "it ends without an end chunk"


# What a chunk holds at least, where Pillow takes the whole file for damaged if it holds less.
_LEAST = {b"pHYs": 9, b"gAMA": 4, b"cHRM": 32, b"sRGB": 1, b"acTL": 8, b"fcTL": 26, b"fdAT": 4, b"eXIf": 8, b"iCCP": 3}
_ANIMATION = (b"acTL", b"fcTL", b"fdAT")


def without_damaged_chunks(data: bytes) -> tuple[bytes, tuple[str, ...]]:
    """A PNG without side chunks that are damaged or too long for a reader, and what is to be said of them.

    Picture, palette and transparency stay as they are. Of an animation whose chunks are damaged, the first picture
    stays.
    """
    dropped: list[tuple[int, int]] = []
    too_long: list[str] = []
    damaged: list[str] = []
    text = 0
    animation = False
    for kind, start, end in png_chunks(data):
        if kind[:1].isupper() or kind == b"tRNS":
            continue
        length = _inflated_length(kind, memoryview(data)[start + 8 : end - 4])
        if not sum_is_right(data, start, end) or end - start - 12 < _LEAST.get(kind, 0) or length is None:
            damaged.append(kind.decode("latin-1"))
            animation = animation or kind in _ANIMATION
        elif length > PngImagePlugin.MAX_TEXT_CHUNK or text + length > PngImagePlugin.MAX_TEXT_MEMORY:
            too_long.append(kind.decode("latin-1"))
        else:
            text += length
            continue
        dropped.append((start, end))
    if animation:
        dropped = sorted({*dropped, *((a, b) for kind, a, b in png_chunks(data) if kind in _ANIMATION)})
    notes = []
    if too_long:
        notes.append(
            f"A text or profile in this PNG ({_names(too_long)}) is too long; it was not read and is not shown."
        )
    if damaged:
        notes.append(f"A side chunk of this PNG ({_names(damaged)}) is damaged; it was not read and is not shown.")
    if animation:
        notes.append("The animation in this PNG is damaged; only its first picture was read.")
    return _cut_out(data, dropped), tuple(notes)


def _inflated_length(kind: bytes, body: memoryview) -> int | None:
    """Bytes of the text or profile in a chunk, at most one more than Pillow reads; None where it is damaged."""
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
        return None  # coded in a way that there is not
    try:
        return len(zlib.decompressobj().decompress(rest[1:], PngImagePlugin.MAX_TEXT_CHUNK + 1))
    except zlib.error:
        return None


def _names(kinds: list[str]) -> str:
    """Each once, and only letters: a damaged file may hold anything."""
    return ", ".join(dict.fromkeys(kind if kind.isascii() and kind.isalpha() else "unknown" for kind in kinds))


def _cut_out(data: bytes, parts: list[tuple[int, int]]) -> bytes:
    """data without those parts, which are (start, end) in their order."""
    if not parts:
        return data
    kept, at = [], 0
    for start, end in parts:
        kept.append(data[at:start])
        at = end
    return b"".join((*kept, data[at:]))


# ── TIFF, WebP, AVIF and HEIC ───────────────────────────────────────────────────────────────────────────────────────


def tiff_fault(image: Image.Image) -> str | None:
    """Pillow leaves black what no strip or tile covers. (Compressed files have one tile here, whatever they hold.)"""
    boxes = [tile[1] for tile in getattr(image, "tile", [])]
    if sum((x1 - x0) * (y1 - y0) for x0, y0, x1, y1 in boxes) < image.width * image.height:
        return "its strips or tiles do not cover the picture"
    return None


def _zeros_fault(data: bytes, kind: Format) -> str | None:
    """An interrupted download may leave zeros for its rest, which these formats decode to anything.

    Compressed data hold no run of 4096 zeros; neither does the metadata that may come last, padded by 2060 at most.
    """
    for start, end in _picture_chunks(data, kind):
        if end - start >= 4096 and data[end - 4096 : end] == bytes(4096):
            return "its picture data end in zeros"
    return None


def _picture_chunks(data: bytes, kind: Format) -> Iterator[tuple[int, int]]:
    """(start, end) of the chunks of a WebP, the boxes of an AVIF or HEIC, that hold the picture."""
    webp = kind == "WebP"
    at = 12 if webp else 0
    while at + 8 <= len(data):
        if webp:
            size = 8 + int.from_bytes(data[at + 4 : at + 8], "little")
            found = data[at : at + 4] in (b"VP8 ", b"VP8L", b"ANMF")
        else:
            size = int.from_bytes(data[at : at + 4], "big")
            if size == 1:
                size = int.from_bytes(data[at + 8 : at + 16], "big")
            found = data[at + 4 : at + 8] == b"mdat"
        end = min(len(data), at + max(8, size)) if size else len(data)
        if found:
            yield at, end
        at = end + (end % 2 if webp else 0)


# ── the picture alone ───────────────────────────────────────────────────────────────────────────────────────────────


def bare(data: bytes, kind: Format) -> bytes | None:
    """The file without what is no part of its picture; None where nothing can be taken out.

    For a second try when a decoder fails, perhaps over what is not the picture. Where the picture itself is damaged,
    the second try fails as the first did.
    """
    match kind:
        case "JPEG":
            return _bare_jpeg(data)
        case "PNG":
            chunks = png_chunks(data)
            side = [(a, b) for name, a, b in chunks if not (name[:1].isupper() or name == b"tRNS")]
            return _cut_out(data, side) if side else None
        case "TIFF":
            return _bare_tiff(data)
        case "WebP":
            return _bare_webp(data)
        case "GIF":
            return _bare_gif(data)
        case "AVIF" | "HEIC":
            # Items of a kind that nobody knows are passed over; positions in the file must stay what they are.
            renamed = re.sub(rb"(infe.{8})(?:Exif|mime)", rb"\1none", data[:100_000], flags=re.DOTALL)
            return renamed + data[100_000:] if renamed != data[:100_000] else None
        case _:
            return None


def _bare_jpeg(data: bytes) -> bytes | None:
    """Without comments and application segments. Those of JFIF and Adobe, if whole, stay: they say how colours lie."""
    side = []
    for marker, start, segment in jpeg_segments(data):
        colours = (marker == 0xE0 and segment.startswith(b"JFIF\0") and len(segment) >= 14) or (
            marker == 0xEE and segment.startswith(b"Adobe") and len(segment) >= 12
        )
        if marker == 0xFE or (0xE0 <= marker <= 0xEF and not colours):
            side.append((start, start + 4 + len(segment)))
        if marker == 0xDA:
            break
    return _cut_out(data, side) if side else None


# Tags without which the picture cannot be decoded, or would be another one.
_PICTURE_TAGS = frozenset(
    (
        *(*range(254, 260), 262, 266, 273, 274, *range(277, 280), 284, 292, 293, 317, *range(320, 326)),
        *(332, 338, 339, 347, *range(512, 522), *range(529, 533)),
    )
)


def _bare_tiff(data: bytes) -> bytes | None:
    """With a first directory that holds only the tags of the picture, set behind the rest of the file."""
    layout = tiff_layout(data)
    if layout is None:
        return None
    directory = tiff_directory(data, first_offset(data, layout), layout)
    kept = [entry.raw for tag, entry in sorted(directory.entries.items()) if tag in _PICTURE_TAGS]
    if not kept or len(kept) == len(directory.entries):
        return None
    padding = bytes(len(data) % 2)
    at = 8 if layout.big else 4
    size = struct.calcsize(layout.word)
    table = struct.pack(layout.short, len(kept)) + b"".join(kept) + struct.pack(layout.word, directory.next)
    return data[:at] + struct.pack(layout.word, len(data) + len(padding)) + data[at + size :] + padding + table


def _bare_webp(data: bytes) -> bytes | None:
    """Without profile, EXIF and XMP, and without whatever follows a single picture."""
    kept, at, dropped = [], 12, False
    while at + 8 <= len(data):
        end = at + 8 + int.from_bytes(data[at + 4 : at + 8], "little")
        end += end % 2
        name = data[at : at + 4]
        chunk = data[at:end]
        if name in (b"ICCP", b"EXIF", b"XMP "):
            dropped = True
        elif name == b"VP8X" and len(chunk) > 8:
            kept.append(chunk[:8] + bytes([chunk[8] & ~0b101100]) + chunk[9:])
        else:
            kept.append(chunk)
        at = end
        if name in (b"VP8 ", b"VP8L"):
            dropped = dropped or at < len(data)
            break
    body = b"WEBP" + b"".join(kept)
    return b"RIFF" + struct.pack("<I", len(body)) + body if dropped else None


def _bare_gif(data: bytes) -> bytes | None:
    """Without the extensions before the first picture, but for the one that says what is transparent."""
    if len(data) < 13:
        return None
    at = 13 + (3 * (2 << (data[10] & 7)) if data[10] & 0x80 else 0)
    side = []
    while data[at : at + 1] == b"!":
        start, graphic = at, data[at + 1 : at + 3] == b"\xf9\x04"
        at += 2
        while at < len(data) and data[at]:
            at += 1 + data[at]
        at += 1
        if not graphic:
            side.append((start, at))
    return _cut_out(data, side) if side and data[at : at + 1] == b"," else None
