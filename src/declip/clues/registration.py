"""Find how one picture lies in another: turned, mirrored, scaled, cropped, or drawn in slight perspective.

Key points (SIFT; Lowe, IJCV 2004) of both are matched, and matches that agree on one homography are gathered (RANSAC).
The homography is then refined on all pixels at once (ECC; Evangelidis and Psarakis, TPAMI 2008), since an edge that is
off by a third of a pixel differs more than most edits do.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

__all__ = ["FEWEST", "Registration", "aligned", "applied", "corners", "register", "scaled"]

Floats = NDArray[np.float32]
Matrix = NDArray[np.float64]

LARGEST = 1_000_000  # px; larger pictures are registered at this size
SMALL = 100_000  # px; smaller ones at twice their size
MOST_POINTS = 3000
RATIO = 0.8  # of a match's distance to that of the next
CLOSE = 3.0  # px between a match and the homography it agrees with
FEWEST = 15  # matches that agree, or the pictures are different
ENOUGH = 60  # such matches: nothing else is tried
STEPS = 15  # of ECC
SNAP = 0.6  # px, within which a frame or a shift is taken for the exact one
SIZES = 1 / 16, 16.0  # of the original's px in one of the photo's


class Registration(NamedTuple):
    """How an original lies in a photo.

    transform: (3, 3) float64, maps (x, y) px of the photo to those of the original; pixel centres are whole numbers.
    None if the pictures do not match. inliers: matches that agree on it.
    """

    transform: Matrix | None
    inliers: int


def register(photo: NDArray[np.uint8], original: NDArray[np.uint8]) -> Registration:
    """Find an original in a photo. photo, original: (H, W, 3) uint8 RGB, of any two sizes.

    Both are looked at with at most 1 MP. Upright and mirrored originals are tried.
    """
    one, other = _View.of(photo), _View.of(original)
    found = _matched(one, other, mirrored=False)
    if found.inliers < ENOUGH:
        found = max(found, _matched(one, other, mirrored=True), key=lambda found: found.inliers)
    if found.transform is None:
        return found
    refined = _refined(one.luma, other.luma, found.transform)
    transform = np.linalg.inv(other.to_view) @ refined @ one.to_view
    return Registration(transform / transform[2, 2], found.inliers)


def _luma(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the luma (H, W) of RGB pixels."""
    return np.asarray(cv2.cvtColor(np.ascontiguousarray(pixels), cv2.COLOR_RGB2GRAY), np.uint8)


def scaled(pixels: NDArray[np.uint8], height: int, width: int) -> tuple[NDArray[np.uint8], Matrix]:
    """Scale pixels, and return what maps (x, y) px of the given ones to the scaled ones, (3, 3)."""
    shrinks = height * width < pixels.shape[0] * pixels.shape[1]
    flag = cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC
    made = cv2.resize(pixels, (width, height), interpolation=flag) if (height, width) != pixels.shape[:2] else pixels
    x, y = width / pixels.shape[1], height / pixels.shape[0]
    return np.asarray(made, np.uint8), np.array([[x, 0, (x - 1) / 2], [0, y, (y - 1) / 2], [0, 0, 1]])


def applied(at: NDArray[Any], transform: Matrix) -> Matrix:
    """Map points (N, 2)."""
    to = np.column_stack([at, np.ones(len(at))]) @ transform.T
    return np.asarray(to[:, :2] / to[:, 2:])


