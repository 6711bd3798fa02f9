"""Find pieces of a photo that repeat other places of it to the grain, moved without turning or scaling.

Neighbouring patches whose most similar patches (`nearest`) lie at the same shift are a piece. Photos repeat themselves:
an edge continues, windows are alike. What counts is the finest detail: its correlation with that of the place it came
from, against the same at places two pixels off, where an edge or a gradient still agrees.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from declip.clues.nearest import PATCH, STEP, Nearest, nearest

__all__ = ["LARGEST", "Pieces", "find_pieces", "luma_of"]

LARGEST = 2_000_000  # px; larger photos are searched at this size
_FEWEST = 6  # patches of a piece
_FINE = 1.0  # px, of the blur that leaves the details
_WINDOW = 7  # px, in which the strength of the details is evened out
_NOISE = 1.0  # grey levels², that details have at least
_GRAIN = 4.0  # px that share one value, of details: they are not independent of their neighbours
_BESIDE = 2  # px
_CERTAIN = 0.999  # correlation; more says no more


class Pieces(NamedTuple):
    """Pieces of a photo that repeat other places of it.

    labels: (H, W) int32, the number of the piece that a pixel lies in, or -1. shift: (N, 2) int32, (y, x) px from each
    piece to the place it repeats. evidence: (N,) digits: −log10 of a bound of how many pieces like this one a photo
    of this size has by chance; 0 where that is 1 or more.
    """

    labels: NDArray[np.int32]
    shift: NDArray[np.int32]
    evidence: NDArray[np.float64]

    def mask(self, which: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Return the pixels (H, W) of the pieces that are True in `which`, (N,)."""
        return np.append(which, False)[self.labels]

    def sources(self, which: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Return the pixels (H, W) that those pieces repeat."""
        sources = np.zeros(self.labels.shape, bool)
        y, x = np.nonzero(self.mask(which))
        down, right = self.shift[self.labels[y, x]].T
        sources[y + down, x + right] = True
        return sources


def luma_of(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the luma of a photo, scaled down to LARGEST px if it has more."""
    luma = np.asarray(cv2.cvtColor(np.ascontiguousarray(pixels), cv2.COLOR_RGB2GRAY), np.uint8)
    scale = math.sqrt(LARGEST / luma.size)
    if scale >= 1:
        return luma
    size = round(luma.shape[1] * scale), round(luma.shape[0] * scale)
    return np.asarray(cv2.resize(luma, size, interpolation=cv2.INTER_AREA), np.uint8)


def find_pieces(luma: NDArray[np.uint8]) -> Pieces:
    """Find the pieces of a luma (H, W) that repeat other places of it."""
    found = nearest(luma)
    labels, count = _joined(found)
    if count == 0:
        nothing = np.full(luma.shape, -1, np.int32)
        return Pieces(nothing, np.zeros((0, 2), np.int32), np.zeros(0))
    numbers, first = np.unique(labels, return_index=True)
    shift = found.shift.reshape(-1, 2)[first[numbers >= 0]]
    pixels = _on_pixels(labels, luma.shape)
    return Pieces(pixels, shift, _evidence(luma, pixels, shift))


def _joined(found: Nearest) -> tuple[NDArray[np.int32], int]:
    """Join neighbouring patches with the same shift: the number of the piece of each (h, w), or -1; and their count."""
    matches, shift = found
    ids = np.arange(matches.size).reshape(matches.shape)
    pairs = []
    for here, there in ((np.s_[:, :-1], np.s_[:, 1:]), (np.s_[:-1], np.s_[1:])):
        same = matches[here] & matches[there] & (shift[here] == shift[there]).all(axis=2)
        pairs.append(np.stack([ids[here][same], ids[there][same]]))
    one, other = np.concatenate(pairs, axis=1)
    graph = coo_matrix((np.ones(len(one), np.int8), (one, other)), shape=(matches.size, matches.size))
    labels = connected_components(graph, directed=False)[1]
    counts = np.bincount(labels[matches.ravel()], minlength=1)
    kept = np.flatnonzero(counts >= _FEWEST)
    numbers = np.full(max(len(counts), int(labels.max(initial=0)) + 1), -1, np.int32)
    numbers[kept] = np.arange(len(kept))
    return np.where(matches, numbers[labels].reshape(matches.shape), -1).astype(np.int32), len(kept)


def _on_pixels(labels: NDArray[np.int32], size: tuple[int, ...]) -> NDArray[np.int32]:
    """Spread the numbers of patches over the pixels at their centres, (H, W)."""
    pixels = np.full(size, -1, np.int32)
    spread = labels.repeat(STEP, axis=0).repeat(STEP, axis=1)
    start = PATCH // 2
    there = pixels[start : size[0] - start, start : size[1] - start]
    cut = spread[: there.shape[0], : there.shape[1]]
    there[: cut.shape[0], : cut.shape[1]] = cut
    return pixels


def _evidence(luma: NDArray[np.uint8], labels: NDArray[np.int32], shift: NDArray[np.int32]) -> NDArray[np.float64]:
    details = _details(luma)
    y, x = np.nonzero(labels >= 0)
    at = y, x, labels[y, x]
    around = [(down, right) for down in (-_BESIDE, 0, _BESIDE) for right in (-_BESIDE, 0, _BESIDE) if down or right]
    here = _correlations(details, at, shift)
    beside = np.max([_correlations(details, at, shift + np.array(step, np.int32)) for step in around], axis=0)
    # The likelihood of two samples of a normal distribution with this correlation, against that beside.
    independent = np.bincount(at[2], minlength=len(shift)) / _GRAIN
    digits = np.log10((1 - beside**2) / (1 - here**2)) * independent / 2
    return np.asarray(np.maximum(digits - math.log10(luma.size), 0))


def _correlations(
    details: NDArray[np.float32], at: tuple[NDArray[Any], NDArray[Any], NDArray[Any]], shift: NDArray[np.int32]
) -> NDArray[np.float64]:
    """Return the correlation of each piece with the place at a shift, (N,) in [0, 1). at: y, x and piece of pixels."""
    y, x, label = at
    moved = y + shift[label, 0], x + shift[label, 1]
    rows, columns = (to.clip(0, side - 1) for to, side in zip(moved, details.shape, strict=True))
    here, there = details[y, x], details[rows, columns]
    both, one, other = (np.bincount(label, v, len(shift)) for v in (here * there, here * here, there * there))
    return np.asarray((both / np.sqrt(one * other + 1e-6)).clip(0, _CERTAIN))


def _details(luma: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return what a blur leaves of the luma, (H, W), evened out: about 1 everywhere, less where there is but noise."""
    plane = luma.astype(np.float32)
    fine = plane - np.asarray(cv2.GaussianBlur(plane, (0, 0), _FINE))
    strength = np.asarray(cv2.boxFilter(fine * fine, -1, (_WINDOW, _WINDOW)))
    return np.asarray(fine / np.sqrt(strength + np.float32(_NOISE)))
