"""Find what a picture file holds beside the picture that is examined: further pages and frames, videos, gain maps.

Everything is only counted and named; nothing of it is decoded.
"""

from __future__ import annotations

import re
from itertools import islice
from typing import Any, Literal, NamedTuple

from PIL import Image, TiffImagePlugin

from declip.images.containers import Format, boxes, gif_blocks, jpeg_segments, png_chunks

__all__ = ["Held", "held"]

_UNITS = {"TIFF": "pages", "HEIC": "pictures", "JPEG": "pictures"}
_GAIN_MAP = "A gain map for HDR screens was not examined."
_DEPTH_MAP = "A depth map was not examined."
# How gain maps are told of: Adobe's and Google's XMP, Apple's, ISO 21496-1's; and depth maps.
_SAYS_GAIN_MAP = re.compile(rb"hdrgm:|hdr-gain-map|HDRGainMap|hdrgainmap|urn:iso:std:iso:ts:21496|\"GainMap\"")
_SAYS_DEPTH_MAP = re.compile(rb"GDepth:|\"Depth\"|depthmap|auxid:2\0")
_SAYS_VIDEO = re.compile(rb"(?:MicroVideo|MotionPhoto)\s*(?:=\s*[\"']|>)\s*1")
_VIDEO = re.compile(rb"ftyp(?:mp4|isom|iso\d|qt  |avc1|MSNV|3gp|hvc1|M4V)")
# Tags of a TIFF: pictures inside of pages, and Photoshop's layers.
_SUB_PICTURES, _LAYERS = 330, 37724
_PADDING = b"\0\xff\t\n\r "
# Of each file. Headers may claim any number, and counting to it takes time.
_MOST = 1000


class Held(NamedTuple):
    """What a file holds. pages: how many pictures can be examined. notes: sentences about everything else.

    frames: where Pillow finds each of the pictures. parts: of a JPEG, where the bytes of each begin and end; each is a
    JPEG of its own. unit: what a picture of the file is called.
    """

    pages: int
    frames: tuple[int, ...]
    parts: tuple[tuple[int, int], ...]
    notes: tuple[str, ...]
    unit: str

    def notes_on(self, page: int) -> tuple[str, ...]:
        """Return the sentences for a page (from 1); the first one says which of the pictures was examined."""
        if self.pages == 1:
            return self.notes
        which = "the first one" if page == 1 else f"number {page}"
        return (f"The file holds {self.pages} {self.unit}; {which} was examined.", *self.notes)


def held(data: bytes, kind: Format | Literal[""], image: Image.Image) -> Held:
    """Find what a file holds; the picture that viewers show is the first of its pages.

    kind: its format; "" for a PIL image whose file is not known. image: opened by Pillow, for this alone, since
    counting moves it.
    """
    unit = _UNITS.get(kind, "frames")
    if kind == "JPEG":
        parts, notes = _jpeg(data, image)
        return Held(len(parts), (0,) * len(parts), tuple(parts), tuple(notes), unit)
    notes = []
    if kind == "TIFF":
        assert isinstance(image, TiffImagePlugin.TiffImageFile)
        if _SUB_PICTURES in image.tag_v2:
            notes.append("Pictures inside of the first page (TIFF's SubIFDs) were not examined.")
        if _LAYERS in image.tag_v2:
            notes.append("Photoshop's layers were not examined, only what they add up to.")
    main = image.tell() if kind == "HEIC" else 0  # Pillow opens HEIC at the main picture, which need not be the first
    count, fault = _count_frames(data, kind, image)
    if fault is not None:
        notes.append(f"What follows number {count} of the {unit} is damaged, and was not examined ({fault}).")
    if count > _MOST:
        count = _MOST
        notes.append(f"The file holds more than {_MOST} {unit}; those behind cannot be examined.")
    frames = (main, *(number for number in range(count) if number != main))
    match kind:
        case "HEIC" | "AVIF":
            notes += _boxes(data, kind)
        case "PNG":
            notes += _behind(data[max((end for _, _, end in png_chunks(data)), default=8) :])
        case "WebP":
            size = 8 + int.from_bytes(data[4:8], "little")
            notes += _behind(data[size + size % 2 :])
    return Held(count, frames, ((0, len(data)),) * count, tuple(notes), unit)


def _count_frames(data: bytes, kind: str, image: Image.Image) -> tuple[int, Exception | None]:
    """Return how many frames can be found, and what is wrong with the next one; beyond _MOST they are not counted."""
    count = 1
    try:
        if kind == "GIF":
            pictures = (1 for block, _, _ in gif_blocks(data) if block == 0x2C)  # Pillow would decode them
            return max(1, sum(islice(pictures, _MOST + 1))), None
        if kind != "TIFF":
            return getattr(image, "n_frames", 1), None
        while count <= _MOST:
            image.seek(count)
            count += 1
    except EOFError:
        return count, None
    except MemoryError:
        raise
    except Exception as error:  # decoders raise a dozen types for damaged files
        return count, error
    return count, None


