"""Find what is missing of a picture where its decoder would not say so."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, JpegImagePlugin

from declip.images.containers import Format, boxes, jpeg_segments, png_chunks, riff_chunks, sum_is_right

__all__ = ["closed", "fault", "jpeg_tail_fault"]

_PROGRESSIVE = (0xC2, 0xC6, 0xCA, 0xCE)
_ZEROS = bytes(4096)


def fault(data: bytes, kind: Format, image: Image.Image) -> str | None:
    """Return what is missing from a file or damaged in it; None where nothing is, or where Pillow itself says it.

    image: the file opened by Pillow, not yet loaded.
    """
    match kind:
        case "JPEG":
            return _jpeg_fault(data)
        case "PNG":
            return _png_fault(data)
        case "TIFF":
            # Pillow leaves black what no strip or tile covers. A compressed file has one tile, whatever it holds.
            areas = [(x1 - x0) * (y1 - y0) for _, (x0, y0, x1, y1), *_ in getattr(image, "tile", [])]
            covered = sum(areas) >= image.width * image.height
            return None if covered else "its strips or tiles do not cover the picture"
        case "WebP":
            parts = [(start, end) for name, start, end in riff_chunks(data) if name in (b"VP8 ", b"VP8L", b"ANMF")]
        case "AVIF" | "HEIC":
            parts = [(start, end) for name, start, end in boxes(data) if name == b"mdat"]
        case _:
            return None
    # An interrupted download may leave zeros for its rest, which these formats decode to anything. Compressed data hold
    # no run of 4096 zeros; neither does the metadata that may come last, padded by 2060 at most.
    if any(end - start >= len(_ZEROS) and data.endswith(_ZEROS, start, end) for start, end in parts):
        return "its picture data end in zeros"
    return None


def _jpeg_fault(data: bytes) -> str | None:
    """Return what a JPEG lacks. libjpeg shows whatever has arrived: a coarse picture without the later scans.

    So an end marker must be reached (`closed` sets one where the file has none), and before it every component must
    have come; in a progressive file every coefficient, down to its last bit.
    """
    missing_bits: dict[int, NDArray[np.int64]] = {}
    progressive = ended = False
    scans = 0
    for marker, _, segment in jpeg_segments(data):
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC) and not missing_bits:  # the frame
            progressive = marker in _PROGRESSIVE
            missing_bits = {component: np.full(64, 16) for component in segment[6::3]}
        elif marker == 0xDA and segment and len(segment) == 4 + 2 * segment[0]:
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


def closed(data: bytes) -> bytes | None:
    """Return a JPEG that ends inside its last scan with an end marker set there; None for any other.

    Whether the scan was whole, `jpeg_tail_fault` finds. Long runs of zeros, which an interrupted download leaves for
    the rest of a file, are no part of a scan, also where its last byte may have been a zero: that cannot be told from
    a byte that is missing.
    """
    last = None
    for marker, start, segment in jpeg_segments(data):
        last = (marker, start + 4 + len(segment))
    if last is None or last[0] != 0xDA:
        return None
    end = len(data)
    zeros = end - len(data.rstrip(b"\0"))
    if zeros >= 16:
        end -= zeros
        if data[end - 1 : end] == b"\xff":  # a stuffed zero belongs to it
            end += 1
    while end > last[1] and data[end - 1] == 0xFF:  # half of a marker
        end -= 1
    return data[:end] + b"\xff\xd9"


def jpeg_tail_fault(data: bytes, image: Image.Image, *, thorough: bool) -> str | None:
    """Return whether the last scan broke off before an end marker; libjpeg fills up with mid-grey or coarse rows.

    Bytes put in front of that marker change the picture only if the decoder still wanted some. This second decoding is
    spared for a sequential file whose last pixel is not mid-grey, unless thorough, which also tries other bytes: a few
    missing bits may happen to be those of one filling.
    """
    segments = list(jpeg_segments(data))
    one_scan = sum(marker == 0xDA for marker, _, _ in segments) == 1
    corner = image.getpixel((image.width - 1, image.height - 1))
    values = corner if isinstance(corner, tuple) else (corner,)
    if not thorough and one_scan and not all(abs((v or 0) - 128) <= 2 for v in values):
        return None
    end = segments[-1][1]
    fillings = (bytes(range(1, 255)), bytes(range(254, 0, -1)))
    for filling in fillings if thorough else fillings[:1]:
        longer = JpegImagePlugin.JpegImageFile(io.BytesIO(data[:end] + filling + data[end:]))
        longer.load()
        if ImageChops.difference(image, longer).getbbox() is not None:
            return "its picture data end too early"
    return None


def _png_fault(data: bytes) -> str | None:
    """Return what a PNG lacks: Pillow neither checks the sums of the picture data nor asks for the end chunk."""
    at, last = 8, b""
    for kind, start, end in png_chunks(data):
        # A capital first letter marks what a decoder needs; a damaged comment harms nobody.
        if kind[:1].isupper() and not sum_is_right(data, start, end):
            return f"the check sum of its {kind.decode('latin-1')} chunk is wrong"
        at, last = end, kind
    if last == b"IEND":
        return None
    if at + 8 <= len(data):
        return f"it ends inside its {data[at + 4 : at + 8].decode('latin-1')} chunk"
    return "it ends without an end chunk"
