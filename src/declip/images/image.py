"""Every pixel conversion of the project: pictures in, network inputs, scores out, overlays.

The way of a pixel is written here once. `read` gives upright (H, W, 3) uint8; `to_input` and `normalise` make what
a network sees; `to_scores` and `resize_scores` turn its logits into scores on the photo's own grid; `overlay`,
`write_scores` and `write_mask` show and keep them. Sizes are (height, width); Pillow's (width, height) stays inside.

What `read` does to a picture, beyond decoding it:
- A picture is turned, exactly once, as Chromium turns it (`image-orientation: from-image`), so that a map lies where it
  belongs on the picture that a browser shows. XMP never turns a picture.

      JPEG        the tag Orientation in the first EXIF segment, if it is one SHORT of 1-8
      PNG         the same tag in the first eXIf chunk, if that comes before the picture
      AVIF        the boxes irot and imir; not its EXIF
      WebP        never, whatever its EXIF says
      BMP, GIF    never: they do not say
      TIFF        its tag Orientation; HEIC: as libheif turns it. Chromium shows neither
      PIL image   the EXIF block that Pillow keeps in it (WebP: never); of a TIFF, what Pillow does

- Transparency is composited on white. This is the network's view only: `Photo.data` keeps the file as it was.
- 16-bit grey keeps its high byte, as Pillow does for 16-bit colour. Where the file says that only 9 to 15 bits are used
  and the values agree, those are scaled to the full range; where values only stay low, a note says so. Floats in files
  carry no scale of their own: see `arrays.float_grey8`.
- Colour profiles are not applied. Of several frames or pages one is read, and `Photo.notes` says so.
- CMYK JPEGs are read with Adobe's polarity (inverted), as every reader does.
- Damaged pictures are refused, also where Pillow would fill the missing part with grey; damage beside the picture
  (text, EXIF, profiles) is only told: see `damage`.
- Raw photos are refused: what lies first in them is a small preview. See `containers.raw_photo`.

Everything here is thread-safe.
"""

from __future__ import annotations

import io
import re
import stat
import struct
import sys
import threading
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    ExifTags,
    GifImagePlugin,
    Image,
    ImageChops,
    ImageFilter,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)
from scipy import special

from declip.errors import DatasetError, DeclipError, ImageError
from declip.files import local_path, write_atomic
from declip.images import arrays, containers, damage, pages
from declip.images.containers import Format
from declip.process import PerProcess
from declip.results import Localization, Photo, PictureLike, Sample
from declip.spec import ModelSpec

__all__ = [
    "EXTENSIONS",
    "MAX_BYTES",
    "MAX_PIXELS",
    "count_pages",
    "header",
    "mask_png",
    "normalise",
    "overlay",
    "overlay_png",
    "read",
    "read_mask",
    "read_scores",
    "resize_scores",
    "scores16",
    "scores_png",
    "squash",
    "stored",
    "to_input",
    "to_scores",
    "upright",
    "write_mask",
    "write_scores",
]

# The largest sensors of phones have 200 million pixels.
MAX_PIXELS = 250_000_000
MAX_BYTES = 200_000_000
_MORE_PIXELS = "--max-megapixels or max_pixels raises the limit"
_MORE_BYTES = "--max-megabytes or max_bytes raises the limit"

# Lower-case suffixes that count as pictures in a folder. What a file is, its first bytes tell, not its name.
EXTENSIONS = frozenset(
    {".avif", ".bmp", ".gif", ".heic", ".heif", ".jfif", ".jpe", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}
)

_XMP_TURN = re.compile(rb"tiff:Orientation(?:=[\"']|>)([2-8])")

# Rows are worked on in strips of about this many pixels: no copy of a large picture is held twice.
STRIP = 1 << 20

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# Loading a PIL image changes it, and a caller may hand the same one to several threads.
_GIVEN = PerProcess(threading.Lock)
_LARGE = PerProcess(threading.Lock)


# ── pictures in ─────────────────────────────────────────────────────────────────────────────────────────────────────


