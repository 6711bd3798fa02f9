"""Every pixel conversion of the project: pictures in, network inputs, scores out, overlays.

The way of a pixel is written here once. `read` gives upright (H, W, 3) uint8; `to_input` and `normalise` make what
a network sees; `to_scores` and `resize_scores` turn its logits into scores on the photo's own grid; `overlay`,
`write_scores` and `write_mask` show and keep them. Sizes are (height, width); Pillow's (width, height) stays inside.

What `read` does to a picture, beyond decoding it:
- EXIF orientation is applied, exactly once (HEIC: libheif turns the picture itself).
- Transparency is composited on white. This is the network's view only: `Photo.data` keeps the file as it was.
- 16-bit grey keeps its high byte, as Pillow does for 16-bit colour. Floats carry no scale of their own: see `_grey8`.
- Colour profiles are not applied. Of several frames or pages one is read, and `Photo.notes` says so.
- CMYK JPEGs are read with Adobe's polarity (inverted), as every reader does.
- Damaged files are refused, also where Pillow would fill the missing part with grey (see "damaged files").

Everything here is thread-safe.
"""

from __future__ import annotations

import io
import re
import stat
import struct
import sys
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

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

from declip import pages
from declip.errors import DatasetError, ImageError
from declip.types import Localization, ModelSpec, Photo, PictureLike, Sample

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

Format: TypeAlias = Literal["JPEG", "PNG", "WebP", "TIFF", "BMP", "GIF", "AVIF", "HEIC"]

_PNG = b"\x89PNG\r\n\x1a\n"

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
_GIVEN = threading.Lock()
_LARGE = threading.Lock()


# ── pictures in ─────────────────────────────────────────────────────────────────────────────────────────────────────


def read(
    source: PictureLike, *, max_pixels: int = MAX_PIXELS, max_bytes: int = MAX_BYTES, page: int | None = None
) -> Photo:
    """Decode a picture: the same picture gives the same pixels, however it comes.

    source: a path, the file's bytes, a PIL image, a (H, W, 3) RGB or (H, W) grey uint8 array, or a Photo (returned as
        it is). Formats: JPEG, PNG, WebP, TIFF, BMP, GIF, AVIF, and HEIC with `pip install 'declip[heif]'`.
    max_pixels, max_bytes: larger pictures and files are refused before anything is decoded.
    page: which picture of a file that holds several, from 1; None = the first one, or the current frame of a PIL image.
        `Photo.pages` says how many there are, `Photo.notes` what else the file holds. A further picture of a JPEG is a
        JPEG of its own: `Photo.data` is then its part of the file.

    Raises ImageError; `kind` is "missing" (no such file, or unreadable), "format" (not a picture, or one declip does
    not read), "corrupt" (empty, truncated or damaged), "too-large", or "input" (not something that can be a picture, or
    a page that there is not).
    """
    match source:
        case Photo():
            if page not in (None, source.page):
                raise ImageError(source.name, "input", f"is picture {source.page}, decoded; read the file for another")
            return source
        case str() | Path():
            return _read_bytes(_file_bytes(Path(source), str(source), max_bytes), str(source), max_pixels, page)
        case bytes() | bytearray() | memoryview():
            data = bytes(source)
            name = f"<{len(data)} bytes>"
            if len(data) > max_bytes:
                raise ImageError(name, "too-large", f"at most {max_bytes} bytes are read ({_MORE_BYTES})")
            return _read_bytes(data, name, max_pixels, page)
        case Image.Image():
            return _read_pil(source, max_pixels, page)
        case np.ndarray():
            _check_page("<array>", page, 1)
            return _read_array(source, max_pixels)
    raise ImageError(
        f"<{type(source).__name__}>",
        "input",
        "expected a path, the bytes of a picture file, a PIL image, or a uint8 array (H, W, 3) or (H, W)",
    )


def header(data: bytes, name: str) -> Image.Image:
    """A picture file's bytes opened by Pillow, pixels not decoded: for its format, EXIF and other metadata.

    name: for messages. Raises ImageError of kind "format" or "corrupt" as `read`; whether the pixels can be decoded
    is not looked at.
    """
    return _open(data, _format_of(data, name), name, sys.maxsize)


