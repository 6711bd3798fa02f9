"""Find how a picture has to be turned to stand upright, and turn it.

A picture is turned, exactly once, as Chromium turns it (`image-orientation: from-image`), so that a map lies where it
belongs on the picture that a browser shows. XMP never turns a picture.

    JPEG        the tag Orientation in the first EXIF segment, if it is one SHORT of 1-8
    PNG         the same tag in the first eXIf chunk, if that comes before the picture
    AVIF        the boxes irot and imir; not its EXIF
    WebP        never, whatever its EXIF says
    BMP, GIF    never: they do not say
    TIFF        its tag Orientation; HEIC: as libheif turns it. Chromium shows neither
    PIL image   the EXIF block that Pillow keeps in it (WebP: never); of a TIFF, what Pillow does
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image

from declip.images import containers
from declip.images.containers import Format

__all__ = ["TURNS", "given_orientation", "ignored_turn", "orientation_of", "to_stored", "to_upright", "xmp_hidden"]


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

# Loading a PIL image changes it, and a caller may hand the same one to several threads.


def orientation_of(data: bytes, kind: Format, image: Image.Image) -> int:
    """How a browser turns the file, 1-8, beyond what its decoder here has done by itself (TIFF, HEIC)."""
    match kind:
        case "JPEG":
            return containers.jpeg_orientation(data)
        case "PNG":
            return containers.png_orientation(data)
        case "AVIF":
            return given_orientation(image)
        case _:
            return 1


def given_orientation(image: Image.Image) -> int:
    """Of a PIL image, by the EXIF block that Pillow keeps in it; of formats whose EXIF does not turn them, 1."""
    block = image.info.get("exif")
    if image.format not in ("JPEG", "MPO", "PNG", "AVIF", None) or not isinstance(block, bytes):
        return 1
    if image.format == "AVIF":  # Pillow has put in what irot and imir say, over what the block itself said
        exif = Image.Exif()
        exif.load(block)
        value = exif.get(ExifTags.Base.Orientation)
        return value if value in TURNS else 1
    return containers.exif_orientation(block.removeprefix(b"Exif\0\0"))


def ignored_turn(image: Image.Image, orientation: int) -> tuple[str, ...]:
    """A note where the file also names a turn in a place that does not count."""
    packet = image.info.get("xmp")
    found = _XMP_TURN.search(packet) if isinstance(packet, bytes) else None
    block = image.info.get("exif")
    named = {"XMP": int(found[1]) if found else 1}
    if isinstance(block, bytes):
        named["EXIF"] = containers.exif_orientation(block.removeprefix(b"Exif\0\0"))
    for place, value in named.items():
        if value not in (1, orientation) and image.format != "HEIF":
            return (
                f"Its {place} names the orientation {value}, in a place where browsers do not look for it; "
                "the picture was not turned by it.",
            )
    return ()


def to_stored(array: NDArray[Any], orientation: int) -> NDArray[Any]:
    """An upright (H, W, …) array as it lies in a file of this EXIF orientation (1-8): `to_upright` undone. A view."""
    match orientation:
        case 6:
            return to_upright(array, 8)
        case 8:
            return to_upright(array, 6)
    return to_upright(array, orientation)


def to_upright(array: NDArray[Any], orientation: int) -> NDArray[Any]:
    """A stored (H, W, …) array, turned as its EXIF orientation (1-8) says. A view."""
    match orientation:
        case 2:
            return array[:, ::-1]
        case 3:
            return array[::-1, ::-1]
        case 4:
            return array[::-1]
        case 5:
            return array.swapaxes(0, 1)
        case 6:
            return np.rot90(array, -1)
        case 7:
            return array[::-1, ::-1].swapaxes(0, 1)
        case 8:
            return np.rot90(array)
    return array


@contextmanager
def xmp_hidden(image: Image.Image) -> Iterator[None]:
    """Keep Pillow from turning a TIFF by its XMP while it is loaded."""
    packet = image.info.pop("xmp", None)
    try:
        yield
    finally:
        if packet is not None:
            image.info["xmp"] = packet
