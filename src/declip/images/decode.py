"""Open and decode the bytes of a picture file with Pillow's plugins; every failure becomes an ImageError.

- Damaged pictures are refused, also where Pillow would fill the missing part with grey: see `damage`. What is damaged
  beside the picture (text, EXIF, profiles) is left out and noted: see `repair`.
- Raw photos are refused: what lies first in them is a small preview. See `tiff.raw_photo`.

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
from declip.images import damage, depth, pages, repair
from declip.images.arrays import from_image
from declip.images.containers import Format, kind_of
from declip.images.orientation import TURNS, ignored_turn, orientation_of, xmp_hidden
from declip.images.tiff import raw_photo
from declip.process import PerProcess

__all__ = [
    "File",
    "check_pixels",
    "decode_file",
    "decoding",
    "format_of",
    "load",
    "open_header",
    "read_header",
    "seek",
]

MORE_PIXELS = "--max-megapixels or max_pixels raises the limit"
_DAMAGED = "the picture is truncated or damaged"

_PLUGINS: dict[Format, Callable[[io.BytesIO], Image.Image]] = {
    "JPEG": JpegImagePlugin.JpegImageFile,
    "PNG": PngImagePlugin.PngImageFile,
    "WebP": WebPImagePlugin.WebPImageFile,
    "TIFF": TiffImagePlugin.TiffImageFile,
    "BMP": BmpImagePlugin.BmpImageFile,
    "GIF": GifImagePlugin.GifImageFile,
    "AVIF": AvifImagePlugin.AvifImageFile,
}

_LARGE = PerProcess(threading.Lock)


class File(NamedTuple):
    """A picture file as it came. frame: which of its pictures is meant, as Pillow counts them, from 0."""

    data: bytes
    kind: Format
    name: str
    max_pixels: int
    frame: int = 0


class _Upright(NamedTuple):
    """A decoded picture. orientation: what was undone; highest: its largest value if 16 bits were taken as such."""

    image: Image.Image
    orientation: int
    highest: int


def format_of(data: bytes, name: str) -> Format:
    """Return what a file is, by its first bytes. Raise ImageError for a raw photo and for anything else."""
    if not data:
        raise ImageError(name, "corrupt", "the file is empty (0 bytes)")
    if raw := raw_photo(data):
        raise ImageError(name, "format", raw)
    kind = kind_of(data)
    if kind is None:
        raise ImageError(
            name,
            "format",
            f"not a picture declip reads: it begins with {data[:12]!r}; "
            "expected JPEG, PNG, WebP, TIFF, BMP, GIF, AVIF or HEIC",
        )
    return kind


def check_pixels(height: int, width: int, name: str, max_pixels: int) -> None:
    """Raise ImageError for a picture of more pixels."""
    if height * width > max_pixels:
        raise ImageError(
            name,
            "too-large",
            f"the picture has {height}×{width} pixels; at most {max_pixels} are read ({MORE_PIXELS})",
        )


def read_header(data: bytes, name: str) -> Image.Image:
    """Open a picture file's bytes with Pillow, for its format, EXIF and other metadata; pixels are not decoded.

    name: for messages. Raises ImageError of kind "format" or "corrupt" as `read.read_photo`; whether the pixels can be
    decoded is not looked at.
    """
    return open_header(File(data, format_of(data, name), name, sys.maxsize))


def open_header(file: File) -> Image.Image:
    """Open a picture file, also where what it says beside its picture is damaged; nothing is decoded."""
    data, kind = file.data, file.kind
    cleaned = repair.without_damaged_chunks(data)[0] if kind == "PNG" else data
    try:
        return _open(cleaned, file)
    except ImageError as error:
        bare = repair.bare(cleaned, kind) if error.kind == "corrupt" else None
        if bare is None:
            raise
    return _open(bare, file)


def decode_file(file: File) -> tuple[NDArray[np.uint8], int, tuple[str, ...]]:
    """Decode a file → (upright (H, W, 3) pixels, the orientation that was undone, notes)."""
    data, kind = file.data, file.kind
    notes: tuple[str, ...] = ()
    cleaned, ended = data, True
    if kind == "PNG":
        cleaned, notes = repair.without_damaged_chunks(data)
    elif kind == "JPEG":
        cleaned = damage.closed(data) or data
        ended = cleaned is data
    try:
        pixels, orientation, more = _decoded(file, cleaned, thorough=not ended)
    except ImageError as error:
        # A decoder failed, perhaps over what is not the picture. (Where `damage` found a fault, there is no cause.)
        failed = error.kind == "corrupt" and error.__cause__ is not None
        bare = repair.bare(cleaned, kind) if failed else None
        if bare is None:
            raise
        try:
            pixels, orientation, more = _decoded(file, bare, thorough=not ended)
        except ImageError:
            raise error from None
        notes += (f"What this {kind} says beside its picture (as EXIF, text or profile) is damaged; it was not read.",)
    if not ended:
        notes += ("The file ends without its end marker; every pixel was there.",)
    return pixels, orientation, (*notes, *more)


def _decoded(file: File, cleaned: bytes, *, thorough: bool) -> tuple[NDArray[np.uint8], int, tuple[str, ...]]:
    """Decode a file as `decode_file`, once.

    cleaned: what the decoder is given, without side data that it stumbles over. What turns the picture, and how deep it
    is, stands in the file as it came. thorough: see `damage.jpeg_tail_fault`.
    """
    data, kind, name, max_pixels, frame = file
    image = _open(cleaned, file)
    seek(image, frame, name)
    check_pixels(image.height, image.width, name, max_pixels)
    fault = damage.fault(cleaned, kind) if kind != "TIFF" else damage.tiff_fault(image)
    if fault is None:
        declared = depth.significant_bits(data, kind)
        tiles = list(getattr(image, "tile", []))
        upright = load(image, name, lambda: orientation_of(data, kind, image), declared)
        if not frame and depth.is_nearly_black(upright.image, tiles):
            deep, highest = depth.deep_colour(image, _open(cleaned, file), declared)
            turned = deep if kind == "TIFF" else _turned(deep, upright.orientation)
            upright = upright._replace(image=turned, highest=highest)
        if kind == "JPEG":
            fault = damage.jpeg_tail_fault(cleaned, image, thorough=thorough)
    if fault is not None:
        raise ImageError(name, "corrupt", f"this {kind} is truncated or damaged: {fault}")
    notes = (
        *ignored_turn(image, upright.orientation),
        *depth.depth_note(upright.highest),
        *pages.transparency(image),
    )
    return from_image(upright.image), upright.orientation, notes


def load(image: Image.Image, name: str, turn: Callable[[], int], declared: int = 16) -> _Upright:
    """Decode an opened image, which itself keeps its pixels and its mode.

    turn: gives the orientation once the image is loaded. declared: the bits of 16 that the file says it uses.
    """
    with decoding(image.width * image.height, name, _DAMAGED):
        if isinstance(image, TiffImagePlugin.TiffImageFile):
            # Pillow turns a TIFF while it loads it, by XMP if there is no tag, and then forgets the tag.
            value = image.tag_v2.get(ExifTags.Base.Orientation)
            orientation = value if value in TURNS else 1
            with xmp_hidden(image):
                image.load()
            rgb, highest = depth.to_rgb(image, name, declared)
            return _Upright(rgb, orientation, highest)
        image.load()
        orientation = turn()
        rgb, highest = depth.to_rgb(image, name, declared)
        return _Upright(_turned(rgb, orientation), orientation, highest)


def _turned(image: Image.Image, orientation: int) -> Image.Image:
    return image.transpose(TURNS[orientation]) if orientation in TURNS else image


def seek(image: Image.Image, frame: int, name: str) -> None:
    """Turn an opened image to one of its frames, from 0."""
    if frame != image.tell():
        with decoding(image.width * image.height, name, f"picture {frame + 1} of the file is damaged"):
            image.seek(frame)


def _open(data: bytes, file: File) -> Image.Image:
    """Read the header only. Plugins are called directly: `Image.open` warns or fails at a size limit of its own.

    data: the bytes of the file, perhaps repaired.
    """
    declared = 0
    if file.kind == "GIF" and len(data) >= 10:  # the one plugin that meets Pillow's limit while it opens
        width, height = (int.from_bytes(data[at : at + 2], "little") for at in (6, 8))
        check_pixels(height, width, file.name, file.max_pixels)
        declared = width * height
    if file.kind == "AVIF" and not AvifImagePlugin.SUPPORTED:
        raise ImageError(file.name, "format", "this Pillow was built without AVIF: pip install -U pillow")
    plugin = _heic_plugin(file.name) if file.kind == "HEIC" else _PLUGINS[file.kind]
    words = f"the header of this {file.kind} is damaged, or of a kind Pillow does not read"
    with decoding(declared, file.name, words):
        return plugin(io.BytesIO(data))


def _heic_plugin(name: str) -> Callable[[io.BytesIO], Image.Image]:
    try:
        import pillow_heif
    except ImportError as error:
        raise ImageError(
            name, "format", "HEIC pictures need the package pillow-heif: pip install 'declip[heif]'"
        ) from error
    plugin: Any = pillow_heif.HeifImageFile
    return plugin  # type: ignore[no-any-return]


@contextmanager
def decoding(pixels: int, name: str, words: str) -> Iterator[None]:
    """Turn whatever a decoder raises into an ImageError of kind "corrupt".

    pixels: of the picture; Pillow's own limit on them, which is global, is lifted meanwhile, for one picture at a time.
    words: what is wrong with the file if the decoder fails. Out of memory stays MemoryError.
    """
    try:
        with _pillow_allows(pixels):
            yield
    except Image.DecompressionBombError as error:
        raise ImageError(name, "too-large", f"Pillow refuses it (PIL.Image.MAX_IMAGE_PIXELS): {error}") from error
    except (ImageError, MemoryError):
        raise
    except Exception as error:  # decoders raise a dozen types, from struct.error to TypeError, for damaged files
        raise ImageError(name, "corrupt", f"{words}: {str(error) or type(error).__name__}") from error


@contextmanager
def _pillow_allows(pixels: int) -> Iterator[None]:
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