def _jpeg(data: bytes, image: Image.Image) -> tuple[list[tuple[int, int]], list[str]]:
    """Return where the pictures of a JPEG begin and end, and the notes on everything else."""
    parts = [(0, len(data))]
    notes = []
    listed, lost = _listed(data, image)
    words: bytes = image.info.get("xmp", b"")
    # What announces a gain map or a depth map may stand in the picture or in the map itself.
    gain, depth = (bool(says.search(words)) for says in (_SAYS_GAIN_MAP, _SAYS_DEPTH_MAP))
    previews = 0
    for start, stop, is_preview in listed:
        head = data[start : min(stop, start + 65536)]
        is_gain, is_depth = (says.search(head) is not None for says in (_SAYS_GAIN_MAP, _SAYS_DEPTH_MAP))
        gain, depth = gain or is_gain, depth or is_depth
        previews += is_preview
        if not (is_preview or is_gain or is_depth) and len(parts) < _MOST:
            parts.append((start, stop))
    if gain:
        notes.append(_GAIN_MAP)
    if depth:
        notes.append(_DEPTH_MAP)
    if previews:
        copies = _count(previews, "smaller copy", "smaller copies")
        notes.append(f"{copies} of the picture inside the file: not examined.")
    if lost:
        pictures = _count(lost, "further picture", "further pictures")
        notes.append(f"The file lists {pictures} that cannot be found in it.")
    # What lies behind the end of the picture, and in none of those that are listed.
    behind = []
    at = 2 + next((at for marker, at, _ in jpeg_segments(data) if marker == 0xD9), len(data))
    for start, stop, _ in [*sorted(listed), (len(data), len(data), False)]:
        behind += _behind(data[at:start])
        at = max(at, stop)
    if _SAYS_VIDEO.search(words) and not any("video" in note for note in behind):
        behind.append("The file says that it is a motion photo; the video is not in it.")
    return parts, notes + behind


def _listed(data: bytes, image: Image.Image) -> tuple[list[tuple[int, int, bool]], int]:
    """Find the further pictures that a JPEG's index (MPF) lists.

    Return of each its start, its end and whether it is a preview; and how many of them are not in the file.
    """
    find: Any = getattr(image, "_getmp", None)
    try:
        index = find() if find else None
    except Exception:  # a damaged index: as for headers
        return [], 1
    found: list[tuple[int, int, bool]] = []
    lost = 0
    for entry in (index or {}).get(0xB002, [])[1:]:
        start = image.info["mpoffset"] + entry["DataOffset"]
        stop = min(start + entry["Size"], len(data))  # Pillow itself writes too large a size for the last one
        if entry["DataOffset"] and data[start : start + 3] == b"\xff\xd8\xff":
            found.append((start, stop, entry["Attribute"]["MPType"].startswith("Large Thumbnail")))
        else:
            lost += 1
    return found, lost


def _behind(piece: bytes) -> list[str]:
    """Return a sentence on bytes that follow the end of a picture; nothing for padding."""
    if not piece.strip(_PADDING):
        return []
    if video := _VIDEO.search(piece):
        return [_motion(len(piece) - video.start() + 4)]
    if piece.startswith(b"\xff\xd8\xff"):
        return [f"Another JPEG of {_size(len(piece))} behind the picture was not examined."]
    return [f"{_size(len(piece.rstrip(_PADDING)))} behind the end of the picture were not examined."]


def _boxes(data: bytes, kind: Format) -> list[str]:
    """Return notes on what the boxes of a HEIC or AVIF hold."""
    notes = []
    found = {name: (start, end) for name, start, end in boxes(data)}
    meta = data[slice(*found.get(b"meta", (0, 0)))]
    if _SAYS_GAIN_MAP.search(meta) or b"tmap" in meta:
        notes.append(_GAIN_MAP)
    if _SAYS_DEPTH_MAP.search(meta):
        notes.append(_DEPTH_MAP)
    if b"mpvd" in found:
        start, end = found[b"mpvd"]
        notes.append(_motion(end - start))
    if b"moov" in found and kind == "HEIC":
        notes.append("A sequence of pictures or a video inside the file was not examined.")
    return notes


def _motion(size: int) -> str:
    return f"A video of {_size(size)} behind the photo (a motion photo) was not examined."


def _count(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"


def _size(number: int) -> str:
    return f"{number / 1e6:.1f} MB" if number >= 100_000 else _count(number, "byte", "bytes")
