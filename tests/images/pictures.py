"""Pictures and files that the tests of images make."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

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


def encode(picture: np.ndarray | Image.Image, kind: str, **options: object) -> bytes:
    if isinstance(picture, np.ndarray):
        picture = Image.fromarray(picture)
    if kind == "HEIF":
        pytest.importorskip("pillow_heif").register_heif_opener()
    stream = io.BytesIO()
    picture.save(stream, kind, **options)
    return stream.getvalue()


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
