"""Bring a decoded Pillow image of any mode to 8-bit RGB.

- Transparency is composited on white.
- 16-bit grey keeps its high byte, as Pillow does for 16-bit colour. Where the file says that only 9 to 15 bits are used
  and the values agree, those are scaled to the full range.
- Floats carry no scale of their own: see `arrays.float_grey8`.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from PIL import Image, TiffImagePlugin

from declip.errors import ImageError
from declip.images import arrays
from declip.images.orientation import xmp_hidden

__all__ = ["deep_colour", "is_nearly_black", "to_rgb"]


def to_rgb(image: Image.Image, name: str, declared: int) -> tuple[Image.Image, int]:
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
    depth = arrays.scaled_depth(values, declared)
    rgb = Image.fromarray((values >> (depth - 8)).astype(np.uint8))
    return rgb, int(values.max()) if depth == 16 else 0


def _raw_mode(tiles: list[Any]) -> str:
    arguments = tiles[0][3] if tiles else ""
    return str(arguments[0] if isinstance(arguments, tuple) and arguments else arguments)
