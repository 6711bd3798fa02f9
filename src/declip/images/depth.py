"""Bring what Pillow decoded, of any mode and depth, to 8-bit RGB.

- Transparency is composited on white.
- 16-bit grey keeps its high byte, as Pillow does for 16-bit colour. Where the file says that only 9 to 15 bits are used
  and the values agree, those are scaled to the full range. Values that only stay low get a note.
- Floats carry no scale of their own: see `_float_grey8`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, TiffImagePlugin

from declip.errors import ImageError
from declip.images.containers import Format, Tiff, png_chunks, sum_is_right

__all__ = [
    "deep_colour",
    "depth_note",
    "is_nearly_black",
    "on_white",
    "significant_bits",
    "to_rgb",
    "transparency_note",
    "transparent_share",
    "xmp_hidden",
]

_MAX_SAMPLE_VALUES = 281, 341  # tags of a TIFF


def to_rgb(image: Image.Image, name: str, declared: int) -> tuple[Image.Image, int]:
    """Convert any mode → (RGB, the highest 16-bit value where 16 bits were taken as such, else 0)."""
    mode = image.mode
    if mode == "F":
        return Image.fromarray(_float_grey8(np.array(image), name)).convert("RGB"), 0
    if mode.startswith("I;16") or mode == "I":
        grey, highest = _grey8(image, name, declared)
        return grey.convert("RGB"), highest
    if mode == "RGB" and "transparency" not in image.info:
        return image, 0
    if image.has_transparency_data:
        return on_white(image.convert("RGBA")), 0
    try:
        return image.convert("RGB"), 0
    except ValueError as error:
        raise ImageError(name, "format", f"pictures of mode {mode} are not read; save it as RGB") from error


# --- transparency ---------------------------------------------------------------------------------------------------


def on_white(rgba: Image.Image) -> Image.Image:
    """Composite an "RGBA" image on white."""
    white = Image.new("RGB", rgba.size, "white")
    white.paste(rgba, mask=rgba.getchannel("A"))
    return white


def transparency_note(image: Image.Image) -> tuple[str, ...]:
    """Return a sentence where parts of a decoded image are transparent, else nothing."""
    share = transparent_share(image)
    if not share:
        return ()
    text = "all" if share == 1 else "less than 1 %" if share < 0.01 else f"{min(99, round(100 * share))} %"
    return (f"Transparent parts ({text} of the picture) were laid on white; what is hidden there was not examined.",)


def transparent_share(image: Image.Image) -> float:
    """Return the share of the pixels that are not fully opaque, in [0, 1]."""
    key = image.info.get("transparency")
    if image.mode.startswith("I") and isinstance(key, int):
        return float(np.mean(np.asarray(image) == key))
    if not image.has_transparency_data:
        return 0.0
    has_alpha = image.mode in ("RGBA", "LA")
    alpha = (image if has_alpha else image.convert("RGBA")).getchannel("A")
    return 1 - alpha.histogram()[255] / (alpha.width * alpha.height)


# --- deep values ----------------------------------------------------------------------------------------------------


def _grey8(image: Image.Image, name: str, declared: int) -> tuple[Image.Image, int]:
    """Convert deep grey → (8-bit grey, the highest value where 16 bits were taken as such, else 0).

    "I;16…": the high byte of the file's depth. "I": read as 16-bit, Pillow's own use of it.
    """
    tags: Any = getattr(image, "tag_v2", {})
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
        depth = _scaled_depth(values, declared)
    grey = (values >> (depth - 8)).astype(np.uint8)
    if inverted:
        np.subtract(255, grey, out=grey)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        grey[values == transparent] = 255
    return Image.fromarray(grey), int(values.max()) if depth == 16 and not inverted else 0


def _float_grey8(values: NDArray[np.float32], name: str) -> NDArray[np.uint8]:
    """Return the float grey of a file, which is changed in place, as 8 bits.

    White is the smallest of 1, 255 and 65535 of which the largest value is at most the double (resampling overshoots);
    what lies beyond black and white is clipped.
    """
    low, high = float(values.min()), float(values.max())
    white = next((w for w in (1.0, 255.0, 65535.0) if high <= 2 * w), None)
    if not np.isfinite(low) or not np.isfinite(high) or white is None:
        raise ImageError(
            name, "format", f"float grey with values from {low:g} to {high:g}; expected 0-1, 0-255 or 0-65535"
        )
    values *= np.float32(255 / white)
    np.clip(values, 0, 255, out=values)
    return np.rint(values, out=values).astype(np.uint8)


# Pillow keeps the high byte of 16-bit colour. Told that the bytes lie the other way round, it gives the low one.
_OTHER_BYTES = {
    "RGB;16B": "RGB;16L",
    "RGB;16L": "RGB;16B",
    "RGB;16N": "RGB;16B" if sys.byteorder == "little" else "RGB;16L",
}


def is_nearly_black(rgb: Image.Image, tiles: list[Any]) -> bool:
    """Return whether this is 16-bit colour of which next to nothing is left: no high byte is above 15.

    tiles: how Pillow says that the file's strips or tiles lie there, taken before it was loaded.
    """
    extrema: Any = rgb.getextrema()
    return _raw_mode(tiles) in _OTHER_BYTES and max(high for _, high in extrema) <= 15


def deep_colour(high: Image.Image, again: Any, declared: int) -> tuple[Image.Image, int]:
    """Read 16-bit colour in full depth → (RGB, its highest value where 16 bits were taken as such, else 0).

    high: loaded, the high bytes. again: the same file opened anew. declared: the bits that the file says it uses.
    """
    other = _OTHER_BYTES[_raw_mode(again.tile)]
    again.tile = [
        tile._replace(args=(other, *tile.args[1:]) if isinstance(tile.args, tuple) else other) for tile in again.tile
    ]
    with xmp_hidden(again):
        again.load()
    values = np.asarray(high).astype(np.uint16) << 8 | np.asarray(again)
    depth = _scaled_depth(values, declared)
    return Image.fromarray((values >> (depth - 8)).astype(np.uint8)), int(values.max()) if depth == 16 else 0


def _raw_mode(tiles: list[Any]) -> str:
    arguments = tiles[0][3] if tiles else ""
    return str(arguments[0] if isinstance(arguments, tuple) and arguments else arguments)


@contextmanager
def xmp_hidden(image: Image.Image) -> Iterator[None]:
    """Keep Pillow from turning a TIFF by its XMP while it is loaded."""
    packet = image.info.pop("xmp", None)
    try:
        yield
    finally:
        if packet is not None:
            image.info["xmp"] = packet


def _scaled_depth(values: NDArray[Any], declared: int) -> int:
    """Return how many bits 16-bit values really have, as far as that is certain: 9 to 15, or 16.

    What the file says (declared) counts only where no value is beyond it and some value needs its low bits: values that
    were scaled up to 16 bits as the PNG standard asks, and happen to be dark, have none.
    """
    if declared >= 16 or int(values.max()) >= 1 << declared:
        return 16
    return declared if np.any(values & ((1 << (16 - declared)) - 1)) else 16


def depth_note(highest: int) -> tuple[str, ...]:
    """Return a note on 16-bit values that were read as such and stay low; highest: the largest of them."""
    if not 0 < highest < 4096:
        return ()
    bits = 10 if highest < 1024 else 12
    return (
        f"No value of this 16-bit picture is above {highest} of 65535, so it was examined nearly black. It may hold "
        f"{bits} bits that were never scaled: multiply its values by {1 << (16 - bits)} and look again.",
    )


def significant_bits(data: bytes, kind: Format) -> int:
    """Return how many bits, 9 to 15, a 16-bit PNG or TIFF says that its values have; 16 where it does not say.

    PNG: its sBIT chunk, if all channels have the same. TIFF: MaxSampleValue or SMaxSampleValue, where it is a power of
    two less one.
    """
    values: tuple[int, ...] = ()
    if kind == "PNG":
        for name, start, end in png_chunks(data):
            if name == b"sBIT" and sum_is_right(data, start, end):
                values = tuple(1 << bits for bits in data[start + 8 : end - 4] if bits <= 16)
            if name == b"IDAT":
                break
    elif kind == "TIFF" and (tiff := Tiff.of(data)) is not None:
        entries, _ = tiff.directory()
        for tag in _MAX_SAMPLE_VALUES:
            values = values or tuple(value + 1 for value in tiff.integers(tag, entries))
    known = set(values) & {1 << bits for bits in range(9, 16)}
    return known.pop().bit_length() - 1 if len(set(values)) == 1 and known else 16
