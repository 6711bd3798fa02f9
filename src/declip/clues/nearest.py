"""Find for each patch of a photo the most similar patch elsewhere in it.

Patches are compared by their lowest DCT frequencies, and candidates come from hashing those coarsely, several times
(after Korman and Avidan, CSH, ICCV 2011), then from neighbours, as in PatchMatch (Barnes et al. 2009).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

__all__ = ["APART", "PATCH", "STEP", "Nearest", "nearest"]

Floats = NDArray[np.float32]
Integers = NDArray[np.int64]

PATCH = 7  # px
STEP = 2  # px between patches that are looked for; they are looked for everywhere
APART = 16.0  # px between a patch and the one it is compared with
_FREQUENCIES = 4  # in each direction
_TABLES = 8
_SLOTS = 22  # bits of a hash
_WIDTH = 11.0  # of the intervals that values are hashed to: some four times what saving at quality 90 changes
_HASHED = 7  # values
_TEXTURE = 600.0  # energy without the mean, grey levels²: below it, patches are alike by chance
_CLIPPED = 0.25  # of the pixels of a patch that is left out
_DARK, _BRIGHT = 3, 252  # levels
_LIKE = 0.2  # of a patch's energy, which the difference of two that match has at most
_ROUNDS = 3  # of asking neighbours


class Nearest(NamedTuple):
    """matches: (h, w) bool, of patches STEP px apart, the first centred at (PATCH // 2, PATCH // 2). shift: (h, w, 2)
    int32, (y, x) px from each to the most similar one."""

    matches: NDArray[np.bool_]
    shift: NDArray[np.int32]


class _Search:
    """The patches that are looked for, and the best that was found for each so far."""

    def __init__(self, luma: NDArray[np.uint8]) -> None:
        self.height, self.width = luma.shape
        self.values = _values(luma)  # (H × W, F)
        self.energy = np.einsum("nf,nf->n", self.values[:, 1:], self.values[:, 1:])
        rows, columns = (np.arange(PATCH // 2, side - PATCH // 2, STEP) for side in luma.shape)
        self.grid = len(rows), len(columns)
        place = (rows[:, None] * self.width + columns).ravel()
        ends = cv2.boxFilter(((luma <= _DARK) | (luma >= _BRIGHT)).astype(np.float32), -1, (PATCH, PATCH)).ravel()
        self.number = np.flatnonzero((self.energy[place] > _TEXTURE) & (ends[place] <= _CLIPPED))  # on the grid
        self.place = place[self.number]
        self.y, self.x = np.divmod(self.place, self.width)
        self.sought = self.values[self.place]
        self.distance = np.full(len(self.place), np.inf, np.float32)
        self.best = np.zeros(len(self.place), np.int64)

    def offer(self, which: Integers, candidate: Integers) -> None:
        """Compare patches with candidates, both (N,); the better ones are kept."""
        y, x = np.divmod(candidate, self.width)
        apart = (y - self.y[which]) ** 2 + (x - self.x[which]) ** 2 > APART**2
        which, candidate = which[apart], candidate[apart]
        difference = self.values[candidate]
        difference -= self.sought[which]
        distance = np.einsum("nf,nf->n", difference, difference)
        better = distance < self.distance[which]
        self.distance[which[better]] = distance[better]
        self.best[which[better]] = candidate[better]

    def matches(self) -> NDArray[np.bool_]:
        return np.asarray(self.distance < _LIKE * self.energy[self.place])


def nearest(luma: NDArray[np.uint8], seed: int = 0) -> Nearest:
    """Find the most similar patch for each textured patch of a photo's luma (H, W)."""
    matches = np.zeros((0, 0), bool)
    if min(luma.shape) < 2 * PATCH:
        return Nearest(matches, np.zeros((0, 0, 2), np.int32))
    search = _Search(luma)
    _hash(search, np.random.default_rng(seed))
    _ask_neighbours(search)
    matches = np.zeros(search.grid, bool)
    shift = np.zeros((*search.grid, 2), np.int32)
    like = search.matches()
    y, x = np.divmod(search.best, search.width)
    matches.ravel()[search.number[like]] = True
    shift.reshape(-1, 2)[search.number[like]] = np.column_stack([y - search.y, x - search.x])[like]
    return Nearest(matches, shift)


def _values(luma: NDArray[np.uint8]) -> Floats:
    """Return the lowest DCT values of the patch around each pixel, (H × W, F), the lowest first."""
    waves = [
        np.array(
            [math.cos(math.pi * (n + 0.5) * f / PATCH) * math.sqrt((2 if f else 1) / PATCH) for n in range(PATCH)],
            np.float32,
        )
        for f in range(_FREQUENCIES)
    ]
    order = sorted(((i, j) for i in range(_FREQUENCIES) for j in range(_FREQUENCIES)), key=lambda ij: (sum(ij), ij))
    plane = luma.astype(np.float32) - np.float32(128)
    values = np.empty((luma.size, len(order)), np.float32)
    for number, (i, j) in enumerate(order):
        filtered = cv2.sepFilter2D(plane, -1, waves[j], waves[i], borderType=cv2.BORDER_REFLECT)
        values[:, number] = np.asarray(filtered).ravel()
    return values


def _hash(search: _Search, rng: np.random.Generator) -> None:
    """Offer to each patch others with the same hash: the first and the last one in the photo."""
    textured = np.flatnonzero(search.energy > 0.7 * _TEXTURE)
    every = np.arange(len(search.place))
    for table in range(_TABLES):
        used = _HASHED - table % 2
        start = rng.uniform(0, 1, used).astype(np.float32)
        factors = (2 * rng.integers(2**31, size=used) + 1).astype(np.uint32)
        code, sought = (_codes(values[:, :used], start, factors) for values in (search.values[textured], search.sought))
        for order in (slice(None), slice(None, None, -1)):
            slots = np.full(1 << _SLOTS, -1, np.int32)
            slots[code[order]] = textured[order]  # the last of those with the same hash stays
            candidate = slots[sought].astype(np.int64)
            there = candidate >= 0
            search.offer(every[there], candidate[there])


def _codes(values: Floats, start: Floats, factors: NDArray[np.uint32]) -> NDArray[np.uint32]:
    codes = np.zeros(len(values), np.uint32)
    for interval, factor in zip(np.floor(values / _WIDTH + start).astype(np.int32).T, factors, strict=True):
        codes = (codes ^ interval.astype(np.uint32)) * factor
        codes ^= codes >> 15
    return np.asarray(codes >> (32 - _SLOTS), np.uint32)


def _ask_neighbours(search: _Search) -> None:
    """Offer to each patch what is beside the match of the patch beside it."""
    numbers = np.full(search.grid, -1, np.int64)
    numbers.ravel()[search.number] = np.arange(len(search.number))
    row, column = np.divmod(search.number, search.grid[1])
    edge = PATCH // 2
    for _ in range(_ROUNDS):
        for down, right in ((0, 1), (1, 0), (0, -1), (-1, 0)):
            matched = np.flatnonzero(search.matches())
            y, x = row[matched] + down, column[matched] + right
            inside = (y >= 0) & (x >= 0) & (y < search.grid[0]) & (x < search.grid[1])
            neighbour, matched = numbers[y[inside], x[inside]], matched[inside]
            to_y, to_x = np.divmod(search.best[matched], search.width)
            to_y, to_x = to_y + STEP * down, to_x + STEP * right
            fits = (to_y >= edge) & (to_x >= edge) & (to_y < search.height - edge) & (to_x < search.width - edge)
            fits &= neighbour >= 0
            search.offer(neighbour[fits], (to_y * search.width + to_x)[fits])