def count_pages(path: str | Path, *, max_bytes: int = MAX_BYTES) -> int:
    """How many pictures a file holds that `read` can be asked for; none of them is decoded. Raises ImageError."""
    name = str(path)
    data = _file_bytes(Path(path), name, max_bytes)
    return _held(data, _format_of(data, name), name, sys.maxsize).pages


def _held(data: bytes, kind: Format, name: str, max_pixels: int) -> pages.Held:
    ends = (at for marker, at, _ in _jpeg_segments(data) if marker == 0xD9)
    end = next(ends, len(data)) if kind == "JPEG" else len(data)
    return pages.held(data, kind, _open(data, kind, name, max_pixels), end)


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


def _read_bytes(data: bytes, name: str, max_pixels: int, page: int | None) -> Photo:
    held = _held(data, _format_of(data, name), name, max_pixels)
    page = _check_page(name, page, held.pages)
    start, stop = held.parts[page - 1]
    data = data[start:stop]
    image, orientation, notes = _decode(data, name, max_pixels, held.frames[page - 1])
    return Photo(
        pixels=_to_array(image),
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
    with _GIVEN:
        there = image.tell()
        held = pages.held(b"", "", image, 0)
        held = held._replace(pages=max(held.pages, there + 1))  # where it is there is a picture
        page = _check_page(name, there + 1 if page is None else page, held.pages)
        try:
            _seek(image, page - 1, name)
            _check_pixels(image, name, max_pixels)
            upright, orientation = _load(image, name)
            if page - 1 != there:  # the image is about to be turned back
                upright = upright.copy()
            notes = held.notes_on(page) + pages.transparency(image)
        finally:
            _seek(image, there, name)
    return Photo(
        pixels=_to_array(upright), name=name, orientation=orientation, pages=held.pages, page=page, notes=notes
    )


def _read_array(array: NDArray[Any], max_pixels: int) -> Photo:
    name = f"<array, {array.dtype} {array.shape}>"
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or array.shape[2:] not in ((), (3,)) or 0 in array.shape:
        raise ImageError(name, "input", "expected uint8 (H, W, 3) RGB or (H, W) grey, values 0-255, H and W > 0")
    if array.shape[0] * array.shape[1] > max_pixels:
        raise ImageError(name, "too-large", f"at most {max_pixels} pixels are read ({_MORE_PIXELS})")
    # Copied: a caller may reuse its buffer, for the next frame of a video say.
    pixels = np.repeat(array[:, :, None], 3, axis=2) if array.ndim == 2 else array.copy(order="C")
    return Photo(pixels=pixels, name=name)


def _decode(data: bytes, name: str, max_pixels: int, frame: int) -> tuple[Image.Image, int, tuple[str, ...]]:
    """Bytes → (upright RGB image, the EXIF orientation that was undone, notes). frame: as Pillow counts, from 0."""
    kind = _format_of(data, name)
    image = _open(data, kind, name, max_pixels)
    _seek(image, frame, name)
    _check_pixels(image, name, max_pixels)
    fault = _fault(data, kind) if kind != "TIFF" else _tiff_fault(image)
    upright, orientation = image, 1
    if fault is None:
        upright, orientation = _load(image, name)
        if kind == "JPEG":
            fault = _jpeg_tail_fault(data, image)
    if fault is not None:
        raise ImageError(name, "corrupt", f"this {kind} is truncated or damaged: {fault}")
    return upright, orientation, pages.transparency(image)


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
    """What the file is, by its first bytes."""
    head = data[:64]
    match head:
        case b"":
            raise ImageError(name, "corrupt", "the file is empty (0 bytes)")
        case _ if head.startswith(b"\xff\xd8\xff"):
            return "JPEG"
        case _ if head.startswith(_PNG):
            return "PNG"
        case _ if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
            return "WebP"
        case _ if head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
            return "TIFF"
        case _ if head.startswith((b"GIF87a", b"GIF89a")):
            return "GIF"
        case _ if head.startswith(b"BM"):
            return "BMP"
        case _ if head[4:8] == b"ftyp":
            brands = {head[i : i + 4] for i in range(8, min(len(head), int.from_bytes(head[:4], "big")), 4)}
            if brands & {b"avif", b"avis"}:
                return "AVIF"
            if brands & {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"heif", b"mif1", b"msf1"}:
                return "HEIC"
    raise ImageError(
        name,
        "format",
        f"not a picture declip reads: it begins with {head[:12]!r}; "
        "expected JPEG, PNG, WebP, TIFF, BMP, GIF, AVIF or HEIC",
    )


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


def _load(image: Image.Image, name: str) -> tuple[Image.Image, int]:
    """Decode an opened image → (upright RGB image, orientation). The image itself keeps its pixels and its mode."""
    try:
        with _pillow_allows(image.width * image.height):
            # Pillow turns a TIFF while it loads it, and then forgets the tag; of a PNG it may find the tag only then.
            turned_by_pillow = _orientation(image) if isinstance(image, TiffImagePlugin.TiffImageFile) else 1
            image.load()
            orientation = _orientation(image)
            upright = _rgb(image, name)
            if orientation in _UPRIGHT:
                upright = upright.transpose(_UPRIGHT[orientation])
            else:
                orientation = turned_by_pillow
    except Image.DecompressionBombError as error:
        raise ImageError(name, "too-large", f"Pillow refuses it (PIL.Image.MAX_IMAGE_PIXELS): {error}") from error
    except (ImageError, MemoryError):
        raise
    except Exception as error:  # see _open
        raise ImageError(name, "corrupt", f"the picture is truncated or damaged: {_cause(error)}") from error
    return upright, orientation


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1-8; 1 where there is none, or where the EXIF block cannot be read (pixels still can)."""
    try:
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # as for headers, see _open
        return 1
    return value if value in _UPRIGHT else 1


def _cause(error: Exception) -> str:
    return str(error) or type(error).__name__


@contextmanager
def _pillow_allows(pixels: int) -> Iterator[None]:
    """Lift Pillow's own limit, which is global, for a picture within ours; one such picture at a time."""
    limit = Image.MAX_IMAGE_PIXELS
    if limit is None or pixels <= limit:
        yield
        return
    with _LARGE:
        limit = Image.MAX_IMAGE_PIXELS
        Image.MAX_IMAGE_PIXELS = None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def _rgb(image: Image.Image, name: str) -> Image.Image:
    """Any mode → RGB."""
    mode = image.mode
    if mode == "RGB" and "transparency" not in image.info:
        return image
    if mode.startswith("I;16") or mode in ("I", "F"):
        return _grey8(image, name).convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGB", image.size, "white")
        white.paste(rgba, mask=rgba.getchannel("A"))
        return white
    try:
        return image.convert("RGB")
    except ValueError as error:
        raise ImageError(name, "format", f"pictures of mode {mode} are not read; save it as RGB") from error


def _grey8(image: Image.Image, name: str) -> Image.Image:
    """16-bit, 32-bit and float grey → 8-bit grey.

    "I;16…": the high byte of the file's depth. "I": read as 16-bit, Pillow's own use of it. "F": floats carry no
    scale, so white is the smallest of 1, 255 and 65535 of which the largest value is at most the double (resampling
    overshoots); beyond black and white is clipped.
    """
    tags: Any = getattr(image, "tag_v2", {})
    if image.mode == "F":
        return _float_grey8(image, name)
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
    grey = (values >> (depth - 8)).astype(np.uint8)
    if tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0:  # white is zero: Pillow inverts 8 bits, not 16
        np.subtract(255, grey, out=grey)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        grey[values == transparent] = 255
    return Image.fromarray(grey)


def _float_grey8(image: Image.Image, name: str) -> Image.Image:
    values = np.array(image)
    low, high = float(values.min()), float(values.max())
    white = next((w for w in (1.0, 255.0, 65535.0) if high <= 2 * w), None)
    if not np.isfinite(low) or not np.isfinite(high) or white is None:
        raise ImageError(
            name, "format", f"float grey with values from {low:g} to {high:g}; expected 0-1, 0-255 or 0-65535"
        )
    values *= np.float32(255 / white)
    np.clip(values, 0, 255, out=values)
    return Image.fromarray(np.rint(values, out=values).astype(np.uint8))


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


# ── damaged files ───────────────────────────────────────────────────────────────────────────────────────────────────


def _fault(data: bytes, kind: Format) -> str | None:
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


# Inside a JPEG scan: the next marker that is neither a stuffed byte nor a restart.
_MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Walk a JPEG: (marker, its position, its segment) up to the end marker or to where the file breaks off."""
    at = 2
    while True:
        at = data.find(b"\xff", at)
        while at >= 0 and data[at + 1 : at + 2] == b"\xff":  # fill bytes
            at += 1
        if at < 0 or at + 1 >= len(data):
            return
        marker, start = data[at + 1], at
        at += 2
        if marker in (0x00, 0x01) or 0xD0 <= marker <= 0xD8:
            continue
        if marker == 0xD9:
            yield marker, start, b""
            return
        length = int.from_bytes(data[at : at + 2], "big")
        segment = data[at + 2 : at + length]
        at += length
        if length < 2 or at > len(data):
            return
        yield marker, start, segment
        if marker == 0xDA:
            found = _MARKER.search(data, at)
            if found is None:
                return
            at = found.start()


def _is_frame(marker: int) -> bool:
    return 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)


def _is_progressive(marker: int) -> bool:
    return marker in (0xC2, 0xC6, 0xCA, 0xCE)


def _jpeg_fault(data: bytes) -> str | None:
    """libjpeg shows whatever has arrived: a coarse picture when the later scans of a progressive file are gone, noise
    when the rest of a file is zeros. So the end marker must be reached, and before it every component must have
    come; in a progressive file every coefficient, down to its last bit.
    """
    missing_bits: dict[int, NDArray[np.int64]] = {}
    progressive = ended = False
    scans = 0
    for marker, _, segment in _jpeg_segments(data):
        if _is_frame(marker) and not missing_bits:
            progressive = _is_progressive(marker)
            missing_bits = {component: np.full(64, 16) for component in segment[6::3]}
        elif marker == 0xDA and len(segment) == 4 + 2 * segment[0]:
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


def _jpeg_tail_fault(data: bytes, image: Image.Image) -> str | None:
    """Whether the last scan broke off before an end marker, which libjpeg fills up with mid-grey or coarse rows.

    Bytes put in front of that marker change the picture only if the decoder still wanted some. This second decoding is
    spared for a sequential file whose last pixel is not mid-grey.
    """
    segments = list(_jpeg_segments(data))
    one_scan = sum(marker == 0xDA for marker, _, _ in segments) == 1
    corner = image.getpixel((image.width - 1, image.height - 1))
    values = corner if isinstance(corner, tuple) else (corner,)
    if one_scan and not all(abs((v or 0) - 128) <= 2 for v in values):
        return None
    end = segments[-1][1]
    longer = JpegImagePlugin.JpegImageFile(io.BytesIO(data[:end] + bytes(range(1, 255)) + data[end:]))
    longer.load()
    if ImageChops.difference(image, longer).getbbox() is None:
        return None
    return "its picture data end too early"


def _png_fault(data: bytes) -> str | None:
    """Walk a PNG's chunks: Pillow neither checks the sums of the picture data nor asks for the end chunk."""
    at = 8
    while at + 8 <= len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        kind = data[at + 4 : at + 8]
        end = at + 12 + length
        if end > len(data):
            return f"it ends inside its {kind.decode('latin-1')} chunk"
        # A capital first letter marks what a decoder needs; a damaged comment harms nobody.
        if kind[:1].isupper() and zlib.crc32(memoryview(data)[at + 4 : end - 4]) != int.from_bytes(
            data[end - 4 : end], "big"
        ):
            return f"the check sum of its {kind.decode('latin-1')} chunk is wrong"
        if kind == b"IEND":
            return None
        at = end
    return "it ends without an end chunk"


def _tiff_fault(image: Image.Image) -> str | None:
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
    image = _open(data, kind, name, max_pixels)
    _check_pixels(image, name, max_pixels)
    # Pillow gives a TIFF's size upright already.
    turned = kind != "TIFF" and _orientation(image) >= 5
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
    Path(path).write_bytes(scores_png(scores))


def read_scores(path: str | Path) -> NDArray[np.float32]:
    """Read scores, (H, W) float32: a grey PNG, 1.0 = its full scale (16-bit as `write_scores`, or 8-bit), or a .npy.

    The latter holds floats in [0, 1] (not logits), bool, or uint8 or uint16 of full scale; (H, W), or with axes of
    length 1. Raises ImageError for anything else.
    """
    name = str(path)
    data = _file_bytes(Path(path), name, MAX_BYTES)
    if Path(path).suffix.lower() == ".npy":
        return _read_npy(data, name)
    if _format_of(data, name) != "PNG":
        raise ImageError(name, "format", "not a PNG; expected a grey PNG of scores")
    image = _open(data, "PNG", name, MAX_PIXELS)
    _check_pixels(image, name, MAX_PIXELS)
    fault = _png_fault(data)
    if fault is not None:
        raise ImageError(name, "corrupt", f"this PNG is truncated or damaged: {fault}")
    if image.mode not in ("L", "I;16", "I"):
        raise ImageError(name, "format", f"a PNG of mode {image.mode}; expected grey of 8 or 16 bits")
    _load(image, name)
    scores = np.asarray(image).astype(np.float32)
    scores /= np.float32(255 if image.mode == "L" else 65535)
    return scores


def _read_npy(data: bytes, name: str) -> NDArray[np.float32]:
    try:
        array: NDArray[Any] = np.load(io.BytesIO(data), allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise ImageError(name, "corrupt", f"this .npy cannot be read as one array of numbers: {error}") from error
    scores = array.squeeze()
    if scores.ndim != 2 or 0 in scores.shape:
        raise ImageError(name, "input", f"an array of shape {array.shape}; expected scores (H, W)")
    if scores.dtype in (np.uint8, np.uint16):
        return np.asarray(scores / np.float32(np.iinfo(scores.dtype).max), np.float32)
    if scores.dtype != np.bool_ and not np.issubdtype(scores.dtype, np.floating):
        raise ImageError(name, "input", f"an array of {scores.dtype}; expected floats in [0, 1], bool, uint8 or uint16")
    scores = np.ascontiguousarray(scores, np.float32)
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
    Path(path).write_bytes(mask_png(mask))


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
    parts = [_PNG]
    for kind, data in ((b"IHDR", header), (b"IDAT", b"".join(body)), (b"IEND", b"")):
        sum_of_both = zlib.crc32(data, zlib.crc32(kind))
        parts += (struct.pack(">I", len(data)), kind, data, struct.pack(">I", sum_of_both))
    return b"".join(parts)


# ── overlay ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def overlay(picture: PictureLike, result: Localization, *, opacity: float = 0.5) -> Image.Image:
    """The photo, a little paler, with its suspicious parts tinted and the mask outlined: an RGB image of its own size.

    Scores are shown as they are, never stretched to their own range: the tint sets in at 60 % of the threshold, turns
    from amber to red, and reaches `opacity` (in [0, 1]) at a score of 1; outside of the mask the peak, if there is one,
    stands for the threshold. A photo in which nothing was found stays a photo. Raises ImageError where picture and
    result differ in size.
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
    inside, outside = (_tint(level, opacity) for level in (result.threshold, max(result.threshold, result.peak)))
    canvas = Image.new("RGB", (width, height))
    for rows in _strips(height, width):
        top, bottom = max(0, rows.start - reach), min(height, rows.stop + reach)
        pixels = Image.fromarray(photo.pixels[top:bottom])
        grey = pixels.convert("L")
        strip = Image.blend(Image.merge("RGB", (grey, grey, grey)), pixels, SATURATION)
        scores = result.scores[top:bottom]
        mask = result.mask[top:bottom]
        level = Image.fromarray((scores * np.float32(255)).astype(np.uint8))
        within = Image.fromarray(mask.view(np.uint8) * np.uint8(255))
        alpha = Image.composite(level.point(inside.alphas), level.point(outside.alphas), within)
        box = alpha.getbbox()
        if box is not None:  # most strips of most photos have nothing to tint
            part = level.crop(box)
            tint = Image.composite(_coloured(part, inside), _coloured(part, outside), within.crop(box))
            strip.paste(tint, box, mask=alpha.crop(box))
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
