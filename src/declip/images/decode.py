"""Open and decode the bytes of a picture file with Pillow's plugins; every failure becomes an ImageError.

- Damaged pictures are refused, also where Pillow would fill the missing part with grey: see `damage`. What is damaged
  beside the picture (text, EXIF, profiles) is left out and noted: see `repair`.
- Raw photos are refused: what lies first in them is a small preview. See `containers.raw_photo`.

Everything here is thread-safe.
"""

from __future__ import annotations

import io
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

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
from declip.images import damage, depth, repair
from declip.images.arrays import from_image
from declip.images.containers import Format, kind_of, raw_photo
from declip.images.orientation import TURNS, ignored_turn, orientation_of
from declip.process import PerProcess

__all__ = ["File", "check_pixels", "decode_file", "decoding", "file_of", "load", "open_header", "read_header", "seek"]

MORE_PIXELS = "--max-megapixels or max_pixels raises the limit"

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
_T = TypeVar("_T")


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


def file_of(data: bytes, name: str, max_pixels: int = sys.maxsize) -> File:
    """Tell what a file is, by its first bytes. Raise ImageError for a raw photo and for what is no picture."""
    if not data:
        raise ImageError(name, "corrupt", "the file is empty (0 bytes)")
    kind = kind_of(data)
    if kind in ("TIFF", None) and (raw := raw_photo(data)):
        raise ImageError(name, "format", raw)
    if kind is None:
        expected = "expected JPEG, PNG, WebP, TIFF, BMP, GIF, AVIF or HEIC"
        raise ImageError(name, "format", f"not a picture declip reads: it begins with {data[:12]!r}; {expected}")
    return File(data, kind, name, max_pixels)


def check_pixels(height: int, width: int, name: str, max_pixels: int) -> None:
    """Raise ImageError for a picture of more pixels."""
    if height * width > max_pixels:
        limit = f"at most {max_pixels} are read ({MORE_PIXELS})"
        raise ImageError(name, "too-large", f"the picture has {height}×{width} pixels; {limit}")


def read_header(data: bytes, name: str) -> Image.Image:
    """Open a picture file's bytes with Pillow, for its format, EXIF and other metadata; pixels are not decoded.

    name: for messages. Raises ImageError of kind "format" or "corrupt" as `read.read_photo`; whether the pixels can be
    decoded is not looked at.
    """
    return open_header(file_of(data, name))


def open_header(file: File) -> Image.Image:
    """Open a picture file, also where what it says beside its picture is damaged; nothing is decoded."""
    cleaned = repair.without_damaged_chunks(file.data)[0] if file.kind == "PNG" else file.data
    image, _ = _with_or_without_side_data(file.kind, cleaned, lambda data: _open(data, file))
    return image


def decode_file(file: File) -> tuple[NDArray[np.uint8], int, tuple[str, ...]]:
    """Decode a file → (upright (H, W, 3) pixels, the orientation that was undone, notes)."""
    data, kind = file.data, file.kind
    cleaned, ended = data, True
    notes: tuple[str, ...] = ()
    if kind == "PNG":
        cleaned, notes = repair.without_damaged_chunks(data)
    elif kind == "JPEG":
        cleaned = damage.closed(data) or data
        ended = cleaned is data
    (upright, more), is_bare = _with_or_without_side_data(
        kind, cleaned, lambda data: _decoded(file, data, thorough=not ended)
    )
    if is_bare:
        notes += (f"What this {kind} says beside its picture (as EXIF, text or profile) is damaged; it was not read.",)
    if not ended:
        notes += ("The file ends without its end marker; every pixel was there.",)
    return from_image(upright.image), upright.orientation, (*notes, *more)


def _with_or_without_side_data(kind: Format, data: bytes, read: Callable[[bytes], _T]) -> tuple[_T, bool]:
    """Return read(data), False; or, if a decoder fails, what comes of the file without its side data, True."""
    try:
        return read(data), False
    except ImageError as error:
        # Where `damage` found a fault there is no cause, and the picture itself is damaged.
        failed = error.kind == "corrupt" and error.__cause__ is not None
        bare = repair.bare(data, kind) if failed else None
        if bare is None:
            raise
        try:
            return read(bare), True
        except ImageError:
            raise error from None