def read(
    source: PictureLike, *, max_pixels: int = MAX_PIXELS, max_bytes: int = MAX_BYTES, page: int | None = None
) -> Photo:
    """Decode a picture: the same picture gives the same pixels, however it comes.

    source: one of
        - a path, the file's bytes, or a file open for reading bytes (read from where it stands to its end).
          Formats: JPEG, PNG, WebP, TIFF, BMP, GIF, AVIF, and HEIC with `pip install 'declip[heif]'`.
        - a PIL image.
        - an array or torch tensor: (H, W, 3) RGB, (H, W, 4) RGBA, (H, W) or (H, W, 1) grey, or with the channels first;
          uint8, uint16 (white = 65535) or floats in [0, 1]. (3, H, 3) could be either, and is refused.
        - a Photo, which is returned as it is.
    max_pixels, max_bytes: larger pictures and files are refused before anything is decoded.
    page: which picture of a file that holds several, from 1; None = the first one, or the current frame of a PIL image.
        `Photo.pages` says how many there are, `Photo.notes` what else the file holds. A further picture of a JPEG is a
        JPEG of its own: `Photo.data` is then its part of the file.

    `Photo.notes` says what of the file was not read.

    Raises ImageError; `kind` is "missing" (no such file, or unreadable), "format" (not a picture, or one declip does
    not read, as raw photos), "corrupt" (empty, or the picture is truncated or damaged), "too-large", or "input" (not
    something that can be a picture, or a page that there is not).
    """
    match source:
        case Photo():
            if page not in (None, source.page):
                raise ImageError(source.name, "input", f"is picture {source.page}, decoded; read the file for another")
            return source
        case str() | Path():
            name = str(source)
            try:
                path = Path(local_path(name))
            except DeclipError as error:
                raise ImageError(name, "missing", str(error)) from error
            return _read_bytes(_file_bytes(path, name, max_bytes), name, max_pixels, page)
        case bytes() | bytearray() | memoryview():
            data = bytes(source)
            name = f"<{len(data)} bytes>"
            if len(data) > max_bytes:
                raise ImageError(name, "too-large", f"at most {max_bytes} bytes are read ({_MORE_BYTES})")
            return _read_bytes(data, name, max_pixels, page)
        case Image.Image():
            return _read_pil(source, max_pixels, page)
        case np.ndarray():
            name = f"<array, {source.dtype} {source.shape}>"
            _check_page(name, page, 1)
            return _read_array(source, name, max_pixels)
    if arrays.is_tensor(source):
        name = f"<tensor, {source.dtype} {tuple(source.shape)}>"
        _check_page(name, page, 1)
        return _read_array(arrays.from_tensor(source), name, max_pixels)
    if callable(getattr(source, "read", None)):
        return _read_stream(source, max_pixels, max_bytes, page)
    raise ImageError(
        f"<{type(source).__name__}>",
        "input",
        "expected a path, the bytes of a picture file, a file open for reading bytes, a PIL image, or an array or "
        "torch tensor (H, W, 3), (H, W, 4), (H, W) or (3, H, W)",
    )


def name_of(source: PictureLike) -> str:
    """What messages call a picture that could not be read: its path, or its type."""
    match source:
        case Photo():
            return source.name
        case str() | Path():
            return str(source)
    return f"<{type(source).__name__}>"


def header(data: bytes, name: str) -> Image.Image:
    """A picture file's bytes opened by Pillow, pixels not decoded: for its format, EXIF and other metadata.

    name: for messages. Raises ImageError of kind "format" or "corrupt" as `read`; whether the pixels can be decoded
    is not looked at.
    """
    return _header(data, _format_of(data, name), name, sys.maxsize)


def _header(data: bytes, kind: Format, name: str, max_pixels: int) -> Image.Image:
    cleaned, _ = damage.without_damaged_chunks(data) if kind == "PNG" else (data, ())
    try:
        return _open(cleaned, kind, name, max_pixels)
    except ImageError as error:
        bare = damage.bare(cleaned, kind) if error.kind == "corrupt" else None
        if bare is None:
            raise
    return _open(bare, kind, name, max_pixels)


def count_pages(path: str | Path, *, max_bytes: int = MAX_BYTES) -> int:
    """How many pictures a file holds that `read` can be asked for; none of them is decoded. Raises ImageError."""
    name = str(path)
    data = _file_bytes(Path(path), name, max_bytes)
    return _held(data, _format_of(data, name), name, sys.maxsize).pages


def _held(data: bytes, kind: Format, name: str, max_pixels: int) -> pages.Held:
    end = len(data)
    if kind == "JPEG":
        end = next((at for marker, at, _ in containers.jpeg_segments(data) if marker == 0xD9), end)
    return pages.held(data, kind, _header(data, kind, name, max_pixels), end)


def _file_bytes(path: Path, name: str, max_bytes: int) -> bytes:
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise ImageError(name, "input", "is a folder; expected a picture file")
        if not stat.S_ISREG(status.st_mode):
            raise ImageError(name, "input", "is not a regular file; expected a picture file")
        if status.st_size > max_bytes:
            raise ImageError(
                name,
                "too-large",
                f"the file has {status.st_size} bytes; at most {max_bytes} are read ({_MORE_BYTES})",
            )
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ImageError(name, "missing", "there is no such file") from error
    except OSError as error:
        raise ImageError(name, "missing", f"the file cannot be opened: {error.strerror}") from error
    except ValueError as error:  # a NUL in the name
        raise ImageError(name, "missing", f"this cannot be the name of a file: {error}") from error


def _read_stream(source: Any, max_pixels: int, max_bytes: int, page: int | None) -> Photo:
    """Of a file that the caller opened, and closes."""
    name = getattr(source, "name", None)
    name = name if isinstance(name, str) else f"<{type(source).__name__}>"
    try:
        data = source.read(max_bytes + 1)
    except (OSError, ValueError) as error:  # ValueError: it is closed
        raise ImageError(name, "missing", f"the open file cannot be read: {error}") from error
    if not isinstance(data, bytes | bytearray | memoryview):
        raise ImageError(
            name, "input", f'reading gave {type(data).__name__}; expected bytes: open it as a binary file, with "rb"'
        )
    if len(data) > max_bytes:
        raise ImageError(name, "too-large", f"at most {max_bytes} bytes are read ({_MORE_BYTES})")
    if not data:
        raise ImageError(name, "corrupt", "there is nothing left to read in the open file: seek(0) goes to its start")
    return _read_bytes(bytes(data), name, max_pixels, page)


