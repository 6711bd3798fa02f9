"""Draw a result over its photo: suspicious parts tinted, the mask outlined."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from declip.errors import ImageError
from declip.images.arrays import strips
from declip.images.encode import encode_png
from declip.images.read import read_photo
from declip.results import Localization, PictureLike, check_type

__all__ = ["arrow", "overlay", "overlay_png"]

SATURATION = 0.3
Ends: TypeAlias = tuple[tuple[float, float], tuple[float, float]]
Colour: TypeAlias = tuple[int, int, int]
AMBER, RED = (255, 190, 40), (235, 10, 50)


def overlay(picture: PictureLike, result: Localization, *, opacity: float = 0.5) -> Image.Image:
    """Draw the photo a little paler, with its suspicious parts tinted and the mask outlined: an RGB image of its size.

    Scores are shown as they are, never stretched to their own range: the tint sets in at 60 % of the threshold, turns
    from amber to red, and reaches `opacity` (in [0, 1]) at a score of 1. Where a calibration decides what is in the
    mask, nothing outside of it is tinted: a photo in which nothing was found stays a photo. A part and its repetition
    are joined by a line, with a head where it is likely which of them is the copy. Raises ImageError where picture and
    result differ in size.
    """
    check_type(result, Localization, "what a localizer returns for this picture")
    photo = read_photo(picture)
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
    colours, alphas = _tint(result.threshold, opacity)
    canvas = Image.new("RGB", (width, height))
    for rows in strips(height, width):
        top, bottom = max(0, rows.start - reach), min(height, rows.stop + reach)
        pixels = Image.fromarray(photo.pixels[top:bottom])
        grey = pixels.convert("L")
        strip = Image.blend(Image.merge("RGB", (grey, grey, grey)), pixels, SATURATION)
        scores = result.scores[top:bottom]
        mask = result.mask[top:bottom]
        if result.rule.calibration is not None:  # what a clue found may have low scores
            scores = np.where(mask, np.maximum(scores, np.float32(result.threshold)), scores)
        level = Image.fromarray((scores * np.float32(255)).astype(np.uint8))
        alpha = level.point(alphas)
        if result.rule.calibration is not None:
            alpha = ImageChops.multiply(alpha, Image.fromarray(mask.view(np.uint8) * np.uint8(255)))
        box = alpha.getbbox()
        if box is not None:  # most strips of most photos have nothing to tint
            tint = level.crop(box)
            tint.putpalette(colours)
            strip.paste(tint.convert("RGB"), box, mask=alpha.crop(box))
            _outline(strip, mask, line)
        canvas.paste(strip.crop((0, rows.start - top, width, rows.stop - top)), (0, rows.start))
    _join(canvas, result, line)
    return canvas


def _join(canvas: Image.Image, result: Localization, line: float) -> None:
    """Draw a line in place from each part to its repetition: white, cased in black."""
    drawing = ImageDraw.Draw(canvas)
    for region in result.regions:
        if len(region.parts) == 2:
            (x0, y0, x1, y1), (u0, v0, u1, v1) = region.parts
            ends = ((x0 + x1) / 2, (y0 + y1) / 2), ((u0 + u1) / 2, (v0 + v1) / 2)
            arrow(drawing, ends, (255, 255, 255), line, head=region.directed)


def arrow(drawing: ImageDraw.ImageDraw, ends: Ends, colour: Colour, line: float, *, head: bool) -> None:
    """Draw a line, cased in black, with a dot at its beginning, and at its end a head or a dot. ends: two (x, y) px."""
    start, end = (np.array(place, float) for place in ends)
    ahead = (end - start) / (np.hypot(*(end - start)) or 1.0)
    aside = np.array([-ahead[1], ahead[0]])
    for tone, more in (((0, 0, 0), 1 + line / 2), (colour, 0.0)):
        foot = end - ahead * (5 * line + 4 + more)
        drawing.line([tuple(start), tuple(foot if head else end)], tone, max(1, round(line + 2 * more)))
        for x, y in [start] if head else [start, end]:
            radius = 1.5 * line + more
            drawing.ellipse((x - radius, y - radius, x + radius, y + radius), fill=tone)
        if head:
            side = aside * (2.5 * line + 2 + 1.5 * more)
            drawing.polygon([tuple(end + ahead * 2 * more), tuple(foot + side), tuple(foot - side)], fill=tone)


def overlay_png(picture: PictureLike, result: Localization) -> bytes:
    """Return the overlay as the bytes of a PNG file."""
    return encode_png(np.asarray(overlay(picture, result)))


def _tint(threshold: float, opacity: float) -> tuple[list[int], list[int]]:
    """Return for each score × 255 the colour (a flat palette) and the opacity × 255."""
    start = 0.6 * threshold
    # Strength: 0 up to the start, 0.6 at the threshold, 1 at a score of 1.
    strength = np.interp(np.arange(256) / 255, [start, threshold, 1.0], [0.0, 0.6, 1.0])
    colours = np.outer(1 - strength, AMBER) + np.outer(strength, RED)
    return np.rint(colours).astype(int).ravel().tolist(), np.rint(255 * opacity * strength).astype(int).tolist()


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
