"""Say where two aligned pictures differ by more than saving, scaling and tone change everywhere.

How much two copies of a picture differ depends on what they show: JPEG and scaling change edges and texture most. So
the usual difference is measured in the two pictures themselves, as a function of the texture around a pixel, and what
is marked differs many times as much. Two kinds of difference are looked at, in luma and in chroma, over windows of
several sizes: the energy, and the mean, which saving hardly changes.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from declip.clues.registration import scaled
from declip.clues.tone import Places, filtered, is_grey, to_ycc, toned

__all__ = ["Difference", "difference"]

Floats = NDArray[np.float32]
Mask = NDArray[np.bool_]
Pixels = NDArray[np.uint8]


class _Measure(NamedTuple):
    """A kind of difference: the mean of squares or the square of the mean, in a Gaussian window of sigma px.

    seed, grow: how many times the usual difference something differs that is marked, and what belongs to it, as
    powers of ten. share: of the largest difference around, below which a difference is only the window's blur.
    """

    kind: Literal["energy", "mean"]
    sigma: float
    chroma: bool
    seed: float
    grow: float
    share: float


MEASURES = (
    _Measure("energy", 1, False, 2.1, 1.0, 0.04),
    _Measure("energy", 3, False, 1.4, 0.8, 0.2),
    _Measure("mean", 1.5, False, 2.1, 1.2, 0.04),
    _Measure("mean", 3, False, 1.9, 1.2, 0.15),
    _Measure("mean", 6, False, 1.8, 1.2, 0.3),
    _Measure("energy", 1, True, 2.2, 1.2, 0.04),
    _Measure("energy", 3, True, 1.8, 1.0, 0.2),
    _Measure("mean", 1.5, True, 2.2, 1.3, 0.04),
    _Measure("mean", 3, True, 2.0, 1.2, 0.15),
    _Measure("mean", 6, True, 1.9, 1.2, 0.3),
)
FLOOR = {"energy": 0.4, "mean": 0.15}  # grey levels², added to all differences: rounding
AROUND = 17  # px: two blocks of JPEG, over which it smears a difference
SAMPLES = 60_000
TEXTURES = 20
FEWEST_SEEDS = 12  # px
SMALLEST = 40  # px of a part
FIRST = 400_000  # px at which it is first seen what differs, to be left out of the fits
WINDOW = 15  # px, of the correlation
TEXTURED = 4.0  # grey levels, the spread of luma in a window that has a content
ALIKE = 0.6  # correlation


class Difference(NamedTuple):
    """mask: (H, W) bool. matched: the original in the photo's tones and sharpness, (H, W, 3) uint8.

    alike: the share of what has texture in which both show the same, in [0, 1]; nan where nothing has.
    toned: mean change of grey levels by which tones were matched.
    """

    mask: Mask
    matched: Pixels
    alike: float
    toned: float


def difference(photo: Pixels, original: Pixels, compared: Mask) -> Difference:
    """Compare a photo with an original on the same grid, (H, W, 3) uint8 RGB both, where compared (H, W) is true."""
    height, width = compared.shape
    factor = min(1.0, math.sqrt(FIRST / compared.size))
    size = max(1, round(height * factor)), max(1, round(width * factor))
    small = [scaled(pixels, *size)[0] for pixels in (photo, original)]
    there = cv2.resize(compared.astype(np.uint8), size[::-1], interpolation=cv2.INTER_NEAREST) > 0
    first = _compared(small[0], small[1], there, there).mask
    around = cv2.dilate(first.astype(np.uint8), np.ones((9, 9), np.uint8))
    usual = compared & ~(cv2.resize(around, (width, height), interpolation=cv2.INTER_NEAREST) > 0)
    if np.count_nonzero(usual) < 0.2 * np.count_nonzero(compared):
        usual = compared
    return _compared(photo, original, compared, usual)


def _compared(photo: Pixels, original: Pixels, compared: Mask, usual: Mask) -> Difference:
    """Compare; usual: pixels on which the fits are made."""
    places = _sample(usual)
    tones = toned(photo, original, places)
    change = float(np.abs(tones[places] - original[places]).mean())
    here, there = to_ycc(photo.astype(np.float32)), to_ycc(tones)
    there = filtered(here, there, places)
    rest = here - there
    if is_grey(photo) or is_grey(original):
        rest[..., 1:] = 0
    rest[~compared] = 0
    mask = _marked(rest, there, compared, places)
    back = cv2.cvtColor(np.clip(there, 0, 255) / np.float32(255), cv2.COLOR_YCrCb2RGB)
    matched = np.rint(np.clip(back, 0, 1) * 255).astype(np.uint8)
    return Difference(mask, matched, _alike(here[..., 0], there[..., 0], compared), change)


def _sample(mask: Mask) -> Places:
    rows, columns = np.nonzero(mask)
    if len(rows) > SAMPLES:
        chosen = np.random.default_rng(0).choice(len(rows), SAMPLES, replace=False)
        rows, columns = rows[chosen], columns[chosen]
    return rows, columns


def _marked(rest: Floats, original: Floats, compared: Mask, places: Places) -> Mask:
    """Return what differs; rest: (H, W, 3) difference, original: (H, W, 3), both luma and chroma."""
    luma = _slope(original[..., 0])
    chroma = np.maximum(_slope(original[..., 1]), _slope(original[..., 2]))
    textures = [_steps(energy, places) for energy in (luma, chroma + np.float32(0.1) * luma)]
    seeds, grown = np.zeros(compared.shape, np.bool_), np.zeros(compared.shape, np.bool_)
    for measure in MEASURES:
        size = _size(rest, measure)
        usual = _usual(size, textures[measure.chroma], places, FLOOR[measure.kind])
        ratio = (size + np.float32(FLOOR[measure.kind])) / usual
        reach = max(AROUND, 2 * round(2 * measure.sigma) + 1)
        most = cv2.dilate(size, np.ones((reach, reach), np.uint8))
        seeds |= ratio > 10**measure.seed
        grown |= (ratio > 10**measure.grow) & (size >= np.float32(measure.share) * most)
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (7, 7))
    closed = cv2.morphologyEx((grown & compared).astype(np.uint8), cv2.MORPH_CLOSE, disc)
    parts = cv2.morphologyEx(closed, cv2.MORPH_OPEN, np.ones((3, 3), np.uint8))
    count, labels, facts, _ = cv2.connectedComponentsWithStats(parts, connectivity=8)
    kept = (np.bincount(labels[seeds & compared], minlength=count) >= FEWEST_SEEDS) & (facts[:, 4] >= SMALLEST)
    kept[0] = False
    return np.asarray(ndimage.binary_fill_holes(kept[labels]) & compared)


def _blurred(plane: Floats, sigma: float) -> Floats:
    return np.asarray(cv2.GaussianBlur(plane, (0, 0), sigma, borderType=cv2.BORDER_REFLECT_101), np.float32)


def _slope(plane: Floats) -> Floats:
    """Return the energy of the gradient around each pixel, (grey levels/px)²."""
    x, y = (cv2.Sobel(plane, -1, *order, ksize=3, scale=0.125) for order in ((1, 0), (0, 1)))
    return _blurred(x * x + y * y, 3)


def _size(rest: Floats, measure: _Measure) -> Floats:
    planes = [rest[..., c] for c in ((1, 2) if measure.chroma else (0,))]
    if measure.kind == "energy":
        sizes = [_blurred(plane * plane, measure.sigma) for plane in planes]
    else:
        sizes = [_blurred(plane, measure.sigma) ** 2 for plane in planes]
    return sizes[0] if len(sizes) == 1 else np.maximum(*sizes)


def _steps(energy: Floats, places: Places) -> tuple[NDArray[np.uint8], Floats]:
    """Return the texture of each pixel as one of 256 steps of its logarithm, (H, W), and what these are, (256,)."""
    logs = np.log(energy + np.float32(0.05))
    low, high = (float(end) for end in (logs[places].min(), logs[places].max()))
    scale = 255 / max(high - low, 1e-3)
    steps = np.clip(np.rint((logs - np.float32(low)) * np.float32(scale)), 0, 255).astype(np.uint8)
    return steps, (low + np.arange(256) / scale).astype(np.float32)


def _usual(size: Floats, texture: tuple[NDArray[np.uint8], Floats], places: Places, floor: float) -> Floats:
    """Return the usual size of a difference at each pixel's texture, (H, W)."""
    steps, logs = texture
    at, sizes = logs[steps[places]], np.log(size[places] + np.float32(floor))
    parts = [part for part in np.array_split(np.argsort(at, kind="stable"), TEXTURES) if len(part)]
    x = np.array([np.median(at[part]) for part in parts])
    y = np.array([np.quantile(sizes[part], 0.4) for part in parts])
    # Noise grows with texture, but no faster than it: what is steeper is a changed part that alone has such a texture.
    for i in range(1, len(x)):
        y[i] = min(y[i], y[i - 1] + (x[i] - x[i - 1]) + 0.3)
    return np.asarray(cv2.LUT(steps, np.exp(np.interp(logs, x, y)).astype(np.float32)), np.float32)


def _alike(one: Floats, other: Floats, compared: Mask) -> float:
    """Return the share of what has texture in which two planes correlate."""

    def mean(plane: Floats) -> Floats:
        return np.asarray(cv2.boxFilter(plane, -1, (WINDOW, WINDOW)))

    # Around 128: squares of float32 would lose the small differences.
    one, other = one - np.float32(128), other - np.float32(128)
    first, second = mean(one), mean(other)
    spread, other_spread = mean(one * one) - first * first, mean(other * other) - second * second
    textured = compared & (np.maximum(spread, other_spread) > TEXTURED**2)
    if not textured.any():
        return math.nan
    shared = mean(one * other) - first * second
    agrees = shared > np.float32(ALIKE) * np.sqrt(np.maximum(spread * other_spread, 1e-6))
    return float(agrees[textured].mean())
