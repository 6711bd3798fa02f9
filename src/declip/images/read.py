"""Read pictures: any source in, upright (H, W, 3) uint8 pixels out.

- A picture is turned upright, exactly once, as browsers turn it: see `orientation`.
- Transparency is composited on white, deep values become 8 bits: see `depth`. `Photo.data` keeps the file as it was.
- Colour profiles are not applied. Of several frames or pages one is read, and `Photo.notes` says so.
- CMYK JPEGs are read with Adobe's polarity (inverted), as every reader does.
- Damaged pictures and raw photos are refused: see `decode`.

Everything here is thread-safe.
"""

from __future__ import annotations

import stat
import threading
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, TiffImagePlugin

from declip.errors import DeclipError, ImageError
from declip.files import local_path
from declip.images import arrays, pages
from declip.images.containers import Tiff
from declip.images.decode import MORE_PIXELS, check_pixels, decode_file, file_of, load, open_header, seek
from declip.images.depth import depth_note, transparency_note
from declip.images.orientation import orientation_in, orientation_of
from declip.process import PerProcess
from declip.results import Photo, PictureLike

__all__ = [
    "EXTENSIONS",
    "MAX_BYTES",
    "MAX_PIXELS",
    "count_pages",
    "file_bytes",
    "name_of",
    "read_photo",
    "upright_size",
]

MAX_PIXELS = 250_000_000  # the largest sensors of phones have 200 million
MAX_BYTES = 200_000_000
_MORE_BYTES = "--max-megabytes or max_bytes raises the limit"

# Lower-case suffixes that count as pictures in a folder. What a file is, its first bytes tell, not its name.
EXTENSIONS = frozenset(
    {".avif", ".bmp", ".gif", ".heic", ".heif", ".jfif", ".jpe", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}
)

# Loading a PIL image changes it, and a caller may hand the same one to several threads.
_GIVEN = PerProcess(threading.Lock)


