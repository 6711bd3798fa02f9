"""Encode pixels as the bytes of a JPEG, WebP or PNG file."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from declip.images.arrays import strips
from declip.images.containers import PNG
from declip.spec import check_choice

__all__ = ["Chroma", "encode_jpeg", "encode_png", "encode_webp"]

Chroma: TypeAlias = Literal["4:4:4", "4:2:0"]


def encode_jpeg(pixels: NDArray[np.uint8], quality: int, chroma: Chroma = "4:2:0", *, optimize: bool = False) -> bytes:
    """Return a JPEG of (H, W, 3) RGB or (H, W) grey pixels; quality 1-100.

    chroma: "4:2:0" halves the resolution of colour, as most software does. optimize: a smaller file of equal pixels.
    Raises SpecError for another chroma.
    """
    check_choice(chroma, Chroma, "chroma")
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=quality, subsampling=chroma, optimize=optimize)
    return stream.getvalue()


def encode_webp(pixels: NDArray[np.uint8], quality: int) -> bytes:
    """Return a lossy WebP of (H, W, 3) RGB pixels; quality 1-100."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "WEBP", quality=quality, method=4)
    return stream.getvalue()


def encode_png(pixels: NDArray[np.uint8] | NDArray[np.uint16]) -> bytes:
    """Return a PNG of (H, W) grey or (H, W, 3) RGB pixels of 8 or 16 bits.

    Each row is stored as its difference from the row above, compressed at level 1. Pillow tries five filters on every
    row, which takes two to three times as long for files of the same size.
    """
    height, width = pixels.shape[:2]
    colour = pixels.ndim == 3
    strategy = zlib.Z_DEFAULT_STRATEGY if colour else zlib.Z_RLE
    deflate = zlib.compressobj(1, zlib.DEFLATED, zlib.MAX_WBITS, 9, strategy)
    body = []
    flat = np.ascontiguousarray(pixels).reshape(height, -1)
    above = np.zeros((1, flat.shape[1] * pixels.itemsize), dtype=np.uint8)
    for rows in strips(height, width):
        strip = flat[rows].astype(pixels.dtype.newbyteorder(">")).view(np.uint8)
        lines = np.full((strip.shape[0], 1 + strip.shape[1]), 2, dtype=np.uint8)  # 2 = the filter "up"
        np.subtract(strip, np.concatenate([above, strip[:-1]]), out=lines[:, 1:])
        above = strip[-1:]
        body.append(deflate.compress(lines.data))
    body.append(deflate.flush())
    header = struct.pack(">IIBBBBB", width, height, 8 * pixels.itemsize, 2 if colour else 0, 0, 0, 0)
    return b"".join((PNG, _chunk(b"IHDR", header), _chunk(b"IDAT", b"".join(body)), _chunk(b"IEND", b"")))


def _chunk(kind: bytes, data: bytes) -> bytes:
    check_sum = zlib.crc32(data, zlib.crc32(kind))
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", check_sum)
