"""Draw the pictures of a report, each as a data URI. They are made from pixels, so no metadata travels with them."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from declip.clues import Finding
from declip.images.encode import encode_jpeg
from declip.images.overlay import arrow, overlay
from declip.images.tensors import resize_scores
from declip.regions import Box, MaskRule, Region
from declip.results import Localization, Photo

__all__ = [
    "Box",
    "Tile",
    "around",
    "colour_legend",
    "contact_sheet",
    "copies_uri",
    "crop_uri",
    "fit",
    "jpeg_uri",
    "map_uri",
    "overlay_legend",
    "short",
]


_CROP_SIDE = 440  # px
_NAME = 200  # characters of a file's name that are shown
# Scores 0 to 1, dark to bright, so that the order survives a grey print; evenly spaced.
COLOURS = ((14, 16, 34), (72, 34, 104), (176, 50, 102), (240, 124, 66), (252, 236, 186))
_OUTLINE = (90, 230, 255)
_MISSED, _FLAGGED = (255, 210, 0), (230, 40, 60)
_CELL, _GAP = 190, 10  # px, of a contact sheet
# Of pairs of parts that repeat; told apart by those who see no red or green, too.
_PAIRS = ((255, 210, 0), (90, 230, 255), (255, 120, 200))


class Tile(NamedTuple):
    """A picture of a contact sheet, (h, w, 3) uint8; place, flagged: (h, w) bool; word: below it."""

    picture: NDArray[np.uint8]
    place: NDArray[np.bool_]
    flagged: NDArray[np.bool_]
    word: str


def short(name: str) -> str:
    """Return the name of a photo's file as pages show it: without folders, and not too long."""
    name = Path(name).name or name
    return name if len(name) <= _NAME else f"{name[:_NAME]}…"


def fit(size: tuple[int, int], side: int) -> tuple[int, int]:
    """Return (height, width) scaled down to a longest side of at most `side` px."""
    scale = min(1.0, side / max(size))
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def jpeg_uri(picture: Image.Image, side: int) -> str:
    """Encode a picture, scaled down to at most `side` px."""
    height, width = fit((picture.height, picture.width), side)
    if (width, height) != picture.size:
        picture = picture.resize((width, height), Image.Resampling.LANCZOS)
    return _uri("jpeg", encode_jpeg(np.asarray(picture), 88, optimize=True))


def map_uri(scores: NDArray[np.float32], side: int, mask: NDArray[np.bool_] | None = None) -> str:
    """Draw scores (H, W) in [0, 1] in fixed colours, at most `side` px long, with the border of the mask if given."""
    size = fit((scores.shape[0], scores.shape[1]), side)
    levels = np.rint(resize_scores(scores, size) * np.float32(254)).astype(np.uint8)
    if mask is not None:
        small = resize_scores(mask.astype(np.float32), size) >= 0.5
        levels[small & ~ndimage.binary_erosion(small, iterations=2)] = 255
    return _indexed(levels)


def colour_legend() -> str:
    """Draw the colours of `map_uri` for scores from 0 on the left to 1 on the right."""
    return _indexed(np.tile(np.arange(255, dtype=np.uint8), (16, 1)))


def _indexed(levels: NDArray[np.uint8]) -> str:
    """Encode levels (h, w): 0-254 are scores, 255 is the outline."""
    places = np.linspace(0, 254, len(COLOURS))
    channels = [np.interp(np.arange(255), places, [colour[i] for colour in COLOURS]) for i in range(3)]
    picture = Image.fromarray(levels)
    picture.putpalette([*np.rint(np.stack(channels, axis=1)).astype(int).ravel().tolist(), *_OUTLINE])
    stream = io.BytesIO()
    picture.save(stream, "PNG", optimize=True)
    return _uri("png", stream.getvalue())