def read_photo(
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
    something that can be a picture, or a page that does not exist).
    """
    match source:
        case Photo():
            if page not in (None, source.page):
                raise ImageError(source.name, "input", f"is picture {source.page}, decoded; read the file for another")
            return source
        case str() | Path():
            return _read_bytes(file_bytes(source, max_bytes), str(source), max_pixels, page)
        case bytes() | bytearray() | memoryview():
            data = bytes(source)
            name = f"<{len(data)} bytes>"
            _check_bytes(len(data), name, max_bytes)
            return _read_bytes(data, name, max_pixels, page)
        case Image.Image():
            return _read_pil(source, max_pixels, page)
        case np.ndarray():
            return _read_array(source, f"<array, {source.dtype} {source.shape}>", max_pixels, page)
    if arrays.is_tensor(source):
        name = f"<tensor, {source.dtype} {tuple(source.shape)}>"
        return _read_array(arrays.from_tensor(source), name, max_pixels, page)
    if callable(getattr(source, "read", None)):
        return _read_stream(source, max_pixels, max_bytes, page)
    raise ImageError(
        f"<{type(source).__name__}>",
        "input",
        "expected a path, the bytes of a picture file, a file open for reading bytes, a PIL image, or an array or "
        "torch tensor (H, W, 3), (H, W, 4), (H, W) or (3, H, W)",
    )


def name_of(source: PictureLike) -> str:
    """Return what messages call a picture that could not be read: its path, or its type."""
    match source:
        case Photo():
            return source.name
        case str() | Path():
            return str(source)
    return f"<{type(source).__name__}>"


def count_pages(path: str | Path, *, max_bytes: int = MAX_BYTES) -> int:
    """Count the pictures of a file that `read_photo` can be asked for; none is decoded. Raises ImageError."""
    file = file_of(file_bytes(path, max_bytes), str(path))
    return pages.held(file.data, file.kind, open_header(file)).pages


def _check_bytes(size: int, name: str, max_bytes: int) -> None:
    if size > max_bytes:
        raise ImageError(name, "too-large", f"at most {max_bytes} bytes are read ({_MORE_BYTES})")


def file_bytes(source: str | Path, max_bytes: int) -> bytes:
    """Return the bytes of a file, given by path or address. Raises ImageError for one of more than max_bytes."""
    name = str(source)
    try:
        path = Path(local_path(name))
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise ImageError(name, "input", "is a folder; expected a picture file")
        if not stat.S_ISREG(status.st_mode):
            raise ImageError(name, "input", "is not a regular file; expected a picture file")
        if status.st_size > max_bytes:
            sizes = f"the file has {status.st_size} bytes; at most {max_bytes} are read"
            raise ImageError(name, "too-large", f"{sizes} ({_MORE_BYTES})")
        return path.read_bytes()
    except ImageError:
        raise
    except DeclipError as error:  # an address of another machine
        raise ImageError(name, "missing", str(error)) from error
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ImageError(name, "missing", "there is no such file") from error
    except OSError as error:
        raise ImageError(name, "missing", f"the file cannot be opened: {error.strerror}") from error
    except ValueError as error:  # a NUL in the name
        raise ImageError(name, "missing", f"this cannot be the name of a file: {error}") from error


def _read_stream(source: Any, max_pixels: int, max_bytes: int, page: int | None) -> Photo:
    """Read a file that the caller opened, and closes."""
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
    _check_bytes(len(data), name, max_bytes)
    if not data:
        raise ImageError(name, "corrupt", "there is nothing left to read in the open file: seek(0) goes to its start")
    return _read_bytes(bytes(data), name, max_pixels, page)


def _read_bytes(data: bytes, name: str, max_pixels: int, page: int | None) -> Photo:
    file = file_of(data, name, max_pixels)
    held = pages.held(data, file.kind, open_header(file))
    page = _check_page(name, page, held.pages)
    frame = held.frames[page - 1]
    start, stop = held.parts[page - 1]
    data = part = data[start:stop]
    if frame and (tiff := Tiff.of(data)) is not None:
        part, frame = tiff.from_picture(frame), 0
    pixels, orientation, notes = decode_file(file._replace(data=part, frame=frame))
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
    """Return the page, from 1. Raise ImageError where there is none of that number."""
    page = 1 if page is None else page
    if not 1 <= page <= count:
        there = f"there are {count} of them" if count > 1 else "there is 1"
        raise ImageError(name, "input", f"got picture {page} of the file; {there}, counted from 1")
    return page


def _read_pil(image: Image.Image, max_pixels: int, page: int | None) -> Photo:
    name = str(getattr(image, "filename", "")) or f"<PIL image, {image.mode} {image.height}×{image.width}>"
    with _GIVEN():
        there = image.tell()
        held = pages.held(b"", "", image)
        held = held._replace(pages=max(held.pages, there + 1))  # where it is there is a picture
        page = _check_page(name, there + 1 if page is None else page, held.pages)
        try:
            seek(image, page - 1, name)
            check_pixels(image.height, image.width, name, max_pixels)
            _refuse_previews(image, name)
            upright, orientation, highest = load(image, name, lambda: orientation_in(image))
            pixels = arrays.from_image(upright)
            notes = held.notes_on(page) + depth_note(highest) + transparency_note(image)
        finally:
            seek(image, there, name)
    return Photo(pixels=pixels, name=name, orientation=orientation, pages=held.pages, page=page, notes=notes)


def _refuse_previews(image: Image.Image, name: str) -> None:
    """Raise ImageError for the first picture of a TIFF that a raw photo begins with; as `containers.raw_photo`."""
    if not isinstance(image, TiffImagePlugin.TiffImageFile) or image.tell() != 0:
        return
    tags: Any = image.tag_v2
    reduced = tags.get(254, 0)
    if 50706 in tags or (isinstance(reduced, int) and reduced & 1):  # a version of DNG, a reduced picture
        raise ImageError(name, "format", "a raw photo or the preview in front of one: develop it to TIFF or JPEG first")


def _read_array(array: NDArray[Any], name: str, max_pixels: int, page: int | None) -> Photo:
    _check_page(name, page, 1)
    height, width, _ = arrays.shape_of(array, name)
    if height * width > max_pixels:
        raise ImageError(name, "too-large", f"at most {max_pixels} pixels are read ({MORE_PIXELS})")
    pixels, notes = arrays.to_rgb(array, name)
    return Photo(pixels=pixels, name=name, notes=notes)


def upright_size(path: Path, max_pixels: int) -> tuple[int, int]:
    """Return (height, width) after orientation, from the header alone."""
    file = file_of(file_bytes(path, MAX_BYTES), str(path), max_pixels)
    image = open_header(file)
    check_pixels(image.height, image.width, file.name, max_pixels)
    # Pillow gives a TIFF's size upright already, and libheif a HEIC's.
    turned = orientation_of(file.data, file.kind, image) >= 5
    return (image.width, image.height) if turned else (image.height, image.width)
