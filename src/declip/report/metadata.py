"""What a picture file says of itself: EXIF, software, JPEG tables, content credentials. For reading, never for scores.

All of it can be written by anyone and is hostile until proven otherwise: values are cut at `LONGEST` characters, tags
come from a list of those that are shown, and what cannot be parsed is said to be unreadable, not guessed. Strings are
kept as they are in the file; whoever prints them escapes them.

Where a photo was taken stays out unless it is asked for. A place can stand in EXIF's GPS tags, in XMP, maker notes,
free text (descriptions, comments, text chunks) and content credentials, so of all of these only what is on a list is
read, and free text is named with its length instead of shown.
"""

from __future__ import annotations

import dataclasses
import hashlib
import html
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, JpegImagePlugin, PngImagePlugin

from declip import provenance
from declip.errors import ImageError
from declip.images.decode import read_header
from declip.images.jpeg import libjpeg_tables
from declip.images.orientation import to_upright
from declip.images.read import read_photo
from declip.provenance.result import LONGEST, Field, Provenance, cut
from declip.results import Photo

__all__ = ["LONGEST", "Field", "JpegTables", "Metadata", "jpeg_quality", "read"]

_MOST = 60  # entries of a list of names, of actions, of software
_XMP_BYTES = 1 << 20
_THUMBNAIL_PIXELS = 1_000_000

# Tags whose values are shown: who and what made the picture, when and how. Whatever is not here is named only.
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
# What leads to another block is not a fact of its own.
_POINTERS = ("ExifOffset", "GPSInfo", "ExifInteroperabilityOffset")
_SOFTWARE_TAGS = ("Software", "ProcessingSoftware", "HostComputer")
# Of XMP: what made or changed the picture, and what kind of picture its maker says it is.
_XMP_NAMES = ("xmp:CreatorTool", "stEvt:softwareAgent", "Iptc4xmpExt:DigitalSourceType", "photoshop:Credit")
_XMP = re.compile(rf"<({'|'.join(_XMP_NAMES)})>([^<]*)</|\b({'|'.join(_XMP_NAMES)})=(?:\"([^\"]*)\"|'([^']*)')")
# Comments that programs write of themselves; any other comment is somebody's text.
_PROGRAM_COMMENTS = ("CREATOR: gd-jpeg", "Created with GIMP", "Lavc", "LEAD Technologies", "Intel(R) JPEG Library")