def _read_bytes(data: bytes, name: str, max_pixels: int, page: int | None) -> Photo:
    kind = _format_of(data, name)
    held = _held(data, kind, name, max_pixels)
    page = _check_page(name, page, held.pages)
    frame = held.frames[page - 1]
    start, stop = held.parts[page - 1]
    data = part = data[start:stop]
    if kind == "TIFF" and frame:
        part, frame = containers.tiff_from(data, frame), 0
    pixels, orientation, notes = _decode(_File(part, kind, name, max_pixels, frame))
    return Photo(
        pixels=pixels,
        name=name,
        data=data,
        orientation=orientation,
        pages=held.pages,
        page=page,
        notes=held.notes_on(page) + notes,
    )


def _check_page(name: str, page: int | None, count: int) -> int:
    """The page, from 1. Raises ImageError for one that there is not."""
    page = 1 if page is None else page
    if not 1 <= page <= count:
        there = f"there are {count} of them" if count > 1 else "there is 1"
        raise ImageError(name, "input", f"got picture {page} of the file; {there}, counted from 1")
    return page


def _read_pil(image: Image.Image, max_pixels: int, page: int | None) -> Photo:
    name = str(getattr(image, "filename", "")) or f"<PIL image, {image.mode} {image.height}×{image.width}>"
    with _GIVEN():
        there = image.tell()
        held = pages.held(b"", "", image, 0)
        held = held._replace(pages=max(held.pages, there + 1))  # where it is there is a picture
        page = _check_page(name, there + 1 if page is None else page, held.pages)
        try:
            _seek(image, page - 1, name)
            _check_pixels(image, name, max_pixels)
            _refuse_previews(image, name)
            upright, orientation, highest = _load(image, name, lambda: _given_orientation(image))
            if page - 1 != there:  # the image is about to be turned back
                upright = upright.copy()
            notes = held.notes_on(page) + arrays.depth_note(highest) + pages.transparency(image)
        finally:
            _seek(image, there, name)
    return Photo(
        pixels=_to_array(upright), name=name, orientation=orientation, pages=held.pages, page=page, notes=notes
    )


def _refuse_previews(image: Image.Image, name: str) -> None:
    """Raise ImageError for the first picture of a TIFF that a raw photo begins with; as `containers.raw_photo`."""
    if not isinstance(image, TiffImagePlugin.TiffImageFile) or image.tell() != 0:
        return
    tags: Any = image.tag_v2
    reduced = tags.get(254, 0)
    if 50706 in tags or (isinstance(reduced, int) and reduced & 1):  # a version of DNG, a reduced picture
        raise ImageError(name, "format", "a raw photo or the preview in front of one: develop it to TIFF or JPEG first")


def _given_orientation(image: Image.Image) -> int:
    """Of a PIL image, by the EXIF block that Pillow keeps in it; of formats whose EXIF does not turn them, 1."""
    block = image.info.get("exif")
    if image.format not in ("JPEG", "MPO", "PNG", "AVIF", None) or not isinstance(block, bytes):
        return 1
    if image.format == "AVIF":  # Pillow has put in what irot and imir say, over what the block itself said
        exif = Image.Exif()
        exif.load(block)
        value = exif.get(ExifTags.Base.Orientation)
        return value if value in _UPRIGHT else 1
    return containers.exif_orientation(block.removeprefix(b"Exif\0\0"))


def _read_array(array: NDArray[Any], name: str, max_pixels: int) -> Photo:
    height, width, _ = arrays.shape_of(array, name)
    if height * width > max_pixels:
        raise ImageError(name, "too-large", f"at most {max_pixels} pixels are read ({_MORE_PIXELS})")
    pixels, notes = arrays.to_rgb(array, name)
    return Photo(pixels=pixels, name=name, notes=notes)


def _decode(file: _File) -> tuple[NDArray[np.uint8], int, tuple[str, ...]]:
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
        decoded = _decode_file(file, cleaned, thorough=not ended)
    except ImageError as error:
        # A decoder failed, perhaps over what is not the picture. (Where `damage` found a fault, there is no cause.)
        failed = error.kind == "corrupt" and error.__cause__ is not None
        bare = damage.bare(cleaned, kind) if failed else None
        if bare is None:
            raise
        try:
            decoded = _decode_file(file, bare, thorough=not ended)
        except ImageError:
            raise error from None
        notes += (f"What this {kind} says beside its picture (as EXIF, text or profile) is damaged; it was not read.",)
    if not ended:
        notes += ("The file ends without its end marker; every pixel was there.",)
    return _to_array(decoded.upright), decoded.orientation, (*notes, *decoded.notes)


class _File(NamedTuple):
    """A file as it came. frame: which of its pictures is meant, as Pillow counts them, from 0."""

    data: bytes
    kind: Format
    name: str
    max_pixels: int
    frame: int


class _Decoded(NamedTuple):
    upright: Image.Image
    orientation: int
    notes: tuple[str, ...]


