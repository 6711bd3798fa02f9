"""Compare a photo with itself under an affine map, pixel by pixel."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

__all__ = ["APART", "Affine", "Mask", "applied", "likeness_of_details", "repeating", "values_at"]

Floats = NDArray[np.float32]
Mask = NDArray[np.bool_]
Affine = NDArray[np.float64]

APART = 20.0  # px between a part and its copy
LIKE = 0.75  # local correlation of what is repeated
WINDOW = 11  # px, of the local correlation
NOISE = 4.0  # grey levels², the variance that the luma has without content
FINE_NOISE = 0.5  # grey levels², of its finest details


def repeating(luma: NDArray[np.uint8], transform: Affine, at: NDArray[np.floating]) -> tuple[Mask, Mask]:
    """Return the part of a photo that repeats under a map, and where it repeats, (H, W) each.

    luma: (H, W). transform: (2, 3), maps (x, y) px. at: (N, 2) px; the part is made of areas with two of them or more,
    since a single one may have strayed into any. Both are empty if nothing repeats.
    """
    height, width = luma.shape
    plane, moved = _planes(luma, transform)
    x, y = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    (a, b, c), (d, e, f) = transform.astype(np.float32)
    to_x, to_y = a * x + b * y + c, d * x + e * y + f
    comparable = (to_x >= 0) & (to_y >= 0) & (to_x < width) & (to_y < height) & (np.hypot(to_x - x, to_y - y) > APART)
    repeats = ((_correlation(plane, moved, NOISE) > LIKE) & comparable).astype(np.uint8)
    repeats = cv2.morphologyEx(repeats, cv2.MORPH_CLOSE, np.ones((9, 9), np.uint8))
    repeats = cv2.morphologyEx(repeats, cv2.MORPH_OPEN, np.ones((7, 7), np.uint8))
    labels = cv2.connectedComponents(repeats)[1]
    numbers, counts = np.unique(values_at(labels, at), return_counts=True)
    part = np.isin(labels, numbers[(counts >= 2) & (numbers > 0)]) & comparable
    return _two_parts(part, transform)


def likeness_of_details(luma: NDArray[np.uint8], transform: Affine, part: Mask) -> float:
    """Return the mean correlation of the finest details of a part with those where it repeats, in [-1, 1]."""
    details, repeated = (
        (plane - np.asarray(cv2.GaussianBlur(plane, (0, 0), 1.0))).astype(np.float32)
        for plane in _planes(luma, transform)
    )
    return float(_correlation(details, repeated, FINE_NOISE)[part].mean())


def applied(at: NDArray[np.float64], transform: Affine) -> NDArray[np.float64]:
    """Map points (N, 2)."""
    return np.asarray(at @ transform[:, :2].T + transform[:, 2])


def _planes(luma: NDArray[np.uint8], transform: Affine) -> tuple[Floats, Floats]:
    """Return the luma, and what the map leads to from each of its pixels."""
    height, width = luma.shape
    plane = luma.astype(np.float32)
    flags = cv2.WARP_INVERSE_MAP | cv2.INTER_CUBIC
    border = cv2.BORDER_REPLICATE
    moved = np.asarray(cv2.warpAffine(plane, transform, (width, height), flags=flags, borderMode=border), np.float32)
    return plane, moved


def _two_parts(part: Mask, transform: Affine) -> tuple[Mask, Mask]:
    """Return a part that repeats and where it repeats, without what lies in both.

    A pattern that goes on – windows of a tower – is in both, since its repetition repeats in its turn. So is all of a
    part that was mirrored or turned by 180° about a place between them, which leads back: there, a half is kept.
    """
    other = _moved(part, transform)
    both = part & other
    y, x = np.nonzero(both)
    at = np.column_stack([x, y]).astype(np.float64)
    to = applied(at, transform)
    back = np.linalg.norm(applied(to, transform) - at, axis=1) < APART
    half = back & ((to - at) @ [1.0, 1e-3] > 0)
    part = part & ~both
    part[y[half], x[half]] = True
    return part, _moved(part, transform)


def _moved(part: Mask, transform: Affine) -> Mask:
    flags = cv2.INTER_NEAREST
    return np.asarray(cv2.warpAffine(part.astype(np.uint8), transform, part.shape[::-1], flags=flags) > 0)


def values_at(plane: NDArray[Any], at: NDArray[np.floating]) -> NDArray[Any]:
    """Return the values (N,) of a plane (H, W) at key points (N, 2)."""
    x, y = np.round(at).astype(int).T
    return np.asarray(plane[y.clip(0, plane.shape[0] - 1), x.clip(0, plane.shape[1] - 1)])


def _correlation(one: Floats, other: Floats, noise: float) -> Floats:
    """Return the correlation of two planes in a window around each pixel, (H, W) in [-1, 1]; that of noise is small."""

    def mean(values: Floats) -> Floats:
        return np.asarray(cv2.boxFilter(values, -1, (WINDOW, WINDOW)))

    first, second = mean(one), mean(other)
    shared = mean(one * other) - first * second
    spread = (mean(one * one) - first * first + noise) * (mean(other * other) - second * second + noise)
    return np.asarray(shared / np.sqrt(np.maximum(spread, 1e-6)))