@dataclass(frozen=True, kw_only=True, slots=True)
class JpegTables:
    """How a JPEG was saved the last time.

    tables: each (8, 8) steps as 64 whole numbers, row by row, in the order of their numbers in the file.
    quality: of libjpeg's, 1-100, whose tables come nearest; distance: mean absolute difference of the steps to those,
    0 = these very tables. subsampling: as "4:2:0"; "" where it is none of the usual.
    """

    tables: tuple[tuple[int, ...], ...]
    quality: int
    distance: float
    subsampling: str
    progressive: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Metadata:
    """What a picture file says of itself.

    file_format: as Pillow names it. size: (height, width) px as stored, before its orientation is applied. exif: tags
    that are shown. withheld: names of what is there and not shown. has_position: a GPS position is in the file's EXIF
    or XMP; position: its fields, empty unless they were asked for. free_text: descriptions and comments, empty unless
    the position was asked for. thumbnail: (h, w, 3) uint8, upright, of the small picture that the file carries.
    """

    file_format: str
    file_bytes: int
    sha256: str
    size: tuple[int, int]
    orientation: int
    exif: tuple[Field, ...]
    withheld: tuple[str, ...]
    has_position: bool
    position: tuple[Field, ...]
    free_text: tuple[Field, ...]
    software: tuple[Field, ...]
    jpeg: JpegTables | None
    thumbnail: NDArray[np.uint8] | None = dataclasses.field(repr=False, compare=False)
    credentials: Provenance

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON, by the keys of docs/report.md; of the thumbnail its size (height, width)."""
        return {
            "format": self.file_format,
            "bytes": self.file_bytes,
            "sha256": self.sha256,
            "stored_height": self.size[0],
            "stored_width": self.size[1],
            "orientation": self.orientation,
            "exif": _pairs(self.exif),
            "software": _pairs(self.software),
            "withheld": list(self.withheld),
            "has_position": self.has_position,
            "position": _pairs(self.position),
            "free_text": _pairs(self.free_text),
            "jpeg": None if self.jpeg is None else dataclasses.asdict(self.jpeg),
            "thumbnail": None if self.thumbnail is None else list(self.thumbnail.shape[:2]),
            "credentials": self.credentials.to_dict(),
        }


def _pairs(fields: tuple[Field, ...]) -> list[dict[str, str]]:
    return [field._asdict() for field in fields]


def read(photo: Photo, *, position: bool = False) -> Metadata | None:
    """The metadata of a photo's file; None where the photo did not come from a file.

    position: read the GPS position and free text, too. Raises ImageError as `read_photo` where the file is none.
    """
    if not photo.data:
        return None
    opened = read_header(photo.data, photo.name)
    tags, unreadable = _exif_tags(opened)
    texts = _texts(opened)
    xmp = _xmp(opened)
    gps = [field for name, field in tags if name == "GPS"]
    shown = {field.name: field for name, field in tags if name == "EXIF" and field.name in _SHOWN}
    free = [field for name, field in tags if name == "EXIF" and field.name in _FREE_TEXT] + texts
    others = [field.name for name, field in tags if name == "EXIF" and field.name not in (*_SHOWN, *_FREE_TEXT)]
    withheld = [] if position else [f"{field.name} (text)" for field in free]
    withheld += [*unreadable, *others]
    if gps and not position:
        withheld.append("GPS position")
    if xmp:
        withheld.append("the rest of XMP")
    return Metadata(
        file_format=opened.format or "",
        file_bytes=len(photo.data),
        sha256=hashlib.sha256(photo.data).hexdigest(),
        size=(opened.height, opened.width),
        orientation=photo.orientation,
        exif=tuple(shown[name] for name in _SHOWN if name in shown),
        withheld=_at_most(withheld),
        has_position=bool(gps) or "GPSLatitude" in xmp,
        position=tuple(gps) if position else (),
        free_text=tuple(free[:_MOST]) if position else (),
        software=_software(opened, shown, texts, xmp),
        jpeg=_jpeg_tables(opened),
        thumbnail=_thumbnail(opened, photo.orientation),
        credentials=provenance.read(photo),
    )


# --- EXIF -----------------------------------------------------------------------------------------------------------


def _exif_tags(opened: Image.Image) -> tuple[list[tuple[Literal["EXIF", "GPS"], Field]], list[str]]:
    """(tags by the block they are in, the names of blocks that cannot be read)."""
    found: list[tuple[Literal["EXIF", "GPS"], Field]] = []
    try:
        exif = opened.getexif()
        blocks: list[tuple[Literal["EXIF", "GPS"], Mapping[int, Any]]] = [
            ("EXIF", dict(exif)),
            ("EXIF", exif.get_ifd(ExifTags.IFD.Exif)),
            ("GPS", exif.get_ifd(ExifTags.IFD.GPSInfo)),
        ]
    except Exception:  # a damaged block makes Pillow raise a dozen types; the pixels are not concerned
        return [], [_UNREADABLE]
    for block, tags in blocks:
        for number, value in tags.items():
            name = _tag_name(block, number)
            if name not in _POINTERS:
                found.append((block, Field(name, _value(name, value))))
    # Of some damaged blocks Pillow gives no error but nothing.
    return found, [_UNREADABLE] if not found and opened.info.get("exif") else []


def _tag_name(block: Literal["EXIF", "GPS"], number: int) -> str:
    names = ExifTags.TAGS if block == "EXIF" else ExifTags.GPSTAGS
    return names.get(number, f"tag {number:#06x}")


def _value(name: str, value: object) -> str:
    """A value as a reader expects it."""
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
    number = _float(value)
    if not np.isfinite(number):
        return "undefined"
    if name == "ExposureTime" and 0 < number < 0.5:
        return f"1/{1 / number:.0f} s"
    units = {"ExposureTime": " s", "FocalLength": " mm"}
    return f"{'f/' if name == 'FNumber' else ''}{number:g}{units.get(name, '')}"


def _float(value: Any) -> float:
    """A rational of EXIF; nan where it is none, or one over 0."""
    try:
        return float(value)
    except (TypeError, ValueError, ZeroDivisionError, OverflowError):
        return float("nan")


def _at_most(names: list[str]) -> tuple[str, ...]:
    distinct = list(dict.fromkeys(cut(name, len(name)) for name in names))
    left = len(distinct) - _MOST
    return (*distinct[:_MOST], f"and {left} more") if left > 0 else tuple(distinct)


def _thumbnail(opened: Image.Image, orientation: int) -> NDArray[np.uint8] | None:
    """The small JPEG in the EXIF block; None where there is none that can be read."""
    block = opened.info.get("exif")
    if not isinstance(block, bytes):
        return None
    try:
        first = opened.getexif().get_ifd(ExifTags.IFD.IFD1)
        start, length = int(first[ExifTags.Base.JpegIFOffset]), int(first[ExifTags.Base.JpegIFByteCount])
        small = read_photo(block.removeprefix(b"Exif\0\0")[start : start + length], max_pixels=_THUMBNAIL_PIXELS)
    except ImageError:
        return None
    except Exception:  # as in _exif_tags; no such tags is one of the reasons
        return None
    return np.ascontiguousarray(to_upright(small.pixels, orientation if small.orientation == 1 else 1))


# --- software -------------------------------------------------------------------------------------------------------


def _texts(opened: Image.Image) -> list[Field]:
    """Free text outside of EXIF: the comment of a JPEG, the text chunks of a PNG."""
    found = []
    comment = opened.info.get("comment")
    if isinstance(comment, bytes | str):
        text = comment.decode("latin-1") if isinstance(comment, bytes) else comment
        found.append(Field("comment", cut(text.strip("\0 "), len(text))))
    if isinstance(opened, PngImagePlugin.PngImageFile):
        try:
            chunks = opened.text
        except Exception:  # as in _exif_tags
            return [*found, Field("text chunks", "unreadable")]
        found += [
            Field(cut(f"PNG {name}", len(name)), cut(str(text), len(text)))
            for name, text in chunks.items()
            if not name.startswith("XML:")
        ]
    return found


def _xmp(opened: Image.Image) -> str:
    """The XMP packet; "" where there is none."""
    packet = opened.info.get("xmp") or opened.info.get("XML:com.adobe.xmp") or b""
    if isinstance(packet, bytes):
        return packet[:_XMP_BYTES].decode("utf-8", "replace")
    return packet[:_XMP_BYTES] if isinstance(packet, str) else ""


def _software(opened: Image.Image, shown: Mapping[str, Field], texts: list[Field], xmp: str) -> tuple[Field, ...]:
    """(where it stands, which software it names)."""
    found = [Field(f"EXIF {name}", shown[name].value) for name in _SOFTWARE_TAGS if name in shown]
    found += [Field("PNG Software", field.value) for field in texts if field.name == "PNG Software"]
    for field in texts:
        if field.name == "comment" and field.value.startswith(_PROGRAM_COMMENTS):
            found.append(Field("JPEG comment", field.value))
    # Not parsed as XML, whose parsers are a door of their own: only these names, each with a plain value.
    for match in _XMP.finditer(xmp):
        name = match[1] or match[3]
        value = html.unescape(next(group for group in (match[2], match[4], match[5]) if group is not None)).strip()
        if value:
            found.append(Field(f"XMP {name.partition(':')[2]}", cut(value, len(value))))
    if isinstance(opened, JpegImagePlugin.JpegImageFile):
        markers = getattr(opened, "applist", [])
        if any(name == "APP13" and body.startswith(b"Photoshop") for name, body in markers):
            found.append(Field("JPEG APP13", "image resources in Photoshop's format"))
    return tuple(dict.fromkeys(found))[:_MOST]


# --- JPEG -----------------------------------------------------------------------------------------------------------


def _jpeg_tables(opened: Image.Image) -> JpegTables | None:
    if not isinstance(opened, JpegImagePlugin.JpegImageFile):
        return None
    stored = opened.quantization
    tables = tuple(tuple(int(step) for step in stored[number]) for number in sorted(stored))
    if not tables:
        return None
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
    """(the quality, 1-100, at which libjpeg's tables come nearest, mean absolute difference of the steps).

    tables: 64 steps each, row by row, that of luma first; a difference of 0 means: these very tables.
    """
    given = np.array([*tables[:2]], dtype=np.float64)
    distances = np.abs(libjpeg_tables()[:, : len(given)] - given).mean(axis=(1, 2))
    nearest = int(np.argmin(distances))
    return nearest + 1, float(distances[nearest])