def _decode_file(file: _File, cleaned: bytes, *, thorough: bool) -> _Decoded:
    """cleaned: what the decoder is given, without side data that it stumbles over. What turns the picture, and how deep
    it is, stands in the file as it came. thorough: see `damage.jpeg_tail_fault`.
    """
    data, kind, name, max_pixels, frame = file
    image = _open(cleaned, kind, name, max_pixels)
    _seek(image, frame, name)
    _check_pixels(image, name, max_pixels)
    fault = damage.fault(cleaned, kind) if kind != "TIFF" else damage.tiff_fault(image)
    if fault is None:
        declared = containers.significant_bits(data, kind)
        tiles = list(getattr(image, "tile", []))
        upright, orientation, highest = _load(image, name, lambda: _orientation(data, kind, image), declared)
        if not frame and _rawmode(tiles) in _OTHER_BYTES and _highest(upright) <= 15:
            upright, highest = _deep_colour(image, _open(cleaned, kind, name, max_pixels), declared)
            if kind != "TIFF" and orientation in _UPRIGHT:
                upright = upright.transpose(_UPRIGHT[orientation])
        if kind == "JPEG":
            fault = damage.jpeg_tail_fault(cleaned, image, thorough=thorough)
    if fault is not None:
        raise ImageError(name, "corrupt", f"this {kind} is truncated or damaged: {fault}")
    notes = (*_ignored_turn(image, orientation), *arrays.depth_note(highest), *pages.transparency(image))
    return _Decoded(upright, orientation, notes)


def _orientation(data: bytes, kind: Format, image: Image.Image) -> int:
    """How a browser turns the file, 1-8, beyond what its decoder here has done by itself (TIFF, HEIC)."""
    match kind:
        case "JPEG":
            return containers.jpeg_orientation(data)
        case "PNG":
            return containers.png_orientation(data)
        case "AVIF":
            return _given_orientation(image)
        case _:
            return 1


def _ignored_turn(image: Image.Image, orientation: int) -> tuple[str, ...]:
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


def _seek(image: Image.Image, frame: int, name: str) -> None:
    """Turn an opened image to one of its frames, from 0."""
    if frame == image.tell():
        return
    try:
        with _pillow_allows(image.width * image.height):
            image.seek(frame)
    except MemoryError:
        raise
    except Exception as error:  # see _open
        raise ImageError(name, "corrupt", f"picture {frame + 1} of the file is damaged: {_cause(error)}") from error


def _check_pixels(image: Image.Image, name: str, max_pixels: int) -> None:
    if image.width * image.height > max_pixels:
        raise ImageError(
            name,
            "too-large",
            f"the picture has {image.height}×{image.width} pixels; at most {max_pixels} are read ({_MORE_PIXELS})",
        )


def _format_of(data: bytes, name: str) -> Format:
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


def _open(data: bytes, kind: Format, name: str, max_pixels: int) -> Image.Image:
    """Read the header only. Plugins are called directly: `Image.open` warns or fails at a size limit of its own."""
    stream = io.BytesIO(data)
    declared = 0
    if kind == "GIF" and len(data) >= 10:  # the one plugin that meets Pillow's limit while it opens
        declared = int.from_bytes(data[6:8], "little") * int.from_bytes(data[8:10], "little")
        if declared > max_pixels:
            raise ImageError(
                name,
                "too-large",
                f"the picture has {declared} pixels; at most {max_pixels} are read ({_MORE_PIXELS})",
            )
    try:
        with _pillow_allows(declared):
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
            name, "corrupt", f"the header of this {kind} is damaged, or of a kind Pillow does not read: {_cause(error)}"
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


def _load(image: Image.Image, name: str, turn: Callable[[], int], declared: int = 16) -> tuple[Image.Image, int, int]:
    """Decode an opened image → (upright RGB image, orientation, highest 16-bit value if 16 bits were taken as such).

    turn: gives the orientation once the image is loaded. declared: the bits of 16 that the file says it uses.
    The image itself keeps its pixels and its mode.
    """
    try:
        with _pillow_allows(image.width * image.height):
            orientation = 1
            if isinstance(image, TiffImagePlugin.TiffImageFile):
                # Pillow turns a TIFF while it loads it, by XMP if there is no tag, and then forgets the tag.
                value = image.tag_v2.get(ExifTags.Base.Orientation)
                orientation = value if value in _UPRIGHT else 1
                with _xmp_hidden(image):
                    image.load()
                upright, highest = _rgb(image, name, declared)
            else:
                image.load()
                orientation = turn()
                upright, highest = _rgb(image, name, declared)
                if orientation in _UPRIGHT:
                    upright = upright.transpose(_UPRIGHT[orientation])
    except Image.DecompressionBombError as error:
        raise ImageError(name, "too-large", f"Pillow refuses it (PIL.Image.MAX_IMAGE_PIXELS): {error}") from error
    except (ImageError, MemoryError):
        raise
    except Exception as error:  # see _open
        raise ImageError(name, "corrupt", f"the picture is truncated or damaged: {_cause(error)}") from error
    return upright, orientation, highest


@contextmanager
def _xmp_hidden(image: Image.Image) -> Iterator[None]:
    packet = image.info.pop("xmp", None)
    try:
        yield
    finally:
        if packet is not None:
            image.info["xmp"] = packet


def _cause(error: Exception) -> str:
    return str(error) or type(error).__name__


@contextmanager
def _pillow_allows(pixels: int) -> Iterator[None]:
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


