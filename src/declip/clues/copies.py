"""Search a photo for copies: parts of a photo that repeat other parts of it.

Key points (SIFT; Lowe, IJCV 2004) are matched within the photo, and matches that agree on one affine map are gathered
(as Amerini et al., TIFS 2011, do). Then the photo is compared with itself under that map, pixel by pixel: what is
reported repeats densely, not only in corners. Photos repeat themselves, too: windows, bricks, letters. A copy also
repeats what such things do not share, most of its key points and its finest texture; the evidence counts both.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from declip.clues.repeating import APART, Affine, Mask, applied, likeness_of_details, repeating, values_at

__all__ = ["Copy", "enlarged", "find_copies", "without_repeats"]

Floats = NDArray[np.float32]


LARGEST = 2_000_000  # px; larger photos are searched at this size
SMALL = 500_000  # px; smaller photos are searched at twice their size
MOST_POINTS = 8000
MOST_MAPS = 12  # for each of upright and mirrored copies
NEIGHBOURS = 5  # of a key point: a part may be there several times
RATIO = 0.75  # of a neighbour's distance to that of the next one
FARTHEST = 0.6  # distance between the descriptors of a match, whose length is 1
CLOSE = 3.0  # px between a match and the map it agrees with
DRIFT = 0.06  # px more for each px from the match that the map was taken from
FEWEST = 4  # matches of a map
SMALLEST = 200  # px, of a part


class Copy(NamedTuple):
    """A part of a photo and another one that repeats it. Which of them is the source is not known.

    one, other: (H, W) bool. transform: (2, 3) float64, maps (x, y) px of `one` to `other`. matches: key points that
    agree on it. evidence: matches × share of the key points in `one` that match × mean correlation of the finest
    details; >= 0, without a unit.
    """

    one: Mask
    other: Mask
    transform: Affine
    matches: int
    evidence: float

    @property
    def mask(self) -> Mask:
        """(H, W) bool, True in both parts."""
        return self.one | self.other


class _Points(NamedTuple):
    """Key points: at (N, 2) px, size (N,) px, angle (N,) radians, descriptors (N, 128) of length 1."""

    at: Floats
    size: Floats
    angle: Floats
    descriptors: Floats


def find_copies(pixels: NDArray[np.uint8], least: float = 0.0) -> list[Copy]:
    """Find the parts of a photo that repeat other parts, the strongest evidence first.

    pixels: (H, W, 3) uint8 RGB. least: evidence of a copy at least. Photos over 2 MP are searched at 2 MP.
    """
    luma = np.asarray(cv2.cvtColor(np.ascontiguousarray(pixels), cv2.COLOR_RGB2GRAY), np.uint8)
    height, width = luma.shape
    scale = min(1.0, math.sqrt(LARGEST / luma.size))
    if scale < 1:
        size = round(width * scale), round(height * scale)
        luma = np.asarray(cv2.resize(luma, size, interpolation=cv2.INTER_AREA), np.uint8)
    points = _key_points(luma)
    found: list[Copy] = []
    for mirrored in (False, True):
        matches = _matches(points, mirrored)
        for transform, agreeing in _maps(points, matches, mirrored):
            copy = _compare(luma, points, agreeing, transform)
            if copy is not None and copy.evidence >= least:
                found.append(copy)
    kept = without_repeats(found)
    return [enlarged(copy, height, width) for copy in kept] if scale < 1 else kept


def without_repeats(found: list[Copy]) -> list[Copy]:
    """Return the copies without those that others show in the other direction, the strongest evidence first."""
    kept: list[Copy] = []
    for copy in sorted(found, key=lambda copy: -copy.evidence):
        if not any((copy.one & there.other).any() and (copy.other & there.one).any() for there in kept):
            kept.append(copy)
    return kept


def _key_points(luma: NDArray[np.uint8]) -> _Points:
    factor = 2 if luma.size < SMALL else 1
    seen = cv2.resize(luma, None, fx=factor, fy=factor, interpolation=cv2.INTER_CUBIC) if factor > 1 else luma
    detector = cv2.SIFT.create(nfeatures=MOST_POINTS, contrastThreshold=0.01, edgeThreshold=20.0)
    keys, values = detector.detectAndCompute(seen, None)
    if values is None:
        empty = np.zeros(0, np.float32)
        return _Points(empty.reshape(0, 2), empty, empty, empty.reshape(0, 128))
    # The square root of descriptors of sum 1: Hellinger's distance (Arandjelović and Zisserman, CVPR 2012).
    descriptors = np.sqrt(values / np.maximum(values.sum(axis=1, keepdims=True), 1e-6))
    return _Points(
        at=((np.array([key.pt for key in keys]) + 0.5) / factor - 0.5).astype(np.float32),
        size=np.array([key.size for key in keys], np.float32) / np.float32(factor),
        angle=np.radians([key.angle for key in keys]).astype(np.float32),
        descriptors=descriptors.astype(np.float32),
    )


def _matches(points: _Points, mirrored: bool) -> NDArray[np.int64]:
    """Return pairs of key points (M, 2) that are much more alike than those of further places."""
    descriptors = points.descriptors
    if mirrored:  # 4×4 cells of 8 directions, upside down
        cells = descriptors.reshape(-1, 4, 4, 8)[:, ::-1]
        descriptors = np.ascontiguousarray(cells[..., -np.arange(8) % 8]).reshape(-1, 128)
    pairs = [np.zeros((0, 2), np.int64)]
    for start in range(0, len(points.at), 1000):
        rows = np.arange(start, min(start + 1000, len(points.at)))
        neighbours, distances = _neighbours(points, rows, points.descriptors[rows] @ descriptors.T)
        # All neighbours in front of the last gap in their distances match.
        gaps = (distances[:, :-1] < RATIO * distances[:, 1:]) & np.isfinite(distances[:, 1:])
        last = np.where(gaps.any(axis=1), gaps.shape[1] - gaps[:, ::-1].argmax(axis=1), 0)
        for k in range(NEIGHBOURS):
            chosen = (k < last) & (distances[:, k] < FARTHEST)
            pairs.append(np.stack([rows[chosen], neighbours[chosen, k]], axis=1))
    return np.concatenate(pairs)


def _neighbours(points: _Points, rows: NDArray[np.int64], alike: Floats) -> tuple[NDArray[np.int64], Floats]:
    """Return the most alike key points of other places, (R, NEIGHBOURS + 1), and their distances.

    alike: (R, N) products of descriptors; it is overwritten.
    """
    count = NEIGHBOURS + 1
    neighbours = np.zeros((len(rows), count), np.int64)
    distances = np.full((len(rows), count), np.inf, np.float32)
    places = np.full((len(rows), count + 1, 2), np.inf, np.float32)
    places[:, 0] = points.at[rows]
    filled = np.zeros(len(rows), np.int64)
    every = np.arange(len(rows))
    # One place may have several key points: of other sizes and angles.
    for _ in range(3 * count):
        best = alike.argmax(axis=1)
        values = alike[every, best]
        alike[every, best] = -1
        here = points.at[best]
        new = (np.linalg.norm(places - here[:, None], axis=2) > APART).all(axis=1) & (filled < count)
        neighbours[new, filled[new]] = best[new]
        distances[new, filled[new]] = np.sqrt(np.maximum(2 - 2 * values[new], 1e-8))
        places[new, filled[new] + 1] = here[new]
        filled[new] += 1
    return neighbours, distances


def _maps(points: _Points, matches: NDArray[np.int64], mirrored: bool) -> Iterator[tuple[Affine, NDArray[np.int64]]]:
    """Yield affine maps (2, 3) that matches agree on, each with those matches; the one with the most first."""
    left = matches
    for _ in range(MOST_MAPS):
        if len(left) < FEWEST:
            return
        one, other = (points.at[column].astype(np.float64) for column in left.T)
        # Size and angle of the two key points of a match say where all others should go.
        agreeing = max(
            (
                np.linalg.norm(applied(one, guess) - other, axis=1) < CLOSE + DRIFT * np.linalg.norm(one - home, axis=1)
                for guess, home in zip(_guesses(points, left, mirrored), one, strict=True)
            ),
            key=np.count_nonzero,
        )
        if agreeing.sum() < FEWEST:
            return
        for _ in range(4):
            known = np.column_stack([one[agreeing], np.ones(int(agreeing.sum()))])
            transform = np.linalg.lstsq(known, other[agreeing], rcond=None)[0].T
            now = np.linalg.norm(applied(one, transform) - other, axis=1) < CLOSE
            if now.sum() < FEWEST:
                break
            agreeing = now
        if _is_plausible(transform) and len(_places(one[agreeing])) >= FEWEST:
            yield transform, left[agreeing]
        left = left[~agreeing]


def _guesses(points: _Points, matches: NDArray[np.int64], mirrored: bool) -> NDArray[np.float64]:
    """Return the similarity (2, 3) that each match says by itself, (M, 2, 3)."""
    one, other = matches.T
    scale = points.size[other] / points.size[one]
    # The descriptor of the mirrored picture: its angle has the other sign.
    sign = -1.0 if mirrored else 1.0
    angle = points.angle[other] - sign * points.angle[one]
    cosine, sine = np.cos(angle) * scale, np.sin(angle) * scale
    turns = np.stack([cosine, -sine * sign, sine, cosine * sign], axis=-1).reshape(-1, 2, 2).astype(np.float64)
    shifts = points.at[other] - np.einsum("mij,mj->mi", turns, points.at[one].astype(np.float64))
    return np.concatenate([turns, shifts[:, :, None]], axis=2)


def _is_plausible(transform: Affine) -> bool:
    """Say whether a map turns, mirrors and scales (½ to 2, with some room), but hardly distorts."""
    large, small = np.linalg.svd(transform[:, :2], compute_uv=False)
    return bool(small > 0.4 and large < 2.5 and large < 1.6 * small)


def _places(at: NDArray[Any]) -> NDArray[Any]:
    """Return key points (N, 2) without those that share a place."""
    return np.unique(np.round(at / 4), axis=0)


def _compare(luma: NDArray[np.uint8], points: _Points, agreeing: NDArray[np.int64], transform: Affine) -> Copy | None:
    """Compare a photo with itself under a map; None if no part repeats."""
    at = points.at[agreeing[:, 0]]
    part, other = repeating(luma, transform, at)
    if np.count_nonzero(part) < SMALLEST:
        return None
    matched = len(_places(at[values_at(part, at)]))
    share = matched / max(1, len(_places(points.at[values_at(part, points.at)])))
    detail = max(0.0, likeness_of_details(luma, transform, part))
    return Copy(part, other, transform, matched, matched * share * detail)


def enlarged(copy: Copy, height: int, width: int) -> Copy:
    """Bring what was found in a smaller picture to the photo's own size."""
    one, other = (
        cv2.resize(part.astype(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST) > 0
        for part in (copy.one, copy.other)
    )
    factor = width / copy.one.shape[1]
    return copy._replace(one=one, other=other, transform=copy.transform * [1, 1, factor])