def _decoded(file: File, cleaned: bytes, *, thorough: bool) -> tuple[_Upright, tuple[str, ...]]:
    """Decode a file once → (the picture, notes on how it was read).

    cleaned: what the decoder is given, without side data that it stumbles over. What turns the picture, and how deep it
    is, stands in the file as it came. thorough: see `damage.jpeg_tail_fault`.
    """
    data, kind, name, max_pixels, frame = file
    image = _open(cleaned, file)
    seek(image, frame, name)
    check_pixels(image.height, image.width, name, max_pixels)
    fault = damage.fault(cleaned, kind, image)
    if fault is None:
        declared = depth.significant_bits(data, kind)
        reopen = None if frame else (lambda: _open(cleaned, file))
        upright = load(image, name, lambda: orientation_of(data, kind, image), declared, reopen)
        if kind == "JPEG":
            fault = damage.jpeg_tail_fault(cleaned, image, thorough=thorough)
    if fault is not None:
        raise ImageError(name, "corrupt", f"this {kind} is truncated or damaged: {fault}")
    turn_note, depth_note = ignored_turn(image, upright.orientation), depth.depth_note(upright.highest)
    return upright, (*turn_note, *depth_note, *depth.transparency_note(image))


def load(
    image: Image.Image,
    name: str,
    turn: Callable[[], int],
    declared: int = 16,
    reopen: Callable[[], Image.Image] | None = None,
) -> _Upright:
    """Decode an opened image, which itself keeps its pixels and its mode.

    turn: gives the orientation once the image is loaded. declared: the bits of 16 that the file says it uses. reopen:
    opens the file anew, to read 16-bit colour in full depth where that is needed.
    """
    with decoding(image.width * image.height, name, "the picture is truncated or damaged"):
        # Pillow turns a TIFF while it loads it, by XMP if there is no tag, and then forgets the tag.
        is_tiff = isinstance(image, TiffImagePlugin.TiffImageFile)
        tags: Any = getattr(image, "tag_v2", {})
        tag = tags.get(ExifTags.Base.Orientation)
        tiles = list(getattr(image, "tile", []))
        with depth.xmp_hidden(image):
            image.load()
        orientation = (tag if tag in TURNS else 1) if is_tiff else turn()
        rgb, highest = depth.to_rgb(image, name, declared)
        if reopen is not None and depth.is_nearly_black(rgb, tiles):
            rgb, highest = depth.deep_colour(image, reopen(), declared)
        turned = rgb if is_tiff or orientation not in TURNS else rgb.transpose(TURNS[orientation])
        return _Upright(turned, orientation, highest)


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
        message = "HEIC pictures need the package pillow-heif: pip install 'declip[heif]'"
        raise ImageError(name, "format", message) from error
    plugin: Any = pillow_heif.HeifImageFile
    return plugin  # type: ignore[no-any-return]


@contextmanager
def decoding(pixels: int, name: str, words: str) -> Iterator[None]:
    """Turn whatever a decoder raises into an ImageError of kind "corrupt".

    pixels: of the picture; Pillow's own limit on them, which is global, is lifted meanwhile, for one picture at a time.
    words: what is wrong with the file if the decoder fails. Out of memory stays MemoryError.
    """
    limit = Image.MAX_IMAGE_PIXELS
    try:
        if limit is None or pixels <= limit:
            yield
        else:
            with _LARGE():
                limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
                try:
                    yield
                finally:
                    Image.MAX_IMAGE_PIXELS = limit
    except Image.DecompressionBombError as error:
        raise ImageError(name, "too-large", f"Pillow refuses it (PIL.Image.MAX_IMAGE_PIXELS): {error}") from error
    except (ImageError, MemoryError):
        raise
    except Exception as error:  # decoders raise a dozen types, from struct.error to TypeError, for damaged files
        raise ImageError(name, "corrupt", f"{words}: {str(error) or type(error).__name__}") from error
