"""Open and decode the bytes of a picture file with Pillow's plugins; every failure becomes an ImageError.

- Damaged pictures are refused, also where Pillow would fill the missing part with grey; damage beside the picture
  (text, EXIF, profiles) is only told: see `damage`.
- Raw photos are refused: what lies first in them is a small preview. See `containers.raw_photo`.

Everything here is thread-safe.
"""

from __future__ import annotations

import io
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    ExifTags,
    GifImagePlugin,
    Image,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from declip.errors import ImageError
from declip.images import arrays, containers, damage, pages
from declip.images.arrays import from_image
from declip.images.containers import Format
from declip.images.orientation import TURNS, ignored_turn, orientation_of, xmp_hidden
from declip.images.rgb import deep_colour, is_nearly_black, to_rgb
from declip.process import PerProcess

MORE_PIXELS = "--max-megapixels or max_pixels raises the limit"

_LARGE = PerProcess(threading.Lock)


def format_of(data: bytes, name: str) -> Format:
    """What the file is, by its first bytes; raw photos are refused by them."""
    if not data:
        raise ImageError(name, "corrupt", "the file is empty (0 bytes)")
    raw = containers.raw_photo(data)
    if raw is not None:
        raise ImageError(name, "format", raw)
    kind = containers.kind_of(data)
    if kind is None:
        raise ImageError(
            name,
            "format",
            f"not a picture declip reads: it begins with {data[:12]!r}; "
            "expected JPEG, PNG, WebP, TIFF, BMP, GIF, AVIF or HEIC",
        )
    return kind


def open_image(data: bytes, kind: Format, name: str, max_pixels: int) -> Image.Image:
    """Read the header only. Plugins are called directly: `Image.open` warns or fails at a size limit of its own."""
    stream = io.BytesIO(data)
    declared = 0
    if kind == "GIF" and len(data) >= 10:  # the one plugin that meets Pillow's limit while it opens
        declared = int.from_bytes(data[6:8], "little") * int.from_bytes(data[8:10], "little")
        if declared > max_pixels:
            raise ImageError(
                name,
                "too-large",
                f"the picture has {declared} pixels; at most {max_pixels} are read ({MORE_PIXELS})",
            )
    try:
        with pillow_allows(declared):
            match kind:
                case "JPEG":
                    return JpegImagePlugin.JpegImageFile(stream)
                case "PNG":
                    return PngImagePlugin.PngImageFile(stream)
                case "WebP":
                    return WebPImagePlugin.WebPImageFile(stream)
                case "TIFF":
                    return TiffImagePlugin.TiffImageFile(stream)
                case "BMP":
                    return BmpImagePlugin.BmpImageFile(stream)
                case "GIF":
                    return GifImagePlugin.GifImageFile(stream)
                case "AVIF":
                    if not AvifImagePlugin.SUPPORTED:
                        raise ImageError(name, "format", "this Pillow was built without AVIF: pip install -U pillow")
                    return AvifImagePlugin.AvifImageFile(stream)
                case "HEIC":
                    return _open_heic(stream, name)
    except Image.DecompressionBombError as error:
        raise ImageError(name, "too-large", f"Pillow refuses it (PIL.Image.MAX_IMAGE_PIXELS): {error}") from error
    except (ImageError, MemoryError):
        raise
    except Exception as error:  # decoders raise a dozen types, from struct.error to TypeError, for damaged headers
        raise ImageError(
            name, "corrupt", f"the header of this {kind} is damaged, or of a kind Pillow does not read: {cause(error)}"
        ) from error


def _open_heic(stream: io.BytesIO, name: str) -> Image.Image:
    try:
        import pillow_heif
    except ImportError as error:
        raise ImageError(
            name, "format", "HEIC pictures need the package pillow-heif: pip install 'declip[heif]'"
        ) from error
    plugin: Any = pillow_heif.HeifImageFile
    image: Image.Image = plugin(stream)
    return image


def read_header(data: bytes, name: str) -> Image.Image:
    """A picture file's bytes opened by Pillow, pixels not decoded: for its format, EXIF and other metadata.

    name: for messages. Raises ImageError of kind "format" or "corrupt" as `read.read_photo`; whether the pixels can be
    decoded is not looked at.
    """
    return open_header(data, format_of(data, name), name, sys.maxsize)


def open_header(data: bytes, kind: Format, name: str, max_pixels: int) -> Image.Image:
    """Open a picture file, also where what it says beside its picture is damaged; nothing is decoded."""
    cleaned, _ = damage.without_damaged_chunks(data) if kind == "PNG" else (data, ())
    try:
        return open_image(cleaned, kind, name, max_pixels)
    except ImageError as error:
        bare = damage.bare(cleaned, kind) if error.kind == "corrupt" else None
        if bare is None:
            raise
    return open_image(bare, kind, name, max_pixels)


def seek(image: Image.Image, frame: int, name: str) -> None:
    """Turn an opened image to one of its frames, from 0."""
    if frame == image.tell():
        return
    try:
        with pillow_allows(image.width * image.height):
            image.seek(frame)
    except MemoryError:
        raise
    except Exception as error:  # see open_image
        raise ImageError(name, "corrupt", f"picture {frame + 1} of the file is damaged: {cause(error)}") from error


