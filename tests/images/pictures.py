"""Pictures and files that the tests of images make."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from PIL import Image

from declip.errors import ImageError
from declip.regions import MaskRule
from declip.results import Localization


def chunk(kind: bytes, body: bytes) -> bytes:
    """A chunk of a PNG."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def scene(height: int = 120, width: int = 160) -> np.ndarray:
    """A smooth coloured picture with an edge in it and no symmetry: (height, width, 3) uint8."""
    y, x = np.mgrid[:height, :width]
    red = 255 * x / max(1, width - 1)
    green = 255 * y / max(1, height - 1)
    blue = np.where(x + 2 * y < width, 40, 210)
    return np.stack([red, green, blue], axis=2).astype(np.uint8)


def textured(height: int = 120, width: int = 160) -> np.ndarray:
    """`scene` with grain, so that compressed files have a body to be cut."""
    noise = np.random.default_rng(0).integers(-20, 21, (height, width, 1))
    return np.clip(scene(height, width) + noise, 0, 255).astype(np.uint8)


def encode(picture: np.ndarray | Image.Image, kind: str, *more: Image.Image, **options: Any) -> bytes:
    """The bytes of a picture file. more: its further frames or pages."""
    if isinstance(picture, np.ndarray):
        picture = Image.fromarray(picture)
    if kind == "HEIF":
        pytest.importorskip("pillow_heif").register_heif_opener()
    stream = io.BytesIO()
    several = {"save_all": True, "append_images": list(more)} if more else {}
    picture.save(stream, kind, **several, **options)
    return stream.getvalue()


# Name → (Pillow's format, mode, options of saving, mean difference from the picture in this mode that is allowed).
FILES: dict[str, tuple[str, str, dict[str, Any], int]] = {
    "jpeg": ("JPEG", "RGB", {"quality": 95}, 2),
    "jpeg-progressive": ("JPEG", "RGB", {"quality": 95, "progressive": True}, 2),
    "jpeg-restarts": ("JPEG", "RGB", {"quality": 95, "restart_marker_rows": 1}, 2),
    "jpeg-grey": ("JPEG", "L", {"quality": 95}, 2),
    "jpeg-cmyk": ("JPEG", "CMYK", {"quality": 95}, 2),
    "jpeg-cmyk-progressive": ("JPEG", "CMYK", {"quality": 95, "progressive": True}, 2),
    "png": ("PNG", "RGB", {}, 0),
    "png-alpha": ("PNG", "RGBA", {}, 0),
    "png-palette": ("PNG", "P", {}, 0),
    "png-bits": ("PNG", "1", {}, 0),
    "png-16": ("PNG", "I;16", {}, 0),
    "webp": ("WEBP", "RGB", {"quality": 95}, 3),
    "webp-lossless": ("WEBP", "RGB", {"lossless": True}, 0),
    "tiff": ("TIFF", "RGB", {}, 0),
    "tiff-lzw": ("TIFF", "RGB", {"compression": "tiff_lzw"}, 0),
    "tiff-deflate": ("TIFF", "P", {"compression": "tiff_adobe_deflate"}, 0),
    "tiff-jpeg": ("TIFF", "RGB", {"compression": "jpeg"}, 4),
    "tiff-cmyk": ("TIFF", "CMYK", {}, 1),
    "tiff-bits": ("TIFF", "1", {}, 0),
    "bmp": ("BMP", "RGB", {}, 0),
    "bmp-palette": ("BMP", "P", {}, 0),
    "bmp-bits": ("BMP", "1", {}, 0),
    "gif": ("GIF", "RGB", {}, 12),
    "gif-palette": ("GIF", "P", {}, 0),
    "avif": ("AVIF", "RGB", {"quality": 95}, 3),
    "heic": ("HEIF", "RGB", {"quality": 95}, 3),
}


def file(name: str, picture: np.ndarray) -> bytes:
    """The bytes of an (H, W, 3) picture as one of FILES."""
    kind, mode, options, _ = FILES[name]
    deep = mode == "I;16"
    return encode(
        picture[:, :, 0].astype(np.uint16) * 200 if deep else Image.fromarray(picture).convert(mode), kind, **options
    )


def expected(name: str, picture: np.ndarray) -> np.ndarray:
    """The (H, W, 3) pixels that a reader of FILES gives, but for what the format loses."""
    mode = FILES[name][1]
    if mode == "I;16":
        return np.repeat((picture[:, :, :1].astype(np.uint16) * 200 >> 8).astype(np.uint8), 3, axis=2)
    return np.asarray(Image.fromarray(picture).convert(mode).convert("RGB"))


def exif_of(tags: dict[int, Any]) -> Image.Exif:
    exif = Image.Exif()
    for tag, value in tags.items():
        exif[tag] = value
    return exif


def segment(number: int, body: bytes) -> bytes:
    """A segment of a JPEG."""
    return bytes([0xFF, number]) + struct.pack(">H", len(body) + 2) + body


def with_segments(jpeg: bytes, *segments: bytes) -> bytes:
    """A JPEG with further segments in front."""
    return jpeg[:2] + b"".join(segments) + jpeg[2:]


def with_chunks(png: bytes, *chunks: bytes, late: bool = False) -> bytes:
    """A PNG with further chunks behind its header, or late, in front of its end."""
    at = len(png) - 12 if late else 33
    return png[:at] + b"".join(chunks) + png[at:]


@contextmanager
def refused(kind: str, words: str | None = None) -> Iterator[pytest.ExceptionInfo[ImageError]]:
    """Expect an ImageError of this kind whose message matches words, if given."""
    with pytest.raises(ImageError, match=words) as error:
        yield error
    assert error.value.kind == kind


def difference(a: np.ndarray, b: np.ndarray) -> float:
    assert a.shape == b.shape
    return float(np.abs(a.astype(int) - b.astype(int)).mean())


def result_of(scores: np.ndarray, threshold: float = 0.5) -> Localization:
    return Localization(
        name="p", scores=scores, rule=MaskRule(threshold=threshold), image_score=0.5, model="m", sha256="0"
    )


def png_of(height: int, width: int, depth: int, colour: int, rows: bytes, *extra: tuple[bytes, bytes]) -> bytes:
    """A PNG from unfiltered rows of packed samples: kinds Pillow does not write."""

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    line = len(rows) // height
    lines = b"".join(b"\0" + rows[i * line : (i + 1) * line] for i in range(height))
    chunks = [(b"IHDR", header), *extra, (b"IDAT", zlib.compress(lines)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*c) for c in chunks)


def tiff_of(body: bytes, tags: dict[int, tuple[int, ...]], order: str = "<") -> bytes:
    """An uncompressed TIFF of one strip: kinds Pillow does not write. tags: SHORTs, without strip offset and length."""
    entries = {273: (8,), 279: (len(body),), 259: (1,), **tags}
    at = 8 + len(body) + 2 + 12 * len(entries) + 4
    table, late = b"", b""
    for tag, values in sorted(entries.items()):
        kind, code = (4, "I") if tag in (273, 279) else (3, "H")
        packed = struct.pack(f"{order}{len(values)}{code}", *values)
        if len(packed) > 4:
            late, packed = late + packed, struct.pack(f"{order}I", at + len(late))
        table += struct.pack(f"{order}HHI", tag, kind, len(values)) + packed.ljust(4, b"\0")
    magic = b"II*\0" if order == "<" else b"MM\0*"
    ifd = struct.pack(f"{order}H", len(entries)) + table + struct.pack(f"{order}I", 0)
    return magic + struct.pack(f"{order}I", 8 + len(body)) + body + ifd + late
