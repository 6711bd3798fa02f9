"""What a picture file says about itself: EXIF, software, JPEG tables, content credentials. It never affects scores.

All of it can be written by anyone and may be hostile: values are cut at 160 characters, and what cannot be parsed is
called unreadable. Strings are kept as they are in the file: whoever prints them must escape them.

The place where a photo was taken stays out unless it is asked for. It can be in EXIF, XMP, maker notes, free text and
content credentials: only what is on a list is read from these, and free text is named instead of shown.
"""

from __future__ import annotations

import dataclasses
import hashlib
import html
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, JpegImagePlugin, PngImagePlugin

from declip import provenance
from declip.images.decode import read_header
from declip.images.jpeg import libjpeg_tables
from declip.images.orientation import to_upright
from declip.images.read import read_photo
from declip.provenance import Field, Provenance
from declip.provenance.marks import find_marks
from declip.provenance.result import LONGEST, cut, to_plain
from declip.results import Photo

__all__ = ["JpegTables", "Metadata", "jpeg_quality", "read"]

_MOST = 60  # entries of a list of names or of software
_THUMBNAIL_PIXELS = 1_000_000

# Tags whose values are shown: who and what made the picture, when and how. Any other tag is only named.
_SHOWN = (
    *("Make", "Model", "LensMake", "LensModel", "BodySerialNumber", "LensSerialNumber"),
    *("Software", "ProcessingSoftware", "HostComputer", "Artist", "Copyright"),
    *("DateTime", "DateTimeOriginal", "DateTimeDigitized", "OffsetTime", "OffsetTimeOriginal", "OffsetTimeDigitized"),
    *("SubsecTime", "SubsecTimeOriginal", "SubsecTimeDigitized"),
    *("ExposureTime", "FNumber", "ISOSpeedRatings", "ExposureBiasValue", "ExposureProgram", "ExposureMode"),
    *("FocalLength", "FocalLengthIn35mmFilm", "DigitalZoomRatio", "MeteringMode", "Flash", "WhiteBalance"),
    *("SceneCaptureType", "CustomRendered", "CompositeImage", "ColorSpace", "ExifVersion"),
    *("Orientation", "ImageWidth", "ImageLength", "ExifImageWidth", "ExifImageHeight"),
    *("XResolution", "YResolution", "ResolutionUnit"),
)
_FREE_TEXT = (
    *("ImageDescription", "UserComment", "XPTitle", "XPComment", "XPKeywords", "XPSubject", "XPAuthor"),
    *("DocumentName", "ImageHistory"),
)
_UNREADABLE = "EXIF (empty or unreadable)"
# Tags that only point to another block.
_POINTERS = ("ExifOffset", "GPSInfo", "ExifInteroperabilityOffset")
# From XMP: what made or changed the picture, and what kind of picture its maker says it is.
_XMP_NAMES = "xmp:CreatorTool|stEvt:softwareAgent|Iptc4xmpExt:DigitalSourceType|photoshop:Credit"
_XMP = re.compile(rf"<({_XMP_NAMES})>([^<]*)</|\b({_XMP_NAMES})=(?:\"([^\"]*)\"|'([^']*)')")
# Comments that programs write about themselves; any other comment is somebody's text.
_PROGRAM_COMMENTS = ("CREATOR: gd-jpeg", "Created with GIMP", "Lavc", "LEAD Technologies", "Intel(R) JPEG Library")


@dataclass(frozen=True, kw_only=True, slots=True)
class JpegTables:
    """How a JPEG was saved the last time.

    tables: each (8, 8) steps as 64 whole numbers, row by row, in the order of their numbers in the file.
    quality: of libjpeg, 1-100, whose tables are nearest; distance: mean absolute difference of the steps to those,
    0 = these very tables. subsampling: such as "4:2:0"; "" if it is not one of the usual ones.
    """

    tables: tuple[tuple[int, ...], ...]
    quality: int
    distance: float
    subsampling: str
    progressive: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Metadata:
    """What a picture file says about itself.

    format: as Pillow names it. stored_height, stored_width: px, before the orientation is applied. exif: tags that are
    shown. withheld: names of what is there and not shown. has_position: a GPS position is in the file's EXIF or XMP.
    position: its fields, empty unless they were asked for. free_text: descriptions and comments, empty unless the
    position was asked for. thumbnail: (h, w, 3) uint8, upright, the small picture that the file carries.
    """

    format: str
    bytes: int
    sha256: str
    stored_height: int
    stored_width: int
    orientation: int
    exif: tuple[Field, ...]
    software: tuple[Field, ...]
    withheld: tuple[str, ...]
    has_position: bool
    position: tuple[Field, ...]
    free_text: tuple[Field, ...]
    jpeg: JpegTables | None
    thumbnail: NDArray[np.uint8] | None = dataclasses.field(repr=False, compare=False)
    credentials: Provenance

    def to_dict(self) -> dict[str, Any]:
        """Return it ready for JSON; of the thumbnail, its size [height, width]."""
        return dict(to_plain(self), thumbnail=None if self.thumbnail is None else list(self.thumbnail.shape[:2]))


