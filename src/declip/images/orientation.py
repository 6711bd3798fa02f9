"""Find how a picture has to be turned to stand upright, and turn it.

A picture is turned, exactly once, as Chromium turns it (`image-orientation: from-image`), so that a map lies where it
belongs on the picture that a browser shows. XMP never turns a picture.

    JPEG             the tag Orientation in the first EXIF segment, if it is one SHORT of 1-8
    PNG              the same tag in the first eXIf chunk, if that comes before the picture
    AVIF             the boxes irot and imir; not its EXIF
    WebP, BMP, GIF   never, whatever the EXIF of a WebP says
    TIFF             its tag Orientation; HEIC: as libheif turns it. Chromium shows neither
    PIL image        the EXIF block that Pillow keeps in it (WebP: never); of a TIFF, what Pillow does
"""

from __future__ import annotations

import re
from typing import Any

from numpy.typing import NDArray
from PIL import ExifTags, Image

from declip.images.containers import Format, Tiff, jpeg_segments, png_chunks, sum_is_right

__all__ = ["TURNS", "ignored_turn", "orientation_in", "orientation_of", "to_stored", "to_upright"]

_EXIF = b"Exif\0\0"
_XMP_TURN = re.compile(rb"tiff:Orientation(?:=[\"']|>)([2-8])")

TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def exif_orientation(block: bytes) -> int:
    """Return the orientation in an EXIF block, 1-8, as browsers take it; 1 where it names none.

    block: a TIFF, without the word "Exif" in front. The first entry of that tag in the first directory counts, if it is
    one SHORT from 1 to 8; a block that breaks off later does no harm.
    """
    tiff = Tiff.of(block)
    if tiff is None or tiff.big:
        return 1
    entries, _ = tiff.directory()
    entry = entries.get(ExifTags.Base.Orientation)
    if entry is None or entry.code != 3 or entry.number != 1:
        return 1
    (value,) = tiff.integers(ExifTags.Base.Orientation, entries)
    return value if value in TURNS else 1


def orientation_of(data: bytes, kind: Format, image: Image.Image) -> int:
    """Return how a browser turns a file, 1-8, beyond what its decoder here has done by itself (TIFF, HEIC).

    image: the file opened by Pillow.
    """
    match kind:
        case "JPEG":
            for marker, _, segment in jpeg_segments(data):
                if marker == 0xE1 and segment.startswith(b"Exif\0"):
                    return exif_orientation(segment[6:])
                if marker == 0xDA:
                    break
        case "PNG":
            for name, start, end in png_chunks(data):
                if name == b"eXIf" and sum_is_right(data, start, end):
                    return exif_orientation(data[start + 8 : end - 4])
                if name == b"IDAT":
                    break
        case "AVIF":
            return orientation_in(image)
    return 1


def orientation_in(image: Image.Image) -> int:
    """Return how a loaded PIL image is to be turned, by the EXIF block in it; 1 for formats that EXIF does not turn."""
    block = image.info.get("exif")
    if image.format not in ("JPEG", "MPO", "PNG", "AVIF", None) or not isinstance(block, bytes):
        return 1
    if image.format == "AVIF":  # Pillow has put in what irot and imir say, over what the block itself said
        exif = Image.Exif()
        exif.load(block)
        value = exif.get(ExifTags.Base.Orientation)
        return value if value in TURNS else 1
    return exif_orientation(block.removeprefix(_EXIF))


def ignored_turn(image: Image.Image, orientation: int) -> tuple[str, ...]:
    """Return a note where the file names another turn in a place that does not count."""
    packet, block = image.info.get("xmp"), image.info.get("exif")
    found = _XMP_TURN.search(packet) if isinstance(packet, bytes) else None
    named = {"XMP": int(found[1]) if found else 1}
    if isinstance(block, bytes):
        named["EXIF"] = exif_orientation(block.removeprefix(_EXIF))
    for place, value in named.items():
        if value not in (1, orientation) and image.format != "HEIF":
            return (
                f"Its {place} names the orientation {value}, in a place where browsers do not look for it; "
                "the picture was not turned by it.",
            )
    return ()


def to_upright(array: NDArray[Any], orientation: int) -> NDArray[Any]:
    """Turn a stored (H, W, …) array as its EXIF orientation (1-8) says; return a view."""
    if orientation >= 5:
        array = array.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        array = array[::-1]
    if orientation in (2, 3, 6, 7):
        array = array[:, ::-1]
    return array


def to_stored(array: NDArray[Any], orientation: int) -> NDArray[Any]:
    """Turn an upright (H, W, …) array to lie as in a file of this EXIF orientation (1-8); return a view."""
    return to_upright(array, {6: 8, 8: 6}.get(orientation, orientation))