def _rgb(image: Image.Image, name: str, declared: int) -> tuple[Image.Image, int]:
    """Any mode → (RGB, the highest 16-bit value where 16 bits were taken as such and all lay in the lowest, else 0)."""
    mode = image.mode
    if mode.startswith("I;16") or mode in ("I", "F"):
        grey, highest = _grey8(image, name, declared)
        return grey.convert("RGB"), highest
    if mode == "RGB" and "transparency" not in image.info:
        return image, 0
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGB", image.size, "white")
        white.paste(rgba, mask=rgba.getchannel("A"))
        return white, 0
    try:
        return image.convert("RGB"), 0
    except ValueError as error:
        raise ImageError(name, "format", f"pictures of mode {mode} are not read; save it as RGB") from error


def _grey8(image: Image.Image, name: str, declared: int) -> tuple[Image.Image, int]:
    """16-bit, 32-bit and float grey → (8-bit grey, the highest value where 16 bits were taken as such, else 0).

    "I;16…": the high byte of the file's depth. "I": read as 16-bit, Pillow's own use of it. "F": see `arrays`.
    """
    tags: Any = getattr(image, "tag_v2", {})
    if image.mode == "F":
        return Image.fromarray(arrays.float_grey8(np.array(image), name)), 0
    values = np.asarray(image)
    depth = 16
    if image.mode == "I":
        low, high = int(values.min()), int(values.max())
        if low < 0 or high > 65535:
            raise ImageError(
                name, "format", f"32-bit grey with values from {low} to {high}; expected 0-65535: save it as 16-bit"
            )
    else:
        depth = int(tags.get(TiffImagePlugin.BITSPERSAMPLE, (16,))[0])
    inverted = tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0  # Pillow inverts 8 bits, not 16
    if depth == 16 and not inverted:
        depth = arrays.scaled_depth(values, declared)
    grey = (values >> (depth - 8)).astype(np.uint8)
    if inverted:
        np.subtract(255, grey, out=grey)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        grey[values == transparent] = 255
    return Image.fromarray(grey), int(values.max()) if depth == 16 and not inverted else 0


# Pillow keeps the high byte of 16-bit colour. Told that the bytes lie the other way round, it gives the low one.
_OTHER_BYTES = {
    "RGB;16B": "RGB;16L",
    "RGB;16L": "RGB;16B",
    "RGB;16N": "RGB;16B" if sys.byteorder == "little" else "RGB;16L",
}


def _rawmode(tiles: list[Any]) -> str:
    """How Pillow says that the first strip or tile of a file lies there."""
    arguments = tiles[0][3] if tiles else ""
    return str(arguments[0] if isinstance(arguments, tuple) and arguments else arguments)


def _highest(image: Image.Image) -> int:
    extrema: Any = image.getextrema()
    return max(int(high) for _, high in extrema)


def _deep_colour(high: Image.Image, again: Any, declared: int) -> tuple[Image.Image, int]:
    """16-bit colour of which Pillow gave next to nothing → (RGB, highest value where 16 bits were taken as such, or 0).

    high: loaded, the high bytes. again: the same file opened anew.
    """
    rawmode = _rawmode(again.tile)
    again.tile = [
        tile._replace(
            args=(_OTHER_BYTES[rawmode], *tile.args[1:]) if isinstance(tile.args, tuple) else _OTHER_BYTES[rawmode]
        )
        for tile in again.tile
    ]
    with _xmp_hidden(again):
        again.load()
    values = np.asarray(high).astype(np.uint16) << 8 | np.asarray(again)
    depth = arrays.scaled_depth(values, declared)
    rgb = Image.fromarray((values >> (depth - 8)).astype(np.uint8))
    return rgb, int(values.max()) if depth == 16 else 0


def _to_array(image: Image.Image) -> NDArray[Any]:
    """A writable array of an "RGB", "L" or "F" image. In strips: Pillow's own way holds the pixels three times."""
    width, height = image.size
    shape = (height, width, 3) if image.mode == "RGB" else (height, width)
    array = np.empty(shape, dtype=np.float32 if image.mode == "F" else np.uint8)
    for rows in _strips(height, width):
        array[rows] = np.asarray(image.crop((0, rows.start, width, rows.stop)))
    return array