def check_pixels(image: Image.Image, name: str, max_pixels: int) -> None:
    """Raise ImageError for an opened picture of more pixels."""
    if image.width * image.height > max_pixels:
        raise ImageError(
            name,
            "too-large",
            f"the picture has {image.height}×{image.width} pixels; at most {max_pixels} are read ({MORE_PIXELS})",
        )


class File(NamedTuple):
    """A file as it came. frame: which of its pictures is meant, as Pillow counts them, from 0."""

    data: bytes
    kind: Format
    name: str
    max_pixels: int
    frame: int


class _Upright(NamedTuple):
    upright: Image.Image
    orientation: int
    notes: tuple[str, ...]


def decode_file(file: File) -> tuple[NDArray[np.uint8], int, tuple[str, ...]]:
    """A file → (upright (H, W, 3) pixels, the orientation that was undone, notes)."""
    data, kind = file.data, file.kind
    notes: tuple[str, ...] = ()
    cleaned, ended = data, True
    if kind == "PNG":
        cleaned, notes = damage.without_damaged_chunks(data)
    elif kind == "JPEG":
        cleaned = damage.closed(data) or data
        ended = cleaned is data
    try:
        decoded = _decoded(file, cleaned, thorough=not ended)
    except ImageError as error:
        # A decoder failed, perhaps over what is not the picture. (Where `damage` found a fault, there is no cause.)
        failed = error.kind == "corrupt" and error.__cause__ is not None
        bare = damage.bare(cleaned, kind) if failed else None
        if bare is None:
            raise
        try:
            decoded = _decoded(file, bare, thorough=not ended)
        except ImageError:
            raise error from None
        notes += (f"What this {kind} says beside its picture (as EXIF, text or profile) is damaged; it was not read.",)
    if not ended:
        notes += ("The file ends without its end marker; every pixel was there.",)
    return from_image(decoded.upright), decoded.orientation, (*notes, *decoded.notes)


def _decoded(file: File, cleaned: bytes, *, thorough: bool) -> _Upright:
    """cleaned: what the decoder is given, without side data that it stumbles over. What turns the picture, and how deep
    it is, stands in the file as it came. thorough: see `damage.jpeg_tail_fault`.
    """
    data, kind, name, max_pixels, frame = file
    image = open_image(cleaned, kind, name, max_pixels)
    seek(image, frame, name)
    check_pixels(image, name, max_pixels)
    fault = damage.fault(cleaned, kind) if kind != "TIFF" else damage.tiff_fault(image)
    if fault is None:
        declared = containers.significant_bits(data, kind)
        tiles = list(getattr(image, "tile", []))
        upright, orientation, highest = load(image, name, lambda: orientation_of(data, kind, image), declared)
        if not frame and is_nearly_black(upright, tiles):
            upright, highest = deep_colour(image, open_image(cleaned, kind, name, max_pixels), declared)
            if kind != "TIFF" and orientation in TURNS:
                upright = upright.transpose(TURNS[orientation])
        if kind == "JPEG":
            fault = damage.jpeg_tail_fault(cleaned, image, thorough=thorough)
    if fault is not None:
        raise ImageError(name, "corrupt", f"this {kind} is truncated or damaged: {fault}")
    notes = (*ignored_turn(image, orientation), *arrays.depth_note(highest), *pages.transparency(image))
    return _Upright(upright, orientation, notes)


def load(image: Image.Image, name: str, turn: Callable[[], int], declared: int = 16) -> tuple[Image.Image, int, int]:
    """Decode an opened image → (upright RGB image, orientation, highest 16-bit value if 16 bits were taken as such).

    turn: gives the orientation once the image is loaded. declared: the bits of 16 that the file says it uses.
    The image itself keeps its pixels and its mode.
    """
    try:
        with pillow_allows(image.width * image.height):
            orientation = 1
            if isinstance(image, TiffImagePlugin.TiffImageFile):
                # Pillow turns a TIFF while it loads it, by XMP if there is no tag, and then forgets the tag.
                value = image.tag_v2.get(ExifTags.Base.Orientation)
                orientation = value if value in TURNS else 1
                with xmp_hidden(image):
                    image.load()
                upright, highest = to_rgb(image, name, declared)
            else:
                image.load()
                orientation = turn()
                upright, highest = to_rgb(image, name, declared)
                if orientation in TURNS:
                    upright = upright.transpose(TURNS[orientation])
    except Image.DecompressionBombError as error:
        raise ImageError(name, "too-large", f"Pillow refuses it (PIL.Image.MAX_IMAGE_PIXELS): {error}") from error
    except (ImageError, MemoryError):
        raise
    except Exception as error:  # see open_image
        raise ImageError(name, "corrupt", f"the picture is truncated or damaged: {cause(error)}") from error
    return upright, orientation, highest


def cause(error: Exception) -> str:
    """Return the words of an error, or its type where it has none."""
    return str(error) or type(error).__name__


@contextmanager
def pillow_allows(pixels: int) -> Iterator[None]:
    """Lift Pillow's own limit, which is global, for a picture within ours; one such picture at a time."""
    limit = Image.MAX_IMAGE_PIXELS
    if limit is None or pixels <= limit:
        yield
        return
    with _LARGE():
        limit = Image.MAX_IMAGE_PIXELS
        Image.MAX_IMAGE_PIXELS = None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = limit
