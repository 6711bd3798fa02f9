"""Match an aligned original to a photo in tone, colour and sharpness, whatever small part of the photo was changed.

A curve for each channel, that never falls, a mixture of the channels, and a small filter take up what a program does to
all of a picture: brightness, contrast, white balance, saturation, scaling, sharpening. Each is fitted to pixels that
are near what it says already, so that a part that was changed has no weight.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

__all__ = ["filtered", "is_grey", "to_ycc", "toned"]

Floats = NDArray[np.float32]
Matrix = NDArray[np.float64]
Places = tuple[NDArray[np.int64], NDArray[np.int64]]  # (rows, columns)

STOPS = 40  # of a curve
LEVELS = 32  # of brightness; of each the same number of pixels is looked at, since most of a photo may be sky
HOLD = 10.0  # grey levels² that hold a mixture of channels near none
STEPS = 1021  # of its table, a quarter of a grey level each
TRIM = 3.0  # times the median difference: what differs more has no weight
AS_GOOD = 1.1  # times the difference after matching: tones that differ no more are left as they are
SPREAD = 2.0  # grey levels between the channels of a grey picture, on average
REACH = 3  # px of the filter to each side
DAMPING = 4.0  # grey levels² that hold the filter near doing nothing


def is_grey(pixels: NDArray[np.uint8]) -> bool:
    """Say whether a picture (H, W, 3) has no colours."""
    sparse = pixels[::4, ::4].astype(np.int16)
    return float((sparse.max(axis=2) - sparse.min(axis=2)).mean()) < SPREAD


def to_ycc(pixels: Floats) -> Floats:
    """Return luma and two chroma planes, (H, W, 3), of RGB in [0, 255]."""
    return np.asarray(cv2.cvtColor(pixels / np.float32(255), cv2.COLOR_RGB2YCrCb) * np.float32(255), np.float32)


def toned(photo: NDArray[np.uint8], original: NDArray[np.uint8], places: Places) -> Floats:
    """Return the original (H, W, 3) in the photo's tones, float32 in [0, 255].

    places: pixels that are looked at. Tones that agree already are left as they are.
    """
    # Blurred: curves between noisy values are too flat.
    given, wanted = (cv2.GaussianBlur(pixels, (0, 0), 1.5)[places].astype(np.float64) for pixels in (original, photo))
    pixels, values = original.astype(np.float32), given
    near = np.ones(len(values), np.bool_)
    for kind in ("curves", "mixture", "curves"):
        if kind == "curves":
            table = np.stack([_curve(values[near, c], wanted[near, c]) for c in range(3)], axis=1)
            pixels, values = _looked_up(pixels, table), _looked_up(values, table)
        else:
            mixture = _mixture(values, wanted, near)
            pixels = pixels @ mixture[:3].astype(np.float32) + mixture[3].astype(np.float32)
            values = values @ mixture[:3] + mixture[3]
        near = _near(values - wanted)
    before, after = (np.median(np.abs(these - wanted).max(axis=1)) for these in (given, values))
    if before <= AS_GOOD * after + 0.25:
        return original.astype(np.float32)
    return np.clip(pixels, 0, 255)


def filtered(photo: Floats, original: Floats, places: Places) -> Floats:
    """Return the original's planes (H, W, 3), sharpened or blurred as the photo's are."""
    made = np.empty_like(original)
    side = 2 * REACH + 1
    middle = side * side // 2
    rows, columns = places
    for c in range(3):
        plane = np.pad(original[..., c], REACH, mode="reflect")
        around = np.stack([plane[rows + i, columns + j] for i in range(side) for j in range(side)], axis=1)
        around = around.astype(np.float64)
        missing = photo[rows, columns, c] - around[:, middle]
        near = _near(missing[:, None])
        for _ in range(2):
            square = around[near].T @ around[near] + np.eye(side * side) * DAMPING * np.count_nonzero(near) / 100
            kernel = np.linalg.solve(square, around[near].T @ missing[near])
            near = _near((around @ kernel - missing)[:, None])
        kernel[middle] += 1
        kernel = kernel.reshape(side, side).astype(np.float32)
        made[..., c] = cv2.filter2D(original[..., c], -1, kernel, borderType=cv2.BORDER_REFLECT_101)
    return made


def _balanced(values: Matrix) -> NDArray[np.int64]:
    """Return the numbers of pixels (N, 3) of which as many are dark and bright as are between."""
    level = np.clip(values.mean(axis=1) * (LEVELS / 256), 0, LEVELS - 1).astype(np.int64)
    order = np.argsort(level, kind="stable")
    place = np.arange(len(order)) - np.searchsorted(level[order], level[order])
    return np.asarray(order[place < max(300, len(order) // LEVELS)])


def _near(difference: Matrix) -> NDArray[np.bool_]:
    size = np.abs(difference).max(axis=1)
    return np.asarray(size <= max(TRIM * float(np.median(size)), 1.0))


def _curve(given: Matrix, wanted: Matrix) -> Matrix:
    """Return a curve that does not fall as a table of STEPS values for 0 to 255."""
    order = np.argsort(given, kind="stable")
    parts = [part for part in np.array_split(order, STOPS) if len(part)]
    x = np.array([np.median(given[part]) for part in parts])
    y = np.array([np.median(wanted[part]) for part in parts])
    y = (np.maximum.accumulate(y) + np.minimum.accumulate(y[::-1])[::-1]) / 2
    x, first, counts = np.unique(x, return_index=True, return_counts=True)
    y = np.add.reduceat(y, first) / counts
    # Beyond what occurs, a curve goes on with the slope of no change.
    x, y = np.array([x[0] - 255, *x, x[-1] + 255]), np.array([y[0] - 255, *y, y[-1] + 255])
    return np.asarray(np.interp(np.linspace(0, 255, STEPS), x, y))


def _looked_up(values: NDArray[Any], table: Matrix) -> NDArray[Any]:
    """Send values (..., 3) in [0, 255] through a table for each channel, (STEPS, 3)."""
    index = np.rint(np.clip(values, 0, 255) * ((STEPS - 1) / 255)).astype(np.int16)
    table = table.astype(values.dtype)
    return np.stack([table[index[..., c], c] for c in range(3)], axis=-1)


def _mixture(given: Matrix, wanted: Matrix, near: NDArray[np.bool_]) -> Matrix:
    """Return the affine map of the three channels, (4, 3)."""
    for _ in range(3):
        middle, aim = given[near].mean(axis=0), wanted[near].mean(axis=0)
        known = given[near] - middle
        square = known.T @ known + HOLD * len(known) * np.eye(3)
        mixture = np.linalg.solve(square, known.T @ (wanted[near] - aim) + HOLD * len(known) * np.eye(3))
        mixture = np.vstack([mixture, aim - middle @ mixture])
        near = _near(given @ mixture[:3] + mixture[3] - wanted)
    return np.asarray(mixture)