def aligned(
    original: NDArray[np.uint8], transform: Matrix, height: int, width: int
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Resample an original to the grid of a photo of this size: its pixels (H, W, 3), and where it shows the photo.

    transform: as in `Registration`. An original of the same frame, turned or mirrored, is scaled without a warp, and
    one that lies at whole pixels is only cut out, so that nothing is blurred that need not be.
    """
    frame = _frame(original, transform, height, width)
    if frame is not None:
        return _shrunk(frame, height, width), np.ones((height, width), np.bool_)
    at = np.array([[width / 2, height / 2], [width / 2 + 1, height / 2], [width / 2, height / 2 + 1]])
    to = applied(at, transform)
    step = math.sqrt(abs(float(np.linalg.det(to[1:] - to[0]))))
    if step > 1.1:  # a warp alone would skip pixels
        size = [max(1, round(side / step)) for side in original.shape[:2]]
        x, y = size[1] / original.shape[1], size[0] / original.shape[0]
        transform = np.array([[x, 0, (x - 1) / 2], [0, y, (y - 1) / 2], [0, 0, 1]]) @ transform
        original = _shrunk(original, *size)
    transform = _snapped(transform, height, width)
    flags = cv2.WARP_INVERSE_MAP | cv2.INTER_LANCZOS4
    moved = cv2.warpPerspective(original, transform, (width, height), flags=flags, borderMode=cv2.BORDER_REPLICATE)
    there = np.ones(original.shape[:2], np.float32)
    inside = cv2.warpPerspective(there, transform, (width, height), flags=cv2.WARP_INVERSE_MAP | cv2.INTER_LINEAR)
    return np.asarray(moved, np.uint8), np.asarray(inside > 0.99)


def _frame(original: NDArray[np.uint8], transform: Matrix, height: int, width: int) -> NDArray[np.uint8] | None:
    """Return the original turned and mirrored as the photo, if both have the same frame."""
    to = applied(corners(height, width), transform)
    near = SNAP * max(1.0, max(original.shape[:2]) / max(height, width))
    places = corners(*original.shape[:2])
    for mirrored in (False, True):
        for quarters in range(4):
            square = np.rot90(places[[[0, 1], [3, 2]]], quarters)
            square = square[:, ::-1] if mirrored else square
            if np.abs(to - square[[0, 0, 1, 1], [0, 1, 1, 0]]).max() < near:
                turned = np.rot90(original, quarters)
                return np.ascontiguousarray(turned[:, ::-1] if mirrored else turned)
    return None


def corners(height: int, width: int) -> Matrix:
    """Return the outer corners of a picture, (x, y) px, clockwise from the top left."""
    return np.array([[0, 0], [width, 0], [width, height], [0, height]]) - 0.5


def _snapped(transform: Matrix, height: int, width: int) -> Matrix:
    """Return the shift by whole pixels that a homography is nearly, or else itself."""
    shifts = applied(corners(height, width), transform) - corners(height, width)
    shift = np.round(shifts.mean(axis=0))
    if np.abs(shifts - shift).max() >= SNAP:
        return transform
    return np.array([[1, 0, shift[0]], [0, 1, shift[1]], [0, 0, 1]])


def _shrunk(pixels: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    if pixels.shape[:2] == (height, width):
        return pixels
    # Lanczos, as in the programs that people scale their photos with.
    return np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.LANCZOS))


class _View(NamedTuple):
    """A picture as it is registered: luma (h, w), what maps the picture's px to its px, key points and descriptors."""

    luma: NDArray[np.uint8]
    to_view: Matrix
    at: Floats
    descriptors: Floats

    @classmethod
    def of(cls, pixels: NDArray[np.uint8]) -> _View:
        luma = _luma(pixels)
        factor = 2.0 if luma.size < SMALL else min(1.0, math.sqrt(LARGEST / luma.size))
        size = [max(1, round(side * factor)) for side in luma.shape]
        luma, to_view = scaled(luma, *size)
        detector = cv2.SIFT.create(nfeatures=MOST_POINTS, contrastThreshold=0.01, edgeThreshold=20.0)
        keys, values = detector.detectAndCompute(luma, None)
        if values is None:
            return cls(luma, to_view, np.zeros((0, 2), np.float32), np.zeros((0, 128), np.float32))
        # The square root of descriptors of sum 1: Hellinger's distance (Arandjelović and Zisserman, CVPR 2012).
        descriptors = np.sqrt(values / np.maximum(values.sum(axis=1, keepdims=True), 1e-6)).astype(np.float32)
        return cls(luma, to_view, np.array([key.pt for key in keys], np.float32), descriptors)


def _matched(one: _View, other: _View, mirrored: bool) -> Registration:
    descriptors = one.descriptors
    if mirrored:  # 4×4 cells of 8 directions, upside down
        cells = descriptors.reshape(-1, 4, 4, 8)[:, ::-1]
        descriptors = np.ascontiguousarray(cells[..., -np.arange(8) % 8]).reshape(-1, 128)
    if min(len(descriptors), len(other.descriptors)) < FEWEST:
        return Registration(None, 0)
    alike = descriptors @ other.descriptors.T
    nearest = alike.argmax(axis=1)
    every = np.arange(len(alike))
    best = alike[every, nearest]
    mutual = alike.argmax(axis=0)[nearest] == every
    alike[every, nearest] = -1
    distance, next_one = (np.sqrt(np.maximum(2 - 2 * values, 0)) for values in (best, alike.max(axis=1)))
    good = (distance < RATIO * next_one) & mutual
    start, end = one.at[good], other.at[nearest[good]]
    if len(start) < FEWEST:
        return Registration(None, len(_places(start)) if len(start) < 4 else 0)
    found, agreeing = cv2.findHomography(start, end, cv2.RANSAC, CLOSE, maxIters=5000, confidence=0.9999)
    if found is None:
        return Registration(None, 0)
    inliers = len(_places(start[agreeing.ravel() > 0]))
    plausible = inliers >= FEWEST and _is_plausible(found, one.luma.shape)
    return Registration(np.asarray(found, np.float64) if plausible else None, inliers)


def _places(at: NDArray[Any]) -> NDArray[Any]:
    """Return key points (N, 2) without those that share a place."""
    return np.unique(np.round(at / 4), axis=0)


def _is_plausible(transform: Matrix, shape: tuple[int, ...]) -> bool:
    """Say whether a homography turns, mirrors, scales and crops, with little perspective."""
    height, width = shape
    ends = corners(height, width)
    if (np.column_stack([ends, np.ones(4)]) @ transform[2] <= 0).any():
        return False
    for x, y in (*ends, (width / 2, height / 2)):
        depth = transform[2] @ (x, y, 1)
        to = applied(np.array([[x, y]]), transform)[0]
        # The derivative at that place.
        slope = (transform[:2, :2] - np.outer(to, transform[2, :2])) / depth
        large, small = np.linalg.svd(slope, compute_uv=False)
        if not (small > SIZES[0] and large < SIZES[1] and large < 2 * small):
            return False
    return True


def _refined(one: NDArray[np.uint8], other: NDArray[np.uint8], transform: Matrix) -> Matrix:
    """Refine a homography on all pixels of two views; as it was where that does not converge."""
    steps = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, STEPS, 1e-5)
    everywhere = np.ones(other.shape, np.uint8)
    start = transform.astype(np.float32)
    try:
        _, refined = cv2.findTransformECC(one, other, start, cv2.MOTION_HOMOGRAPHY, steps, everywhere, 5)
    except cv2.error:
        return transform
    return np.asarray(refined, np.float64)