def read(photo: Photo, *, position: bool = False) -> Metadata | None:
    """Read the metadata of a photo's file; None if the photo did not come from a file.

    position: read the GPS position and free text, too. Raises ImageError as `read_photo` if the file is no picture.
    """
    if not photo.data:
        return None
    opened = read_header(photo.data, photo.name)
    tags, gps, unreadable = _exif_tags(opened)
    texts = list(_texts(opened))
    xmp = find_marks(photo.data).xmp
    shown = {field.name: field for field in tags if field.name in _SHOWN}
    free = [field for field in tags if field.name in _FREE_TEXT] + texts
    withheld = [] if position else [f"{field.name} (text)" for field in free]
    withheld += unreadable + [field.name for field in tags if field.name not in (*_SHOWN, *_FREE_TEXT)]
    withheld += ["GPS position"] * (bool(gps) and not position) + ["the rest of XMP"] * bool(xmp)
    return Metadata(
        format=opened.format or "",
        bytes=len(photo.data),
        sha256=hashlib.sha256(photo.data).hexdigest(),
        stored_height=opened.height,
        stored_width=opened.width,
        orientation=photo.orientation,
        exif=tuple(shown[name] for name in _SHOWN if name in shown),
        withheld=_at_most(withheld),
        has_position=bool(gps) or "GPSLatitude" in xmp,
        position=tuple(gps) if position else (),
        free_text=tuple(free[:_MOST]) if position else (),
        software=tuple(dict.fromkeys(_software(opened, shown, texts, xmp)))[:_MOST],
        jpeg=_jpeg_tables(opened),
        thumbnail=_thumbnail(opened, photo.orientation),
        credentials=provenance.read(photo),
    )


def _exif_tags(opened: Image.Image) -> tuple[list[Field], list[Field], list[str]]:
    """Return (tags, those of the GPS block, the names of blocks that cannot be read)."""
    try:
        exif = opened.getexif()
        own, sub, gps = dict(exif), exif.get_ifd(ExifTags.IFD.Exif), exif.get_ifd(ExifTags.IFD.GPSInfo)
    except Exception:  # a damaged block makes Pillow raise a dozen types; the pixels are not concerned
        return [], [], [_UNREADABLE]
    tags = [*_fields(own, ExifTags.TAGS), *_fields(sub, ExifTags.TAGS)]
    places = list(_fields(gps, ExifTags.GPSTAGS))
    # Some damaged blocks give nothing, and no error.
    empty = not tags and not places and opened.info.get("exif")
    return tags, places, [_UNREADABLE] if empty else []


def _fields(block: Mapping[int, Any], names: Mapping[int, str]) -> Iterator[Field]:
    for number, value in block.items():
        name = names.get(number, f"tag {number:#06x}")
        if name not in _POINTERS:
            yield Field(name, _value(name, value))


def _value(name: str, value: object) -> str:
    """Return a value as a reader expects it."""
    match value:
        case bytes():
            if name in ("ExifVersion", "UserComment") or name.startswith("XP"):
                coding = "utf-16-le" if name.startswith("XP") else "latin-1"
                return cut(value[: 8 * LONGEST].decode(coding, "replace").strip("\0 "), len(value))
            return f"{len(value)} bytes"
        case str():
            return cut(value.strip("\0 "), len(value))
        case tuple():
            return cut(", ".join(_value(name, part) for part in value[:16]), len(value))
        case int():
            return str(value)
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, ZeroDivisionError, OverflowError):  # no rational number, or one over 0
        number = np.nan
    if not np.isfinite(number):
        return "undefined"
    if name == "ExposureTime" and 0 < number < 0.5:
        return f"1/{1 / number:.0f} s"
    before, after = {"FNumber": ("f/", ""), "ExposureTime": ("", " s"), "FocalLength": ("", " mm")}.get(name, ("", ""))
    return f"{before}{number:g}{after}"