def _uri(kind: str, data: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"


def overlay_legend(threshold: float) -> str:
    """Draw what the overlay does to a grey photo whose scores grow from 0 on the left to 1 on the right."""
    ramp = np.tile(np.linspace(0, 1, 1020, dtype=np.float32), (48, 1))
    grey = Photo(pixels=np.full((*ramp.shape, 3), 150, np.uint8), name="legend")
    rule = MaskRule(threshold=threshold)
    shown = Localization(name="legend", scores=ramp, rule=rule, image_score=0.0, model="", sha256="")
    return jpeg_uri(overlay(grey, shown), 1020)


def around(region: Region, size: tuple[int, int]) -> Box:
    """Return the region with its surroundings: a quarter of its sides on each side, and at least 96 px in all."""
    x0, y0, x1, y1 = region.bbox
    spans = []
    for start, end, length in ((x0, x1, size[1]), (y0, y1, size[0])):
        margin = max((end - start) // 4, (96 - (end - start)) // 2, 8)
        spans.append((max(0, start - margin), min(length, end + margin)))
    (left, right), (top, bottom) = spans
    return left, top, right, bottom


def copies_uri(photo: Photo, findings: Iterable[tuple[Finding, Region]], side: int) -> str:
    """Draw the outlines of parts that repeat, in a colour for each pair, with a line from one to the other.

    findings: each with its region, which says whether one of the parts is likely the copy.
    """
    height, width = fit(photo.size, side)
    picture = Image.fromarray(photo.pixels).resize((width, height), Image.Resampling.LANCZOS)
    drawing = ImageDraw.Draw(picture)
    for number, (finding, region) in enumerate(findings):
        colour = _PAIRS[number % len(_PAIRS)]
        for part in finding.parts or (finding.mask,):
            small = resize_scores(part.astype(np.float32), (height, width)) >= 0.5
            outline = small & ~ndimage.binary_erosion(small, iterations=2, border_value=1)
            picture.paste(colour, mask=Image.fromarray(outline))
        if len(region.parts) == 2:
            one, other = (
                ((x0 + x1) / 2 * width / photo.size[1], (y0 + y1) / 2 * height / photo.size[0])
                for x0, y0, x1, y1 in region.parts
            )
            arrow(drawing, (one, other), colour, 2.5, head=region.directed)
    return jpeg_uri(picture, side)


def contact_sheet(rows: Iterable[tuple[str, Iterable[Tile]]]) -> Image.Image:
    """Draw rows of small pictures under their titles: the outline of a place, and what is flagged there tinted."""
    listed = [(title, list(tiles)) for title, tiles in rows]
    columns = max(len(tiles) for _, tiles in listed)
    sheet = Image.new("RGB", (columns * _CELL + _GAP, len(listed) * (_CELL + 60) + _GAP), (255, 255, 255))
    drawing, font = ImageDraw.Draw(sheet), ImageFont.load_default(15)
    for row, (title, tiles) in enumerate(listed):
        top = _GAP + row * (_CELL + 60)
        drawing.text((_GAP, top), title, fill=(0, 0, 0), font=font)
        for column, tile in enumerate(tiles):
            left = _GAP + column * _CELL
            sheet.paste(_drawn(tile), (left, top + 24))
            drawing.text((left, top + 28 + tile.picture.shape[0]), tile.word, fill=(0, 0, 0), font=font)
    return sheet


def _drawn(tile: Tile) -> Image.Image:
    pixels = tile.picture.astype(np.float32)
    pixels[tile.flagged] = 0.55 * pixels[tile.flagged] + 0.45 * np.array(_FLAGGED, np.float32)
    outside = ndimage.binary_dilation(tile.place, iterations=2) & ~tile.place
    pixels[outside] = _OUTLINE if tile.word == "found" else _MISSED
    return Image.fromarray(np.rint(pixels).astype(np.uint8))


def crop_uri(picture: Image.Image, box: Box) -> str:
    """Encode a part of a picture. A small part is enlarged by a whole factor, so that its pixels stay as they are."""
    part = picture.crop(box)
    factor = max(1, (_CROP_SIDE // 2) // max(part.size))
    if factor > 1:
        part = part.resize((part.width * factor, part.height * factor), Image.Resampling.NEAREST)
    return jpeg_uri(part, _CROP_SIDE)