def _strips(height: int, width: int) -> Iterator[slice]:
    step = max(1, STRIP // width)
    for start in range(0, height, step):
        yield slice(start, min(start + step, height))


# ── the network's view ──────────────────────────────────────────────────────────────────────────────────────────────


def normalise(pixels: NDArray[np.uint8], spec: ModelSpec) -> NDArray[np.float32]:
    """(H, W, 3) uint8 → (3, H, W) float32: / 255, − mean, / std of the spec; the bits torch would compute."""
    planes = pixels.transpose(2, 0, 1).astype(np.float32, order="C")
    planes /= np.float32(255)
    planes -= np.array(spec.mean, dtype=np.float32)[:, None, None]
    planes /= np.array(spec.std, dtype=np.float32)[:, None, None]
    return planes


def to_input(pixels: NDArray[np.uint8], spec: ModelSpec) -> NDArray[np.float32]:
    """(H, W, 3) uint8 → (3, S, S) float32, S = spec.input_size.

    The whole picture squashed, aspect ratio and all, with Pillow's antialiased bilinear filter on uint8, as the paper
    does it; then `normalise`.
    """
    return normalise(squash(pixels, spec.input_size), spec)


def squash(pixels: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """(H, W, 3) uint8 → (side, side, 3) uint8: the resize of `to_input`; a picture of that size stays as it is."""
    return np.asarray(Image.fromarray(pixels).resize((side, side), Image.Resampling.BILINEAR))


def stored(array: NDArray[Any], orientation: int) -> NDArray[Any]:
    """An upright (H, W, …) array as it lies in a file of this EXIF orientation (1-8): `upright` undone. A view."""
    match orientation:
        case 6:
            return upright(array, 8)
        case 8:
            return upright(array, 6)
    return upright(array, orientation)


def upright(array: NDArray[Any], orientation: int) -> NDArray[Any]:
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


# ── scores ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def to_scores(logits: NDArray[np.float32], temperature: float = 1.0) -> NDArray[np.float32]:
    """sigmoid(logits / temperature), float32 of any shape; the logits stay as they are. Safe for any magnitude."""
    if temperature == 1.0:
        return np.asarray(special.expit(np.asarray(logits, dtype=np.float32)))
    scaled = np.divide(logits, np.float32(temperature), dtype=np.float32)
    return np.asarray(special.expit(scaled, out=scaled))


def resize_scores(scores: NDArray[np.float32], size: tuple[int, int], *, bicubic: bool = False) -> NDArray[np.float32]:
    """(h, w) float32 scores → (H, W) float32 in [0, 1]; bilinear, antialiased where it shrinks. size: (H, W) px."""
    kind = Image.Resampling.BICUBIC if bicubic else Image.Resampling.BILINEAR
    height, width = size
    image = Image.fromarray(np.ascontiguousarray(scores, dtype=np.float32))
    resized = _to_array(image.resize((width, height), kind))
    return np.clip(resized, 0, 1, out=resized)


def read_mask(sample: Sample, *, max_pixels: int = MAX_PIXELS) -> NDArray[np.bool_]:
    """The mask of a sample: (H, W) bool at the mask file's own size, True = manipulated, whatever the file's polarity.

    Values above half of the range count as white, and so do transparent pixels. A real sample without a mask file
    gives all False at the size of its upright image. Raises ImageError for a file that cannot be read, DatasetError
    for a fake without a mask.
    """
    if sample.mask is None:
        if sample.label == "fake":
            raise DatasetError(f"{sample.image}: a fake sample without a mask; give it one, or label it real")
        return np.zeros(_upright_size(sample.image, max_pixels), dtype=bool)
    grey = _to_array(Image.fromarray(read(sample.mask, max_pixels=max_pixels).pixels).convert("L"))
    return np.asarray(grey > 127 if sample.fake_is == "white" else grey <= 127)


def _upright_size(path: Path, max_pixels: int) -> tuple[int, int]:
    """(height, width) after orientation, from the header alone."""
    name = str(path)
    data = _file_bytes(path, name, MAX_BYTES)
    kind = _format_of(data, name)
    image = _header(data, kind, name, max_pixels)
    _check_pixels(image, name, max_pixels)
    # Pillow gives a TIFF's size upright already, and libheif a HEIC's.
    turned = _orientation(data, kind, image) >= 5
    return (image.width, image.height) if turned else (image.height, image.width)


def scores16(scores: NDArray[np.float32]) -> NDArray[np.uint16]:
    """(H, W) scores in [0, 1] → (H, W) uint16, 65535 = 1.0: what is kept of them, to 1/131070.

    Raises ValueError for what is no map of scores.
    """
    if scores.ndim != 2 or 0 in scores.shape:
        raise ValueError(f"scores have shape {scores.shape}; expected (H, W), H and W > 0")
    grey = np.empty(scores.shape, dtype=np.uint16)
    for rows in _strips(*scores.shape):
        strip = scores[rows]
        if not (strip.min() >= 0 and strip.max() <= 1):
            raise ValueError("scores are outside [0, 1] or not finite; expected the scores of a Localization")
        grey[rows] = np.rint(strip * np.float32(65535))
    return grey


def scores_png(scores: NDArray[np.float32]) -> bytes:
    """(H, W) scores in [0, 1] as the bytes of a 16-bit grey PNG, 65535 = 1.0."""
    return _png(scores16(scores))


def write_scores(path: str | Path, scores: NDArray[np.float32]) -> None:
    """Keep (H, W) scores in [0, 1] as a 16-bit grey PNG, 65535 = 1.0; `read_scores` gives them back to 1/131070."""
    write_atomic(path, scores_png(scores))


def read_scores(path: str | Path) -> NDArray[np.float32]:
    """Read scores, (H, W) float32, that were kept by `write_scores` or made elsewhere.

    PNG or TIFF, grey of 8 or 16 bits: 1.0 = its full scale. TIFF of floats: in [0, 1]. .npy, or the array "map" of a
    .npz (as TruFor writes it): floats in [0, 1] (not logits), bool, or uint8 or uint16 of full scale; (H, W), or with
    axes of length 1. Raises ImageError for anything else.
    """
    name = str(path)
    data = _file_bytes(Path(path), name, MAX_BYTES)
    suffix = Path(path).suffix.lower()
    if suffix in (".npy", ".npz"):
        return _score_array(_load_npz(data, name) if suffix == ".npz" else _load_npy(data, name), name)
    kind = _format_of(data, name)
    if kind not in ("PNG", "TIFF"):
        raise ImageError(name, "format", "not a PNG, a TIFF, a .npy or a .npz; expected grey scores in one of these")
    image = header(data, name)
    _check_pixels(image, name, MAX_PIXELS)
    fault = damage.fault(data, "PNG") if kind == "PNG" else damage.tiff_fault(image)
    if fault is not None:
        raise ImageError(name, "corrupt", f"this {kind} is truncated or damaged: {fault}")
    if image.mode not in ("L", "I;16", "I", *(("F", "I;16B") if kind == "TIFF" else ())):
        expected = "grey of 8 or 16 bits" + (" or of floats" if kind == "TIFF" else "")
        raise ImageError(name, "format", f"a {kind} of mode {image.mode}; expected {expected}")
    mode = image.mode
    _decode_as_it_is(image, name)
    if mode == "F":
        return _score_array(np.asarray(image), name)
    scores = np.asarray(image).astype(np.float32)
    scores /= np.float32(255 if mode == "L" else 65535)
    return scores


def _decode_as_it_is(image: Image.Image, name: str) -> None:
    try:
        with _pillow_allows(image.width * image.height):
            image.load()
    except Exception as error:  # see _open
        raise ImageError(name, "corrupt", f"the picture is truncated or damaged: {_cause(error)}") from error


def _load_npy(data: bytes, name: str) -> NDArray[Any]:
    try:
        array: NDArray[Any] = np.load(io.BytesIO(data), allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise ImageError(name, "corrupt", f"this .npy cannot be read as one array of numbers: {error}") from error
    return array


def _load_npz(data: bytes, name: str) -> NDArray[Any]:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            names = [member.removesuffix(".npy") for member in archive.namelist()]
            if "map" not in names:
                raise ImageError(
                    name, "input", f'this .npz holds the arrays {names[:20]}; expected scores under the name "map"'
                )
            if archive.getinfo("map.npy").file_size > 8 * MAX_PIXELS + 4096:
                raise ImageError(name, "too-large", f'its array "map" is larger than {MAX_PIXELS} values')
            body = archive.read("map.npy")
    except (zipfile.BadZipFile, zlib.error, KeyError, EOFError, OSError, NotImplementedError, RuntimeError) as error:
        raise ImageError(name, "corrupt", f"this .npz cannot be read: {_cause(error)}") from error
    return _load_npy(body, name)


def _score_array(array: NDArray[Any], name: str) -> NDArray[np.float32]:
    scores = array.squeeze()
    if scores.ndim != 2 or 0 in scores.shape:
        raise ImageError(name, "input", f"an array of shape {array.shape}; expected scores (H, W)")
    if scores.dtype in (np.uint8, np.uint16):
        return np.asarray(scores / np.float32(np.iinfo(scores.dtype).max), np.float32)
    if scores.dtype != np.bool_ and not np.issubdtype(scores.dtype, np.floating):
        raise ImageError(name, "input", f"an array of {scores.dtype}; expected floats in [0, 1], bool, uint8 or uint16")
    scores = np.array(scores, np.float32, order="C")
    if not (scores.min() >= 0 and scores.max() <= 1):  # not: also catches nan
        raise ImageError(
            name, "input", f"values from {scores.min():g} to {scores.max():g}; expected scores in [0, 1], not logits"
        )
    return scores


def mask_png(mask: NDArray[np.bool_]) -> bytes:
    """A (H, W) bool mask as the bytes of an 8-bit grey PNG, 255 = manipulated."""
    if mask.ndim != 2 or 0 in mask.shape or mask.dtype != np.bool_:
        raise ValueError(f"the mask is {mask.dtype} {mask.shape}; expected bool (H, W), H and W > 0")
    return _png(mask.view(np.uint8) * np.uint8(255))


def write_mask(path: str | Path, mask: NDArray[np.bool_]) -> None:
    """Keep a (H, W) bool mask as an 8-bit grey PNG, 255 = manipulated."""
    write_atomic(path, mask_png(mask))


def _png(pixels: NDArray[np.uint8] | NDArray[np.uint16]) -> bytes:
    """A PNG of grey (H, W) or RGB (H, W, 3), 8 or 16 bits: rows as differences from those above, compression level 1.

    Pillow tries five filters on every row, which takes three times as long on the score map of a large photo, and
    twice as long on its overlay, for files of the same size.
    """
    height, width = pixels.shape[:2]
    colour = pixels.ndim == 3
    header = struct.pack(">IIBBBBB", width, height, 8 * pixels.itemsize, 2 if colour else 0, 0, 0, 0)
    strategy = zlib.Z_DEFAULT_STRATEGY if colour else zlib.Z_RLE
    deflate = zlib.compressobj(1, zlib.DEFLATED, zlib.MAX_WBITS, 9, strategy)
    body = []
    flat = np.ascontiguousarray(pixels).reshape(height, -1)
    above = np.zeros((1, flat.shape[1] * pixels.itemsize), dtype=np.uint8)
    for rows in _strips(height, width):
        strip = flat[rows].astype(pixels.dtype.newbyteorder(">")).view(np.uint8)
        lines = np.full((strip.shape[0], 1 + strip.shape[1]), 2, dtype=np.uint8)  # 2 = the filter "up"
        np.subtract(strip, np.concatenate([above, strip[:-1]]), out=lines[:, 1:])
        above = strip[-1:]
        body.append(deflate.compress(lines.data))
    body.append(deflate.flush())
    parts = [containers.PNG]
    for kind, data in ((b"IHDR", header), (b"IDAT", b"".join(body)), (b"IEND", b"")):
        sum_of_both = zlib.crc32(data, zlib.crc32(kind))
        parts += (struct.pack(">I", len(data)), kind, data, struct.pack(">I", sum_of_both))
    return b"".join(parts)


# ── overlay ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def overlay(picture: PictureLike, result: Localization, *, opacity: float = 0.5) -> Image.Image:
    """The photo, a little paler, with its suspicious parts tinted and the mask outlined: an RGB image of its own size.

    Scores are shown as they are, never stretched to their own range: the tint sets in at 60 % of the threshold, turns
    from amber to red, and reaches `opacity` (in [0, 1]) at a score of 1. Where a calibration decides what is in the
    mask, nothing outside of it is tinted: a photo in which nothing was found stays a photo. Raises ImageError where
    picture and result differ in size.
    """
    photo = read(picture)
    if photo.size != result.scores.shape:
        raise ImageError(
            photo.name,
            "input",
            f"the photo has {photo.size} pixels (height, width), the result {result.scores.shape}; give the same photo",
        )
    if not 0 <= opacity <= 1:
        raise ValueError(f"opacity is {opacity}; expected in [0, 1]")
    height, width = photo.size
    line = max(1.6, (height * width) ** 0.5 / 600)  # px: of the same weight on a thumbnail and on 24 megapixels
    reach = int(2 * line) + 2
    tint = _tint(result.threshold, opacity)
    canvas = Image.new("RGB", (width, height))
    for rows in _strips(height, width):
        top, bottom = max(0, rows.start - reach), min(height, rows.stop + reach)
        pixels = Image.fromarray(photo.pixels[top:bottom])
        grey = pixels.convert("L")
        strip = Image.blend(Image.merge("RGB", (grey, grey, grey)), pixels, SATURATION)
        scores = result.scores[top:bottom]
        mask = result.mask[top:bottom]
        level = Image.fromarray((scores * np.float32(255)).astype(np.uint8))
        alpha = level.point(tint.alphas)
        if result.rule.calibration is not None:
            alpha = ImageChops.multiply(alpha, Image.fromarray(mask.view(np.uint8) * np.uint8(255)))
        box = alpha.getbbox()
        if box is not None:  # most strips of most photos have nothing to tint
            strip.paste(_coloured(level.crop(box), tint), box, mask=alpha.crop(box))
            _outline(strip, mask, line)
        canvas.paste(strip.crop((0, rows.start - top, width, rows.stop - top)), (0, rows.start))
    return canvas


def overlay_png(picture: PictureLike, result: Localization) -> bytes:
    """`overlay` as a PNG file."""
    return _png(np.asarray(overlay(picture, result)))


SATURATION = 0.3
AMBER, RED = (255, 190, 40), (235, 10, 50)


class _Tint(NamedTuple):
    """Of each score × 255: the colour (a flat palette), and the opacity × 255."""

    colours: list[int]
    alphas: list[int]


def _tint(threshold: float, opacity: float) -> _Tint:
    start = 0.6 * threshold
    # Strength: 0 up to the start, 0.6 at the threshold, 1 at a score of 1.
    strength = np.interp(np.arange(256) / 255, [start, threshold, 1.0], [0.0, 0.6, 1.0])
    colours = np.outer(1 - strength, AMBER) + np.outer(strength, RED)
    return _Tint(np.rint(colours).astype(int).ravel().tolist(), np.rint(255 * opacity * strength).astype(int).tolist())


def _coloured(level: Image.Image, tint: _Tint) -> Image.Image:
    level = level.copy()
    level.putpalette(tint.colours)
    return level.convert("RGB")


def _outline(strip: Image.Image, mask: NDArray[np.bool_], line: float) -> None:
    """Draw the border of a mask in place: white, `line` px wide, cased in black to stand out on any ground."""
    edge = Image.fromarray(mask.view(np.uint8) * np.uint8(255))
    box = edge.getbbox()
    if box is None:
        return
    # A blurred mask is a ramp across its border, so each value of it is a distance from there.
    radius = 1.5 * line
    reach = int(radius) + 2
    box = (max(0, box[0] - reach), max(0, box[1] - reach), box[2] + reach, box[3] + reach)
    box = (box[0], box[1], min(strip.width, box[2]), min(strip.height, box[3]))
    ramp = edge.crop(box).filter(ImageFilter.BoxBlur(radius))
    distance = np.abs(np.arange(256) / 255 - 0.5) * (2 * radius + 1)
    core = np.clip(0.5 * line + 0.5 - distance, 0, 1)
    casing = 0.6 * np.clip(line + 0.5 - distance, 0, 1)
    alpha = core + casing * (1 - core)
    grey = 255 * core / np.maximum(alpha, 1e-6)
    drawn = ramp.point(np.rint(grey).astype(int).tolist())
    strip.paste(
        Image.merge("RGB", (drawn, drawn, drawn)), box, mask=ramp.point(np.rint(255 * alpha).astype(int).tolist())
    )