def _at_most(names: list[str]) -> tuple[str, ...]:
    distinct = list(dict.fromkeys(cut(name) for name in names))
    left = len(distinct) - _MOST
    return (*distinct[:_MOST], f"and {left} more") if left > 0 else tuple(distinct)


def _thumbnail(opened: Image.Image, orientation: int) -> NDArray[np.uint8] | None:
    """Return the small JPEG in the EXIF block; None if there is none that can be read."""
    block = opened.info.get("exif")
    if not isinstance(block, bytes):
        return None
    try:
        first = opened.getexif().get_ifd(ExifTags.IFD.IFD1)
        start, length = int(first[ExifTags.Base.JpegIFOffset]), int(first[ExifTags.Base.JpegIFByteCount])
        small = read_photo(block.removeprefix(b"Exif\0\0")[start : start + length], max_pixels=_THUMBNAIL_PIXELS)
    except Exception:  # as in _exif_tags; that there is no such tag is one of the reasons
        return None
    return np.ascontiguousarray(to_upright(small.pixels, orientation if small.orientation == 1 else 1))


def _texts(opened: Image.Image) -> Iterator[Field]:
    """Yield the free text outside of EXIF: the comment of a JPEG, the text chunks of a PNG."""
    comment = opened.info.get("comment")
    if isinstance(comment, bytes | str):
        text = comment.decode("latin-1") if isinstance(comment, bytes) else comment
        yield Field("comment", cut(text.strip("\0 "), len(text)))
    if isinstance(opened, PngImagePlugin.PngImageFile):
        try:
            chunks = opened.text
        except Exception:  # as in _exif_tags
            yield Field("text chunks", "unreadable")
            return
        for name, text in chunks.items():
            if not name.startswith("XML:"):
                yield Field(cut(f"PNG {name}", len(name)), cut(str(text)))


def _software(opened: Image.Image, shown: Mapping[str, Field], texts: list[Field], xmp: str) -> Iterator[Field]:
    """Yield the place in the file and the software that it names."""
    for name in ("Software", "ProcessingSoftware", "HostComputer"):
        if name in shown:
            yield Field(f"EXIF {name}", shown[name].value)
    yield from (field for field in texts if field.name == "PNG Software")
    for field in texts:
        if field.name == "comment" and field.value.startswith(_PROGRAM_COMMENTS):
            yield Field("JPEG comment", field.value)
    # Not parsed as XML, since parsers of XML can be attacked: only these names, each with a plain value.
    for match in _XMP.finditer(xmp):
        name = match[1] or match[3]
        if value := html.unescape(match[2] or match[4] or match[5] or "").strip():
            yield Field(f"XMP {name.partition(':')[2]}", cut(value))
    markers = getattr(opened, "applist", []) if isinstance(opened, JpegImagePlugin.JpegImageFile) else []
    if any(name == "APP13" and body.startswith(b"Photoshop") for name, body in markers):
        yield Field("JPEG APP13", "image resources in Photoshop's format")


def _jpeg_tables(opened: Image.Image) -> JpegTables | None:
    if not isinstance(opened, JpegImagePlugin.JpegImageFile) or not opened.quantization:
        return None
    tables = tuple(tuple(int(step) for step in steps) for _, steps in sorted(opened.quantization.items()))
    quality, distance = jpeg_quality(tables)
    usual = {0: "4:4:4", 1: "4:2:2", 2: "4:2:0"}
    return JpegTables(
        tables=tables,
        quality=quality,
        distance=distance,
        subsampling=usual.get(JpegImagePlugin.get_sampling(opened), ""),
        progressive=bool(opened.info.get("progressive")),
    )


def jpeg_quality(tables: tuple[tuple[int, ...], ...]) -> tuple[int, float]:
    """Return the quality, 1-100, with libjpeg's nearest tables, and the mean absolute difference of the steps.

    tables: 64 steps each, row by row, that of luma first; a difference of 0 means: these very tables.
    """
    given = np.array([*tables[:2]], dtype=np.float64)
    distances = np.abs(libjpeg_tables()[:, : len(given)] - given).mean(axis=(1, 2))
    nearest = int(np.argmin(distances))
    return nearest + 1, float(distances[nearest])
